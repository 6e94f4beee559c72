"""A recording does again what was recorded, with what lies in its places; what it cannot do again is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zotune.graphs.graph import CudaGraph, Graph, Tape, Unrecordable

Made = tuple[Callable[[], Graph], str]


def _cuda() -> Graph:
    return CudaGraph(torch.cuda.graph_pool_handle(), torch.cuda.Stream())


DEVICES = [
    pytest.param((Tape, "cpu"), id="tape"),
    pytest.param((_cuda, "cuda"), marks=pytest.mark.gpu, id="cuda"),
]


def _views(x: Tensor) -> Tensor:
    y = x.t().reshape(-1).view(4, 3)[1:]
    return (y * 2).contiguous() + y.expand(3, 3)


def _writes(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[1:] = x[1:] * 3
    y.mul_(x).add_(1.0)
    torch.add(y, x, out=y)
    return y


def _network(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, (4,)) @ x.T + nn.functional.softmax(x @ x.T, -1)


FORWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "views": _views,
    "writes": _writes,
    "a network": _network,
    "indices": lambda x: x[torch.arange(3, device=x.device), torch.tensor([0, 2, 1], device=x.device)],
    "lists": lambda x: torch.cat([part * i for i, part in enumerate(x.split(1))]) + torch.stack(x.unbind(1), 1),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(*[x.view(1, 1, 3, 4)] * 3, is_causal=True),
}


@pytest.mark.parametrize("made", DEVICES)
@pytest.mark.parametrize("forward", [name for name in FORWARDS if name != "indices"])
@pytest.mark.parametrize("inference", [True, False])
def test_a_recording_computes_with_what_lies_there_now(made: Made, forward: str, inference: bool) -> None:
    """Whatever views, copies and writes there are: three plays give what three forwards give."""
    make, device = made
    call, place = FORWARDS[forward], torch.zeros(3, 4, device=device)
    with torch.inference_mode(inference), torch.no_grad():
        graph = make()
        out = graph.record(lambda: call(place))
        for seed in range(3):
            values = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)).to(device)
            place.copy_(values)
            graph.play()
            torch.testing.assert_close(out, call(values), rtol=0, atol=1e-6 if device == "cuda" else 0)


def test_numbers_of_python_stay_what_they_were() -> None:
    """As in CUDA's graphs: a factor that changes later is not seen, which is why such numbers need a place."""
    place, factor = torch.ones(3), [2.0]
    graph = Tape()
    out = graph.record(lambda: place * factor[0])
    factor[0] = 5.0
    graph.play()
    assert out.tolist() == [2.0] * 3


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x * x.sum().item(),
    "bool": lambda x: x if bool((x > 0).all()) else -x,
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "unique": lambda x: torch.unique(x),
    "nonzero": lambda x: x.nonzero(),
    "a mask as an index": lambda x: x[x > 0],
}


@pytest.mark.parametrize("forward", WAITS)
@pytest.mark.parametrize("inference", [True, False])
def test_what_the_host_would_wait_for_is_refused_by_name(forward: str, inference: bool) -> None:
    """A choice by a value, or a size that depends on one."""
    with torch.inference_mode(inference), pytest.raises(Unrecordable, match="makes the host wait for a value"):
        Tape().record(lambda: WAITS[forward](torch.ones(3)))


def test_indices_of_numbers_are_recorded() -> None:
    """They have the shape that they are given, unlike masks."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    graph = Tape()
    out = graph.record(lambda: FORWARDS["indices"](x))
    graph.play()
    assert torch.equal(out, x[torch.arange(3), torch.tensor([0, 2, 1])])


def test_numbers_of_torchs_generator_are_refused() -> None:
    """They would be others in each play, whatever the run's seed."""
    with pytest.raises(Unrecordable, match="torch's own generator"):
        Tape().record(lambda: nn.functional.dropout(torch.ones(3)))
