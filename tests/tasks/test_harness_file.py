"""The YAML of a task of the harness: what it includes, and functions: run when allowed, from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.tasks.harness import CODED, LISTED, UTILS, written

from zotune.errors import ConfigError, DataError
from zotune.tasks import find
from zotune.tasks.harness_file import MAX_BYTES, is_function, read_file

USED = ("doc_to_text", "doc_to_target", "doc_to_choice", "process_docs")


def test_include(tmp_path: Path) -> None:
    """A file takes what it does not say itself from one beside it, or several, the last of which wins."""
    written(tmp_path, LISTED, "_base")
    written(tmp_path, "dataset_name: third\ndescription: Look.\n", "_more")
    task = find(str(written(tmp_path, "include: _base\ndataset_name: other\n")))
    assert (task.subset, task.name) == ("other", "opinion")
    values = read_file(written(tmp_path, "include: [_base, _more]\ntask: mine\n"), USED, False).values
    assert (values["task"], values["dataset_name"], values["description"]) == ("mine", "third", "Look.")
    assert values["doc_to_target"] == "label" and "include" not in values


def test_include_leads_nowhere_else(tmp_path: Path) -> None:
    """Never to another folder, never in a circle."""
    for wrong in ("../_base", "/etc/passwd", "sub/_base", "[_base, ../_base]"):
        with pytest.raises(ConfigError, match="(is not a file beside it|_base cannot be read).*Remedy"):
            read_file(written(tmp_path, f"include: {wrong}\n"), USED, False)
    with pytest.raises(ConfigError, match="circle"):
        read_file(written(tmp_path, "include: task.yaml\n"), USED, False)
    with pytest.raises(ConfigError, match="none.yaml cannot be read: No such file"):
        read_file(tmp_path / "none.yaml", USED, False)


@pytest.mark.parametrize("name", ["pipe.yaml", "link.yaml", "folder", '"a\\0b"', "large.yaml"])
def test_an_include_that_is_no_file(tmp_path: Path, name: str) -> None:
    """A pipe is not waited at, a link not followed, and a NUL is no name."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").write_text("a: 1\n")
    (tmp_path / "link.yaml").symlink_to("elsewhere")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="cannot be read: it.* Remedy"):
        read_file(written(tmp_path, f"include: {name}\n"), USED, False)


def test_functions_of_other_fields_stay_names(tmp_path: Path) -> None:
    """A metric's function is of no use here, so its file is not even looked for."""
    values = read_file(written(tmp_path, LISTED), USED, False).values
    assert is_function(values["metric_list"][0]["aggregation"]) and not is_function(values["doc_to_text"])
    for quoted in ("'utils.mean'", '"utils.mean"'):
        again = read_file(written(tmp_path, LISTED.replace("utils.mean", quoted)), USED, False).values
        assert again == values


def test_functions_of_the_folder_run_when_allowed(tmp_path: Path) -> None:
    """Prompt, choices and target from Python beside the file; the row itself stays; other code is another task."""
    (tmp_path / "utils.py").write_text(UTILS)
    file = str(written(tmp_path, CODED))
    with pytest.raises(
        ConfigError, match="doc_to_text is the function utils.ask, code that is not run unasked. .*--allow"
    ):
        find(file)
    task, row = find(file, allow_code=True), {"text": "fine film", "label": 1}
    assert task.causal is not None
    found = task.causal(row)
    assert (found.prompt, found.candidates, found.right) == ("Judge.\nIs it good? fine film", (" no", " yes"), (0,))
    assert row == {"text": "fine film", "label": 1}
    with pytest.raises(DataError, match="doc_to_target, utils.right, failed: KeyError: 'label'. Remedy"):
        task.causal({"text": "x"})
    (tmp_path / "utils.py").write_text(UTILS + "\n# changed\n")
    assert find(file, allow_code=True).digest != task.digest


@pytest.mark.parametrize(
    "name", ["../utils.ask", "sub.utils.ask", "/x/utils.ask", "utils", ".ask", "utils.", "link.ask"]
)
def test_functions_of_other_folders_never_run(tmp_path: Path, name: str) -> None:
    """Neither a path, nor a package, nor a link leads out of the file's folder."""
    inner = tmp_path / "inner"
    (inner / "sub").mkdir(parents=True)
    for folder in (tmp_path, inner / "sub"):
        (folder / "utils.py").write_text("raise SystemExit('run')\n")
    (inner / "link.py").symlink_to(tmp_path / "utils.py")
    for field in ("doc_to_text", "process_docs"):
        text = CODED.replace("utils.ask", name) if field == "doc_to_text" else f"process_docs: !function {name}\n"
        with pytest.raises(ConfigError, match="(no function of a file beside it|is not valid YAML).*Remedy"):
            read_file(written(inner, text), USED, True)


def test_a_text_field(tmp_path: Path) -> None:
    """A delimiter that is no text is refused, a missing one has its default."""
    file = read_file(written(tmp_path, "target_delimiter: 3\n"), USED, False)
    assert file.text("fewshot_delimiter", "\n\n") == "\n\n"
    with pytest.raises(ConfigError, match="target_delimiter is 3. Remedy: a text"):
        file.text("target_delimiter", " ")
