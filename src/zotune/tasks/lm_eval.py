"""A task of the lm-evaluation-harness, from its YAML file: what is tested there can be trained here.

Read are `dataset_path`, `dataset_name`, `training_split`, `validation_split`, `test_split`, `output_type`,
`doc_to_text`, `doc_to_target`, `doc_to_choice`, `description`, `target_delimiter` and `include` (a file beside it).
Prompts and continuations are the harness' own without few-shot examples, so accuracies compare with its `acc`.

Differs from the harness in: templates run in our sandbox; `!function`, which is Python of the task's folder, is run
only when the user allows it; a task without a training split of its own, or whose training split is the one that is
tested, is evaluated, but not trained on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from zotune.data.rendered import Rendered, Row
from zotune.data.template import Template
from zotune.errors import ConfigError, DataError
from zotune.objective.functions import find
from zotune.plain import read_plain
from zotune.tasks.base import Task
from zotune.yaml12 import parse_mapping

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 2**20
_DEEPEST = 8  # includes inside each other
_FUNCTION = re.compile(rb"!function[ \t]+([\w.]+)")
_MARK = "!function "
_INDEX = re.compile("[0-9]{1,9}")
_FIELDS = ("doc_to_text", "doc_to_target", "doc_to_choice")
Field = Callable[[Row], Any]


def read_task(path: Path, allow_code: bool = False) -> Task:
    """The task of a YAML file. With `allow_code` the functions that it names are imported: this runs their file.

    Raises ConfigError for a task that cannot be used here, and says why.
    """
    digest = sha256()
    values = _read(path, digest, 0)
    for name in _FIELDS:
        value = values.get(name)
        if isinstance(value, str) and value.startswith(_MARK):
            values[name] = _function(path, name, value.removeprefix(_MARK).strip(), allow_code, digest)
    for name in ("dataset_path", "doc_to_text", "doc_to_target"):
        given = values.get(name)
        if not (isinstance(given, str | int) or callable(given)) or isinstance(given, bool):
            raise ConfigError(f"{path} has no {name}. Remedy: add it; a YAML may `include` the harness' file.")
    if values.get("process_docs") is not None:
        raise ConfigError(f"{path}: process_docs is Python, which is not run. Remedy: prepare the rows in files.")
    train = values.get("training_split")
    tested = values.get("test_split") or values.get("validation_split") or train
    if not isinstance(tested, str):
        raise ConfigError(f"{path} has no test_split or validation_split. Remedy: add one.")
    kind = values.get("output_type", "generate_until")
    if kind not in ("multiple_choice", "generate_until"):
        raise ConfigError(f"{path}: output_type {kind!r} is not trained. Remedy: multiple_choice or generate_until.")
    render = _choices(path, values) if kind == "multiple_choice" else _generated(path, values)
    return Task(
        name=str(values.get("task", path.stem)),
        hub=str(values["dataset_path"]),
        subset=values.get("dataset_name"),
        train=str(train or ""),
        test=tested,
        causal=render,
        loss="options" if kind == "multiple_choice" else "target",
        metric="accuracy" if kind == "multiple_choice" else "f1",
        digest=digest.hexdigest(),
        untrained=_untrained(path, train, tested),
    )


def _untrained(path: Path, train: Any, tested: str) -> str:
    """Why the harness' file gives nothing to train on, empty where it does."""
    if not train:
        return f"{path} has no training_split, so it is not trained on. Remedy: add one; a YAML may `include` the file."
    if train == tested:
        return (
            f"{path}: the harness tests on the split {tested!r}, so it is not trained on. "
            "Remedy: name another training_split, with a test_split or validation_split beside it."
        )
    return ""


def _read(path: Path, digest: Any, depth: int) -> dict[str, Any]:
    try:
        # The file that the user names may be a link; what it includes may not lead away.
        data = read_plain(path, MAX_BYTES, follow=depth == 0)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Remedy: check the path.") from None
    if depth > _DEEPEST:
        raise ConfigError(f"{path} is no task: its includes go in a circle. Remedy: check it.")
    digest.update(data)
    # As a text: a file may name functions that training has no use for, such as a metric's.
    values, _ = parse_mapping(_FUNCTION.sub(rb'"' + _MARK.encode() + rb'\1"', data), str(path))
    included = values.pop("include", None)
    if included is None:
        return values
    if not isinstance(included, str) or Path(included).name != included:
        raise ConfigError(f"{path}: include {included!r} is not a file beside it. Remedy: copy it there.")
    return _read(path.parent / included, digest, depth + 1) | values


def _choices(path: Path, values: Mapping[str, Any]) -> Callable[[Row], Rendered]:
    prompt, target, choices = _prompt(path, values), _field(path, values, "doc_to_target"), _listed(path, values)
    delimiter = _delimiter(path, values)

    def render(row: Row) -> Rendered:
        options = choices(row)
        return Rendered(
            prompt(row), tuple(delimiter + option for option in options), (_right(path, target(row), options),)
        )

    return render


def _generated(path: Path, values: Mapping[str, Any]) -> Callable[[Row], Rendered]:
    prompt, target, delimiter = _prompt(path, values), _field(path, values, "doc_to_target"), _delimiter(path, values)

    def render(row: Row) -> Rendered:
        found = target(row)
        if isinstance(found, str) and found[:1] == "[" and found[-1:] == "]":
            found = _literal(found) or found
        answers = tuple(map(str, found)) if isinstance(found, list | tuple) else (str(found),)
        if not answers:
            raise DataError(f"{path}: doc_to_target gives no answer. Remedy: leave out rows without one.")
        return Rendered(prompt(row), (delimiter + answers[0],), answers=answers)

    return render


def _prompt(path: Path, values: Mapping[str, Any]) -> Callable[[Row], str]:
    about = values.get("description") or ""
    describe, ask = _field(path, {"description": about}, "description"), _field(path, values, "doc_to_text")
    return lambda row: f"{describe(row) if about else ''}{ask(row)}"


def _delimiter(path: Path, values: Mapping[str, Any]) -> str:
    found = values.get("target_delimiter", " ")
    if not isinstance(found, str):
        raise ConfigError(f"{path}: target_delimiter is {found!r}. Remedy: a text.")
    return found


def _field(path: Path, values: Mapping[str, Any], name: str) -> Field:
    """What a `doc_to_...` gives for a row: a function's, a constant, a column of that name, or a template."""
    value = values[name]
    if callable(value):
        return cast(Field, value)
    if not isinstance(value, str):
        return lambda row: value
    template = Template(value)

    def found(row: Row) -> Any:
        return row[value] if value in row else template.render(row)

    return found


def _listed(path: Path, values: Mapping[str, Any]) -> Callable[[Row], tuple[str, ...]]:
    given = values.get("doc_to_choice")
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list):
        each = [_field(path, {"choice": str(item)}, "choice") for item in given]
        return lambda row: tuple(str(item(row)) for item in each)
    if not isinstance(given, str) and not callable(given):
        raise ConfigError(f"{path}: multiple_choice has no doc_to_choice. Remedy: a list, a column or a template.")
    field = _field(path, values, "doc_to_choice")

    def options(row: Row) -> tuple[str, ...]:
        found = field(row)
        if isinstance(found, str):
            found = _literal(found)
        if not isinstance(found, list | tuple) or not found:
            raise DataError(f"{path}: doc_to_choice gives no list for a row. Remedy: correct it, or the row.")
        return tuple(map(str, found))

    return options


def _function(path: Path, field: str, name: str, allowed: bool, digest: Any) -> Field:
    """The function FILE.name of a Python file beside the YAML. Raises ConfigError: not allowed, or not beside it."""
    module, _, function = name.rpartition(".")
    file = path.parent / f"{module}.py"
    if not allowed:
        raise ConfigError(
            f"{path}: {field} is the function {name}, code that is not run unasked. Remedy: read {file.name}, then "
            "pass --allow-task-code; or write it as a Jinja template."
        )
    if not (module.isidentifier() and function.isidentifier()) or file.resolve().parent != path.parent.resolve():
        raise ConfigError(f"{path}: {field} is {name!r}, no function of a file beside it. Remedy: copy its file there.")
    found = find(f"{file}:{function}").function
    digest.update(file.read_bytes())  # other code is another task

    def call(row: Row) -> Any:
        try:
            return found(dict(row))
        except Exception as error:
            said = (str(error).strip() or "no message").splitlines()[0]
            raise DataError(
                f"{path}: {field}, {name}, failed: {type(error).__name__}: {said}. Remedy: correct it, or the row."
            ) from error

    return call


def _literal(text: str) -> Any:
    """The list that a template wrote: data alone, nothing is run. None for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _right(path: Path, target: Any, options: tuple[str, ...]) -> int:
    """The index of the right option: from a number, a number as text, or the option itself."""
    said = str(int(target) if isinstance(target, bool) else target).strip()
    index = options.index(said) if said in options else int(said) if _INDEX.fullmatch(said) else -1
    if not 0 <= index < len(options):
        raise DataError(f"{path}: doc_to_target gives {target!r}, none of {options}. Remedy: correct it, or the row.")
    return index
