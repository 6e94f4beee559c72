"""What a run says before its first step, and which changes since it began are said when it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.courses import Noting

from zotune.config import TrainConfig
from zotune.heading import say_header, say_versions
from zotune.records import StepRecord, encode
from zotune.session import Session
from zotune.watch import Quiet, size

Config = Callable[..., TrainConfig]


def begun(settings: TrainConfig) -> tuple[Session, Noting]:
    return Session(settings).begin(), Noting()


def test_names_and_figures_of_a_run(config: Config) -> None:
    """Counts are those of the model and the rows, both sides of a step are two forwards, and the peak is foreseen."""
    settings = config(scope="norms", micro_batch_size=4, eval=None)
    session, watch = begun(settings)
    found = say_header(session, watch)
    total = sum(parameter.numel() for parameter in session.model.parameters())
    norms = 7 * 16  # two in each of three blocks, one behind them
    assert list(watch.info) == ["model", "method", "trained", "data", "rows", "step", "reused", "memory", "kept", "run"]
    assert watch.info["model"] == f"{settings.model} ({total:,} parameters, float32, cpu)"
    assert watch.info["method"] == "mezo, lr 0.01, eps 0.01"
    assert watch.info["trained"] == f"{norms} parameters (scope norms)"
    assert watch.info["data"] == "22 examples in 6 fixed batches"
    assert watch.info["step"] == "4 forwards, one batch for both sides"
    assert watch.info["reused"].startswith("nothing: ") and watch.info["run"] == str(settings.output_dir)
    assert watch.info["memory"].startswith(f"about {size(found['foreseen_memory_bytes'])} (")
    assert watch.said == []


def test_a_way_to_share_without_anybody_is_said(config: Config) -> None:
    """One process with `parallel` trains as without it, and says so before its first step."""
    session, watch = begun(config(scope="norms", eval=None, parallel="data"))
    say_header(session, watch)
    assert watch.said == [
        "parallel data is not used: this process does all the work. torchrun starts processes that share it."
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "a record of 34 bytes each step, no snapshot"),
        ({"queries": 3, "lanes": "off"}, "a record of 66 bytes each step, no snapshot"),
        ({"snapshot_every": 2, "dtype": "bfloat16"}, "a record of 34 bytes each step, a snapshot of 224 B every 2"),
    ],
)
def test_what_recording_costs(config: Config, options: dict[str, Any], expected: str) -> None:
    """The bytes of a record with all its losses, and of a snapshot of what is trained, if there are any."""
    session, watch = begun(config(scope="norms", eval=None, **options))
    say_header(session, watch)
    assert watch.info["kept"] == expected
    record = StepRecord(0, (0.1,), (0.0,) * 2 * options.get("queries", 1))
    assert expected.startswith(f"a record of {len(encode(record))} bytes")
    assert (
        "one batch" in watch.info["step"] or watch.info["step"] == "6 forwards, one at a time (lanes=off was asked for)"
    )


def test_nobody_listens_to_quiet(config: Config) -> None:
    """No forecast is made for it."""
    session, _ = begun(config(scope="norms", eval=None))
    assert say_header(session, Quiet()) == {}


def test_changes_since_the_run_began_are_said() -> None:
    """Other versions, and other code of the functions that the run names; of what is as before nothing is said."""
    recorded = {"zotune": "0.1", "torch": "2.6", "functions": {"reward": "ab", "metric": "cd"}}
    for now, said in (
        (recorded, []),
        ({**recorded, "torch": "2.7"}, ["The run began with torch 2.6 (now 2.7): its steps to come may differ"]),
        (
            {"zotune": "0.2", "torch": "2.7", "functions": {"reward": "ef", "metric": "cd"}},
            [
                "The code of reward has changed since the run began",
                "The run began with zotune 0.1 (now 0.2), torch 2.6",
            ],
        ),
        ({**recorded, "functions": {**recorded["functions"], "new": "x"}}, ["The code of new has changed"]),  # type: ignore[dict-item]
    ):
        watch = Noting()
        say_versions(recorded, now, watch)
        assert len(watch.said) == len(said)
        assert all(text.startswith(start) for text, start in zip(watch.said, said, strict=True)), watch.said
    watch = Noting()
    say_versions({}, recorded, watch)  # of a run that recorded no versions none can differ
    assert not any("began with" in text for text in watch.said)
