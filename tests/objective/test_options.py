"""OptionLikelihood equals an obvious loop over candidates, in every form of a batch, alone and in lanes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import models

import zotune
from zotune.data.rendered import Rendered
from zotune.errors import ConfigError, DataError
from zotune.evaluate import evaluate
from zotune.objective import packed
from zotune.objective.choice import Choice
from zotune.objective.generate import Decoding, complete
from zotune.objective.metrics import answer_f1
from zotune.objective.options import OptionLikelihood
from zotune.objective.scoring import NONE

one_thread = models.one_thread

CAUSAL = ["llama", "gpt2", "opt"]
# Several candidates of several lengths, and not equally many.
ROWS: list[dict[str, Any]] = [
    {"text": "the plot is", "candidates": [" a mess", " great acting and so", " fine"], "right": [1]},
    {"text": "great acting but the script is a", "candidates": [" mess", " film that made me smile"], "right": [0]},
    {"text": "fine", "candidates": [" it hurts", " or bad ?", " to the last", " smile"], "right": [3, 1]},
]
SINGLE: list[dict[str, Any]] = [
    {"text": text, "candidates": [" great", " terrible"], "right": [label]}
    for text, label in (("so bad it hurts", 1), ("a warm and funny film that made me smile", 0), ("fine", 0))
]


def render(row: Mapping[str, Any]) -> Rendered:
    """The row says it all."""
    return Rendered(row["text"], tuple(row["candidates"]), tuple(row["right"]), "it was", tuple(row.get("answers", ())))


def slow_scores(model: Any, kind: str, example: Any, log_probabilities: Any) -> torch.Tensor:
    """Each candidate alone: the mean log-probability of its tokens."""
    each = [log_probabilities(model, kind, example, option).mean() for option in range(len(example.options))]
    return torch.stack(each)


@pytest.fixture
def make(tokenizers: Any, kind_of: Any) -> Any:
    """`make(family, max_length, **choice)`."""

    def build(name: str, max_length: int = 96, **choice: Any) -> OptionLikelihood:
        return OptionLikelihood(tokenizers[name], render, kind_of[name], max_length, Choice(**choice))

    return build


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", [*CAUSAL, "t5"])
def test_equals_one_candidate_at_a_time(
    name: str, share: bool, make: Any, make_model: Any, log_probabilities: Any
) -> None:
    """In fp64, scores, losses and what is right equal those of single unpadded sequences to 1e-10."""
    model, objective = make_model(name, torch.float64), make(name)
    examples = objective.encode(ROWS)
    if share:
        objective.prepare(model, examples)
    measure = objective.for_evaluation()
    batch = measure.collate(examples)
    assert ("segments" in batch) == (share and name != "t5")
    with torch.no_grad():
        scores, losses = objective.scores(model, batch), objective(model, objective.collate(examples))
        judged, right = measure.judge(model, batch)
    for row, example in enumerate(examples):
        expected = slow_scores(model, objective.kind, example, log_probabilities)
        torch.testing.assert_close(scores[row, : len(expected)], expected, rtol=0, atol=1e-10)
        assert bool((scores[row, len(expected) :] == -torch.inf).all())
        loss = -expected.log_softmax(0)[example.label]
        torch.testing.assert_close(losses[row], loss, rtol=0, atol=1e-10)
        assert bool(right[row]) == (int(expected.argmax()) in ROWS[row]["right"])
    assert torch.equal(losses, judged) and losses.dtype == torch.float64 and losses.shape == (3,)


@pytest.mark.parametrize("name", [*CAUSAL, "t5"])
def test_a_candidate_that_does_not_fit_loses_its_end(name: str, make: Any) -> None:
    """Where asked for, as a completion does; one token of the prompt stays, and what is left must tell them apart."""
    objective = make(name, max_length=8, cuts=True)
    first, short = (" a warm and funny film that made me smile from the first scene to the last", " fine")
    found = objective.encode([{"text": "the plot is", "candidates": [first, short], "right": [0]}])[0]
    special = len(objective._coder.prefix)
    assert found.cut and len(found.options[0]) == 8 - special and len(found.options[1]) < 8
    assert len(found.prompt) > special
    if name != "t5":
        assert len(found.prompt) + len(found.options[0]) - 1 == 8
    with pytest.raises(DataError, match="have the same tokens"):
        objective.encode([{"text": "the plot is", "candidates": [first, first + " fine"], "right": [0]}])


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("rows", [ROWS, SINGLE])
def test_scores_that_are_nan_are_wrong(
    rows: list[dict[str, Any]], calibrated: bool, make: Any, make_model: Any
) -> None:
    """In a sequence that candidates share, at one position and calibrated; the losses are NaN."""
    model, objective = make_model("llama"), make("llama", calibrated=calibrated)
    examples = objective.encode([{**row, "right": [0]} for row in rows])
    objective.prepare(model, examples)
    measure = objective.for_evaluation()
    batch = measure.collate(examples)
    assert ("segments" in batch) == (rows is ROWS)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with torch.no_grad():
        losses, right = measure.judge(model, batch)
        predicted = measure.predict(model, batch)
    assert bool(losses.isnan().all()) and not bool(right.any()) and predicted.tolist() == [NONE] * 3


@pytest.mark.parametrize("name", [*CAUSAL, "t5"])
def test_target_loss(name: str, make: Any, make_model: Any, log_probabilities: Any) -> None:
    """The loss is of the right candidate alone, in training and in evaluation; evaluation compares all."""
    model, objective = make_model(name, torch.float64), make(name, loss="target")
    examples = objective.encode(ROWS)
    objective.prepare(model, examples)
    measure = objective.for_evaluation()
    batch = objective.collate(examples)
    assert batch["targets"].shape[1] == 1
    with torch.no_grad():
        losses, nothing = objective.judge(model, batch)
        judged, right = measure.judge(model, measure.collate(examples))
    assert nothing is None
    expected = [slow_scores(model, objective.kind, example, log_probabilities) for example in examples]
    target = torch.stack([-scores[row["right"][0]] for scores, row in zip(expected, ROWS, strict=True)])
    torch.testing.assert_close(losses, target, rtol=0, atol=1e-10)
    torch.testing.assert_close(judged, target, rtol=0, atol=1e-10)
    assert right.tolist() == [int(s.argmax()) in row["right"] for s, row in zip(expected, ROWS, strict=True)]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_single_tokens_are_read_at_one_position(
    name: str, tokenizers: Any, make_model: Any, log_probabilities: Any, kind_of: Any
) -> None:
    """Words of one token: one sequence per example; a masked model has this form only."""
    kind = kind_of[name]

    def masked(row: Mapping[str, Any]) -> Rendered:
        return Rendered(
            row["text"] + (" it was <mask> ." if kind == "masked" else " it was"),
            (" great", " terrible"),
            tuple(row["right"]),
        )

    objective = OptionLikelihood(tokenizers[name], masked, kind, 64)
    model = make_model(name, torch.float64)
    examples = objective.encode(SINGLE)
    objective.prepare(model, examples)
    batch = objective.collate(examples)
    assert batch["words"].shape == (3, 2) and batch["input_ids"].shape[0] == 3
    with torch.no_grad():
        losses = objective(model, batch)
    for row, example in enumerate(examples):
        expected = slow_scores(model, kind, example, log_probabilities)
        torch.testing.assert_close(losses[row], -expected.log_softmax(0)[example.label], rtol=0, atol=1e-10)


@pytest.mark.parametrize("rows", [ROWS, SINGLE], ids=["several", "single"])
@pytest.mark.parametrize("loss", ["options", "target"])
def test_calibration(rows: Any, loss: str, make: Any, make_model: Any, log_probabilities: Any) -> None:
    """Predictions are by sum log p(candidate | prompt) - sum log p(candidate | blank); the loss is as before."""
    from dataclasses import replace

    model = make_model("llama", torch.float64)
    plain, objective = make("llama", loss=loss), make("llama", loss=loss, calibrated=True)
    examples = objective.encode(rows)
    objective.prepare(model, examples)
    measure = objective.for_evaluation()
    assert not measure.one_forward and plain.for_evaluation().one_forward
    with torch.no_grad():
        losses, right = measure.judge(model, measure.collate(examples))
        expected_losses = plain.for_evaluation().judge(model, plain.for_evaluation().collate(plain.encode(rows)))[0]
    torch.testing.assert_close(losses, expected_losses, rtol=0, atol=1e-10)
    best = []
    for example in examples:
        blank = replace(example, prompt=example.blank)
        sums = [
            [log_probabilities(model, "causal", e, o).sum() for o in range(len(e.options))] for e in (example, blank)
        ]
        best.append(int((torch.tensor(sums[0]) - torch.tensor(sums[1])).argmax()))
    assert right.tolist() == [choice in row["right"] for choice, row in zip(best, rows, strict=True)]


# What the mean of log-probabilities prefers need not be what their sum does, nor what that per character does.
SIZED: list[dict[str, Any]] = [
    {"text": text, "candidates": [" fine", " a mess", " great acting and so weak", " a"], "right": [right]}
    for text in (
        "the plot is",
        "great acting but the script is a",
        "is this good or bad ?",
        "it was",
        "so bad it hurts",
    )
    for right in range(4)
]


@pytest.mark.parametrize("rows", [SIZED, [{**row, "candidates": [" fine", " great"], "right": [0]} for row in SIZED]])
@pytest.mark.parametrize("name", [*CAUSAL, "t5"])
def test_choices_by_sums(
    name: str, rows: list[dict[str, Any]], tokenizers: Any, kind_of: Any, make_model: Any, log_probabilities: Any
) -> None:
    """The accuracy is of the highest sum, and acc_norm of the highest sum per character, as the harness has them.

    Also where every candidate is one token, whose logits alone do not tell the second. The loss stays that of means.
    """

    def sized(row: Mapping[str, Any]) -> Rendered:
        return Rendered(
            row["text"],
            tuple(row["candidates"]),
            tuple(row["right"]),
            sizes=tuple(len(c) - 1 for c in row["candidates"]),
        )

    model = make_model(name, torch.float64)
    objective = OptionLikelihood(tokenizers[name], sized, kind_of[name], 96, Choice(by_sum=True, normed=True))
    examples = objective.encode(rows)
    objective.prepare(model, examples)
    measure = objective.for_evaluation()
    batch = measure.collate(examples)
    with torch.no_grad():
        losses, found = measure.judge(model, batch)
        predicted = measure.predict(model, batch)
        trained = objective(model, objective.collate(examples))
    torch.testing.assert_close(losses, trained, rtol=0, atol=1e-10)
    chosen = []
    for row, example in zip(rows, examples, strict=True):
        each = [log_probabilities(model, objective.kind, example, option) for option in range(len(example.options))]
        sums = torch.stack([logs.sum() for logs in each])
        normed = sums / torch.tensor([len(candidate) - 1 for candidate in row["candidates"]])
        means = torch.stack([logs.mean() for logs in each])
        chosen.append((int(sums.argmax()), int(normed.argmax()), int(means.argmax())))
    assert predicted.tolist() == [by_sum for by_sum, _, _ in chosen]
    expected = [
        [by_sum in row["right"], norm in row["right"]] for row, (by_sum, norm, _) in zip(rows, chosen, strict=True)
    ]
    assert found is not None and found.tolist() == expected
    if rows is SIZED:
        assert any(by_sum != mean for by_sum, _, mean in chosen), "sums and means prefer the same everywhere"
    result = evaluate(model, measure, examples, 3).as_dict()
    assert result["accuracy"] == sum(right for right, _ in expected) / len(rows)
    assert result["acc_norm"] == sum(right for _, right in expected) / len(rows)


def test_f1_up_to_a_text(make: Any, make_model: Any, tokenizers: Any) -> None:
    """An answer ends where the task says, at so many tokens or a text of its own."""
    model = make_model("llama")
    plain = make("llama", loss="target", metric="f1")
    rows = [{**row, "answers": ["fine", "a mess"]} for row in ROWS]
    batch = plain.for_evaluation().collate(plain.encode(rows))
    for stop, most in (((), 4), ((" ",), 30)):
        decoding = Decoding(max_new_tokens=most, stop=stop)
        measure = make("llama", loss="target", metric="f1", decoding=decoding).for_evaluation()
        said = complete(model, measure._coder, batch["read"], batch["read_mask"], decoding, [()] * 3)
        expected = [answer_f1(each.text, ["fine", "a mess"]) for each in said]
        assert measure.judge(model, measure.collate(measure.encode(rows)))[1].tolist() == pytest.approx(expected)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    assert measure.judge(model, measure.collate(measure.encode(rows)))[1].isnan().all()


def test_f1_of_generated_answers(make: Any, make_model: Any, tokenizers: Any) -> None:
    """The score of an example is the F1 of what the model says greedily; the loss is the target's."""
    model, objective = make_model("llama"), make("llama", loss="target", metric="f1")
    rows = [
        {"text": row["text"], "candidates": [" fine\n"], "right": [0], "answers": ["fine", "a mess"]} for row in ROWS
    ]
    examples = objective.encode(rows)
    measure = objective.for_evaluation()
    batch = measure.collate(examples)
    assert measure.metric == "f1" and not measure.one_forward and batch["answers"] == [("fine", "a mess")] * 3
    losses, scores = measure.judge(model, batch)
    with torch.no_grad():
        torch.testing.assert_close(losses, objective(model, objective.collate(examples)))
    for example, score in zip(examples, scores.tolist(), strict=True):
        with torch.no_grad():
            out = model.generate(torch.tensor([example.prompt]), max_new_tokens=50, do_sample=False, pad_token_id=0)
        said = tokenizers["llama"].decode(out[0, len(example.prompt) :], skip_special_tokens=True)
        assert score == pytest.approx(answer_f1(said.split("\n")[0].strip(), ["fine", "a mess"]))
    found = evaluate(model, measure, examples, 2)
    assert found.score == pytest.approx(float(scores.mean())) and found.accuracy is None
    assert found.low <= found.score <= found.high and found.as_dict()["f1"] == found.score


@pytest.mark.parametrize(("name", "rows"), [*((name, ROWS) for name in [*CAUSAL, "t5"]), ("llama", SINGLE)])
@pytest.mark.parametrize("loss", ["options", "target"])
def test_lanes_equal_sequential(name: str, rows: Any, loss: str, make: Any, make_model: Any) -> None:
    """Both sides of a direction in one forward give the losses of two forwards; lanes=on refuses to fall back."""
    found = {}
    for lanes in ("on", "off"):
        model, objective = make_model(name), make(name, loss=loss)
        examples = objective.encode(rows)
        objective.prepare(model, examples)
        optimizer = zotune.MeZO(model, lr=1e-3, eps=1e-2, lanes=lanes, seed=3)
        optimizer.estimate(objective, objective.collate(examples))
        found[lanes] = torch.tensor(optimizer.probes[0].losses)
        assert optimizer.evaluator.mode == ("lanes" if lanes == "on" else "sequential")
    torch.testing.assert_close(found["on"], found["off"], rtol=0, atol=2e-5)
    assert float((found["on"][0] - found["on"][1]).abs()) > 1e-3


def test_bigger_batches_change_nothing(make: Any, make_model: Any) -> None:
    """In fp32 an example's loss alone and beside others agree to 1e-5, sharing or not."""
    model = make_model("llama")
    for share in (True, False):
        objective = make("llama")
        examples = objective.encode(ROWS)
        if share:
            objective.prepare(model, examples)
        with torch.no_grad():
            together = objective(model, objective.collate(examples))
            alone = torch.cat([objective(model, objective.collate([example])) for example in examples])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_sharing_reads_fewer_tokens(make: Any, make_model: Any) -> None:
    """The prompt stands once in a packed sequence, and the lengths that batches are made by say so."""
    model, objective = make_model("llama"), make("llama")
    examples = objective.encode(ROWS)
    alone = objective.collate(examples)["input_ids"]
    objective.prepare(model, examples)
    shared = objective.collate(examples)["input_ids"]
    assert shared.numel() < alone.numel() and shared.shape == (3, max(objective.lengths(examples)))
    assert objective.lengths(examples) == [packed.length(example) for example in examples]


def test_truncation(make: Any, tokenizers: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Prompt and longest candidate stay within max_length; the left goes, the first token stays; the count is said."""
    objective = make("llama", 8)
    with caplog.at_level(logging.WARNING, logger="zotune"):
        examples = objective.encode(ROWS)
    whole = make("llama").encode(ROWS)
    for short, full in zip(examples, whole, strict=True):
        assert short.options == full.options and short.prompt[0] == full.prompt[0]
        kept = len(short.prompt) - 1
        assert short.prompt[1:] == full.prompt[len(full.prompt) - kept :] and short.cut == (short.prompt != full.prompt)
        assert len(short.prompt) + max(map(len, short.options)) - 1 <= 8
    cut = sum(example.cut for example in examples)
    assert 0 < cut and f"{cut} of 3 examples did not fit max_length 8" in caplog.text


def test_errors(make: Any, tokenizers: Any) -> None:
    """Collisions, empty candidates, no room and no rows are named with their row."""
    objective = make("llama")
    bad = [
        ([], "no rows"),
        (
            [ROWS[0], {**ROWS[0], "candidates": [" fine", " fine"]}],
            r"Row 2: candidates ' fine' and ' fine' have the same",
        ),
        ([{**ROWS[0], "candidates": ["", " fine"]}], "Row 1: candidate '' gives no tokens"),
    ]
    for rows, says in bad:
        with pytest.raises(DataError, match=says):
            objective.encode(rows)
    with pytest.raises(DataError, match="Row 1: max_length 4 leaves no room"):
        make("llama", 4).encode([{**ROWS[0], "candidates": [" a film that made me smile", " no"]}])
    with pytest.raises(ConfigError, match="masked model cannot score or generate texts"):
        make("bert", loss="target")
    with pytest.raises(DataError, match="Row 1: candidate 'unheard' is not in the vocabulary"):
        make("bert").encode([{**ROWS[0], "text": "<mask>", "candidates": ["unheard", "fine"]}])


def test_real_model(stories: Path, stories_tokenizer: Any, log_probabilities: Any) -> None:
    """On a trained model: candidates share a sequence, and scores equal those of single sequences to 1e-5."""
    from transformers import LlamaForCausalLM

    from zotune.tasks import find

    model = LlamaForCausalLM.from_pretrained(stories).eval()
    task = find("copa")
    assert task.causal is not None
    objective = OptionLikelihood(stories_tokenizer, task.causal, "causal", 128, Choice(loss="target"))
    row = {
        "premise": "Lily was sad.",
        "choice1": "She lost her toy.",
        "choice2": "I ate.",
        "question": "cause",
        "label": 0,
    }
    examples = objective.encode([row, {**row, "premise": "Tim ran to the big red house.", "question": "effect"}])
    whole = stories_tokenizer("Lily was sad because she lost her toy.")["input_ids"]
    assert [*examples[0].prompt, *examples[0].options[0]] == whole
    objective.prepare(model, examples)
    measure = objective.for_evaluation()
    with torch.no_grad():
        batch = measure.collate(examples)
        scores = measure.scores(model, batch)
    assert "segments" in batch
    expected = torch.stack([slow_scores(model, "causal", example, log_probabilities) for example in examples])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_a_copy_measures(make: Any, make_model: Any) -> None:
    """The evaluating copy does not change what the training objective does."""
    model, objective = make_model("llama"), make("llama", loss="target")
    examples = objective.encode(ROWS)
    before = {name: copy.copy(value) for name, value in objective.collate(examples).items()}
    objective.for_evaluation().collate(examples)
    after = objective.collate(examples)
    assert before.keys() == after.keys() and torch.equal(before["input_ids"], after["input_ids"])
    assert model is not None
