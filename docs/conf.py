"""Sphinx configuration; build with `make docs`."""

from __future__ import annotations

import tomllib
from pathlib import Path

_pyproject = Path(__file__).parents[1] / "pyproject.toml"
_metadata = tomllib.loads(_pyproject.read_text(encoding="utf-8"))["project"]

project = _metadata["name"]
version = release = _metadata["version"]
author = "the zotune authors"
project_copyright = author

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"zotune {version}"
