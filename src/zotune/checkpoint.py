"""What lies in a model's folder, before anything reads it: data in files of its own, nothing else.

Weights come as safetensors alone. The other format (pytorch_model.bin) is a pickle, which can run code; libraries that
read it with a list of what it may hold have had to mend that list. A file may be a link within its folder, or from a
snapshot of the hub's cache to the cache's blobs, as the hub's own library makes them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zotune.errors import UserError
from zotune.machine import offline
from zotune.plain import is_count, parse_json, read_plain

_MOST = 2**28  # bytes of a JSON file of a model: an index of a million tensors is smaller
_MOST_HEADER = 100 << 20  # of a safetensors file: what the format allows
_INDEX = ".safetensors.index.json"
# Modules that transformers makes one by one before it looks for a weight: a config with more would take for ever.
_COUNTED = re.compile(r"(^|_)(layers?|blocks?|experts?|depths?)$")
_MOST_PARTS = 10_000

PICKLED = (
    "convert it where you trust it: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)` of transformers "
    "writes safetensors"
)


def check_checkpoint(model: str, weights: bool = True) -> None:
    """Raises UserError, naming the file, where `model` (a folder, or an id whose config the hub's cache gets) holds a
    pipe, a link that leads out, an index or a config that names other files than safetensors beside it, an adapter,
    or, with `weights`, no safetensors but a pickle.
    """
    folder = Path(model) if Path(model).is_dir() else _from_hub(model, weights)
    if folder is None:  # not a folder, and not to be had from the hub: transformers says why
        return
    names = {path.name for path in _entries(folder)}
    if "adapter_config.json" in names:
        raise UserError(
            f"{model!r} holds an adapter (adapter_config.json), which names another model. Remedy: give that model; or "
            "fold the adapter into it first (`zotune export RUN --merge`, or merge_and_unload of PEFT)."
        )
    for index in sorted(name for name in names if name.endswith(_INDEX)):
        _check_index(folder / index)
    if "config.json" in names:
        _check_config(folder / "config.json")
    stored = any(name.endswith((".safetensors", _INDEX)) for name in names)
    pickles = sorted(name for name in names if name.endswith((".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")))
    if weights and not stored and not pickles and not Path(model).is_dir() and not offline():
        # transformers would ask a service to convert it, which opens a pull request there.
        raise UserError(f"{model!r} has no weights as safetensors on the hub. Remedy: {PICKLED}.")
    if weights and not stored and pickles:
        raise UserError(f"{model!r} has its weights in {pickles[0]}, a pickle, which can run code. Remedy: {PICKLED}.")


def stored_tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """Dtype and bytes of each tensor in a folder's safetensors files, from their headers alone.

    Raises UserError for a file that is none.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = parse_json(file.read(length)) if length < _MOST_HEADER else None
            for name, value in header.items():  # type: ignore[union-attr]
                if name != "__metadata__":
                    begin, end = value["data_offsets"]
                    yield str(value["dtype"]), int(end - begin)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"{path} is no safetensors file. Remedy: restore it from a copy.") from None


def _from_hub(model: str, weights: bool) -> Path | None:
    """The folder of the hub's cache with a model's config and, where it has them, its index and its adapter's config;
    with `weights` also those of a checkpoint in one file, which are needed next.
    """
    from transformers.utils.hub import cached_file

    def fetched(name: str) -> Path | None:
        quiet = ("missing_entries", "gated_repo", "connection_errors")
        options: Any = {f"_raise_exceptions_for_{each}": False for each in quiet}
        try:
            found = cached_file(model, name, **options)
        except (OSError, ValueError):  # no such model, no network, no id at all
            return None
        return None if found is None else Path(found)

    config = fetched("config.json")
    if config is None:
        return None
    if fetched(f"model{_INDEX}") is None and weights:
        fetched("model.safetensors")
    fetched("adapter_config.json")
    return config.parent


def _entries(folder: Path) -> list[Path]:
    """What lies in the folder. Raises UserError for a pipe, a socket or a device, and for a link that leads out."""
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}. Remedy: check its permissions.") from None
    for path in found:
        try:
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                real = path.resolve(strict=True)
                if not (real.is_relative_to(home) or real.is_relative_to(blobs)):
                    raise UserError(f"{path} is a link out of its folder. Remedy: put the file itself there.")
                mode = real.stat().st_mode
        except (OSError, RuntimeError):  # a link to nothing, or to itself
            raise UserError(f"{path} is a link that leads nowhere. Remedy: restore it from a copy.") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path} is not a plain file. Remedy: restore it from a copy.")
    return found


def _check_index(path: Path) -> None:
    """An index names files of tensors; they must lie beside it."""
    found = _json(path)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict):
        raise UserError(f"{path} is not an index of weights. Remedy: restore it from a copy.")
    for name in names.values():
        _check_name(path, name)


def _check_name(path: Path, name: Any) -> None:
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise UserError(f"{path} names the file {name!r}, outside its folder. Remedy: restore it from a copy.")
    if not name.endswith((".safetensors", _INDEX)):
        raise UserError(f"{path} names the file {name!r}, which is not safetensors. Remedy: {PICKLED}.")


def _check_config(path: Path) -> None:
    found = _json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is no config of a model. Remedy: restore it from a copy.")
    named = found.get("transformers_weights")
    if named is not None:
        _check_name(path, named)
    layers = experts = 1
    for key, value in _counts(found):
        if value > _MOST_PARTS:
            raise UserError(f"{path}: {key} is {value}, over {_MOST_PARTS}. Remedy: restore it from a copy.")
        if "expert" in key:
            experts = max(experts, value)
        else:
            layers = max(layers, value)
    if layers * experts > 100 * _MOST_PARTS:
        raise UserError(f"{path}: {layers} layers of {experts} experts are no model. Remedy: restore it from a copy.")


def _counts(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every count of layers or experts in a config, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _counts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _counts(inner, key)
    elif _COUNTED.search(key) and is_count(value, 10**30):
        yield key, value


def _json(path: Path) -> Any:
    try:
        # Where a link leads has been looked at; some models' configs hold Infinity.
        return parse_json(read_plain(path, _MOST, follow=True), constants=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read: {reason}. Remedy: restore it from a copy.") from None
