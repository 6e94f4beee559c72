"""`zotune schema`: what a config may hold."""

from __future__ import annotations

import json
from typing import Any

from zotune.config import NEVER_FROM_FILE, OPTIONS


def test_schema_names_every_option(cli: Any) -> None:
    """The schema has each option, the methods' arguments, and refuses other keys."""
    schema = json.loads(cli("schema").stdout)
    assert set(OPTIONS) - set(NEVER_FROM_FILE) | {"rank", "law"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False and set(schema["required"]) == {"model", "output_dir"}
    assert json.loads(cli("schema", "--json").stdout) == schema


def test_arguments_of_methods_say_whose_they_are(cli: Any) -> None:
    """`rank` is an argument of the low-rank methods and of no other; every property is described."""
    properties = json.loads(cli("schema", "--json").stdout)["properties"]
    assert "lozo" in properties["rank"]["description"] and "mezo," not in properties["rank"]["description"]
    assert all(each.get("description") for each in properties.values())


def test_it_takes_no_file(cli: Any) -> None:
    """A config is checked by `train`; here a word too many is a usage error."""
    outcome = cli("schema", "run.yaml", "--json")
    assert outcome.code == 2 and "unexpected extra argument" in json.loads(outcome.stdout)["error"]
