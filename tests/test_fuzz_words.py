"""Arbitrary words in place of a tokenizer's template, a scope or a harness' task: a result, or the documented error.

The slow ones are the same with many more examples.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from tests.models import tiny
from tests.test_fuzz import BOTH, JSON, ODD, REFUSED, TAKEN, WORDS, outcomes, refused

from zotune.data.chat_template import FAILURES, ChatTemplate
from zotune.data.sandbox import MAX_SIZE
from zotune.errors import ConfigError, DataError
from zotune.scope import select
from zotune.tasks.lm_eval import read_task

# --- a tokenizer's template -------------------------------------------------------------------------------------------

CHAT_WORDS = [
    *WORDS, "messages", "message", "namespace(a=1)", "macro a()", "endmacro", "a()", "call a()", "endcall", "break",
    "continue", "recursive", "loop(messages)", "strftime_now('%d')", "raise_exception('x')", "add_generation_prompt",
    "generation", "endgeneration", "ljust(999999999)", "'%999999999d'", "range(99999)", "** 99999", "* 99999999",
    "sort", "tojson(indent=99999999)", "batch(99999999)", "role", "content", "[::-1]", "filter upper", "endfilter",
]  # fmt: skip


def chat_templates(data: Any) -> str:
    """Words of the language of chat templates in any order."""
    words = st.lists(st.sampled_from(CHAT_WORDS), max_size=14)
    source = data.draw(
        words.map(" ".join)
        | words.map(lambda w: "{{ " + " ".join(w) + " }}")
        | words.map(lambda w: "{% for m in messages %}{% " + " ".join(w) + " %}{{ m }}{% endfor %}")
    )
    chat = [{"role": "user", "content": "good film"}, {"role": "assistant", "content": "bad"}]
    try:
        template = ChatTemplate(source)
        text = template(chat, True, {"bos_token": "<s>"})
    except FAILURES:  # chat.py makes one sentence of them
        return REFUSED
    assert isinstance(text, str) and len(text) <= MAX_SIZE and template(chat, True, {"bos_token": "<s>"}) == text
    return TAKEN


def test_chat_template() -> None:
    """Any template of a tokenizer: the same text each time, or what the readers of chats explain."""
    assert outcomes(200, chat_templates) == BOTH


@pytest.mark.slow
def test_chat_template_long() -> None:
    """The same, 10,000 times."""
    assert outcomes(10_000, chat_templates) == BOTH


# --- scopes -----------------------------------------------------------------------------------------------------------


SCOPE_WORDS = (
    "full norms head last: block: 1 2 9999999999 \u00b2 & regex: q_proj . * + ? ( ) [ ] { } | \\d ^ $ {9} (?!"
).split()


def scopes(data: Any) -> str:
    """Words of scopes, and patterns, in any order."""
    model = tiny("llama", torch.float32)
    scope = "".join(data.draw(st.lists(st.sampled_from(SCOPE_WORDS), max_size=8)))
    try:
        assert select(model, scope)
    except ConfigError as error:
        return refused(error)
    return TAKEN


def test_scope() -> None:
    """Any scope: parameters, or ConfigError."""
    assert outcomes(60, scopes) == BOTH


@pytest.mark.slow
def test_scope_long() -> None:
    """The same, 1,000 times."""
    assert outcomes(1000, scopes) == BOTH


# --- tasks ------------------------------------------------------------------------------------------------------------

FIELDS = (
    "dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "output_type", "doc_to_text",
    "doc_to_target", "doc_to_choice", "description", "target_delimiter", "include", "process_docs", "task",
)  # fmt: skip
TASK = {
    "dataset_path": "x", "test_split": "t", "training_split": "r", "output_type": "multiple_choice", "doc_to_text": "q",
    "doc_to_target": "n", "doc_to_choice": ["a", "b"],
}  # fmt: skip
PARTS = st.sampled_from(
    ["q", "n", "{{ q }}", "{{ n }}", "{{ [q, q] }}", "deep", "digits", "!function a.b", "", "../x", "p"]
)


def tasks(folder: Path, data: Any) -> str:
    """A task's YAML with one field that is anything, on a row with odd values."""
    values = TASK | {data.draw(st.sampled_from(FIELDS)): data.draw(PARTS | JSON | ODD)}
    path = folder / "task.yaml"
    row = {"q": "good film", "n": 1, "deep": "[" * 50_000, "digits": "9" * 9000}
    try:
        path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        found = read_task(path).causal(row)
    except (ConfigError, DataError) as error:
        return refused(error)
    assert found.candidates
    return TAKEN


def test_task(tmp_path: Path) -> None:
    """Any field of a harness' task: a prompt and its candidates, or ConfigError or DataError."""
    os.mkfifo(tmp_path / "p")
    assert outcomes(150, lambda data: tasks(tmp_path, data)) == BOTH


@pytest.mark.slow
def test_task_long(tmp_path: Path) -> None:
    """The same, 5,000 times."""
    os.mkfifo(tmp_path / "p")
    assert outcomes(5000, lambda data: tasks(tmp_path, data)) == BOTH
