"""Preference pairs: where the prompt ends, which answer is right, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from zotune.data import preference
from zotune.data.template import Template
from zotune.errors import DataError


@pytest.mark.parametrize(
    ("row", "prompt", "rejected", "chosen"),
    [
        ({"prompt": "Q: ", "chosen": "yes", "rejected": "no"}, "Q: ", "no", "yes"),
        # Without a column of its own: what both begin with, to the last whole word.
        ({"chosen": "It is a good one", "rejected": "It is a goose"}, "It is a", " goose", " good one"),
        ({"chosen": "H: hi\n\nA:\n\nYes", "rejected": "H: hi\n\nA:\n\nNo"}, "H: hi\n\nA:\n\n", "No", "Yes"),
        ({"chosen": "so it is", "rejected": "so it is not"}, "so it", " is not", " is"),
        ({"chosen": "so it is", "rejected": "so it isn't"}, "so it", " isn't", " is"),
        ({"prompt": None, "chosen": "a b", "rejected": "a c"}, "a", " c", " b"),
    ],
)
def test_texts(row: dict[str, Any], prompt: str, rejected: str, chosen: str) -> None:
    """The rejected answer is the first candidate, so that a tie counts against the chosen one."""
    found = preference.texts(row, None)
    assert (found.prompt, found.candidates, found.right) == (prompt, (rejected, chosen), (1,))


def test_a_template_is_the_prompt() -> None:
    """Also where there is a column of that name."""
    row = {"prompt": "x", "q": "why", "chosen": " a", "rejected": " b"}
    assert preference.texts(row, Template("{{ q }}?")).prompt == "why?"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "yes", "rejected": "no"},
        {"chosen": "Yes it", "rejected": "Yet it"},
        {"chosen": " a", "rejected": " b"},
    ],
)
def test_no_prompt(row: dict[str, Any]) -> None:
    """Texts that share no word have none."""
    with pytest.raises(DataError, match="no column 'prompt', and the two answers begin with no word in common. Remedy"):
        preference.texts(row, None)


class Plain:
    """A tokenizer whose template is `role:content;`, and `assistant:` where an answer is asked for."""

    chat_template = "there is one"
    again = ""

    def apply_chat_template(self, chat: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        text = "".join(f"{m['role']}:{m['content']};" for m in chat)
        return text + ("assistant:" if add_generation_prompt else self.again)


def turn(role: str, content: str) -> dict[str, str]:
    """One message."""
    return {"role": role, "content": content}


ASKED, GOOD, BAD = turn("user", "hi"), turn("assistant", "hello"), turn("assistant", "go")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "hi", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "anything", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": '[{"role": "user", "content": "hi"}]', "chosen": [GOOD], "rejected": [BAD]},
    ],
)
def test_messages(row: dict[str, Any]) -> None:
    """The prompt as messages, as a text, or as what both chats begin with."""
    found = preference.messages(Plain(), row)
    assert (found.prompt, found.candidates, found.right) == ("user:hi;assistant:", ("go;", "hello;"), (1,))
    assert preference.are_chats(row)


def test_messages_that_have_no_answer() -> None:
    """One chat that the other begins with, chats without anything in common, a template that changes what it said."""
    with pytest.raises(DataError, match="one of the chats is the beginning of the other"):
        preference.messages(Plain(), {"chosen": [ASKED, GOOD, ASKED], "rejected": [ASKED, GOOD]})
    with pytest.raises(DataError, match="no column 'prompt'"):
        preference.messages(Plain(), {"chosen": [GOOD], "rejected": [BAD]})
    other = Plain()
    other.again = "!"
    other.apply_chat_template = lambda chat, tokenize, add_generation_prompt: f"{len(chat)} messages"  # type: ignore[method-assign]
    with pytest.raises(DataError, match="writes the prompt anew"):
        preference.messages(other, {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]})
    assert not preference.are_chats({"chosen": "a", "rejected": "b"})
