"""What this machine needs for the parts of a step: a few short measurements, kept in the cache folder per machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from zotune.demo.cache import cache_folder
from zotune.durable import write_file
from zotune.errors import UserError
from zotune.low_rank import LowRank
from zotune.machine import fingerprint

_VERSION = 5  # of what is measured; a change makes every kept measurement stale
_WIDTH = 768
# Inputs and outputs of the matrices that are perturbed and updated, and how many there are: each as large as those of
# small models, since larger ones have their scratch mapped anew each time; together enough for compiled kernels.
_LARGE, _MATRICES = (768, 1024), 12
_LEAST, _MOST, _BUDGET = 5, 100, 0.5  # repetitions of a measurement, and its seconds
_DEEP, _NARROW = 24, 16  # blocks of a model that is nearly all overhead, and their width
_LR = 1e-6  # not 0, with which there is no update to measure
_COPIES = (16, 8)  # of what is multiplied in turn, a matrix and a pass: a model does not find its next one in the cache
_ROWS = (1, 16, 128, 1024)  # rows of a matrix product, at which its rate is measured
_SIZES = (1 << 12, 1 << 18, 1 << 22, 1 << 25)  # bytes of an elementwise pass
# A step and an evaluation of a small model, in a process of its own: what its memory grows by beyond its tensors.
_FIRST_STEP = """
import sys, torch
import zotune.train, zotune.load, tokenizers, jinja2
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, get_scheduler
from zotune import MeZO
from zotune.machine import memory_above
torch.set_num_threads(int(sys.argv[1]))
sizes = dict(vocab_size=16384, hidden_size=576, intermediate_size=1536, num_hidden_layers=3, num_attention_heads=9)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
opt = MeZO(model, lr=1e-6, scope="norms" if sys.argv[2] == "auto" else "full")
batch = {"input_ids": torch.ones(16, 64, dtype=torch.long)}
with memory_above() as grown:
    opt.step(lambda m, b: m(**b, logits_to_keep=1, use_cache=False).logits.float().mean((1, 2)), batch)
from zotune.meter import Meter
with torch.inference_mode(), Meter() as meter:
    model(input_ids=batch["input_ids"].repeat(2, 1), logits_to_keep=1, use_cache=False)
print(max(grown[0] - meter.peak, 0))
"""


@final
@dataclass(frozen=True)
class Machine:
    """Measurements. Rates by rows and by bytes are interpolated in their logarithms.

    working: bytes that a process takes for threads and libraries in its first step; working_fast: and for compiled
    kernels.
    flops: floating-point operations per second of matrix products with so many rows. bandwidth: bytes per second of
    passes that move so many bytes. overhead: seconds of an operation besides what it computes. probe, update: seconds
    for one weight in scope to be perturbed at both sides, and to be updated.
    """

    working: int
    working_fast: int
    flops: dict[int, float]
    bandwidth: dict[int, float]
    overhead: float
    probe: float
    update: float

    def seconds_of_product(self, flops: float, moved: float, rows: int) -> float:
        """A matrix product: limited by arithmetic or by reading its weights."""
        reading = moved / between(self.bandwidth, moved)
        return self.overhead + max(flops / between(self.flops, rows), reading)

    def seconds_of_pass(self, moved: float) -> float:
        """Any other operation."""
        return self.overhead + moved / between(self.bandwidth, moved)


_OF_METHOD = {"probe", "update"}
_OF_MACHINE = {field.name for field in fields(Machine)} - _OF_METHOD


def between(table: dict[int, float], at: float) -> float:
    """The value at `at`, linear between the logarithms of the measured points, constant beyond them."""
    points = sorted(table)
    at = min(max(at, points[0]), points[-1])
    low = max(point for point in points if point <= at)
    high = min(point for point in points if point >= at)
    if low == high:
        return table[low]
    share = math.log(at / low) / math.log(high / low)
    found: float = table[low] * (table[high] / table[low]) ** share
    return found


def calibrate(
    device: torch.device, dtype: torch.dtype, method: str, arguments: Mapping[str, Any], say: Callable[[str], None]
) -> Machine:
    """The measurements of this machine, and of this method on it: kept ones, or made now in about a minute and kept."""
    known = kept(device, dtype, method, arguments)
    if known is not None:
        return known
    say("Measuring this machine, once: it may take a minute, and longer where other programs are at work.")
    found: dict[str, Any] = {}
    for path, measured in (
        (_path(device, dtype), lambda: measure(device, dtype)),
        (_path(device, dtype, method, arguments), lambda: measure_noise(device, dtype, method, arguments)),
    ):
        part = _read(path)
        if part is None:
            part = measured()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, json.dumps(part).encode())
            except OSError as error:
                say(f"The measurements cannot be kept in {path.parent} ({error.strerror}).")
        found |= part
    return Machine(**found)


def kept(device: torch.device, dtype: torch.dtype, method: str, arguments: Mapping[str, Any]) -> Machine | None:
    """The measurements that earlier calls made; None where there are none."""
    machine, noise = _read(_path(device, dtype)), _read(_path(device, dtype, method, arguments))
    return None if machine is None or noise is None else Machine(**machine, **noise)


def _path(
    device: torch.device, dtype: torch.dtype, method: str = "", arguments: Mapping[str, Any] | None = None
) -> Path:
    """Of what is measured of a machine or, with a method, of its noise and updates."""
    name = fingerprint(_VERSION, device, dtype, method, sorted((arguments or {}).items()))
    return cache_folder() / "machines" / f"{name}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = {key: _keys(value) for key, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):  # also where the file holds something else
        return None
    return values if values.keys() in (_OF_MACHINE, _OF_METHOD) else None


def measure(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What there is to know of the machine: the fields of Machine but for those of a method."""
    weight = torch.full((_WIDTH, _WIDTH), 0.01, device=device, dtype=dtype)
    flops, bandwidth = {}, {}
    with torch.inference_mode():
        for rows in _ROWS:
            x = torch.full((rows, _WIDTH), 0.01, device=device, dtype=dtype)
            weights = [weight.clone() for _ in range(_COPIES[0])]
            spent = _typical(lambda x=x, weights=weights: [functional.linear(x, w) for w in weights], device)  # type: ignore[misc]
            flops[rows] = 2.0 * rows * _WIDTH * _WIDTH * len(weights) / spent
        for size in _SIZES:
            xs = torch.full((_COPIES[1], size // 3 // dtype.itemsize), 0.5, device=device, dtype=dtype).unbind()
            spent = _typical(lambda xs=xs: [torch.mul(a, b).shape for a, b in pairwise(xs)], device)  # type: ignore[misc]
            bandwidth[size] = size * (len(xs) - 1) / spent
    on_cpu = device.type == "cpu"
    overhead = _overhead(dtype) if on_cpu else _launch(device)
    working = {"working": _working("auto") if on_cpu else 0, "working_fast": _working("compiled") if on_cpu else 0}
    return {**working, "flops": flops, "bandwidth": bandwidth, "overhead": overhead}


@final
class _Block(nn.Module):
    """What a layer of a model asks the host for, with next to nothing to compute."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(_NARROW, **kind)
        self.up, self.down = nn.Linear(_NARROW, _NARROW, **kind), nn.Linear(_NARROW, _NARROW, bias=False, **kind)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.norm(x))
        turned = torch.cat((-h[..., _NARROW // 2 :], h[..., : _NARROW // 2]), -1)  # as rotary positions do
        y: Tensor = x + self.down(functional.silu(h) * (h + turned))
        return y


def _overhead(dtype: torch.dtype) -> float:
    """Seconds that a CPU takes for an operation beside what it computes: modules, rules of lanes, dispatch.

    Of an evaluation at two points of a deep and narrow model; the operations are counted as a plan counts them.
    """
    from zotune import MeZO
    from zotune.meter import Meter, Priced
    from zotune.stacked import repeat

    def objective(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"]).float().mean(dim=(1, 2))  # type: ignore[no-any-return]

    def parts(device: torch.device) -> tuple[Any, dict[str, Tensor]]:
        model = nn.Sequential(*(_Block(device, dtype) for _ in range(_DEEP)))
        return MeZO(model, lr=_LR), {"x": torch.ones(2, 4, _NARROW, device=device, dtype=dtype)}

    opt, batch = parts(torch.device("cpu"))
    opt.step(objective, batch)  # proves the lanes
    spent = _typical(lambda: opt.estimate(objective, batch), torch.device("cpu"))
    opt, batch = parts(torch.device("meta"))
    opt.perturber.direction, points = Priced(opt.direction), opt.estimator.points(0, 0)
    with torch.inference_mode(), opt.perturber.at(*points, rows=2), Meter() as meter:
        objective(opt.model, repeat(batch, 2))
    return spent / (len(meter.products) + len(meter.passes))


def _launch(device: torch.device) -> float:
    """Seconds that a GPU takes for an operation that does nothing: the host runs ahead, or is not asked at all."""
    tiny = torch.zeros(1, device=device)
    with torch.inference_mode():
        return _typical(lambda: [tiny + tiny for _ in range(100)], device) / 100


def measure_noise(
    device: torch.device, dtype: torch.dtype, method: str, arguments: Mapping[str, Any]
) -> dict[str, float]:
    """Seconds per weight of perturbing at two sides and of updating, on a model of some matrices.

    Of the method itself where its directions are dense and the same for all examples; else, and where it cannot be
    built so, of MeZO.
    """
    from zotune import METHODS

    shapes = [_LARGE, _LARGE[::-1]] * (_MATRICES // 2)
    model = nn.Sequential(*(nn.Linear(*shape, bias=False, device=device, dtype=dtype) for shape in shapes))
    law = {"law": arguments["law"]} if "law" in arguments else {}
    try:
        opt = METHODS[method].build(model, **{**arguments, "lr": _LR})
    except UserError:
        opt = METHODS["mezo"].build(model, lr=_LR, **law)
    points = opt.estimator.points(0, 0)
    if isinstance(opt.direction, LowRank) or opt.direction.reads_inputs or any(point.each for point in points):
        opt = METHODS["mezo"].build(model, lr=_LR, **law)
        points = opt.estimator.points(0, 0)
    batch = {"x": torch.ones(1, _LARGE[0], device=device, dtype=dtype)}

    def objective(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"]).float().mean(dim=1)  # type: ignore[no-any-return]

    def step() -> None:
        opt.step(objective, batch)

    step()  # compiles
    pairs = max(len(points) / 2, 1.0)
    plain, probe, both = _in_turn(
        [
            torch.no_grad()(lambda: model(batch["x"].repeat(2, 1))),
            lambda: opt.estimate(objective, batch),
            step,
        ],
        device,
    )
    each = sum(weight.numel() for weight in model.parameters()) * pairs
    return {"probe": max(probe - pairs * plain, 0.0) / each, "update": max(both - probe, 0.0) / each}


def _working(kernels: str) -> int:
    """Bytes that the first step takes beyond its tensors: measured where they are nearly none."""
    command = [sys.executable, "-c", _FIRST_STEP, str(torch.get_num_threads()), kernels]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "ZOTUNE_KERNELS": kernels}
    )
    return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.strip() else 0


def _typical(call: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of a call, after one that is not counted: a run, too, meets what else the machine does."""
    return _in_turn([call], device)[0]


def _in_turn(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """The same of several calls that are compared: one after the other, so that all meet the same unrest."""
    seen: list[list[float]] = []
    for call in calls:
        call()
    begun = time.perf_counter()
    while len(seen) < _LEAST or (len(seen) < _MOST and time.perf_counter() - begun < _BUDGET * len(calls)):
        row = []
        for call in calls:
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            row.append(time.perf_counter() - start)
        seen.append(row)
    return [median(column) for column in zip(*seen, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _keys(value: Any) -> Any:
    """JSON made the numbers text that are keys."""
    return {int(key): item for key, item in value.items()} if isinstance(value, dict) else value
