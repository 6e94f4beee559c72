"""Every shape from every file format gives the same tokens and the same scored positions, those worked out here."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune.config import TrainConfig
from zotune.data.files import read_rows
from zotune.data.shapes import shape_of
from zotune.errors import ConfigError, DataError
from zotune.objective.base import Example, Objective
from zotune.objective.from_shape import BUILD

Row = dict[str, Any]
UNICODE = "caffè 日本 \u2028 end"
CHAT = [
    {"role": "user", "content": "is this good"},
    {"role": "assistant", "content": UNICODE},
    {"role": "user", "content": "fine"},
    {"role": "assistant", "content": "so bad"},
]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in CHAT]
ROWS: dict[str, list[Row]] = {
    "text": [{"text": UNICODE}, {"text": 'it was "great", it\nwas'}],
    "label": [{"text": UNICODE, "label": 0}, {"text": "fine", "label": 1}],
    "completion": [{"prompt": UNICODE + ": ", "completion": "great"}, {"prompt": "it was", "completion": " so bad"}],
    "messages": [{"messages": CHAT}, {"messages": CHAT[:2]}],
    "sharegpt": [{"conversations": SHAREGPT}, {"conversations": SHAREGPT[:2]}],
    "alpaca": [
        {"instruction": "is this good", "input": UNICODE, "output": "fine"},
        {"instruction": "so", "input": "", "output": "bad"},
    ],
    "choices": [
        {"question": UNICODE, "choices": ["a mess", "fine"], "answer": 1},
        {"question": "x", "choices": ["it", "was", "great"], "answer": 0},
    ],
    "preference": [
        {"prompt": UNICODE + ": ", "chosen": "great", "rejected": "a mess"},
        {"prompt": "it was", "chosen": " so good", "rejected": " bad"},
    ],
    "tokens": [{"input_ids": [1, 9, 8, 7], "labels": [-100, -100, 8, 7]}, {"input_ids": [5, 6], "labels": [-100, 6]}],
}
OPTIONS: dict[str, dict[str, Any]] = {"label": {"label_words": ["terrible", "great"]}}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def as_text(value: Any) -> Any:
    """How a csv cell holds it."""
    return value if isinstance(value, str) else json.dumps(value)


def written(rows: list[Row], folder: Path, kind: str) -> Path:
    """The rows as a file."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text(
            "\ufeff" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
        )
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)
        path.write_text("\ufeff" + out.getvalue(), encoding="utf-8", newline="")
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow (the extra data)")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def chatty(tokenizers: dict[str, Any]) -> Any:
    """The Llama tokenizer of the tests with a chat template."""
    tokenizer = copy.deepcopy(tokenizers["llama"])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def built(rows: list[Row], tokenizer: Any, **options: Any) -> Objective:
    """The objective of these rows, as a run makes it."""
    config = TrainConfig(model="m", train=Path("t"), output_dir=Path("o"), **options)
    return BUILD[shape_of(config, rows)](config, tokenizer, "causal", rows)


def encoded(rows: list[Row], tokenizer: Any, **options: Any) -> list[Example]:
    """Rows to examples."""
    return built(rows, tokenizer, **options).encode(rows)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("shape", ROWS)
def test_every_format_gives_the_same_tokens(shape: str, kind: str, chatty: Any, tmp_path: Path) -> None:
    """Byte order mark, CRLF, empty lines, quotes and letters beyond ASCII change nothing."""
    options = OPTIONS.get(shape, {})
    expected = encoded(ROWS[shape], chatty, **options)
    assert encoded(read_rows(written(ROWS[shape], tmp_path, kind)), chatty, **options) == expected
    assert len(expected) == 2


def read_and_scored(example: Example, tokenizer: Any) -> tuple[str, list[str]]:
    """The prompt as text, and the scored runs of the only option."""
    flags = example.scored or tuple(True for _ in example.options[0])
    runs: list[list[int]] = []
    before = False
    for token, flag in zip(example.options[0], flags, strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(token)
        before = flag
    return tokenizer.decode(example.prompt), [tokenizer.decode(run) for run in runs]


def test_what_is_scored(chatty: Any) -> None:
    """Worked out by hand from each shape's meaning."""
    text = encoded(ROWS["text"], chatty)[0]
    assert read_and_scored(text, chatty) == ("<s>", [UNICODE])
    assert read_and_scored(encoded(ROWS["completion"], chatty)[1], chatty) == ("<s>it was", [" so bad"])
    talk = encoded(ROWS["messages"], chatty)
    assert read_and_scored(talk[0], chatty) == (
        "<user>is this good</s>\n<assistant>",
        [UNICODE + "</s>", "so bad</s>"],
    )
    assert encoded(ROWS["sharegpt"], chatty) == talk
    assert read_and_scored(encoded(ROWS["alpaca"], chatty)[0], chatty) == (
        f"<user>is this good\n\n{UNICODE}</s>\n<assistant>",
        ["fine</s>"],
    )
    chosen = encoded(ROWS["choices"], chatty)[0]
    assert chatty.decode(chosen.prompt) == f"<s>Question: {UNICODE}\nAnswer:" and chosen.label == 1
    assert [chatty.decode(option) for option in chosen.options] == [" a mess", " fine"]
    tokens = encoded(ROWS["tokens"], chatty)[0]
    assert (tokens.prompt, tokens.options, tokens.scored) == ((1, 9), ((8, 7),), (True, True))


def test_pairs_read_as_completions_do(tokenizers: dict[str, Any]) -> None:
    """Prompt and chosen answer have the tokens of a row of prompt and completion; so has the rejected one."""
    tokenizer = tokenizers["llama"]
    for index, name in ((1, "chosen"), (0, "rejected")):
        rows = [{"prompt": row["prompt"], "completion": row[name]} for row in ROWS["preference"]]
        alone = encoded(rows, tokenizer)
        both = encoded(ROWS["preference"], tokenizer)
        assert [(e.prompt, e.options[index]) for e in both] == [(e.prompt, e.options[0]) for e in alone]
        assert all(e.label == 1 and e.right == (1,) for e in both)


def test_the_loss_of_pairs(chatty: Any, make_model: Any, log_probabilities: Any) -> None:
    """-log sigmoid of the margin between the mean log-probabilities of both answers; right where it is positive."""
    objective, rows = built(ROWS["preference"], chatty), ROWS["preference"]
    model, examples = make_model("llama", torch.float64), objective.encode(rows)
    objective.prepare(model, examples)
    measure = objective.for_evaluation()
    losses, right = measure.judge(model, measure.collate(examples))
    for row, example in enumerate(examples):
        rejected, chosen = (log_probabilities(model, "causal", example, index).mean() for index in (0, 1))
        expected = -torch.nn.functional.logsigmoid(chosen - rejected)
        torch.testing.assert_close(losses[row], expected, rtol=0, atol=1e-10)
        assert right is not None and bool(right[row]) == bool(chosen > rejected)


def test_pairs_of_chats(chatty: Any) -> None:
    """The answers are what the chat template writes after the prompt, which may stand in a column or in both chats."""
    bad = [{"role": "assistant", "content": "a mess"}]
    apart = encoded([{"prompt": CHAT[:3], "chosen": CHAT[3:], "rejected": bad}], chatty)
    assert chatty.decode(apart[0].prompt).endswith("<user>fine</s>\n<assistant>")
    assert [chatty.decode(option) for option in apart[0].options] == ["a mess</s>", "so bad</s>"]
    whole = [{"prompt": "is this good", "chosen": CHAT, "rejected": [*CHAT[:3], *bad]}]
    assert encoded(whole, chatty) == apart
    said = [{"prompt": "fine", "chosen": CHAT[3:], "rejected": bad}]
    assert chatty.decode(encoded(said, chatty)[0].prompt) == "<s><user>fine</s>\n<assistant>"


def test_pairs_with_a_template(chatty: Any) -> None:
    """The prompt from other columns; then answers are texts."""
    rows = [{"question": "it was", "chosen": " good", "rejected": " bad"}]
    found = encoded(rows, chatty, template="{{ question }} so")[0]
    assert chatty.decode(found.prompt) == "<s>it was so"


def test_pairs_are_for_models_that_score_text() -> None:
    """A masked model fills in one token."""
    config = TrainConfig(model="m", train=Path("t"), output_dir=Path("o"))
    with pytest.raises(ConfigError, match="A masked model cannot score answers. Remedy"):
        BUILD["preference"](config, None, "masked", [])


def test_plain_alpaca(tokenizers: dict[str, Any]) -> None:
    """Without a chat template: instruction, input and output with empty lines between, and the end token."""
    tokenizer = tokenizers["llama"]
    first, second = encoded(ROWS["alpaca"], tokenizer)
    assert read_and_scored(first, tokenizer) == (f"<s>is this good\n\n{UNICODE}\n\n", ["fine</s>"])
    assert read_and_scored(second, tokenizer) == ("<s>so\n\n", ["bad</s>"])
    with pytest.raises(ConfigError, match="no chat template"):
        encoded(ROWS["messages"], tokenizer)


def test_completions_as_messages(chatty: Any) -> None:
    """Turns of the assistant in the prompt are read, those of the completion scored."""
    rows = [{"prompt": CHAT[:3], "completion": CHAT[3:]}]
    prompt, scored = read_and_scored(encoded(rows, chatty)[0], chatty)
    assert UNICODE in prompt and scored == ["so bad</s>"]


def test_masked_tokens_without_labels(chatty: Any) -> None:
    """All tokens but the first are scored; those of padding are not there."""
    example = encoded([{"input_ids": [5, 6, 7, 0], "attention_mask": [1, 1, 1, 0]}], chatty)[0]
    assert (example.prompt, example.options) == ((5,), ((6, 7),))


def test_a_token_over_the_border(chatty: Any) -> None:
    """Where the template's end and the answer's beginning are one token, the parts are encoded alone."""
    from zotune.objective.from_shape import _marked
    from zotune.objective.tokens import TextCoder

    coder = TextCoder(chatty)
    ids, flags = _marked(coder, "it was great", [(3, 9)])  # "it |was gr|eat"
    assert chatty.decode([token for token, flag in zip(ids, flags, strict=True) if flag]) == "was gr"
    assert chatty.decode(ids) == "it was great"


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        (1, ["x", "y"], 1),
        ("1", ["x", "y"], 1),
        ("B", ["x", "y"], 1),
        ("y", ["x", "y"], 1),
        (0, ["1", "0"], 0),
        ("2", {"text": ["x", "y"], "label": ["1", "2"]}, 1),
        ("1", {"text": ["x", "y"], "label": ["1", "2"]}, 0),
        ("B", {"text": ["x", "y"], "label": ["A", "B"]}, 1),
        ("3", {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, 2),
        # Choices that are numbers: a name that the row gives, or the letter that everyone has.
        ("1", {"text": ["2", "1"], "label": ["1", "2"]}, 0),
        ("B", ["1", "0"], 1),
    ],
)
def test_answers(answer: Any, choices: Any, index: int, chatty: Any) -> None:
    """A number is an index; a text is a choice, its name, or an index. ARC numbers some of its choices from 1."""
    rows = [{"question": "x", "choices": choices, "answer": answer}]
    assert encoded(rows, chatty)[0].label == index


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (
            [{"question": "x", "choices": ["a", "b"], "answer": 2}],
            {},
            r"Row 1: answer 2 is none of the choices \['a', 'b'\]",
        ),
        (
            [{"question": "x", "choices": ["1", "0"], "answer": "1"}],
            {},
            "Row 1: answer '1' could be several .*Remedy: give its letter",
        ),
        ([{"question": "x", "choices": ["a"], "answer": 0}], {}, "Row 1: column 'choices' has only one choice"),
        ([{"question": "x", "choices": ["a", "a "], "answer": 0}], {}, "Row 1: candidates ' a' and ' a' have the same"),
        (
            [{"choices": ["a", "b"], "answer": 0}],
            {"data_format": "choices", "template": "{{ q }}"},
            "column q is missing",
        ),
        ([{"input_ids": [1, 2], "labels": [1]}], {}, "Row 1: input_ids, labels and attention_mask differ in length"),
        ([{"input_ids": [1, 99999]}], {}, "Row 1: token 99999 is outside the vocabulary"),
        ([{"input_ids": [1, 2], "labels": [2, -100]}], {}, "Row 1: label 2 is neither -100 nor its token 1"),
        ([{"input_ids": "1 2"}], {}, "Row 1: column 'input_ids' holds '1 2', which is no JSON"),
        ([{"input_ids": [1, 2]}, {"ids": [1]}], {}, "Row 2: no column 'input_ids'; columns found: ids"),
        ([{"messages": CHAT}, {"messages": None}], {}, "Row 2: column 'messages' is null"),
        ([{"text": "x"}, {"txt": "y"}], {}, "Row 2 has no column 'text'; columns found: txt"),
        ([{"prompt": "x", "completion": ""}], {}, "Row 1 has no token to score"),
        ([{"prompt": "x", "chosen": "y", "rejected": "y"}], {}, "Row 1: candidates 'y' and 'y' have the same tokens"),
        ([{"prompt": "x", "chosen": "y", "rejected": None}], {}, "Row 1: column 'rejected' is null"),
    ],
)
def test_errors_name_the_row(rows: list[Row], options: dict[str, Any], says: str, chatty: Any) -> None:
    """What is wrong with a row is said with its number."""
    with pytest.raises(DataError, match=says):
        encoded(rows, chatty, **options)


def test_label_needs_words(chatty: Any) -> None:
    """The shape alone does not say what the labels are called."""
    with pytest.raises(ConfigError, match="shape label needs label words"):
        encoded(ROWS["label"], chatty, data_format="label")


def test_a_real_chat_template(shared_data: Path, chatty: Any) -> None:
    """A trained tokenizer marks the same text whether its tokens cross the borders or not."""
    from transformers import AutoTokenizer

    real: Callable[..., Any] = AutoTokenizer.from_pretrained
    tokenizer = real(shared_data / "stories260K")
    tokenizer.chat_template = TEMPLATE
    example = encoded(ROWS["messages"][1:], tokenizer)[0]
    assert tokenizer.decode(example.options[0]).replace("</s>", "").strip() == UNICODE
