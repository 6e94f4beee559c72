"""What is foreseen of a run that has begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.test_plan import MACHINE

from zotune.config import TrainConfig
from zotune.forecast import Forecast, foreseen, said
from zotune.load import meta_model
from zotune.plan import plan
from zotune.session import Session
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [{}, {"method": "lozo", "scope": "last:1"}, {"family": "t5", "scope": "lora"}])
def test_a_begun_run_is_foreseen_as_it_is_planned(
    config: Config, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    """The same terms, but for the libraries, which each process measures for itself; the session is not touched."""
    monkeypatch.setattr("zotune.plan.calibrate", lambda *_: MACHINE)
    session = Session(config(**options)).begin()
    model, optimizer = session.model, session.optimizer
    terms = foreseen(session)
    planned = plan(config(**options), Quiet())["memory"]
    assert terms is not None and terms["activations"] > 0
    for name in ("weights", "activations", "reused", "state"):
        assert terms[name] == planned[name], name
    assert session.model is model and session.optimizer is optimizer


def test_smaller_forwards_hold_less(config: Config) -> None:
    """Activations shrink with the rows that share a forward, and are computed in as many forwards more."""
    whole, parts = (Session(config(rows_per_forward=rows, eval=None)).begin() for rows in (None, 1))
    terms = [foreseen(session) for session in (whole, parts)]
    assert terms[0] and terms[1] and terms[1]["activations"] < 0.5 * terms[0]["activations"]
    assert (whole.forwards_per_step, parts.forwards_per_step) == (2, 16)


def forecast(settings: TrainConfig) -> Forecast:
    session = Session(settings, model=meta_model(settings))
    return Forecast(session, session.build(), MACHINE)


def test_blocks_below_the_scope_run_once_for_each_batch_that_comes(config: Config) -> None:
    """Steps that see half of the batches run them for that half; a second epoch takes what was kept."""
    units = len(forecast(config(scope="last:1")).session.units)
    half, once, twice = (
        forecast(config(scope="last:1", steps=steps, eval=None)) for steps in (units // 2, units, 2 * units)
    )
    share = units // 2 / units
    assert half.seconds()[1] == pytest.approx(share * once.seconds()[1]) and once.seconds()[1] > 0
    assert half.memory(CPU)["reused"] == pytest.approx(share * once.memory(CPU)["reused"], abs=1)
    assert twice.seconds()[1] == once.seconds()[1]


def test_what_is_not_kept_runs_each_time(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nearly nothing of the activations fits, a second epoch runs the blocks below the scope nearly again, and
    so does each evaluation; held-out rows, which come first, are kept first.
    """
    units = len(forecast(config(scope="last:1")).session.units)
    settings = config(scope="last:1", steps=2 * units)
    step, below, evaluation, first = forecast(settings).seconds()
    monkeypatch.setattr(Forecast, "captured", lambda self, batch: 10**15)
    again = forecast(settings)
    assert again.seconds() == pytest.approx((step, 2 * below, evaluation + first, 0.0), rel=1e-5, abs=1e-8)
    # What the budget keeps, and that of the batch at hand, which is not kept.
    assert again.memory(CPU)["reused"] == (512 << 20) + 10**15


@pytest.mark.parametrize("options", [{}, {"lanes": "off"}])
def test_prompts_below_the_scope_are_foreseen(config: Config, options: dict[str, Any]) -> None:
    """Of a run that generates: what is kept of a batch is what the run keeps, and a step is shorter than without."""
    said = {"label_words": None, "objective": "f1", "completion_column": "text", "max_new_tokens": 3, **options}
    settings = config(scope="last:1", eval=None, **said)
    planned, session = forecast(settings), Session(settings).begin()
    batch = session.batch(session.parts(0)[0])
    with session.reuse.within(session.objective, batch, (0, 0))(1):
        pass
    before = session.reuse.kept_bytes
    assert planned.reuse.depth == session.reuse.depth == 2 and planned.lanes == (not options)
    assert planned.captured(planned.batch(0)) == session.reuse.capture(session.objective, batch).bytes <= before
    without = forecast(config(scope="last:1", eval=None, reuse_mb=0, **said))
    assert planned.step(0).seconds < without.step(0).seconds
    assert without.memory(CPU)["reused"] == 0 < planned.memory(CPU)["reused"]


def test_the_largest_evaluation_is_foreseen(config: Config) -> None:
    """The rows that are left over at the end are the longest, and may be few: a full batch holds more."""
    full, rest = (forecast(config(eval_batch_size=size, batch_size=1, scope="norms")) for size in (10, 9))
    rows = len(full.session.eval_examples or [])
    assert rows == 10
    assert rest.memory(CPU)["activations"] > 0.7 * full.memory(CPU)["activations"]


def test_a_bank_weighs_what_it_holds(config: Config) -> None:
    """Its parameter has the shape of a weight and the memory of one number."""
    plain, banked = (forecast(config(method="lozo", scope=scope)) for scope in ("full", "bank"))
    assert banked.memory(CPU)["weights"] < 1.01 * plain.memory(CPU)["weights"]


def test_what_cannot_be_foreseen(config: Config) -> None:
    """Seconds need a measured machine."""
    settings = config()
    session = Session(settings, model=meta_model(settings))
    with pytest.raises(ValueError, match="measured"):
        Forecast(session, session.build(), None).seconds()


def test_said_names_the_largest_terms() -> None:
    """The peak first, then three terms in their order; what is nothing is not said."""
    terms = {"runtime": 3 * 10**8, "weights": 5 * 10**8, "activations": 10**6, "reused": 0, "state": 0, "peak": 10**9}
    assert said(terms) == "about 1.0 GB (weights 500 MB, libraries 300 MB, activations 1 MB)"
