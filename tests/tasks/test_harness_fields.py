"""Prompts, candidates and what is right, by hand from the rules of lm_eval.api.task, and compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tasks.harness import GENERATED, LISTED, lines, written

from zotune.data.rendered import Rendered
from zotune.errors import ConfigError, DataError
from zotune.tasks import find

ARC = """
task: arc
dataset_path: arc
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
"""
NUMBERS = """
task: numbers
dataset_path: numbers
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: ["1", "2", "3"]
"""
PREFIXED = LISTED + 'gen_prefix: "I say{{end}}"\n'


def rendered(folder: Path, text: str, row: dict[str, Any]) -> Rendered:
    """A row as the file's task renders it."""
    render = find(str(written(folder, text))).causal
    assert render is not None
    return render(row)


# file, row, prompt, candidates, right. White space at the end of a prompt stands before the candidates.
CHOOSING: list[tuple[str, dict[str, Any], str, tuple[str, ...], tuple[int, ...]]] = [
    (LISTED, {"text": "fine film", "label": 1}, "Judge.\nfine film\nOpinion:", ("\n bad", "\n good"), (1,)),
    (LISTED, {"text": "x", "label": False}, "Judge.\nx\nOpinion:", ("\n bad", "\n good"), (0,)),
    (LISTED, {"text": "x", "label": "good"}, "Judge.\nx\nOpinion:", ("\n bad", "\n good"), (1,)),
    # Choices that are numbers: a number is an index, also one that a template writes; a column's text is a choice.
    (
        ARC,
        {"question": "How many?", "choices": {"text": ["3", "2", "1", "4"], "label": [*"ABCD"]}, "answerKey": "C"},
        "Question: How many?\nAnswer:",
        (" 3", " 2", " 1", " 4"),
        (2,),
    ),
    (NUMBERS, {"text": "x", "label": 2}, "x", (" 1", " 2", " 3"), (2,)),
    (NUMBERS, {"text": "x", "label": "2"}, "x", (" 1", " 2", " 3"), (1,)),
    (NUMBERS.replace(": label", ": '{{label}}'"), {"text": "x", "label": "2"}, "x", (" 1", " 2", " 3"), (2,)),
    (NUMBERS.replace(": label", ": 1"), {"text": "x"}, "x", (" 1", " 2", " 3"), (1,)),
    # Several right ones, as a column, as a list that a template writes, and one that is out of range beside another.
    (NUMBERS, {"text": "x", "label": [2, 0]}, "x", (" 1", " 2", " 3"), (2, 0)),
    (NUMBERS.replace(": label", ": '{{label}}'"), {"text": "x", "label": [1, 2]}, "x", (" 1", " 2", " 3"), (1, 2)),
    (NUMBERS, {"text": "x", "label": [7, 1]}, "x", (" 1", " 2", " 3"), (1,)),
    # A list in the file is taken as it stands; a mapping gives its values.
    (
        LISTED.replace('"good"', '"{{text}}"'),
        {"text": "x", "label": 0},
        "Judge.\nx\nOpinion:",
        ("\n bad", "\n {{text}}"),
        (0,),
    ),
    (
        LISTED.replace('["bad", "good"]', "{0: 'no', 1: 'yes'}"),
        {"text": "x", "label": 0},
        "Judge.\nx\nOpinion:",
        ("\n no", "\n yes"),
        (0,),
    ),
    # Delimiters, and what the answer is made to begin with: a delimiter before it where no white space stands there.
    (
        ARC + 'target_delimiter: "->"\n',
        {"question": "Q", "choices": {"text": ["a", "it's b"], "label": ["A", "B"]}, "answerKey": "A"},
        "Question: Q\nAnswer:",
        ("->a", "->it's b"),
        (0,),
    ),
    (PREFIXED, {"text": "x", "label": 0, "end": ":"}, "Judge.\nx\nOpinion:\nI say:", (" bad", " good"), (0,)),
    (
        PREFIXED.replace("\\nOpinion:\\n", ""),
        {"text": "x", "label": 0, "end": ": "},
        "Judge.\nx I say:",
        ("  bad", "  good"),
        (0,),
    ),
]


@pytest.mark.parametrize(("file", "row", "prompt", "candidates", "right"), CHOOSING)
def test_choosing(
    file: str, row: dict[str, Any], prompt: str, candidates: tuple[str, ...], right: tuple[int, ...], tmp_path: Path
) -> None:
    """Prompt, candidates and what is right; the sizes are the candidates' without delimiter."""
    found = rendered(tmp_path, file, row)
    assert (found.prompt, found.candidates, found.right) == (prompt, candidates, right)
    assert all(each.endswith(each[len(each) - size :]) for each, size in zip(candidates, found.sizes, strict=True))


@pytest.mark.filterwarnings("ignore")  # other people's
@pytest.mark.parametrize(("file", "row", "prompt", "candidates", "right"), CHOOSING)
def test_choosing_as_the_harness(
    file: str, row: dict[str, Any], prompt: str, candidates: tuple[str, ...], right: tuple[int, ...], tmp_path: Path
) -> None:
    """The harness' own code asks for the same text after the same text, and holds the same candidates right."""
    task_of = pytest.importorskip("lm_eval.api.task", reason="lm-eval is in the extra eval")
    import yaml

    values = {k: v for k, v in yaml.safe_load(file.replace("!function utils.mean", "mean")).items() if "split" not in k}
    values |= {"dataset_path": "json", "dataset_name": None, "test_split": "test"}
    values |= {"dataset_kwargs": {"data_files": {"test": str(lines(tmp_path / "rows.jsonl", [row]))}}}
    task = task_of.ConfigurableTask(config=values)
    document = task.test_docs()[0]
    context = task.fewshot_context(document, 0, gen_prefix=task.doc_to_prefix(document))
    asked = [each.arguments for each in task.construct_requests(document, context)]
    assert [before + after for before, after in asked] == [prompt + candidate for candidate in candidates]
    end = asked[0][0][len(asked[0][0].rstrip()) :]  # which its models move to the continuation
    assert [end + after for _, after in asked] == list(candidates)
    scored = [
        task.process_results(document, [(-float(index != chosen), False) for index in range(len(candidates))])["acc"]
        for chosen in range(len(candidates))
    ]
    assert [index for index, each in enumerate(scored) if each] == sorted(right)
    assert rendered(tmp_path, file, row).sizes == tuple(map(len, task.doc_to_choice(document)))


@pytest.mark.parametrize(
    ("file", "row", "says"),
    [
        (LISTED, {"text": "x", "label": "fair"}, "doc_to_target gives 'fair', none of .*'bad', 'good'"),
        (LISTED, {"text": "x", "label": 2}, "gives 2, none of"),
        (LISTED, {"text": "x", "label": -1}, "gives -1, none of"),
        (LISTED, {"text": "x", "label": [5]}, r"gives \[5\], none of"),
        (LISTED, {"text": "x", "label": "1"}, "gives '1', none .* A template that writes it, '{{ name }}'"),
        (
            LISTED.replace('["bad", "good"]', "'{{text}}'"),
            {"text": "[__import__('os')]", "label": 0},
            "no list for a row",
        ),
        # Winogrande: each choice is a context, and the continuation is one.
        (
            LISTED.replace('"{{text}}\\nOpinion:\\n"', "place"),
            {"place": 1, "label": 0},
            "gives the number 1, so each choice is a prompt of its own",
        ),
        (
            LISTED.replace('"{{text}}\\nOpinion:\\n"', "'{{place}}'"),
            {"place": 1, "label": 0},
            "so each choice is a prompt of its own",
        ),
        (
            GENERATED.replace('"Q: {{question}}\\nA:"', "place"),
            {"place": 1.5, "answers": ["x"]},
            "doc_to_text gives 1.5, no text",
        ),
        (GENERATED, {"question": "x", "answers": []}, "doc_to_target gives no answer"),
    ],
)
def test_what_cannot_be_read(file: str, row: dict[str, Any], says: str, tmp_path: Path) -> None:
    """One sentence that names the file and the field; nothing that a template writes is run."""
    with pytest.raises(DataError, match=f"task.yaml: .*{says}.*Remedy"):
        rendered(tmp_path, file, row)


def test_answering(tmp_path: Path) -> None:
    """The first answer is trained on, all count; an index among choices is the choice."""
    found = rendered(tmp_path, GENERATED, {"question": "Who?", "answers": ["Ann", "Ann B."]})
    assert (found.prompt, found.candidates, found.answers) == ("Q: Who?\nA:", (" Ann",), ("Ann", "Ann B."))
    chosen = GENERATED.replace('"{{answers}}"', "right") + "doc_to_choice: [Ann, Ben]\n"
    assert rendered(tmp_path, chosen, {"question": "Who?", "right": 1}).answers == ("Ben",)
    begun = GENERATED.replace('"{{answers}}"', "said") + 'gen_prefix: "It is"\n'
    found = rendered(tmp_path, begun, {"question": "Who?", "said": "Ann"})
    assert (found.prompt, found.candidates) == ("Q: Who?\nA: It is", (" Ann",))


def test_choices_are_needed(tmp_path: Path) -> None:
    """A task that compares candidates must have some."""
    with pytest.raises(ConfigError, match="multiple_choice has no doc_to_choice"):
        find(str(written(tmp_path, LISTED.replace('doc_to_choice: ["bad", "good"]', ""))))


@pytest.mark.parametrize("target", ["9" * 9000, "\u00b2", "-1", "3"])
def test_a_target_that_is_no_index(tmp_path: Path, target: str) -> None:
    """Thousands of digits that a template writes, a raised one, and one beyond the choices."""
    with pytest.raises(DataError, match="doc_to_target gives .*none of .*Remedy"):
        rendered(
            tmp_path,
            NUMBERS.replace("label", "'{{t}}'").replace("1", "a").replace("3", "c"),
            {"text": "q", "t": target},
        )
