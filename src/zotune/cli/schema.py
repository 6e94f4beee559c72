"""`zotune schema`: what a config may hold, for editors and checkers."""

from __future__ import annotations

import json
from typing import Any

from zotune.cli.frame import Json, Session, execute


def command(as_json: Json = False) -> None:
    """Print the JSON schema of a config on stdout. With --json on one line."""

    def body(session: Session) -> dict[str, Any]:
        from zotune.config import OPTIONS, file_schema
        from zotune.methods import accepts, table

        takers: dict[str, list[str]] = {}
        for row in table():
            for name in sorted(accepts(row["name"]) - {*OPTIONS, "options"}):
                takers.setdefault(name, []).append(row["name"])
        return file_schema({name: f"Argument of {', '.join(methods)}." for name, methods in takers.items()})

    execute(body, as_json, lambda session, found: print(json.dumps(found, indent=2)))
