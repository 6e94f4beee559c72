"""The `zotune` command: one short file per subcommand, `app.py` puts them together."""

from __future__ import annotations

from zotune.cli.app import main

__all__ = ["main"]
