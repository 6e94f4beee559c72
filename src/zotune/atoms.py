"""One rank-one atom of every LoRA adapter per step: the choice `atoms` of the option `blocks`.

A LoRA of rank r is a sum of r atoms b_i a_i'. Step t moves atom i = t mod r alone: row i of every A (r, in) and
column i of every B (out, r), so the number of perturbed weights no longer grows with r. One atom's part of the output
shrinks with LoRA's scaling alpha / r, and with it the finite difference: AR1-ZO (arXiv 2605.19767) scales by alpha * r
instead. `--blocks atoms` on the command line sets that; in Python it is LoraConfig's `lora_alpha = alpha * r**2`.

Differs from the paper in: known to us from its abstract; what else the scope holds (a trained bias, say) moves in every
step. Its code was not available to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from zotune.direction import Direction, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Probe
from zotune.noise import Key


@final
class Atoms(Direction):
    """`inner` on the step's atom of each adapter, zero on the others. `names` are those of all tensors in scope.

    Raises ConfigError where the scope holds no LoRA weights.
    """

    def __init__(self, inner: Direction, names: Sequence[str]) -> None:
        if not any("lora_" in name for name in names):
            raise ConfigError("blocks is 'atoms', but the scope holds no LoRA weights. Remedy: --scope lora.")
        self.inner = inner
        self.reads_inputs, self.may_wait, self.in_parts = inner.reads_inputs, inner.may_wait, inner.in_parts
        self.of_matrices = inner.of_matrices

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        z = self.inner.block(target, key, start, stop)
        return z * self._mask(target, key, torch.arange(start, stop, device=z.device))

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        z, columns = self.inner.rows(target, key, rows), target.matrix_shape[1]
        places = rows.to(z.device).unsqueeze(1) * columns + torch.arange(columns, device=z.device)
        return z * self._mask(target, key, places)

    def _mask(self, target: Target, key: Key, places: Tensor) -> Tensor:
        """True where an element, given by its place in the flattened tensor, belongs to the step's atom."""
        rows, columns = target.matrix_shape
        if "lora_A" in target.name or "lora_embedding_A" in target.name:
            return places // columns == key.step % rows
        if "lora_B" in target.name or "lora_embedding_B" in target.name:
            return places % columns == key.step % columns
        return torch.ones_like(places, dtype=torch.bool)

    def everywhere(self) -> Direction:
        return self.inner.everywhere()

    def active(self, target: Target, key: Key) -> bool:
        return self.inner.active(target, key)

    def gain(self, target: Target, key: Key) -> float:
        return self.inner.gain(target, key)

    def prepare(self, targets: Sequence[Target]) -> None:
        self.inner.prepare(targets)

    def see(self, target: Target, key: Key, inputs: Tensor, transposed: bool = False) -> None:
        self.inner.see(target, key, inputs, transposed)

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        self.inner.observe(targets, probes)

    def state(self) -> State:
        return self.inner.state()

    def load_state(self, state: State) -> None:
        self.inner.load_state(state)

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self.inner.state_elements(targets)
