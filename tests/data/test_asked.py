"""Rows as questions: prompt, references, and the columns that a function sees."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import _word_tokenizer

from zotune.data.asked import ask_chat, ask_task, ask_template
from zotune.data.template import Template
from zotune.errors import ConfigError, DataError
from zotune.tasks import TASKS

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("value", "references"),
    [("yes", ("yes",)), (["a", "b"], ("a", "b")), ('["a", "b"]', ("a", "b")), ("[sic]", ("[sic]",)), ("[1]", ("[1]",))],
)
def test_template(value: Any, references: tuple[str, ...]) -> None:
    """The prompt is rendered; a list is several references, also as JSON in a csv cell; reserved names are left out."""
    row = {"q": "why", "answer": value, "prompt": "x", "completions": "y", "level": 2}
    found = ask_template(Template("Q: {{ q }}"), "answer")(row)
    assert (found.prompt, found.shown, found.references) == ("Q: why", "Q: why", references)
    assert found.columns == {"q": "why", "answer": value, "level": 2}
    assert ask_template(Template("{{ q }}"), None)(row).references == ()


@pytest.mark.parametrize(
    ("row", "says"),
    [({"q": "a"}, "no column 'answer' with what is right; columns found: q"), ({"q": "a", "answer": 3}, "holds 3, not"),
     ({"q": "a", "answer": []}, "not a text or a list"), ({"q": "a", "answer": [1]}, "not a text or a list")],
)  # fmt: skip
def test_no_reference(row: dict[str, Any], says: str) -> None:
    """A missing or wrong reference is named."""
    with pytest.raises(DataError, match=f"{says}.*Remedy"):
        ask_template(Template("{{ q }}"), "answer")(row)


def test_chat() -> None:
    """Messages in the tokenizer's template, up to where the assistant answers; functions see the messages."""
    tokenizer = _word_tokenizer("llama")
    messages = [{"role": "system", "content": "be good"}, {"role": "user", "content": "was it bad"}]
    with pytest.raises(ConfigError, match="no chat template"):
        ask_chat(tokenizer, "prompt", None)({"prompt": messages})
    tokenizer.chat_template = CHAT
    found = ask_chat(tokenizer, "prompt", "answer")({"prompt": messages, "answer": "fine"})
    assert found.prompt == "<system>be good<user>was it bad<assistant>" and found.shown == messages
    assert found.references == ("fine",) and found.columns == {"answer": "fine"}
    with pytest.raises(DataError, match="no list of messages"):
        ask_chat(tokenizer, "prompt", None)({"prompt": []})


def test_tasks() -> None:
    """A task's own answers are right, or its right candidates."""
    squad, copa = TASKS["squad"].causal, TASKS["sst2"].causal
    assert squad is not None and copa is not None
    row = {"title": "T", "context": "C", "question": "Q", "answers": {"text": ["one", "two"]}}
    assert ask_task(squad)(row).references == ("one", "two")
    found = ask_task(copa)({"sentence": "warm and fine", "label": 1})
    assert found.references == ("great",) and found.prompt == "warm and fine It was"
