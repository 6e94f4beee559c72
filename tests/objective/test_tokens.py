"""TextCoder: special tokens apart from text, continuations in context."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from zotune.errors import DataError
from zotune.objective.tokens import TextCoder, report_cut


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "roberta", "bert", "t5"])
def test_specials_are_found(name: str, tokenizers: dict[str, Any]) -> None:
    """Prefix, text and suffix are what the tokenizer gives as a whole."""
    tokenizer = tokenizers[name]
    coder = TextCoder(tokenizer)
    body = coder.encode(["it was great"])[0]
    assert [*coder.prefix, *body, *coder.suffix] == tokenizer("it was great")["input_ids"]
    sizes = {"gpt2": (0, 0), "llama": (1, 0), "opt": (1, 0), "roberta": (1, 1), "bert": (1, 1), "t5": (0, 1)}
    assert (len(coder.prefix), len(coder.suffix)) == sizes[name]


def test_pad_id(tokenizers: dict[str, Any]) -> None:
    """The tokenizer's own, or 0 where it has none."""
    assert TextCoder(tokenizers["gpt2"]).pad == 0
    assert TextCoder(tokenizers["roberta"]).pad == tokenizers["roberta"].pad_token_id != 0


def test_specials_are_not_doubled(tokenizers: dict[str, Any]) -> None:
    """A text that brings its first token along keeps one."""
    coder = TextCoder(tokenizers["llama"])
    bare, marked = coder.encode(["it was", "<s>it was"])
    assert len(marked) == len(bare) + 1
    assert coder.split(marked) == coder.split(bare) == (coder.prefix, bare)


def test_continuation_in_context(tokenizers: dict[str, Any]) -> None:
    """The joint tokens after the prompt; alone where a token spans the seam."""
    tokenizer = tokenizers["gpt2"]
    coder = TextCoder(tokenizer)
    prompts = ["it was", "it w"]
    bodies = coder.encode(prompts)
    joint = coder.encode(["it was great", "it was"])
    found = coder.continue_(prompts, bodies, [" great", "as"])
    assert found[0] == joint[0][len(bodies[0]) :]
    assert joint[1][: len(bodies[1])] != bodies[1] and found[1] == coder.encode(["as"])[0]


def test_no_texts(tokenizers: dict[str, Any]) -> None:
    """An empty list stays one."""
    assert TextCoder(tokenizers["gpt2"]).encode([]) == []


def test_interleaved_specials_are_refused() -> None:
    """A tokenizer that changes the text's own ids when it adds specials cannot be taken apart."""

    class Odd:
        def __call__(self, texts: list[str], add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
            return {"input_ids": [[1, 2, 3] if add_special_tokens else [7] for _ in texts]}

    with pytest.raises(DataError, match="Odd"):
        TextCoder(Odd())


def test_report_cut(caplog: pytest.LogCaptureFixture) -> None:
    """Silent when nothing was cut."""
    with caplog.at_level(logging.WARNING):
        report_cut(0, 5, 8)
        assert caplog.text == ""
        report_cut(2, 5, 8)
    assert "2 of 5 examples" in caplog.text
