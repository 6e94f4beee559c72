"""The YAML file of a task of the lm-evaluation-harness: its values with those of what it includes, and its functions.

`!function` is Python of the file's folder. It is imported only where the user allows it, and never from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, final

from zotune.errors import ConfigError, DataError
from zotune.objective.functions import find
from zotune.plain import read_plain
from zotune.yaml12 import parse_mapping

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 2**20
_DEEPEST = 8  # includes inside each other
_FUNCTION = re.compile(rb"!function[ \t]+([\"']?)([\w.]+)\1")
_MARK = "!function "


@final
@dataclass(frozen=True, slots=True)
class HarnessFile:
    """path: as messages name it. values: of the file and what it includes; functions of `used` fields are callables.

    digest: the SHA-256 of all files that were read or imported.
    """

    path: Path
    values: dict[str, Any]
    digest: str

    def text(self, name: str, default: str) -> str:
        """A field that must be a text. Raises ConfigError."""
        found = self.values.get(name, default)
        if not isinstance(found, str):
            raise ConfigError(f"{self.path}: {name} is {found!r}. Remedy: a text.")
        return found


def read_file(path: Path, used: tuple[str, ...], allow_code: bool) -> HarnessFile:
    """Read a task's file. Functions of the fields in `used` are imported, which runs their file; others stay names.

    Raises ConfigError: no such file, an include that is not beside it, a function that is not allowed.
    """
    digest = sha256()
    values = _read(path, digest, 0)
    for name in used:
        value = values.get(name)
        if is_function(value):
            values[name] = _function(path, name, str(value).removeprefix(_MARK).strip(), allow_code, digest)
    return HarnessFile(path, values, digest.hexdigest())


def is_function(value: Any) -> bool:
    """Whether a value is the name of a function that was not imported."""
    return isinstance(value, str) and value.startswith(_MARK)


def _read(path: Path, digest: Any, depth: int) -> dict[str, Any]:
    try:
        # The file that the user names may be a link; what it includes may not lead away.
        data = read_plain(path, MAX_BYTES, follow=depth == 0)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Remedy: check the path.") from None
    if depth > _DEEPEST:
        raise ConfigError(f"{path} is no task: its includes go in a circle. Remedy: check it.")
    digest.update(data)
    # As a text: a file may name functions that nothing here has a use for, such as a metric's.
    values, _ = parse_mapping(_FUNCTION.sub(rb'"' + _MARK.encode() + rb'\2"', data), str(path))
    included = values.pop("include", None)
    found: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included] if included is not None else []:
        if not isinstance(name, str) or Path(name).name != name:
            raise ConfigError(f"{path}: include {name!r} is not a file beside it. Remedy: copy it there.")
        found |= _read(path.parent / name, digest, depth + 1)
    return found | values


def _function(path: Path, field: str, name: str, allowed: bool, digest: Any) -> Callable[[Any], Any]:
    """The function FILE.name of a Python file beside the YAML. Raises ConfigError: not allowed, or not beside it."""
    module, _, function = name.rpartition(".")
    file = path.parent / f"{module}.py"
    if not allowed:
        raise ConfigError(
            f"{path}: {field} is the function {name}, code that is not run unasked. Remedy: read {file.name}, then "
            f"pass --allow-task-code; or {'prepare the rows' if field == 'process_docs' else 'write a Jinja template'}."
        )
    if not (module.isidentifier() and function.isidentifier()) or file.resolve().parent != path.parent.resolve():
        raise ConfigError(f"{path}: {field} is {name!r}, no function of a file beside it. Remedy: copy its file there.")
    found = find(f"{file}:{function}").function
    digest.update(file.read_bytes())  # other code is another task

    def call(given: Any) -> Any:
        try:
            return found(dict(given) if isinstance(given, dict) else given)
        except Exception as error:
            said = (str(error).strip() or "no message").splitlines()[0]
            raise DataError(
                f"{path}: {field}, {name}, failed: {type(error).__name__}: {said}. Remedy: correct it, or the row."
            ) from error

    return call
