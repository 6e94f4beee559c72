"""LabelWords equals one-sequence-at-a-time scoring with full logits, whatever it is batched with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zotune.data.template import Template
from zotune.errors import ConfigError, DataError
from zotune.objective.label_words import LabelWords
from zotune.objective.scoring import NONE

FAMILIES = ["llama", "gpt2", "opt", "bert", "roberta", "t5"]
ROWS = [
    {"text": "so bad it hurts", "label": 0},
    {"text": "fine", "label": 1},
    {"text": "a warm and funny film that made me smile from the first scene to the last", "label": 1},
    {"text": "the plot is a mess", "label": 0},
    {"text": "great acting but the script is weak", "label": 1},
]
SINGLE = ["terrible", "great"]
SEVERAL = ["terrible", "great acting", "so bad it hurts"]
# A masked model fills in one token, so it has the first form only.
FORMS = [(name, SINGLE) for name in FAMILIES] + [(name, SEVERAL) for name in ("llama", "gpt2", "opt", "t5")]


@pytest.fixture
def objective(tokenizers: dict[str, Any], kind_of: dict[str, Any]) -> Callable[..., LabelWords]:
    """`objective(family, words, template, labels, max_length)` with short defaults."""

    def make(
        name: str,
        words: list[str] = SINGLE,
        template: str | None = None,
        labels: list[Any] | None = None,
        max_length: int = 64,
    ) -> LabelWords:
        if template is None:
            template = "{{ text }} it was {{ mask }} ." if kind_of[name] == "masked" else "{{ text }} it was"
        return LabelWords(tokenizers[name], Template(template), "label", words, labels, kind_of[name], max_length)

    return make


def several(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with three label values."""
    return [{**row, "label": index % 3} for index, row in enumerate(rows)]


@pytest.mark.parametrize("name", FAMILIES)
def test_single_token_words_equal_the_reference(
    name: str, objective: Any, make_model: Any, log_probabilities: Any, kind_of: Any
) -> None:
    """In fp64, losses and scores of a mixed batch equal those of single unpadded sequences to 1e-10."""
    model, labelled = make_model(name, torch.float64), objective(name)
    examples = labelled.encode(ROWS)
    batch = labelled.collate(examples)
    assert batch["words"].shape == (5, 2) and batch["input_ids"].shape[0] == 5
    with torch.no_grad():
        losses, scores = labelled(model, batch), labelled.scores(model, batch)
    reference = torch.stack(
        [
            torch.cat([log_probabilities(model, kind_of[name], example, option) for option in (0, 1)])
            for example in examples
        ]
    )
    labels = torch.tensor([row["label"] for row in ROWS])
    expected = torch.nn.functional.cross_entropy(reference, labels, reduction="none")
    assert losses.dtype == torch.float64 and losses.std() > 0.01
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.log_softmax(-1), reference.log_softmax(-1), rtol=0, atol=1e-10)
    assert torch.equal(labelled.predict(model, batch), reference.argmax(-1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5"])
def test_longer_words_equal_the_reference(
    name: str, objective: Any, make_model: Any, log_probabilities: Any, kind_of: Any
) -> None:
    """Words of several tokens: cross entropy over mean token log-probabilities, to 1e-10 in fp64."""
    model, labelled = make_model(name, torch.float64), objective(name, SEVERAL)
    rows = several(ROWS)
    examples = labelled.encode(rows)
    assert len({len(option) for option in examples[0].options}) > 1
    batch = labelled.collate(examples)
    assert batch["targets"].shape[:2] == (5, 3)
    with torch.no_grad():
        losses, scores = labelled(model, batch), labelled.scores(model, batch)
    reference = torch.stack(
        [
            torch.stack([log_probabilities(model, kind_of[name], e, option).mean() for option in range(3)])
            for e in examples
        ]
    )
    torch.testing.assert_close(scores, reference, rtol=0, atol=1e-10)
    labels = torch.tensor([row["label"] for row in rows])
    expected = torch.nn.functional.cross_entropy(reference, labels, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "words"), FORMS)
def test_padding_changes_nothing(name: str, words: list[str], objective: Any, make_model: Any) -> None:
    """In fp32, an example's loss alone and beside much longer ones agree to 1e-5."""
    model, labelled = make_model(name), objective(name, words)
    examples = labelled.encode(ROWS if words is SINGLE else several(ROWS))
    with torch.no_grad():
        together = labelled(model, labelled.collate(examples))
        alone = torch.cat([labelled(model, labelled.collate([example])) for example in examples])
    assert together.dtype == torch.float32 and together.shape == (5,)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "words"), FORMS)
def test_what_padding_holds_changes_nothing(name: str, words: list[str], objective: Any, make_model: Any) -> None:
    """Any other token in the padded places gives the same losses."""
    model, labelled = make_model(name), objective(name, words)
    examples = labelled.encode(ROWS if words is SINGLE else several(ROWS))
    batch = labelled.collate(examples)
    inputs = batch["input_ids"].flatten(0, -2)
    changed = inputs.clone()
    copies = len(inputs) // len(examples)
    for row in range(len(inputs)):
        example = examples[row // copies]
        used = len(example.prompt) + (len(example.options[row % copies]) - 1 if copies > 1 else 0)
        changed[row, used:] = 17
    assert not torch.equal(changed, inputs)
    with torch.no_grad():
        expected = labelled(model, batch)
        found = labelled(model, {**batch, "input_ids": changed.view(batch["input_ids"].shape)})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "words"), FORMS)
def test_a_repeated_batch_gives_repeated_losses(
    name: str, words: list[str], objective: Any, make_model: Any, repeat: Any
) -> None:
    """Rows [l*B, (l+1)*B) of a batch repeated L times have the losses of the batch."""
    model, labelled = make_model(name), objective(name, words)
    examples = labelled.encode(ROWS if words is SINGLE else several(ROWS))
    batch = labelled.collate(examples)
    assert all(not isinstance(v, torch.Tensor) or v.shape[0] == 5 for v in batch.values())
    with torch.no_grad():
        once, thrice = labelled(model, batch), labelled(model, repeat(batch, 3))
    torch.testing.assert_close(thrice, once.repeat(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("words", [SINGLE, SEVERAL])
def test_scores_that_are_nan_are_wrong(words: list[str], objective: Any, make_model: Any) -> None:
    """Whatever the label, the first one too, and the loss is NaN."""
    model, labelled = make_model("llama"), objective("llama", words)
    examples = labelled.encode(ROWS if words is SINGLE else several(ROWS))
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with torch.no_grad():
        losses, right = labelled.judge(model, labelled.collate(examples))
        predicted = labelled.predict(model, labelled.collate(examples))
    assert bool(losses.isnan().all()) and not bool(right.any()) and set(predicted.tolist()) == {NONE}


def test_one_and_several_tokens_agree(objective: Any, make_model: Any) -> None:
    """For single tokens the two forms of a batch are the same loss, so a batch may hold either."""
    model, labelled = make_model("llama", torch.float64), objective("llama")
    examples = labelled.encode(ROWS)
    batch = labelled.collate(examples)
    sequences = labelled._reader.collate_sequences(examples)
    with torch.no_grad():
        expected = labelled(model, {**sequences, "label": batch["label"]})
        torch.testing.assert_close(labelled(model, batch), expected, rtol=0, atol=1e-10)


def test_half_precision_is_upcast(objective: Any, make_model: Any) -> None:
    """A bf16 model gives fp32 losses, computed from its bf16 logits without further rounding."""
    model, labelled = make_model("llama", torch.bfloat16), objective("llama")
    examples = labelled.encode(ROWS)
    batch = labelled.collate(examples)
    with torch.no_grad():
        losses = labelled(model, batch)
        full = model(input_ids=batch["input_ids"]).logits
    last = torch.tensor([len(example.prompt) - 1 for example in examples])
    chosen = full[torch.arange(5)[:, None], last[:, None], batch["words"]].double()
    expected = torch.nn.functional.cross_entropy(chosen, batch["label"], reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "rows"), [("llama", 5), ("gpt2", 5), ("opt", 5), ("bert", 1), ("roberta", 1)])
def test_the_head_runs_only_where_scored(name: str, rows: int, objective: Any, make_model: Any) -> None:
    """The output projection sees the last positions up to the shortest prompt's, or the mask's alone."""
    model, labelled = make_model(name), objective(name)
    examples = labelled.encode(ROWS)
    seen: list[int] = []

    def note(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        seen.append(output.shape[1])

    model.get_output_embeddings().register_forward_hook(note)
    with torch.no_grad():
        labelled(model, labelled.collate(examples))
    lengths = labelled.lengths(examples)
    assert seen == [1 if rows == 1 else max(lengths) - min(lengths) + 1]
    assert seen[0] < max(lengths)


def test_space_before_a_word(objective: Any, tokenizers: Any) -> None:
    """One space joins prompt and word, none where either side brings white space."""
    tokenizer = tokenizers["gpt2"]
    joined = tokenizer("it was great", add_special_tokens=False)["input_ids"]
    row = [{"text": "x", "label": 0}, {"text": "y", "label": 1}]
    for template, words in [
        ("it was", ["great", "bad"]),
        ("it was", [" great", " bad"]),
        ("it was\n", ["great", "bad"]),
    ]:
        example = objective("gpt2", words, template).encode(row)[0]
        text = tokenizer.decode([*example.prompt, *example.options[0]])
        assert text == ("it was\ngreat" if template.endswith("\n") else "it was great")
        if not template.endswith("\n"):
            assert [*example.prompt, *example.options[0]] == joined


def test_word_is_tokenised_in_context(stories_tokenizer: Any) -> None:
    """With a real tokenizer: prompt and word ids are those of the whole sentence, first token included."""
    labelled = LabelWords(
        stories_tokenizer, Template("{{ text }} She was very"), "label", ["happy", "sad"], None, "causal", 64
    )
    example = labelled.encode([{"text": "Lily had a dog.", "label": 0}, {"text": "Tim ran.", "label": 1}])[0]
    whole = stories_tokenizer("Lily had a dog. She was very happy")["input_ids"]
    assert [*example.prompt, *example.options[0]] == whole
    assert example.prompt[0] == stories_tokenizer.bos_token_id


def test_real_model_equals_the_reference(stories: Path, stories_tokenizer: Any, log_probabilities: Any) -> None:
    """On a trained model, in fp32, batched losses equal single sequences to 1e-5."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(stories).eval()
    labelled = LabelWords(
        stories_tokenizer, Template("{{ text }} She was very"), "label", ["happy", "sad"], None, "causal", 64
    )
    rows = [
        {"text": "Lily had a dog. They played all day in the park.", "label": 0},
        {"text": "Her toy broke.", "label": 1},
    ]
    examples = labelled.encode(rows)
    with torch.no_grad():
        losses = labelled(model, labelled.collate(examples))
    mean = [[log_probabilities(model, "causal", e, o).mean() for o in (0, 1)] for e in examples]
    expected = torch.nn.functional.cross_entropy(torch.tensor(mean), torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_long_prompts_lose_their_left(
    name: str, objective: Any, tokenizers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left fits, keeps special tokens, mask and the end of the prompt, and the count is logged."""
    labelled = objective(name, max_length=9)
    with caplog.at_level(logging.WARNING, logger="zotune"):
        examples = labelled.encode(ROWS)
    full = objective(name).encode(ROWS)
    assert max(labelled.lengths(examples)) == 9
    cut = sum(len(a.prompt) < len(b.prompt) for a, b in zip(examples, full, strict=True))
    assert 0 < cut and f"{cut} of 5 examples" in caplog.text
    longest, whole = examples[2].prompt, full[2].prompt
    keep = {"llama": 1, "gpt2": 0, "bert": 1, "t5": 0}[name]
    assert longest == (*whole[:keep], *whole[len(whole) - 9 + keep :])
    if name == "bert":
        assert longest[examples[2].mask] == tokenizers[name].mask_token_id


def test_a_mask_in_front_survives_the_cut(objective: Any, tokenizers: Any) -> None:
    """Where cutting the left would lose the mask, the right is cut instead."""
    labelled = objective("bert", template="{{ mask }} : {{ text }}", max_length=8)
    example = labelled.encode(ROWS)[2]
    assert len(example.prompt) == 8 and example.mask == 1
    assert example.prompt[example.mask] == tokenizers["bert"].mask_token_id
    assert example.prompt[-1] == tokenizers["bert"].sep_token_id


def test_multi_token_words_count_towards_max_length(objective: Any) -> None:
    """Prompt and the longest candidate together stay within max_length."""
    labelled = objective("llama", SEVERAL, max_length=12)
    assert max(labelled.lengths(labelled.encode(several(ROWS)))) == 12


def test_mapping(objective: Any) -> None:
    """Sorted values by default, the order given otherwise, later rows follow the first."""
    labelled = objective("llama")
    with pytest.raises(ConfigError, match="not known yet"):
        _ = labelled.mapping
    labelled.encode(ROWS)
    assert labelled.mapping == {0: "terrible", 1: "great"} and labelled.words == ("terrible", "great")
    assert [e.label for e in labelled.encode(ROWS[1:3])] == [1, 1]
    given = objective("llama", labels=["1", "0"])
    assert given.mapping == {1: "terrible", 0: "great"}
    assert [e.label for e in given.encode(ROWS)] == [1, 0, 0, 1, 0]


def test_errors(objective: Any) -> None:
    """Each fault of words, labels, columns and templates is a DataError that names it."""
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: objective("llama").encode([]), "no rows"),
        (
            lambda: objective("llama").encode([{"text": "x"}]),
            "Row 1 has no column 'label'; columns found: text",
        ),
        (lambda: objective("llama", template="{{ sentence }}").encode(ROWS), "sentence is missing"),
        (lambda: objective("llama", labels=[0, 2]).encode(ROWS), "Row 2: label 1 is not among 0, 2"),
        (
            lambda: objective("llama", ["great", " great"]).encode(ROWS),
            "'great' and ' great' have the same tokens",
        ),
        (lambda: objective("bert", ["great", "unheard"]).encode(ROWS), "'unheard' is not in the vocabulary"),
        (lambda: objective("llama", SINGLE).encode(several(ROWS)), "2 label words .* for 3 label values"),
        (lambda: objective("roberta", ["great", "great acting"]).encode(ROWS), "'great acting' is 2 tokens"),
        (
            lambda: objective("bert", template="{{ text }}").encode(ROWS),
            "Row 1: the prompt holds 0 mask tokens",
        ),
        (lambda: objective("bert", template="{{ mask }} {{ mask }}").encode(ROWS), "holds 2 mask tokens"),
        (lambda: objective("gpt2", template="").encode(ROWS), "Row 1: the prompt is empty"),
        (lambda: objective("llama", max_length=1).encode(ROWS), "leaves no room"),
        (lambda: objective("llama", ["one"]), "at least two"),
    ]
    for call, says in cases:
        with pytest.raises(DataError, match=says) as caught:
            call()
        assert "Remedy: " in str(caught.value)


def test_kind_must_fit(tokenizers: Any) -> None:
    """An unknown kind and a tokenizer without mask are refused."""
    template = Template("{{ text }}")
    with pytest.raises(ConfigError, match="Unknown kind 'both'"):
        LabelWords(tokenizers["llama"], template, "label", SINGLE, None, "both", 8)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no mask token"):
        LabelWords(tokenizers["llama"], template, "label", SINGLE, None, "masked", 8)
