"""`zotune doctor`: what this machine has for a run, and what to change."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from zotune.demo.cache import cache_folder
from zotune.machine import free_disk_bytes, free_memory_bytes, processor
from zotune.versions import outdated
from zotune.watch import size

_LIBRARIES = ("zotune", "torch", "transformers", "tokenizers", "safetensors", "peft")
_LITTLE_DISK = 2 * 10**9


@final
@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. remedy is empty where nothing needs to be done."""

    name: str
    value: str
    remedy: str = ""


def examine() -> dict[str, Any]:
    """All findings: `findings`, a list of name, value and remedy, and `ok`, whether none has a remedy."""
    found = [_versions(), _processor(), _memory(), _gpu(), _kernels(), _disk(Path.cwd(), "disk here"), _cache()]
    return {"ok": not any(each.remedy for each in found), "findings": [asdict(each) for each in found]}


def _versions() -> Finding:
    known = {name: _version(name) for name in _LIBRARIES}
    said = [
        f"Python {platform.python_version()}",
        *(f"{name} {version or 'absent'}" for name, version in known.items()),
    ]
    old = outdated()
    if old:
        return Finding("versions", ", ".join(said), " ".join(each.said() for each in old))
    return Finding(
        "versions",
        ", ".join(said),
        "" if known["peft"] else "pip install peft, if you want --scope lora, prefix or prompt.",
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # A checkout that was never installed is there all the same.
        return None if name != "zotune" else __import__("zotune").__version__


def _processor() -> Finding:
    usable, threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 0
    threads = torch.get_num_threads()
    remedy = ""
    if threads > usable:
        remedy = f"--threads {usable}: more threads than cores wait for each other."
    elif "OMP_NUM_THREADS" in os.environ and threads < usable:
        remedy = f"--threads {usable}, or unset OMP_NUM_THREADS: {usable - threads} of the cores are not used."
    return Finding("processor", f"{processor()}, {usable} usable cores, torch uses {threads} threads", remedy)


def _memory() -> Finding:
    free = free_memory_bytes()
    return Finding("memory", "not known" if free is None else f"{size(free)} free")


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPU", "none that torch can use: runs use the processor")
    free, total = torch.cuda.mem_get_info()
    return Finding("GPU", f"{torch.cuda.get_device_name()}, {size(free)} of {size(total)} free")


def _kernels() -> Finding:
    mode = os.environ.get("ZOTUNE_KERNELS", "auto")
    if mode == "eager":
        return Finding("fast kernels", "switched off by ZOTUNE_KERNELS=eager", "unset ZOTUNE_KERNELS.")
    remedy = "install a C++ compiler (g++); results stay the same."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from zotune.kernels import compiled

            compiled.warm_up()
            if torch.cuda.is_available():
                remedy = "install triton for this torch; results stay the same."
                from zotune.kernels import gpu

                gpu.warm_up("cuda")
    except Exception as error:  # the compiler's own failures have no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding("fast kernels", f"cannot be compiled ({reason})", remedy)
    return Finding("fast kernels", "compile")


def _disk(folder: Path, name: str) -> Finding:
    free = free_disk_bytes(folder)
    remedy = f"free space on the disk of {folder}." if free < _LITTLE_DISK else ""
    return Finding(name, f"{size(free)} free", remedy)


def _cache() -> Finding:
    folder = cache_folder()
    parent = folder
    while not parent.exists():
        parent = parent.parent
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    if not os.access(parent, os.W_OK):
        return Finding("cache", f"{folder} cannot be written", "set ZOTUNE_CACHE to a folder you can write to.")
    return Finding("cache", f"{folder}, {size(held)} used, {size(free_disk_bytes(folder))} free")
