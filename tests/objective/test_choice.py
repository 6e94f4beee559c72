"""How many tokens an answer may have."""

from __future__ import annotations

from zotune.objective.choice import ANSWER_TOKENS, Choice
from zotune.objective.generate import Decoding


def test_answer_tokens() -> None:
    """None where nothing is generated, MeZO's number by default, else what is asked for."""
    assert Choice().answer_tokens == Choice(decoding=Decoding(max_new_tokens=7)).answer_tokens == 0
    assert Choice(metric="f1").answer_tokens == ANSWER_TOKENS == 50
    assert Choice(metric="f1", decoding=Decoding(max_new_tokens=7)).answer_tokens == 7
