"""Functions that the user gives: found by name, and called so that whatever they do ends in one clear sentence."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

from zotune.errors import ConfigError, FunctionError

REMEDY = (
    "Nothing was applied, and no recorded step is lost. Remedy: correct the function; a run goes on with `zotune "
    "resume --trust-reward`."
)


@final
@dataclass(frozen=True)
class Named:
    """A function and the name that messages give it: FILE.py:function or package.module:function.

    sha256: of the file that holds its source, empty where that is not known.
    """

    name: str
    function: Callable[..., Any]
    sha256: str = ""

    @property
    def short(self) -> str:
        """The name without folders."""
        return Path(self.name).name


@final
@dataclass(frozen=True)
class Functions:
    """What a run's config names: reward functions, or the metric of a set."""

    reward: tuple[Named, ...] = ()
    metric: Named | None = None

    def all(self) -> tuple[Named, ...]:
        """Every function."""
        return self.reward + (() if self.metric is None else (self.metric,))


def find(name: str) -> Named:
    """Import the function called `FILE.py:function`, `package.module:function` or `package.module.function`.

    This runs the file or module. Raises ConfigError: no such file, module or function, or the import fails.
    """
    where, _, attribute = name.rpartition(":" if ":" in name else ".")
    if not where or not attribute or name.endswith(".py"):
        raise ConfigError(f"{name!r} names no function. Remedy: write FILE.py:function or package.module:function.")
    module = _module(where, name)
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ConfigError(
            f"{where} has no function {attribute!r}; it has {', '.join(known) or 'none'}. Remedy: correct {name!r}."
        )
    return Named(name, function, _sha256(getattr(module, "__file__", None)))


def given(function: Callable[..., Any]) -> Named:
    """A function that was passed from Python."""
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"
    try:
        source = inspect.getsourcefile(function)
    except TypeError:
        source = None
    return Named(name, function, _sha256(source))


def call(named: Named, seconds: float, where: str, values: Mapping[str, Any]) -> Any:
    """What the function returns for those of `values` that it takes; a coroutine is awaited.

    It runs in a thread of its own, which is given up after `seconds`. where: such as "at step 3", for messages.
    Raises FunctionError: the function raised, or did not return in time.
    """
    found: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            result = named.function(**_taken(named.function, values))
            found.append(asyncio.run(result) if inspect.iscoroutine(result) else result)
        except BaseException as error:  # SystemExit too: a thread would swallow it
            failed.append(error)

    thread = threading.Thread(target=work, name=f"zotune {named.short}", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise FunctionError(f"{named.name} failed {where}: {_told(failed[0])}. {REMEDY}") from failed[0]
    if not found:
        raise FunctionError(
            f"{named.name} did not return within {seconds:g} s {where}. Nothing was applied, and no recorded step "
            "is lost. Remedy: make it faster, or raise reward_timeout (in a run's config.yaml, which may change)."
        )
    return found[0]


def check_takes(named: Named, names: Sequence[str]) -> None:
    """Raises ConfigError when the function needs an argument that is none of `names`."""
    for parameter in _parameters(named.function):
        named_kind = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if parameter.default is parameter.empty and named_kind and parameter.name not in names:
            raise ConfigError(
                f"{named.name} needs an argument {parameter.name!r}, which no column gives; known are "
                f"{', '.join(names)}. Remedy: rename the argument or the column."
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(
                f"{named.name} takes {parameter.name!r} by position, but arguments are given by name. "
                "Remedy: remove the / from its signature."
            )


def _taken(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """All values for a function with `**names`, else those that its signature names."""
    parameters = _parameters(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(values)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in values.items() if name in names}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature: it gets everything
        return [inspect.Parameter("values", inspect.Parameter.VAR_KEYWORD)]


def _module(where: str, name: str) -> ModuleType:
    try:
        return _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ConfigError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(
            f"{name} cannot be imported: {_told(error)}. Remedy: correct it; a module must be installed, or be given "
            "as FILE.py:function."
        ) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path} is no file. Remedy: correct the path before the colon.")
    # A name of its own, so that no module is hidden; registered, as dataclasses and typing expect of a module.
    name = f"zotune_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _sha256(path: str | None) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
    except OSError:
        return ""


def _told(error: BaseException) -> str:
    """The error in one line, with the innermost line of code that raised it."""
    said = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    return f"{type(error).__name__}: {said}{place}"
