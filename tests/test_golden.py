"""Journals of released versions replay to the hash that they recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import models
from tests.golden import DTYPES, FOLDER, OF_A_LIBRARY, OF_SUMS, STEPS, base
from tests.models import weights

import zotune
from zotune.journal import read
from zotune.methods import METHODS
from zotune.rebuild import rebuild

one_thread = models.one_thread
FILES = sorted(FOLDER.glob("*/*.zoj"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_journal_of_an_older_version_replays(path: Path) -> None:
    """To the same bits; where linear algebra of a library takes part, to the same weights within its rounding."""
    method, dtype = path.stem.rsplit("-", 1)
    model = base(dtype)
    before = weights(model)
    if method in OF_A_LIBRARY:
        header, records, _ = read(path)
        optimizer = rebuild(header, model)
        for record in records[:STEPS]:
            optimizer.replay(record)
        expected = torch.tensor([float(line) for line in path.with_suffix(".txt").read_text().split()])
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        torch.testing.assert_close(model().detach().float(), expected, rtol=tolerance, atol=tolerance)
    else:
        found = zotune.replay(path, model)
        assert found["verified"] and found["steps"] == STEPS
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.gpu
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_journal_replays_on_a_gpu(path: Path) -> None:
    """To the bits that a CPU recorded; where sums or linear algebra take part, to those weights within rounding."""
    method, dtype = path.stem.rsplit("-", 1)
    on_cpu, on_gpu = base(dtype), base(dtype).to("cuda")
    header, records, _ = read(path)
    for model in (on_cpu, on_gpu):
        optimizer = rebuild(header, model)
        for record in records[:STEPS]:
            optimizer.replay(record)
    tolerance = 0.0 if method not in OF_A_LIBRARY | OF_SUMS else 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(on_gpu().detach().cpu(), on_cpu().detach(), rtol=tolerance, atol=tolerance)


def test_every_method_of_this_version_has_its_journals() -> None:
    """A new method brings its own: `python -m tests.golden`."""
    expected = {f"{name}-{dtype}" for name, row in METHODS.items() if row.replayable for dtype in DTYPES}
    assert {path.stem for path in FILES if path.parent.name == zotune.__version__} == expected
