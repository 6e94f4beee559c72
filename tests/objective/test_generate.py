"""Completions: against a loop without batch and cache, stopped, and sampled with noise that depends on no batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from torch import Tensor, nn

from zotune.errors import ConfigError
from zotune.objective.generate import Completion, Decoding, _gumbel, complete, end_tokens
from zotune.objective.scoring import pad_left, pad_right
from zotune.objective.tokens import TextCoder

one_thread = models.one_thread
PROMPTS = ["great acting but", "the plot is a mess and it", "fine"]


def said(model: Any, tokenizer: Any, decoding: Decoding, prompts: list[str] = PROMPTS, first: int = 0) -> Any:
    """Completions of the prompts, numbered from `first`, at step 5."""
    coder = TextCoder(tokenizer)
    ids = coder.encode(prompts)
    pad = pad_right if model.config.is_encoder_decoder else pad_left
    read, seen = pad(ids, coder.pad), pad([[1] * len(each) for each in ids], 0)
    return complete(model, coder, read, seen, decoding, [(5, first + row) for row in range(len(ids))])


def one_by_one(
    model: Any, prompt: Any, count: int, ends: list[int], noise: Any = None, temperature: float = 1.0
) -> Any:
    """The tokens of a plain loop that runs the whole text anew for each."""
    found: list[int] = []
    while len(found) < count:
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                begin = torch.tensor([[0, *found]])
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=begin).logits[0, -1].double()
            else:
                logits = model(input_ids=torch.tensor([[*prompt, *found]])).logits[0, -1].double()
        if noise is not None:
            logits = logits / temperature + torch.from_numpy(noise(len(found), len(logits)))
        token = int(logits.argmax())
        if token in ends:
            break
        found.append(token)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_says_what_each_prompt_says_alone(
    name: str, temperature: float, tokenizers: Any, make_model: Any
) -> None:
    """Greedily, and sampled with the noise of (seed, step, number, position)."""
    tokenizer, model = tokenizers[name], make_model(name, torch.float64)
    decoding = Decoding(max_new_tokens=7, temperature=temperature, seed=3)
    found = said(model, tokenizer, decoding)
    ends = end_tokens(model, TextCoder(tokenizer))
    for row, (prompt, own) in enumerate(zip(TextCoder(tokenizer).encode(PROMPTS), found, strict=True)):
        noise = (lambda at, size, row=row: _gumbel((3, 5, row, at), size)) if temperature else None
        ids = one_by_one(model, prompt, 7, ends, noise, temperature or 1.0)
        assert own == Completion(tuple(ids), tokenizer.decode(ids, skip_special_tokens=True), True)


def test_noise_depends_on_nothing_else(tokenizers: Any, make_model: Any) -> None:
    """Other rows, the batch's size and the global generator change nothing; seed, step and number do."""
    model, tokenizer = make_model("llama"), tokenizers["llama"]
    decoding = Decoding(max_new_tokens=6, temperature=1.0, seed=9)
    state = torch.random.get_rng_state()
    together = said(model, tokenizer, decoding)
    alone = [said(model, tokenizer, decoding, [prompt], first=row)[0] for row, prompt in enumerate(PROMPTS)]
    assert [each.ids for each in together] == [each.ids for each in alone]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert said(model, tokenizer, decoding, first=1) != together
    assert said(model, tokenizer, Decoding(max_new_tokens=6, temperature=1.0, seed=10)) != together


def test_gumbel_noise_samples_the_softmax() -> None:
    """Of 4,000 draws each token has the share that its logit says, within four standard errors."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    count = 4000
    drawn = torch.stack([logits + torch.from_numpy(_gumbel((0, 0, row, 0), 4)) for row in range(count)]).argmax(1)
    share = torch.bincount(drawn, minlength=4) / count
    wanted = logits.softmax(0)
    assert ((share - wanted).abs() < 4 * (wanted * (1 - wanted) / count).sqrt()).all()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stop_texts(name: str, tokenizers: Any, make_model: Any) -> None:
    """What stands before the first stop text is kept, and nothing after it; ids and text agree."""
    tokenizer, model = tokenizers[name], make_model(name)
    whole = said(model, tokenizer, Decoding(max_new_tokens=12))
    stop = tuple(each.text[4:6] for each in whole if len(each.text) > 6)
    assert len(stop) >= 2
    cut = said(model, tokenizer, Decoding(max_new_tokens=12, stop=stop))
    for full, own in zip(whole, cut, strict=True):
        before = min((full.text.find(each) for each in stop if each in full.text), default=len(full.text))
        assert own.text == full.text[:before]
        assert full.ids[: len(own.ids)] == own.ids
        assert own.text.startswith(tokenizer.decode(list(own.ids), skip_special_tokens=True))


def test_generation_ends_when_every_row_has(tokenizers: Any, make_model: Any) -> None:
    """No forward is run after the last row met its stop text."""
    model, tokenizer, calls = make_model("llama"), tokenizers["llama"], []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    said(model, tokenizer, Decoding(max_new_tokens=12))
    most = len(calls)
    calls.clear()
    letters = tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,<>/0123456789")
    found = said(model, tokenizer, Decoding(max_new_tokens=12, stop=letters))
    handle.remove()
    assert len(calls) < most and all(not set(each.text) & set(letters) for each in found)


def test_settings_of_the_model_do_not_slip_in(tokenizers: Any, make_model: Any) -> None:
    """A generation config that samples and penalises changes nothing; its end tokens are heeded."""
    model, tokenizer = make_model("llama"), tokenizers["llama"]
    plain = said(model, tokenizer, Decoding(max_new_tokens=8))
    own = model.generation_config
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty, own.no_repeat_ngram_size = True, 0.3, 3, 5.0, 1
    assert said(model, tokenizer, Decoding(max_new_tokens=8)) == plain
    own.eos_token_id = [plain[0].ids[2], 1]
    shorter = said(model, tokenizer, Decoding(max_new_tokens=8))
    assert shorter[0].ids == plain[0].ids[: plain[0].ids.index(plain[0].ids[2])]


def test_logits_that_are_not_finite_are_seen(tokenizers: Any, make_model: Any) -> None:
    """A model that has diverged still says something; the row is marked."""
    model, tokenizer = make_model("llama"), tokenizers["llama"]

    def spoil(_: nn.Module, __: Any, output: Any) -> None:
        logits: Tensor = output.logits
        logits[1] = torch.nan

    handle = model.register_forward_hook(spoil)
    found = said(model, tokenizer, Decoding(max_new_tokens=3))
    handle.remove()
    assert [each.finite for each in found] == [True, False, True]


def test_needs_a_model_that_generates(tokenizers: Any) -> None:
    """A plain module is refused with a sentence."""
    coder = TextCoder(tokenizers["llama"])
    with pytest.raises(ConfigError, match="Linear cannot generate. Remedy: use a language model"):
        complete(nn.Linear(1, 1), coder, torch.ones(1, 1), torch.ones(1, 1), Decoding(), [(0, 0)])
