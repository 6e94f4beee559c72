"""Journals that stay: each version of zotune must replay those of every version before it to the recorded hash.

`python -m tests.golden` writes those of this version, once, when it is released or a method is added; existing files
are never written again. A change that makes one of them end elsewhere is a change of the noise stream or of a method's
rounding: it needs a new stream version, not a new file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tests.models import Weights, record_of, train

import zotune
from zotune.journal import HashRecord, Journal
from zotune.methods import METHODS
from zotune.noise import Key, Purpose, noise
from zotune.rebuild import current_sha256, scope_sha256

FOLDER = Path(__file__).parent / "journals"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS = 12
# LAPACK and BLAS are part of their update; their last bits may differ between processors, so they end with a hash on
# the machine that wrote the file alone. What they must reach elsewhere is the weights within a tolerance.
OF_A_LIBRARY = {"lozo_m", "subzero", "zo_muon"}
# Sums over a tensor or its rows are part of their update, whose order a device chooses: the same bits on every CPU
# that these files were read on, not promised on a GPU (docs/journal.md).
OF_SUMS = {"loren", "hizoo", "conmezo"}


def base(dtype: str) -> Weights:
    """A matrix with odd sizes, one with whole blocks of the stream, and a vector: from our own stream, so for good."""
    shapes = {"odd": (17, 13), "whole": (16, 32), "vector": (11,)}
    key = Key(0, 0, 0, Purpose.CHECK)
    drawn = {name: noise("gaussian", key, name, 0, torch.Size(shape).numel()) for name, shape in shapes.items()}
    return Weights(**{name: (z.view(shapes[name]) / 16).to(DTYPES[dtype]) for name, z in drawn.items()})


def write(folder: Path, method: str, dtype: str) -> None:
    """`METHOD-DTYPE.zoj`: twelve steps with made-up losses and a falling lr, then the hash of the weights."""
    model = base(dtype)
    optimizer = train(method, model, lr=0.05, eps=1e-2, seed=2**40 + 3, weight_decay=0.01)
    header = optimizer.header() | {"scope_sha256": scope_sha256(model, optimizer.names)}
    with Journal.create(folder / f"{method}-{dtype}.zoj", header) as journal:
        for step in range(STEPS):
            lr = 0.02 / (1 + step)
            record = replace(record_of(optimizer, step, lr), lrs=(lr,) * len(optimizer.param_groups))
            journal.append(record)
            optimizer.replay(record)
        journal.append(HashRecord(STEPS, current_sha256(optimizer)))
    if method in OF_A_LIBRARY:
        values = [float(value) for value in model().detach().float()]
        (folder / f"{method}-{dtype}.txt").write_text("\n".join(f"{value:.9g}" for value in values) + "\n")


def main() -> None:
    """Write what is missing of this version."""
    folder = FOLDER / zotune.__version__
    folder.mkdir(parents=True, exist_ok=True)
    for method, row in METHODS.items():
        for dtype in DTYPES:
            if row.replayable and not (folder / f"{method}-{dtype}.zoj").exists():
                write(folder, method, dtype)


if __name__ == "__main__":
    main()
