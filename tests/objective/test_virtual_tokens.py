"""Every objective with virtual tokens equals a loop over single sequences that begin with the real tokens they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests import models
from torch import Tensor, nn

import zotune
from zotune.data.rendered import Rendered
from zotune.data.template import Template
from zotune.objective.base import Example, Objective
from zotune.objective.choice import Choice
from zotune.objective.label_words import LabelWords
from zotune.objective.language_model import LanguageModel
from zotune.objective.metrics import answer_f1
from zotune.objective.options import OptionLikelihood
from zotune.objective.token_loss import TokenLoss
from zotune.virtual_tokens import add_prefix, add_prompt, random_tokens

pytest.importorskip("peft")
one_thread = models.one_thread

TOKENS, SEED = 3, 5
TEXTS = ["so bad it hurts", "a warm and funny film that made me smile", "fine acting"]
LABELLED = [{"text": text, "label": label} for text, label in zip(TEXTS, (0, 1, 1), strict=True)]
CANDIDATES: list[dict[str, Any]] = [
    {"text": "the plot is", "candidates": (" a mess", " great acting and so", " fine"), "right": (1,)},
    {"text": "great acting but the script is a", "candidates": (" mess", " film that made me smile"), "right": (0,)},
]
PAIRS = [
    {"prompt": "is this good or bad ?", "completion": " Yes it was great"},
    {"prompt": "fine", "completion": " No"},
]
MARKED = [{"ids": (0, 9, 10, 11, 12), "flags": (0, 0, 1, 0, 1)}, {"ids": (20, 21, 22), "flags": (1, 1, 1)}]
Slow = Callable[[Example], Tensor]


def label_words(tokenizer: Any, kind: Any, words: list[str]) -> Objective:
    template = Template("{{ text }} it was {{ mask }}" if kind == "masked" else "{{ text }} it was")
    return LabelWords(tokenizer, template, "label", words, [0, 1], kind, 64)


def options(tokenizer: Any, kind: Any, **choice: Any) -> Objective:
    def render(row: Any) -> Rendered:
        return Rendered(row["text"], row["candidates"], row["right"], "it was", row.get("answers", ()))

    return OptionLikelihood(tokenizer, render, kind, 96, Choice(**choice))


OBJECTIVES: dict[str, tuple[Callable[[Any, Any], Objective], list[dict[str, Any]]]] = {
    "words": (lambda t, k: label_words(t, k, ["terrible", "great"]), LABELLED),
    "long words": (lambda t, k: label_words(t, k, ["so terrible it hurts", "great"]), LABELLED),
    "options": (options, CANDIDATES),
    "calibrated": (lambda t, k: options(t, k, calibrated=True), CANDIDATES),
    "target": (lambda t, k: options(t, k, loss="target"), CANDIDATES),
    "text": (lambda t, k: LanguageModel(t, "text", 64, k), LABELLED),
    "completion": (lambda t, k: LanguageModel(t, (Template("{{ prompt }}"), "completion"), 64, k), PAIRS),
    "marked": (lambda t, k: TokenLoss(t, lambda row, _: (row["ids"], tuple(map(bool, row["flags"]))), k, 64), MARKED),
}
CAUSAL = [
    (family, kind, name)
    for family, kind in (("llama", "prefix"), ("llama", "prompt"), ("opt", "prefix"), ("gpt2", "prompt"))
    for name in OBJECTIVES
]
OTHERS = [
    ("bert", "prompt", "words"),
    ("roberta", "prompt", "words"),
    *(("t5", "prompt", name) for name in ("words", "long words", "options", "completion")),
]


@pytest.fixture
def adapted(make_model: Any) -> Callable[[str, str], nn.Module]:
    """`adapted(family, "prefix")`."""
    return lambda family, kind: {"prefix": add_prefix, "prompt": add_prompt}[kind](make_model(family), TOKENS, SEED)


def before(example: Example, ids: tuple[int, ...]) -> Example:
    """The example with real tokens before everything it reads."""
    mask = example.mask + len(ids) if example.mask >= 0 else -1
    blank = (*ids, *example.blank) if example.blank else ()
    return replace(example, prompt=(*ids, *example.prompt), mask=mask, blank=blank)


def slow_loss(model: Any, kind: str, name: str, example: Example, log_probabilities: Any) -> Tensor:
    """Each candidate in a sequence of its own, with all logits."""
    each = [log_probabilities(model, kind, example, option) for option in range(len(example.options))]
    if name in ("text", "completion", "target", "marked"):
        scored = torch.tensor(example.scored or [True] * len(each[example.label]))
        return -each[example.label][scored].mean()
    return -torch.stack([one.mean() for one in each]).log_softmax(0)[example.label]


@pytest.mark.parametrize(("family", "kind", "name"), [*CAUSAL, *OTHERS])
def test_equals_real_tokens(
    family: str,
    kind: str,
    name: str,
    tokenizers: Any,
    make_model: Any,
    kind_of: Any,
    adapted: Callable[[str, str], nn.Module],
    log_probabilities: Any,
) -> None:
    """Batched losses, predictions, and in lanes the losses on both sides of a direction."""
    build, rows = OBJECTIVES[name]
    objective, base, model = build(tokenizers[family], kind_of[family]), make_model(family), adapted(family, kind)
    examples = objective.encode(rows)
    objective.prepare(model, examples)
    batch = objective.collate(examples)
    assert "segments" not in batch  # candidates in one sequence: not with virtual tokens
    ids = tuple(random_tokens(base, TOKENS, SEED).tolist())
    longer = [before(example, ids) for example in examples]
    with torch.no_grad():
        found = objective(model, batch)
        expected = [slow_loss(base, kind_of[family], name, each, log_probabilities) for each in longer]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=2e-5)
    measure = objective.for_evaluation()
    losses, right = measure.judge(model, measure.collate(examples))
    torch.testing.assert_close(losses, found, rtol=1e-4, atol=2e-5)
    if right is not None:
        best = [_best(base, kind_of[family], each, log_probabilities) for each in longer]
        wanted = [choice in (e.right or (e.label,)) for choice, e in zip(best, examples, strict=True)]
        assert right.tolist() == wanted
    _lanes_equal_sequential(adapted, family, kind, objective, batch)


def _best(model: Any, kind: str, example: Example, log_probabilities: Any) -> int:
    """The candidate with the best mean, or where there is a blank the best gain of the sum over it."""
    numbers = range(len(example.options))
    if not example.blank:
        return int(torch.stack([log_probabilities(model, kind, example, n).mean() for n in numbers]).argmax())
    blank = replace(example, prompt=example.blank)
    sums = [[log_probabilities(model, kind, e, n).sum() for n in numbers] for e in (example, blank)]
    return int((torch.stack(sums[0]) - torch.stack(sums[1])).argmax())


def _lanes_equal_sequential(adapted: Any, family: str, kind: str, objective: Objective, batch: Any) -> None:
    found = []
    for lanes in ("on", "off"):
        optimizer = zotune.MeZO(adapted(family, kind), lr=1e-3, eps=1e-1, lanes=lanes, seed=3, scope=kind)
        optimizer.estimate(objective, batch)
        assert optimizer.evaluator.mode == ("lanes" if lanes == "on" else "sequential")
        found.append(torch.tensor(optimizer.probes[0].losses))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=2e-5)
    assert float((found[0][0] - found[0][1]).abs()) > 1e-4


@pytest.mark.parametrize(("family", "kind"), [("llama", "prefix"), ("llama", "prompt"), ("t5", "prompt")])
def test_generated_answers(
    family: str,
    kind: str,
    tokenizers: Any,
    make_model: Any,
    kind_of: Any,
    adapted: Callable[[str, str], nn.Module],
) -> None:
    """What is said greedily after padded prompts is what the bare model says after the real tokens, each alone."""
    objective = options(tokenizers[family], kind_of[family], loss="target", metric="f1")
    rows = [{"text": text, "candidates": (" fine\n",), "right": (0,), "answers": ("fine", "a mess")} for text in TEXTS]
    examples, base, model = objective.encode(rows), make_model(family), adapted(family, kind)
    measure = objective.for_evaluation()
    _, scores = measure.judge(model, measure.collate(examples))
    assert scores is not None
    ids = tuple(random_tokens(base, TOKENS, SEED).tolist())
    for example, score in zip(examples, scores.tolist(), strict=True):
        read = torch.tensor([before(example, ids).prompt])
        with torch.no_grad():
            out = base.generate(read, max_new_tokens=50, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        fresh = out[0, read.shape[1] :] if kind_of[family] == "causal" else out[0, 1:]
        said = tokenizers[family].decode(fresh, skip_special_tokens=True)
        assert score == pytest.approx(answer_f1(said.split("\n")[0].strip(), ["fine", "a mess"]))
