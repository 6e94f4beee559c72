"""The worker's arithmetic without vLLM: where adapters go, and that they reach every element in scope."""

from __future__ import annotations

import pytest

from zotune.engines.vllm_worker import Place, check_coverage, places
from zotune.errors import CoverageError

MERGED = {"a.qkv_proj": ["a.q_proj", "a.k_proj", "a.v_proj"], "m.gate_up_proj": ["m.gate_proj", "m.up_proj"]}
LAYERS = ["a.qkv_proj", "a.o_proj", "m.gate_up_proj"]
STACKS = {"a.qkv_proj": [(8, 6), (4, 6), (4, 6)], "a.o_proj": [(6, 8)], "m.gate_up_proj": [(10, 6), (10, 6)]}
WANTED = {
    "a.q_proj": (8, 6), "a.k_proj": (4, 6), "a.v_proj": (4, 6), "a.o_proj": (6, 8), "m.gate_proj": (10, 6),
    "m.up_proj": (10, 6),
}  # fmt: skip


def test_merged_layers_have_a_stack_for_each_part() -> None:
    """Names of the checkpoint lead to vLLM's layers, in the order in which those are merged."""
    found = places(LAYERS, MERGED)
    assert found["a.k_proj"] == Place("a.qkv_proj", 1) and found["m.up_proj"] == Place("m.gate_up_proj", 1)
    assert found["a.o_proj"] == Place("a.o_proj", 0) and len(found) == len(WANTED)


def test_every_element_is_counted() -> None:
    """All of a scope, also of one that leaves parts of merged layers out."""
    found = places(LAYERS, MERGED)
    assert check_coverage(WANTED, found, STACKS) == 6 * (8 + 4 + 4) + 48 + 120
    assert check_coverage({"a.v_proj": (4, 6)}, found, STACKS) == 24


def test_what_is_not_reached_is_refused() -> None:
    """A layer without an adapter, one of another size, and one that is merged in another way are named."""
    found = places(LAYERS, MERGED)
    with pytest.raises(CoverageError, match=r"no adapter for router of 7 layers.*Remedy: a narrower scope"):
        check_coverage(WANTED | {"router": (4, 6)}, found, STACKS)
    with pytest.raises(CoverageError, match=r"for router and 1 more of 2 layers"):
        check_coverage({"router": (4, 6), "head": (9, 6)}, found, STACKS)
    with pytest.raises(CoverageError, match=r"a.q_proj reaches 4 x 6 of its 8 x 6 elements"):
        check_coverage(WANTED, found, STACKS | {"a.qkv_proj": [(4, 6), (4, 6), (4, 6)]})
    with pytest.raises(CoverageError, match=r"a.k_proj reaches 0 x 0"):
        check_coverage({"a.k_proj": (4, 6)}, found, STACKS | {"a.qkv_proj": [(16, 6)]})
