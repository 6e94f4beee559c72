"""`python -m zotune` is the `zotune` command."""

from __future__ import annotations

from zotune.cli import main

if __name__ == "__main__":
    main()
