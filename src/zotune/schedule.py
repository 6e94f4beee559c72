"""Training a part of the scope in each step, whatever the method: the option `blocks` of every method.

`cycle` takes one part after the other (MeZO-BCD, arXiv 2501.19099; `layer_wise_optim` in MeZO's released code),
`random:S` a share S of the parts, drawn anew for each step (LeZO, arXiv 2410.09823, whose sparsity is 1 - S). A part is
one transformer block; what lies outside the blocks (tables, last norm, head) is one part more, where it is in scope.
`atoms` takes one rank-one atom of each LoRA adapter after the other (`zotune.atoms`).

Differs from the papers in: MeZO's code leaves what lies outside the blocks alone for good; here its turn comes too. The
update is not divided by the share, as in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from zotune.atoms import Atoms
from zotune.direction import Direction, Factors, State, Target
from zotune.errors import ConfigError
from zotune.estimate import Probe
from zotune.noise import Key, Law, Purpose, words
from zotune.scope import blocks

# Choices of so many steps are kept: a rule may ask about past ones.
_KEPT = 256


@final
class Scheduled(Direction):
    """`inner` on the parts of the step, zero elsewhere. `parts` gives the number of each tensor's part, from 0."""

    def __init__(self, inner: Direction, parts: dict[str, int], choice: str) -> None:
        self.inner, self.parts, self.choice = inner, parts, choice
        self.count = 1 + max(parts.values())
        self.share = _share(choice)
        self.reads_inputs, self.may_wait, self.in_parts = inner.reads_inputs, inner.may_wait, inner.in_parts
        self.of_matrices = inner.of_matrices
        self._chosen: dict[tuple[int, int], frozenset[int]] = {}

    def chosen(self, key: Key) -> frozenset[int]:
        """The numbers of the parts that the key's step moves."""
        at = key.seed, key.step
        if at not in self._chosen:
            if len(self._chosen) >= _KEPT:
                self._chosen.clear()
            self._chosen[at] = self._choose(key)
        return self._chosen[at]

    def _choose(self, key: Key) -> frozenset[int]:
        if self.share is None:
            return frozenset({key.step % self.count})
        draws = words(Key(key.seed, key.step, 0, Purpose.CHOICE), "blocks", torch.arange(-(-self.count // 4)))
        order = draws.flatten()[: self.count].argsort(stable=True)
        return frozenset(order[: max(1, round(self.share * self.count))].tolist())

    def active(self, target: Target, key: Key) -> bool:
        return self.parts[target.name] in self.chosen(key) and self.inner.active(target, key)

    def everywhere(self) -> Direction:
        return self.inner.everywhere()

    def block(self, target: Target, key: Key, start: int, stop: int) -> Tensor:
        if not self.active(target, key):
            return torch.zeros(stop - start, device=target.data.device)
        return self.inner.block(target, key, start, stop)

    def rows(self, target: Target, key: Key, rows: Tensor) -> Tensor:
        if not self.active(target, key):
            return torch.zeros(len(rows), target.matrix_shape[1], device=target.data.device)
        return self.inner.rows(target, key, rows)

    def add(self, target: Target, key: Key, start: int, w: Tensor, scales: Sequence[float]) -> list[Tensor]:
        return self.inner.add(target, key, start, w, scales) if self.active(target, key) else [w] * len(scales)

    def stream(self, target: Target, key: Key) -> Law | None:
        return self.inner.stream(target, key) if self.active(target, key) else None

    def factors(self, target: Target, key: Key) -> Factors | None:
        return self.inner.factors(target, key) if self.active(target, key) else None

    def combined(self, target: Target, terms: Sequence[tuple[Key, float]]) -> Factors | None:
        moving = [(key, scale) for key, scale in terms if self.active(target, key)]
        return self.inner.combined(target, moving) if moving else None

    def gain(self, target: Target, key: Key) -> float:
        return self.inner.gain(target, key)

    def window(self) -> int:
        return self.inner.window()

    def prepare(self, targets: Sequence[Target]) -> None:
        self.inner.prepare(targets)

    def see(self, target: Target, key: Key, inputs: Tensor, transposed: bool = False) -> None:
        self.inner.see(target, key, inputs, transposed)

    def observe(self, targets: Sequence[Target], probes: Sequence[Probe]) -> None:
        # What rested has shown nothing to learn from.
        self.inner.observe([t for t in targets if any(self.active(t, p.key) for p in probes)], probes)

    def state(self) -> State:
        return self.inner.state()

    def load_state(self, state: State) -> None:
        self.inner.load_state(state)

    def state_elements(self, targets: Sequence[Target]) -> int:
        return self.inner.state_elements(targets)


def scheduled(inner: Direction, choice: str, model: nn.Module, names: Sequence[str], whole: bool) -> Direction:
    """`inner` on the parts of `model` that `choice` names, for the parameters `names`.

    Raises ConfigError for a choice that is none of `cycle`, `random:SHARE` and `atoms`, where there is one part only,
    and for atoms without LoRA or with a rule that needs `whole` matrices.
    """
    if choice == "atoms" and inner.by_elements:
        raise ConfigError(
            "blocks is 'atoms', but this method learns from every element of a direction. Remedy: another method, or "
            "cycle."
        )
    if choice == "atoms" and whole:
        raise ConfigError(
            "blocks is 'atoms', but this method's update is made of whole matrices. Remedy: another method, or cycle."
        )
    if choice == "atoms":
        return Atoms(inner, names)
    _share(choice)
    found = blocks(model)
    prefix = f"{found[0]}." if found else None
    keys = [name[len(prefix) :].partition(".")[0] if prefix and name.startswith(prefix) else "" for name in names]
    # Blocks in their own order; what lies outside them comes last, wherever the model lists it.
    order = [*dict.fromkeys(key for key in keys if key), *([""] if "" in keys else [])]
    if len(order) < 2:
        raise ConfigError(
            f"blocks is {choice!r}, but the scope lies in one part of the model. Remedy: a scope over several blocks."
        )
    return Scheduled(inner, {name: order.index(key) for name, key in zip(names, keys, strict=True)}, choice)


def _share(choice: str) -> float | None:
    """The share of `random:SHARE`, None for `cycle`."""
    kind, _, share = choice.partition(":")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if choice != "cycle" and (kind != "random" or not 0 < value <= 1):
        raise ConfigError(f"blocks is {choice!r}. Remedy: cycle, random:SHARE with a share such as 0.25, or atoms.")
    return None if choice == "cycle" else value
