"""Do the processes run the same thing, and do they still have the same weights?"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zotune.distributed.group import Group
from zotune.errors import RunError

REBUILD = (
    "look at that process's machine and versions; `zotune resume` under torchrun rebuilds all of them from the base "
    "model and the journal"
)
# Elements that one check looks at; after enough checks every element was looked at.
_SLICE = 1 << 20


def refuse_different(values: Sequence[Hashable], what: str, remedy: str) -> None:
    """Raises RunError, naming the processes in the minority, unless all `values` (one for each process) are equal."""
    if len(set(values)) == 1:
        return
    counts = Counter(values)
    most = max(counts.values())
    right = next(value for value in values if counts[value] == most)  # where it is a draw: process 0's or the first
    wrong = [rank for rank, value in enumerate(values) if value != right]
    named = f"process{'es' * (len(wrong) > 1)} {', '.join(map(str, wrong))}"
    draw = "" if 2 * most > len(values) else " (which of them is right cannot be told)"
    raise RunError(
        f"{named} differ{'s' * (len(wrong) == 1)} from the other{'s' * (len(values) - len(wrong) > 1)} in {what}"
        f"{draw}; nothing was written after it. Remedy: {remedy}."
    )


def agree(group: Group, value: str, what: str) -> None:
    """All processes must give the same `value`. Raises RunError, in all of them, naming those that do not."""
    refuse_different(group.exchange(value.encode()), what, REBUILD)


def agree_on_run(group: Group, header: Mapping[str, Any]) -> None:
    """All processes must be about to write the same journal header. Raises RunError naming the first other key."""
    own = fingerprints(header)
    told = [json.loads(message) for message in group.exchange(json.dumps(own).encode())]
    for key in own:
        refuse_different(
            [each.get(key, "") for each in told], f"{key} of the run", "give all of them the same files and versions"
        )


def fingerprints(header: Mapping[str, Any]) -> dict[str, str]:
    """A short hash of each entry of a journal's header."""
    return {key: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for key, value in header.items()}


def digest(tensors: Mapping[str, Tensor], check: int) -> bytes:
    """6 bytes of the SHA-256 of a slice of every tensor: check 0 the first slice of each, check 1 the next, and so on.

    All slices together have about a million elements.
    """
    total = sum(tensor.numel() for tensor in tensors.values())
    parts = max(1, -(-total // _SLICE))
    part, found = check % parts, hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1)
        start, stop = len(flat) * part // parts, len(flat) * (part + 1) // parts
        found.update(name.encode())
        found.update(flat[start:stop].contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return found.digest()[:6]
