"""Rows on the hub in the place of a file: what is such a name, what is read, and what is said when it cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from zotune.data.files import read_rows
from zotune.data.hub import EVAL, HubRows, hub_rows, load, placed
from zotune.errors import RunError, UserError
from zotune.history.branch import branch
from zotune.push import push
from zotune.report import write_report
from zotune.resolve import config_of, read_file
from zotune.revisit import evaluate_run, replay
from zotune.run import RunPaths
from zotune.train import resume, train
from zotune.watch import Quiet


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nyu-mll/glue", ("nyu-mll/glue", None, "train")),
        ("nyu-mll/glue:test", ("nyu-mll/glue", None, "test")),
        ("nyu-mll/glue/sst2", ("nyu-mll/glue", "sst2", "train")),
        ("aps/super_glue/wsc.fixed:validation", ("aps/super_glue", "wsc.fixed", "validation")),
        ("org/v1.2:train[:10%]", ("org/v1.2", None, "train[:10%]")),
    ],
)
def test_names(text: str, expected: tuple[str, str | None, str]) -> None:
    """Organisation and name, perhaps a subset, perhaps a split; in full they name the same again."""
    found = hub_rows(Path(text), "train")
    assert found is not None and (found.name, found.subset, found.split) == expected
    assert hub_rows(Path(str(found)), "other") == found


@pytest.mark.parametrize(
    "text",
    ["rows.jsonl", "glue", "data/rows.csv", "data/rows.PARQUET", "/a/b", "../a/b", "a/b/c/d", "a/.b", "a/b:"],
)
def test_what_is_a_file(text: str) -> None:
    """Names of data files, whole paths and deeper ones are never looked up on the hub."""
    assert hub_rows(Path(text), "train") is None


def test_what_is_there_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder or file of the name here is meant, and it is made absolute; a name of the hub gets its split."""
    monkeypatch.chdir(tmp_path)
    assert placed(Path("org/name"), EVAL) == Path("org/name:validation")
    assert placed(Path("org/name/sub:test"), EVAL) == Path("org/name/sub:test")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_rows(Path("org/name"), "train") is None
    assert placed(Path("org/name"), EVAL) == (tmp_path / "org" / "name").resolve()
    assert placed(Path("rows.csv"), EVAL) == (tmp_path / "rows.csv").resolve()


def test_rows(hub: Any) -> None:
    """The package datasets is asked for name, subset and split; no rows are an error."""
    calls = hub([{"text": "x"}])
    assert HubRows("org/name", "sub", "test").read() == [{"text": "x"}]
    assert calls == [("org/name", "sub", "test", None)]
    hub([])
    with pytest.raises(UserError, match="org/name has no rows in the split test. Remedy"):
        HubRows("org/name", None, "test").read()


def test_errors(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline and without the package: one sentence, which also serves for a file name that was meant."""
    hub(ConnectionError("Couldn't reach 'data/rows' on the Hub (OfflineModeIsEnabled)\nmore"))
    says = (
        r"^data/rows:train is no file here, and the data set data/rows cannot be loaded from the hub: Couldn't reach "
        r".*\(OfflineModeIsEnabled\). Remedy: try again online, or name a file that is there, or another"
    )
    with pytest.raises(UserError, match=says) as caught:
        HubRows("data/rows", None, "train").read()
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"is not installed. Remedy: pip install 'zotune\[data\]', or do else."):
        load("org/name", None, "train", "do else")


def on_the_hub(movies: Path) -> Any:
    """What a stand-in for `load_dataset` gives: the rows of the files, by split."""
    files = {"train": "train", "validation": "eval"}
    return {split: read_rows(movies / f"{name}.jsonl") for split, name in files.items()}


def test_a_run_on_rows_of_the_hub(
    config: Any, movies: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained as on files of the same rows; the id stands in its config, from where everything else reads it."""
    hub(on_the_hub(movies))
    expected = train(config(output_dir=tmp_path / "files"), Quiet())
    options = {"train": Path("org/movies"), "eval": Path("org/movies")}
    result = train(config(**options), Quiet())
    assert result["weights_sha256"] == expected["weights_sha256"]
    paths = RunPaths(tmp_path / "run")
    written = read_file(paths.config)[0]
    assert (written["train"], written["eval"]) == ("org/movies:train", "org/movies:validation")
    # From another folder, where something else has that name.
    (tmp_path / "else" / "org" / "movies").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "else")
    assert config_of(paths).absolute().train == Path("org/movies:train")
    assert replay(paths.folder, True, Quiet())["verified"]
    scored = evaluate_run(config_of(paths).absolute(), paths.folder, Quiet())
    assert scored["loss"] == result["loss_after"]
    branched = tmp_path / "longer"
    branch(paths.folder, None, branched, {"steps": 9, "eval": "org/movies:train"})
    assert resume(branched, Quiet())["steps"] == 9
    write_report([paths.folder], tmp_path / "report.html")
    assert "movies:train" in (tmp_path / "report.html").read_text()
    push(paths.folder, "me/model", Quiet(), "journal", to=tmp_path / "pushed")
    assert read_file(tmp_path / "pushed" / "zotune" / "config.yaml")[0]["train"] == "org/movies:train"
    assert "datasets:\n- org/movies" in (tmp_path / "pushed" / "README.md").read_text()
    hub({**on_the_hub(movies), "train": on_the_hub(movies)["validation"]})
    with pytest.raises(RunError, match="the training rows have changed since the run began"):
        resume(tmp_path / "run", Quiet())
