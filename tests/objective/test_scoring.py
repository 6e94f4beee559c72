"""Targets line up with logits, and reductions are done in fp32 without depending on the piece size."""

from __future__ import annotations

import pytest
import torch

from zotune.objective import scoring
from zotune.objective.scoring import IGNORE, NONE, best, hits, mean_nll, next_token_batch, pad_right, widen


def test_widen() -> None:
    """At least fp32, never less than it was."""
    for given, wide in [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ]:
        assert widen(torch.ones(1, dtype=getattr(torch, given))).dtype == getattr(torch, wide)


def test_pad_right() -> None:
    """Rows of any lengths, an empty one included."""
    assert pad_right([[1], [2, 3], []], 9).tolist() == [[1, 9], [2, 3], [9, 9]]


def test_next_token_batch() -> None:
    """The last fed token of a prompt predicts the first of its option, the last token is not fed."""
    inputs, targets = next_token_batch([(1, 2, 3), (4, 5)], [(7,), (8, 9, 6)], pad=0)
    assert inputs.tolist() == [[1, 2, 3, 0], [4, 5, 8, 9]]
    assert targets.tolist() == [[IGNORE, 7, IGNORE], [8, 9, 6]]


def test_mean_nll_equals_float64() -> None:
    """fp32 from bf16 logits, to 1e-6 of the same sums in fp64."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 5, 50, generator=generator) * 8).bfloat16()
    targets = torch.randint(0, 50, (3, 5), generator=generator)
    targets[0, 2:] = IGNORE
    targets[2, :4] = IGNORE
    log_probabilities = logits.double().log_softmax(-1)
    expected = [
        -sum(log_probabilities[r, k, t] for k, t in enumerate(row) if t != IGNORE) / sum(t != IGNORE for t in row)
        for r, row in enumerate(targets.tolist())
    ]
    found = mean_nll(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("piece", [1, 120, 10**9])
def test_piece_size_does_not_matter(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One position at a time or all at once give the same bits."""
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(4, 3, 50, generator=generator), torch.tensor([[1, 2, IGNORE]] * 4)
    expected = mean_nll(logits, targets)
    monkeypatch.setattr(scoring, "_CPU_PIECE", piece)
    assert torch.equal(mean_nll(logits, targets), expected)


def test_ignored_positions_may_hold_anything() -> None:
    """A NaN behind an ignored target stays out; one behind a real target is not hidden."""
    logits, targets = torch.zeros(2, 2, 3), torch.tensor([[1, IGNORE], [1, 2]])
    logits[:, 1] = float("nan")
    found = mean_nll(logits, targets)
    assert found[0] == pytest.approx(torch.tensor(3.0).log().item()) and found[1].isnan()


def test_a_row_without_a_finite_highest_score_has_no_choice() -> None:
    """NaN anywhere, +inf, or -inf throughout; one candidate at -inf is only not chosen. No choice is never right."""
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[1.0, 1.0], [0.0, 2.0], [-inf, -9.0], [nan, 1.0], [1.0, nan], [inf, 0.0], [-inf, -inf]])
    chosen = best(scores)
    assert chosen.tolist() == [0, 1, 1, NONE, NONE, NONE, NONE] and chosen.dtype == torch.int64
    assert hits(torch.ones(7, 2, dtype=torch.bool), chosen).tolist() == [True] * 3 + [False] * 4
    assert hits(torch.tensor([[False, True]] * 7), chosen).tolist() == [False, True, True] + [False] * 4


def test_gradients_flow() -> None:
    """The loss serves backpropagation too, which the benchmarks compare with."""
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    mean_nll(logits, torch.tensor([[1, 2]])).sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0
