"""What the host has to do for a step of a deep model: operations that it issues, and the seconds that it needs for it.

    python bench/launches.py [--json] [--layers 40] [--repeats 7]

On a GPU every operation is a launch, and a step cannot be faster than its host. The model has the layers of OPT-13B and
hardly any width, so that on a CPU nearly all time is the host's: Python's and torch's own. LoZO alone: dense methods
take one kernel for every matrix, which a CPU has not. Beside two plain forwards:

run      a step whose forward is run;
played   a step whose forward was recorded and is played, as `graphs` does on a GPU. What the play itself does is left
         out: there it is one launch.

This is of the host alone; what a GPU takes for the operations is not measured here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, final

import torch
from common import LABEL_WORDS, machine, write
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OPTConfig, OPTForCausalLM

import zotune
from zotune.graphs.graph import Graph, Tape
from zotune.graphs.recorder import Recorder

METHODS: dict[str, Callable[[nn.Module], zotune.ZerothOrder]] = {
    "lozo": lambda model: zotune.LoZO(model, lr=1e-9, interval=50, fold_every=50),
    "lozo, 4 queries": lambda model: zotune.LoZO(model, lr=1e-9, interval=50, fold_every=50, queries=4),
}


@final
class Count(TorchDispatchMode):
    """Counts operations that a GPU would be given, but for those of a play. Views and empty tensors are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, (list, tuple)) else [out]
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        written = any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.returns)
        own = [t for t in results if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given]
        empty = func.overloadpacket.__name__.startswith("empty")
        self.found += not Launched.playing and not empty and bool(own or written or not results[0:])
        return out


@final
class Launched(Graph):
    """A tape whose plays are neither counted nor timed."""

    playing, seconds = False, 0.0

    def __init__(self) -> None:
        self._tape = Tape()

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        return self._tape.record(run)

    def play(self) -> None:
        with played():
            self._tape.play()


@contextmanager
def played() -> Iterator[None]:
    """What is in a play."""
    Launched.playing, start = True, time.perf_counter()
    try:
        yield
    finally:
        Launched.playing = False
        Launched.seconds += time.perf_counter() - start


def deep(layers: int) -> nn.Module:
    """OPT's blocks, 16 wide, in bfloat16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 64, "num_attention_heads": 2, "word_embed_proj_dim": 16, "vocab_size": 128}
    config = OPTConfig(num_hidden_layers=layers, max_position_embeddings=64, **sizes)
    return OPTForCausalLM(config).eval().to(torch.bfloat16)


def rows() -> dict[str, Tensor]:
    """Two short rows."""
    ids = torch.randint(2, 128, (2, 8), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "label": torch.zeros(2, dtype=torch.int64)}


def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Two label words at the last position. No mask: off a GPU transformers would look at its values."""
    logits = model(input_ids=batch["input_ids"], logits_to_keep=1, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, -1, list(LABEL_WORDS)].float(), batch["label"], reduction="none")


def measured(act: Callable[[], Any], repeats: int) -> tuple[int, float]:
    """Operations of one call, and the median of its seconds, plays left out."""
    times = []
    for _ in range(repeats):
        Launched.seconds, start = 0.0, time.perf_counter()
        act()
        times.append(time.perf_counter() - start - Launched.seconds)
    with Count() as count:
        act()
    return count.found, median(times)


def table(found: list[dict[str, Any]], where: dict[str, Any], layers: int) -> str:
    """The result as Markdown."""
    lines = ["# What the host does for a step", ""]
    lines += [f"{key}: {value}  " for key, value in where.items() if value is not None]
    lines += ["", f"OPT's blocks, {layers} of them, 16 wide, bfloat16, one thread: nearly all time is the host's."]
    lines += ["Played: a forward is one launch, and what it does is left out.", ""]
    lines += ["| method | operations: two forwards | run | played | host ms: two forwards | run | played |"]
    lines += ["|---" * 7 + "|"]
    lines += [
        f"| {r['method']} | {r['operations']['forwards']} | {r['operations']['run']} | {r['operations']['played']} | "
        f"{1e3 * r['seconds']['forwards']:.1f} | {1e3 * r['seconds']['run']:.1f} | {1e3 * r['seconds']['played']:.1f} |"
        for r in found
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch, found = rows(), []
    for method, build in METHODS.items():
        kinds: dict[str, tuple[int, float]] = {}
        plain = deep(options.layers)

        def forwards(model: nn.Module = plain) -> None:
            with torch.inference_mode():
                for _ in range(2):
                    objective(model, batch)

        kinds["forwards"] = measured(forwards, options.repeats)
        for kind in ("run", "played"):
            optimizer = build(deep(options.layers))
            if kind == "played":
                optimizer.evaluator.recorder = Recorder(optimizer.evaluator, Launched)
            for _ in range(3):
                optimizer.step(objective, batch)
            kinds[kind] = measured(lambda o=optimizer: o.step(objective, batch), options.repeats)
            if kind == "played" and optimizer.evaluator.recorder.reason:
                raise SystemExit(f"{method}: {optimizer.evaluator.recorder.reason}")
        found.append(
            {"method": method}
            | {"operations": {kind: value[0] for kind, value in kinds.items()}}
            | {"seconds": {kind: value[1] for kind, value in kinds.items()}}
        )
    where = machine()
    text = table(found, where, options.layers)
    write("launches", {"machine": where, "layers": options.layers, "rows": found}, text)
    print(json.dumps(found) if options.json else text)


if __name__ == "__main__":
    main()
