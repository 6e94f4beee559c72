"""`zotune doctor`: what was found, and what to change."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_doctor_says_what_to_change(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings, and remedies on lines of their own."""
    found = {"ok": False, "findings": [{"name": "disk", "value": "1 B free", "remedy": "free space."}]}
    monkeypatch.setattr("zotune.doctor.examine", lambda: found)
    outcome = cli("doctor")
    assert outcome.code == 0 and outcome.stdout == "disk  1 B free\ndisk: free space.\n"
    assert json.loads(cli("doctor", "--json").stdout) == found


def test_a_machine_that_is_ready(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are aligned, and it is said that nothing needs to be done."""
    findings = [{"name": "disk", "value": "1 TB free", "remedy": ""}, {"name": "GPU", "value": "none", "remedy": ""}]
    monkeypatch.setattr("zotune.doctor.examine", lambda: {"ok": True, "findings": findings})
    assert cli("doctor").stdout == "disk  1 TB free\nGPU   none\nNothing to change.\n"


def test_it_takes_no_option_of_a_run(cli: Any) -> None:
    """A wrong flag is a usage error, before anything is looked at."""
    outcome = cli("doctor", "--device", "cpu")
    assert outcome.code == 2 and "No such option: --device" in outcome.stderr
