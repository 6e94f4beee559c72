"""Presets: the papers' numbers for all weights, others by mode, written into new runs and never into recorded ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from zotune.config import TrainConfig
from zotune.journal import StepRecord
from zotune.journal import read as read_journal
from zotune.methods import METHODS
from zotune.presets import Preset, check_tuned, measured, mode_of, most, preset, said, with_preset
from zotune.resolve import config_of
from zotune.run import RunPaths
from zotune.train import resume, train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


def test_every_method_has_its_papers_numbers() -> None:
    """For all weights, and for a part of them, they are what the factory takes."""
    for name, row in METHODS.items():
        own = inspect.signature(row.build).parameters
        for scope, mode in (("full", "full"), ("last:2", "last")):
            assert preset(name, scope) == Preset(mode, own["lr"].default, own["eps"].default), name


def test_a_new_method_needs_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table is enough: the rates of other modes are on the scale of its own."""
    monkeypatch.setitem(METHODS, "new", replace(METHODS["zo_muon"], name="new"))
    assert preset("new", "full") == Preset("full", 1e-2, 1e-3) and preset("new", "lora").lr == 1.0


@pytest.mark.parametrize(
    ("scope", "mode"),
    [
        ("full", "full"), ("last:6", "last"), ("block:3", "last"), ("dominant", "last"), ("regex:q_proj", "last"),
        ("norms", "norms"), ("norms&last:6", "norms"), ("last:6 & biases", "biases"), ("lora", "lora"),
        ("last:2&lora", "lora"), ("prefix", "prefix"), ("prompt", "prompt"), ("head", "head"), ("bank", "bank"),
        ("scales", "scales"), ("sensitive", "sensitive"), ("full&regex:a&b", "last"), ("nonsense", "full"),
    ],
)  # fmt: skip
def test_modes(scope: str, mode: str) -> None:
    """The kind of weights decides, then whether it is a part of them."""
    assert mode_of(scope) == mode


def test_modes_of_the_paper() -> None:
    """MeZO's own numbers; another method takes them on its own scale, known from equal forwards."""
    assert preset("mezo", "lora") == Preset("lora", 1e-4, 1e-2)
    assert preset("mezo", "prefix") == Preset("prefix", 1e-2, 1e-1)
    assert preset("fzoo", "lora") == Preset("lora", 4e-3, 1e-2)
    assert preset("aimzo", "prefix").eps == 6e-3  # a radius as much smaller than MeZO's as for all weights


def test_what_is_given_stays(config: Config) -> None:
    """Each of the two is filled in alone, and where it is from is said."""
    none = config(lr=None, eps=None, scope="lora")
    filled = with_preset(none)
    assert (filled.lr, filled.eps) == (1e-4, 1e-2) and with_preset(filled) == filled
    assert with_preset(replace(none, lr=0.5)).lr == 0.5 and with_preset(replace(none, eps=0.5)).eps == 0.5
    assert said(filled, 1e-4, 1e-2) == "lr 0.0001, eps 0.01 (presets for lora)"
    assert said(filled, 0.5, 1e-2) == "lr 0.5, eps 0.01 (eps: preset for lora)"
    assert said(filled, 1e-4, 0.5) == "lr 0.0001, eps 0.5 (lr: preset for lora)"
    assert said(filled, 0.5, 0.5) == "lr 0.5, eps 0.5"
    tuned = replace(filled, lr=2e-3, tuned="0.002 for mezo, lora")
    assert said(tuned, 2e-3, 0.5) == "lr 0.002, eps 0.5 (lr: measured by zotune tune)" and measured(tuned, 2e-3)
    assert not measured(tuned, 3e-3) and not measured(filled, 1e-4)
    # The same lr for another scope or method is not what was measured.
    other = replace(tuned, scope="full")
    warned = check_tuned(other, 2e-3)
    assert not measured(other, 2e-3) and warned is not None and "lr 0.002 for mezo, lora, is what" in warned
    assert "this run is of mezo, full" in warned and "the preset for full is 1e-06" in warned
    assert check_tuned(tuned, 2e-3) is None and check_tuned(other, 3e-3) is None and check_tuned(filled, 1e-4) is None
    unknown = replace(none, method="mezzo")
    assert with_preset(unknown) == unknown  # which is refused where the method is looked for


def test_a_new_run_writes_them_down(config: Config) -> None:
    """Its config, its journal and its steps have the preset."""
    result = train(config(lr=None, eps=None, scope="norms", steps=2), Quiet())
    paths = RunPaths(Path(result["run"]))
    own, known = config_of(paths), preset("mezo", "norms")
    assert (own.lr, own.eps) == (known.lr, known.eps)
    header, records, _ = read_journal(paths.journal)
    assert header["arguments"]["eps"] == known.eps and header["config"]["lr"] == known.lr
    assert [record.lrs[0] for record in records if isinstance(record, StepRecord)] == [known.lr] * 2


def test_a_recorded_run_without_them_goes_on_as_it_began(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config has no lr and eps, as versions before presets wrote it: they are the factory's, as they were."""
    monkeypatch.setattr("zotune.train.with_preset", lambda given: given)
    started = config(lr=None, eps=None, scope="norms", steps=3)
    train(replace(started, steps=3), Quiet())
    monkeypatch.undo()
    paths = RunPaths(started.output_dir)
    whole = paths.journal.read_bytes()
    assert config_of(paths).lr is None and read_journal(paths.journal)[0]["arguments"]["eps"] == 1e-3
    from zotune.history.undo import undo

    undo(paths.folder, 2)
    resume(paths.folder, Quiet())
    assert paths.journal.read_bytes() == whole


def test_most_that_is_known_to_learn() -> None:
    """The papers' rates, the best ones on the demo's model, and what is known to diverge lie on their sides of it."""
    known = [  # method, trained weights, rate: tables 15 and 16 of MeZO, bench/results/methods.md, docs/limits.md
        ("mezo", 13 * 10**9, 1e-6), ("mezo", 355 * 10**6, 1e-5), ("mezo", 134_515_008, 1e-4),
        ("mezo", 21 * 10**6, 5.1e-4), ("sparse_mezo", 21 * 10**6, 1e-3), ("fzoo", 13 * 10**9, 5e-5),
        ("fzoo", 21 * 10**6, 0.02), ("es", 7 * 10**9, 5e-4), ("es", 21 * 10**6, 0.064), ("grzo", 21 * 10**6, 5.1e-5),
        ("loren", 21 * 10**6, 2e-3), ("zo_muon", 13 * 10**9, 1e-2), ("zo_muon", 21 * 10**6, 1.3),
        ("meazo", 21 * 10**6, 5.1e-3), ("aimzo", 6 * 10**8, 5e-4), ("eggroll", 21 * 10**6, 0.064),
    ]  # fmt: skip
    for method, trained, lr in known:
        assert lr <= most(method, trained), (method, trained)
    for trained, lr in ((13 * 10**9, 2e-5), (7 * 10**9, 2e-5), (10**9, 3e-5), (134_515_008, 8e-4), (21 * 10**6, 2e-3)):
        assert lr > most("mezo", trained), trained
