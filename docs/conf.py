"""Sphinx configuration; build with `make docs`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

_pyproject = Path(__file__).parents[1] / "pyproject.toml"
_metadata = tomllib.loads(_pyproject.read_text(encoding="utf-8"))["project"]

project = _metadata["name"]
version = release = _metadata["version"]
author = "the zotune authors"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"
autodoc_default_options = {"show-inheritance": False}
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"zotune {version}"


def _as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: what reStructuredText would read into them is escaped.

    Those of modules hold algorithm boxes, which keep their line breaks.
    """
    if what == "module":
        lines[:] = ["::", "", *("    " + line for line in lines), ""]
    else:
        lines[:] = ["".join(map(_escaped, re.split(r"(`[^`]+`)", line))) for line in lines]


def _escaped(part: str) -> str:
    """`code` in RST's own quotes; elsewhere no character that marks something up."""
    return f"`{part}`" if part.startswith("`") and len(part) > 1 else re.sub(r"([*|_])", r"\\\1", part)


def setup(app: Any) -> None:
    """Before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _as_rst, priority=400)
