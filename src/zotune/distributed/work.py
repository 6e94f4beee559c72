"""How much of a step one of several processes does, and how much of a model it holds: for plans, without processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import nn

from zotune.distributed.sharded import blocks_of
from zotune.errors import ConfigError


@final
@dataclass(frozen=True)
class Work:
    """`count` processes with a mode of `zotune.Parallel`; one process has all of everything."""

    count: int = 1
    mode: str = "data"

    def forwards(self, units: int, points: int, lanes: int) -> float:
        """The share of a step's forwards that the busiest process runs: of so many micro-batches at so many points, so
        many of which ride in one forward.

        Raises ConfigError where a process would be left without work, as a run does.
        """
        if self.mode == "shard":
            return 1.0
        whole = self.mode in ("data", "data+shard")
        groups = 1 if whole else points if "signs" in self.mode else -(-points // lanes)
        cells = (units if "data" in self.mode else 1) * groups
        if cells < self.count:
            raise ConfigError(
                f"{self.count} processes share the work of a step, which has {cells} part{'s' * (cells != 1)} "
                f"with --parallel {self.mode}: {units} micro-batches, {points} points. Remedy: fewer processes, a "
                "smaller --micro-batch-size, more --queries, or --parallel data+probes."
            )
        dealt = units * groups
        return -(-dealt // self.count) / dealt

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return self.count > 1 and "shard" in self.mode

    def weights(self, model: nn.Module, sizes: Mapping[int, int]) -> int:
        """Bytes of weights in one process. sizes: bytes of each tensor of the model, by id.

        Of a sharded model: its part of everything, the largest block whole, twice, since the next one is gathered while
        it runs, and what lies outside of the blocks whole.
        """
        total = sum(sizes.values())
        if not self.sharded:
            return total
        blocks = [{id(tensor) for tensor in (*block.parameters(), *block.buffers())} for block in blocks_of(model)]
        within = [sum(sizes.get(place, 0) for place in block) for block in blocks]
        return -(-total // self.count) + 2 * max(within, default=0) + total - sum(within)
