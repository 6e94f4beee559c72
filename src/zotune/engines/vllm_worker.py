"""What vLLM's workers do for zotune: they make adapters from a run's header and records, and write them into slots.

vLLM mixes `Slots` into its worker class (`worker_extension_cls`), and calls its methods by name. Its LoRA layers hold
one stack of factors for each slot; a layer that merges several of the checkpoint's (q, k and v, say) has a stack for
each of them. Adapters that hold zeros are registered once, under the slots' numbers; from then on the stacks are
written in place. Nothing is read from a file, and vLLM itself is not imported before `zotune_start`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from zotune.distributed.worker import answered
from zotune.engines.mirror import Mirror
from zotune.errors import CoverageError, RunError

Size = tuple[int, int]


@final
@dataclass(frozen=True)
class Place:
    """Where the adapter of a checkpoint's layer goes: a layer of vLLM, and which of its stacks."""

    layer: str
    stack: int


def places(layers: Iterable[str], merged: Mapping[str, Sequence[str]]) -> dict[str, Place]:
    """From the names of the checkpoint's layers. `merged`: what each merged layer of vLLM is made of, in order."""
    found = {}
    for layer in layers:
        for stack, name in enumerate(merged.get(layer) or [layer]):
            found[name] = Place(layer, stack)
    return found


def check_coverage(wanted: Mapping[str, Size], found: Mapping[str, Place], stacks: Mapping[str, list[Size]]) -> int:
    """The elements that adapters reach: all in scope. Raises CoverageError, naming layers that have none, or others.

    wanted: rows and columns of each layer in scope; stacks: of each stack of each layer of vLLM.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CoverageError(
            f"vLLM has no adapter for {missing[0]}{more} of {len(wanted)} layers in scope. Remedy: a narrower scope, "
            "such as 'bank&regex:NAMES'; or --scorer torch."
        )
    reached = 0
    for name, (rows, columns) in wanted.items():
        place = found[name]
        size = stacks[place.layer][place.stack] if place.stack < len(stacks[place.layer]) else (0, 0)
        if size != (rows, columns):
            raise CoverageError(
                f"vLLM's adapter for {name} reaches {size[0]} x {size[1]} of its {rows} x {columns} elements. Remedy: "
                "--scorer torch."
            )
        reached += rows * columns
    return reached


@final
class Slots:
    """A part of vLLM's worker."""

    model_runner: Any  # vLLM's own
    device: Any

    def zotune_start(self, header: bytes, bank_rank: int, slots: int) -> bytes:
        """Register `slots` adapters. The answer tells how many elements they reach."""
        return answered(lambda: self._zotune_start(header, bank_rank, slots))

    def zotune_follow(self, records: bytes) -> bytes:
        """Replay records."""
        return answered(lambda: self._zotune_follow(records))

    def zotune_place(self, step: int | None, adapters: list[tuple[int, int, float]]) -> bytes:
        """Write adapters (slot, query, scale) of the next step, which is `step` where that is told."""
        return answered(lambda: self._zotune_place(step, adapters))

    def _zotune_start(self, header: bytes, bank_rank: int, slots: int) -> bytes:
        from vllm.lora.request import LoRARequest

        worker = self.model_runner.lora_manager
        manager = self._zotune_manager = worker._adapter_manager
        self._zotune = Mirror(json.loads(header), bank_rank, self.device)
        linear = {name: layer for name, layer in manager.modules.items() if hasattr(layer, "output_slices")}
        stacks = {
            name: [(b.shape[2], a.shape[3]) for a, b in zip(layer.lora_a_stacked, layer.lora_b_stacked, strict=True)]
            for name, layer in linear.items()
        }
        self._zotune_places = places(linear, manager.packed_modules)
        self._zotune_counts = {name: len(sizes) for name, sizes in stacks.items()}
        reached = check_coverage(self._zotune.sizes, self._zotune_places, stacks)
        for slot in range(1, slots + 1):
            worker.add_dummy_lora(LoRARequest(name_of(slot), slot, name_of(slot)), manager.lora_config.max_lora_rank)
            manager.activate_adapter(slot)
        return json.dumps(reached).encode()

    def _zotune_follow(self, records: bytes) -> bytes:
        self._zotune.follow(records)
        return b""

    def _zotune_place(self, step: int | None, adapters: Sequence[tuple[int, int, float]]) -> bytes:
        if step is not None and step != self._zotune.step:
            raise RunError(f"asked for step {step} after {self._zotune.step} steps. Remedy: start the run again.")
        for slot, query, scale in adapters:
            self._zotune_write(slot, self._zotune.adapters(query, scale))
        return b""

    def _zotune_write(self, slot: int, adapters: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        index = self._zotune_manager.lora_index_to_id.index(slot)
        parts: dict[str, list[tuple[Tensor, Tensor] | None]] = {}
        for name, factors in adapters.items():
            place = self._zotune_places[name]
            parts.setdefault(place.layer, [None] * self._zotune_counts[place.layer])[place.stack] = factors
        for layer, stacks in parts.items():
            a = [None if part is None else part[1].t() for part in stacks]
            b = [None if part is None else part[0] for part in stacks]
            module = self._zotune_manager.modules[layer]
            module.set_lora(index, *((a[0], b[0]) if len(stacks) == 1 else (a, b)))


def name_of(slot: int) -> str:
    """The name under which the adapter of a slot is asked for."""
    return f"zotune-{slot}"
