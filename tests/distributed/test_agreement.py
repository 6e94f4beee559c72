"""Which process differs, and a digest that sees every element in its turn."""

from __future__ import annotations

import pytest
import torch

from zotune.distributed.agreement import digest, refuse_different
from zotune.errors import RunError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("aab", "process 2 differs from the others in it;"),
        ("abb", "process 0 differs from the others in it;"),
        ("abab", r"processes 1, 3 differ from the others in it \(which of them is right cannot be told\)"),
        ("ab", r"process 1 differs from the other in it \(which"),
        ("abc", r"processes 1, 2 differ from the other in it \(which"),
    ],
)
def test_the_minority_is_named(values: str, said: str) -> None:
    """The majority is right; where there is none, process 0 is the one to compare with, and the error says so."""
    with pytest.raises(RunError, match=f"^{said}.*nothing was written after it. Remedy: do that.$"):
        refuse_different(values, "it", "do that")
    refuse_different("aaa", "it", "do that")


def test_a_digest_sees_each_element_once_in_its_turn() -> None:
    """2.5 million elements are three slices: a change shows in exactly one of three checks, in any tensor and dtype."""
    drawn = torch.randn(1000, 2000, generator=torch.Generator().manual_seed(0))
    tensors = {"a": drawn, "b": drawn[:250].bfloat16(), "c": torch.tensor(3), "d": torch.zeros(0)}
    before = [digest(tensors, check) for check in range(3)]
    assert [digest(tensors, check) for check in range(3, 6)] == before and all(len(each) == 6 for each in before)
    for name, place in (("a", (0, 0)), ("a", (999, 1999)), ("a", (500, 3)), ("b", (249, 1999)), ("b", (0, 1))):
        changed = {key: value.clone() for key, value in tensors.items()}
        changed[name][place] += 1
        assert sum(digest(changed, check) != each for check, each in enumerate(before)) == 1, (name, place)
    changed = {**tensors, "c": torch.tensor(4)}
    assert sum(digest(changed, check) != each for check, each in enumerate(before)) == 1
