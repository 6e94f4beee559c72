"""What `doc_to_text`, `doc_to_target` and `doc_to_choice` of the lm-evaluation-harness mean for a row.

By the rules of `lm_eval.api.task` (0.4.13). A field is a function's result, the column of that name, or a template. A
target is an index where it is a number, or a template that writes digits and there are choices; a text, also of a
column, is one of the choices. Templates run in our sandbox. White space at the end of a prompt that is followed by
candidates belongs to them, as the harness has it (`LM._encode_pair`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from zotune.data.rendered import Render, Rendered, Row
from zotune.data.template import Template
from zotune.errors import ConfigError, DataError
from zotune.tasks.harness_file import HarnessFile

Field = Callable[[Row], Any]
_INDEX = re.compile("[0-9]{1,9}")  # not every digit of Unicode is one to int, nor are thousands of them


def choosing(file: HarnessFile) -> Render:
    """Rows of a `multiple_choice` task. Raises ConfigError."""
    prompt, target, choices = _prompt(file), _target(file), _choices(file)
    delimiter = file.text("target_delimiter", " ")

    def render(row: Row) -> Rendered:
        options, asked = choices(row), prompt(row)
        end = asked[len(asked.rstrip()) :]
        candidates = tuple(f"{end}{delimiter}{option}" for option in options)
        sizes = tuple(map(len, options))
        return Rendered(asked.rstrip(), candidates, _right(file, target(row), options), sizes=sizes)

    return render


def answering(file: HarnessFile) -> Render:
    """Rows of a `generate_until` task. Raises ConfigError."""
    prompt, target, prefix = _prompt(file), _target(file), _prefix(file)
    choices = _choices(file) if file.values.get("doc_to_choice") is not None else None
    delimiter = file.text("target_delimiter", " ")

    def render(row: Row) -> Rendered:
        found, begin = target(row), prefix(row)
        if choices is not None and not isinstance(found, str | list | tuple):
            options = choices(row)
            found = options[_right(file, found, options)[0]]
        answers = tuple(map(str, found)) if isinstance(found, list | tuple) else (str(found),)
        if not answers:
            raise DataError(f"{file.path}: doc_to_target gives no answer. Remedy: leave out rows without one.")
        between = (" " if _apart(begin, answers[0]) else "") if begin else delimiter
        return Rendered(prompt(row), (between + answers[0],), answers=answers)

    return render


def _prompt(file: HarnessFile) -> Callable[[Row], str]:
    """Description, question and what the answer is made to begin with."""
    describe = _field(file, "description") if file.values.get("description") else None
    ask, prefix, delimiter = _field(file, "doc_to_text"), _prefix(file), file.text("target_delimiter", " ")
    digits = file.values.get("doc_to_choice") is not None

    def prompt(row: Row) -> str:
        asked, begin = ask(row), prefix(row)
        if digits and (isinstance(asked, int) or (isinstance(asked, str) and asked.isdigit())):
            raise DataError(
                f"{file.path}: doc_to_text gives the number {asked}, so each choice is a prompt of its own before one "
                "ending (as in Winogrande), which is not read here. Remedy: evaluate the task by its name in lm-eval."
            )
        if not isinstance(asked, str):
            raise DataError(f"{file.path}: doc_to_text gives {asked!r}, no text. Remedy: correct it, or the row.")
        between = delimiter if begin and asked and _apart(asked, begin) else ""
        return f"{'' if describe is None else describe(row)}{asked}{between}{begin}"

    return prompt


def _prefix(file: HarnessFile) -> Callable[[Row], str]:
    if not file.values.get("gen_prefix"):
        return lambda row: ""
    field = _field(file, "gen_prefix")
    return lambda row: str(field(row))


def _apart(before: str, after: str) -> bool:
    """Whether no white space stands where two texts meet."""
    return not (before[-1:].isspace() or after[:1].isspace())


def _field(file: HarnessFile, name: str) -> Field:
    value = file.values[name]
    if callable(value):
        return cast(Field, value)
    if not isinstance(value, str):
        return lambda row: value
    template = Template(value)
    return lambda row: row[value] if value in row else template.render(row)


def _target(file: HarnessFile) -> Field:
    field, value = _field(file, "doc_to_target"), file.values["doc_to_target"]
    digits = file.values.get("doc_to_choice") is not None

    def target(row: Row) -> Any:
        found = field(row)
        if not isinstance(value, str) or value in row:
            return found
        if digits and _INDEX.fullmatch(found):
            return int(found)
        listed = literal(found) if found[:1] == "[" and found[-1:] == "]" else None
        return found if listed is None else listed

    return target


def _choices(file: HarnessFile) -> Callable[[Row], tuple[str, ...]]:
    given = file.values.get("doc_to_choice")
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list):
        fixed = tuple(map(str, given))  # as they stand: no templates
        return lambda row: fixed
    if not isinstance(given, str) and not callable(given):
        raise ConfigError(f"{file.path}: multiple_choice has no doc_to_choice. Remedy: a list, a column or a template.")
    field = _field(file, "doc_to_choice")

    def options(row: Row) -> tuple[str, ...]:
        found = field(row)
        if isinstance(found, str):
            found = literal(found)
        if not isinstance(found, list | tuple) or not found:
            raise DataError(f"{file.path}: doc_to_choice gives no list for a row. Remedy: correct it, or the row.")
        return tuple(map(str, found))

    return options


def literal(text: str) -> Any:
    """The list that a template wrote: data alone, nothing is run. None for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _right(file: HarnessFile, target: Any, options: tuple[str, ...]) -> tuple[int, ...]:
    """The indices of what is right: numbers are indices, a text is one of the options."""
    if isinstance(target, list | tuple):
        found = [int(each) for each in target if isinstance(each, int) and 0 <= each < len(options)]
    elif isinstance(target, str):
        found = [options.index(target)] if target in options else []
    else:
        whole = isinstance(target, int | float) and float(target).is_integer()
        found = [int(target)] if whole and 0 <= target < len(options) else []
    if not found:
        index = isinstance(target, str) and target.strip().isdigit()
        other = " A template that writes it, '{{ name }}', makes it an index." if index else ""
        raise DataError(
            f"{file.path}: doc_to_target gives {target!r}, none of {options}.{other} Remedy: correct it, or the row."
        )
    return tuple(dict.fromkeys(found))
