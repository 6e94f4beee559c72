"""LanguageModel: which tokens are scored, and losses equal to single sequences with full logits."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from zotune.data.template import Template
from zotune.errors import ConfigError, DataError
from zotune.objective.language_model import LanguageModel

TEXTS = [
    {"text": "so bad it hurts"},
    {"text": "a warm and funny film that made me smile from the first scene to the last"},
    {"text": "the plot is a mess and it was terrible"},
]
PAIRS = [
    {"prompt": "is this good or bad ?", "completion": " Yes it was great"},
    {"prompt": "fine", "completion": " No"},
    {"prompt": "the plot is a mess", "completion": " so bad it hurts to the last scene"},
]
PROMPT = (Template("{{ prompt }}"), "completion")


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_text_equals_the_reference(name: str, tokenizers: Any, make_model: Any, repeat: Any) -> None:
    """All tokens but the very first read one are scored; batched, repeated and single losses agree."""
    model, objective = make_model(name, torch.float64), LanguageModel(tokenizers[name], "text", 64, "causal")
    examples = objective.encode(TEXTS)
    batch = objective.collate(examples)
    expected = []
    for row in TEXTS:
        ids = torch.tensor(tokenizers[name]([row["text"]])["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        expected.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    with torch.no_grad():
        losses = objective(model, batch)
        again = objective(model, repeat(batch, 2))
        alone = torch.cat([objective(model, objective.collate([example])) for example in examples])
    assert losses.shape == (3,) and losses.std() > 0.01
    torch.testing.assert_close(losses, torch.stack(expected), rtol=0, atol=1e-10)
    torch.testing.assert_close(again, losses.repeat(2), rtol=0, atol=1e-10)
    torch.testing.assert_close(alone, losses, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5"])
def test_completion_equals_the_reference(
    name: str, tokenizers: Any, make_model: Any, kind_of: Any, log_probabilities: Any, repeat: Any
) -> None:
    """Only completion tokens are scored, whatever the prompt's length and the batch."""
    model = make_model(name, torch.float64)
    objective = LanguageModel(tokenizers[name], PROMPT, 64, kind_of[name])
    examples = objective.encode(PAIRS)
    batch = objective.collate(examples)
    expected = torch.stack([-log_probabilities(model, kind_of[name], e, 0).mean() for e in examples])
    with torch.no_grad():
        losses = objective(model, batch)
        again = objective(model, repeat(batch, 3))
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(again, losses.repeat(3), rtol=0, atol=1e-10)
    assert all(not isinstance(v, torch.Tensor) or v.shape[0] == 3 for v in batch.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5"])
def test_padding_changes_nothing_in_fp32(name: str, tokenizers: Any, make_model: Any, kind_of: Any) -> None:
    """Alone and beside longer examples agree to 1e-5."""
    model, objective = make_model(name), LanguageModel(tokenizers[name], PROMPT, 64, kind_of[name])
    examples = objective.encode(PAIRS)
    with torch.no_grad():
        together = objective(model, objective.collate(examples))
        alone = torch.cat([objective(model, objective.collate([example])) for example in examples])
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_which_tokens_are_scored(tokenizers: Any) -> None:
    """Text after the first token, the whole text after a special token, the completion alone, T5's end."""
    tokenizer = tokenizers["gpt2"]
    ids = tokenizer("so bad it hurts")["input_ids"]
    plain = LanguageModel(tokenizer, "text", 64, "causal").encode(TEXTS)[0]
    assert plain.prompt == (ids[0],) and list(plain.options[0]) == ids[1:]
    started = LanguageModel(tokenizers["llama"], "text", 64, "causal").encode(TEXTS)[0]
    assert len(started.prompt) == 1 and list(started.options[0]) == ids
    pair = LanguageModel(tokenizer, PROMPT, 64, "causal").encode(PAIRS)[0]
    assert tokenizer.decode(pair.prompt) == PAIRS[0]["prompt"]
    assert tokenizer.decode(pair.options[0]) == PAIRS[0]["completion"]
    t5 = LanguageModel(tokenizers["t5"], PROMPT, 64, "seq2seq").encode(PAIRS)[0]
    assert t5.prompt[-1] == t5.options[0][-1] == tokenizers["t5"].eos_token_id


def test_end_token(tokenizers: Any) -> None:
    """`end` adds one end token to texts and completions, and does not double it."""
    tokenizer = tokenizers["gpt2"]
    objective = LanguageModel(tokenizer, PROMPT, 64, "causal", end=True)
    rows = [PAIRS[0], {**PAIRS[0], "completion": PAIRS[0]["completion"] + "</s>"}]
    first, second = (example.options[0] for example in objective.encode(rows))
    assert first == second and first[-1] == tokenizer.eos_token_id != first[-2]
    text = LanguageModel(tokenizer, "text", 64, "causal", end=True).encode(TEXTS)[0]
    assert text.options[0][-1] == tokenizer.eos_token_id


def test_long_rows_are_cut(tokenizers: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A text loses its end, a prompt its beginning but for the special token; nothing exceeds the limit."""
    text = LanguageModel(tokenizers["llama"], "text", 6, "causal")
    whole = LanguageModel(tokenizers["llama"], "text", 64, "causal").encode(TEXTS)[1]
    with caplog.at_level(logging.WARNING, logger="zotune"):
        cut = text.encode(TEXTS)
    assert cut[1].options[0] == whole.options[0][:6] and max(text.lengths(cut)) == 6
    assert "of 3 examples" in caplog.text
    for limit in (3, 6, 9):
        pair = LanguageModel(tokenizers["llama"], PROMPT, limit, "causal")
        examples = pair.encode(PAIRS)
        assert max(pair.lengths(examples)) <= limit
        full = LanguageModel(tokenizers["llama"], PROMPT, 64, "causal").encode(PAIRS)
        for short, long in zip(examples, full, strict=True):
            assert short.prompt[0] == long.prompt[0] and len(short.prompt) > 1
            assert short.prompt[1:] == long.prompt[1:][-(len(short.prompt) - 1) :]
            assert short.options[0] == long.options[0][: len(short.options[0])]


@pytest.mark.parametrize(("name", "beside"), [("t5", 0), ("roberta", 1)])
def test_a_decoder_reads_no_more(tokenizers: Any, name: str, beside: int) -> None:
    """What a tokenizer puts before a text stands before a completion too (BART), and counts."""
    completions = LanguageModel(tokenizers[name], (Template("{{ p }}"), "c"), 6, "seq2seq")
    found = completions.encode([{"p": "the film", "c": "good " * 20}])
    assert found[0].cut and len(found[0].options[0]) == 6 - beside
    assert completions.collate(found)["said"].shape[-1] == 6


def test_errors(tokenizers: Any) -> None:
    """Rows without anything to score and impossible settings say so."""
    tokenizer = tokenizers["gpt2"]
    text = LanguageModel(tokenizer, "text", 64, "causal")
    for rows, says in [
        ([], "no rows"),
        ([{"txt": "x"}], "Row 1 has no column 'text'; columns found: txt"),
        ([{"text": None}], "Row 1: column 'text' holds None, not text"),
        ([{"text": "it was"}, {"text": "fine"}], "Row 2 has no token to score"),
    ]:
        with pytest.raises(DataError, match=says):
            text.encode(rows)
    pair = LanguageModel(tokenizer, PROMPT, 64, "causal")
    with pytest.raises(DataError, match="Row 1 has no token to score"):
        pair.encode([{"prompt": "x", "completion": ""}])
    with pytest.raises(DataError, match="Row 1: the prompt is empty"):
        pair.encode([{"prompt": "", "completion": "fine"}])
    with pytest.raises(ConfigError, match="masked model"):
        LanguageModel(tokenizers["bert"], "text", 64, "masked")
    with pytest.raises(ConfigError, match="needs a prompt and a completion"):
        LanguageModel(tokenizers["t5"], "text", 64, "seq2seq")
    with pytest.raises(ConfigError, match="too short"):
        LanguageModel(tokenizer, "text", 1, "causal")
