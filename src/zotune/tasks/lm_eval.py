"""A task of the lm-evaluation-harness, from its YAML file: what is tested there can be trained here.

Data set and splits, prompts, candidates and answers (`harness_fields.py`), `process_docs`, `gen_prefix`, local
`data_files`, and where a generated answer ends mean what they mean there; documents are evaluated in their order, and
the accuracy is the harness' `acc`, without demonstrations. Differs from the harness in: templates run in our sandbox;
`!function`, which is Python of the task's folder, is run only when the user allows it; a task without a training split
of its own, or whose training split is the one that is tested, is evaluated, but not trained on. What else would change
the meaning is refused, or said in one line (`Harness.notes`).
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zotune.errors import ConfigError
from zotune.tasks.base import Harness, Task
from zotune.tasks.harness_fields import answering, choosing
from zotune.tasks.harness_file import HarnessFile, is_function, read_file

_CODE = ("doc_to_text", "doc_to_target", "doc_to_choice", "process_docs")
# Read here, or of no effect without demonstrations and in a training.
_KNOWN = {
    *_CODE, "task", "task_alias", "tag", "group", "dataset_path", "dataset_name", "dataset_kwargs", "training_split",
    "validation_split", "test_split", "fewshot_split", "fewshot_config", "fewshot_delimiter", "description",
    "target_delimiter", "gen_prefix", "output_type", "generation_kwargs", "metric_list", "num_fewshot", "filter_list",
    "process_results", "repeats", "should_decontaminate", "doc_to_decontamination_query", "unsafe_code", "metadata",
}  # fmt: skip
# Of another kind: code that makes the data, pictures and sound, prompts of a library that is no more.
_REFUSED = ("custom_dataset", "class", "doc_to_image", "doc_to_audio", "use_prompt")
# The builders of `datasets` that read files here, and what these are called.
_BUILDERS: Mapping[str, tuple[str, ...]] = {
    "json": (".jsonl", ".json", ".ndjson"), "csv": (".csv",), "parquet": (".parquet",),
}  # fmt: skip
# The harness' own, where a file says nothing (lm_eval.defaults).
_MOST_TOKENS = 256
_DELIMITER = "\n\n"
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def read_task(path: Path, allow_code: bool = False) -> Task:
    """The task of a YAML file. With `allow_code` the functions that it names are imported: this runs their file.

    Raises ConfigError for a task that cannot be used here, and says why.
    """
    file = read_file(path, _CODE, allow_code)
    values = file.values
    _check_fields(file)
    train = values.get("training_split")
    tested = values.get("test_split") or values.get("validation_split") or train
    if not isinstance(tested, str):
        raise ConfigError(f"{path} has no test_split or validation_split. Remedy: add one.")
    kind = values.get("output_type", "generate_until")
    if kind not in ("multiple_choice", "generate_until"):
        raise ConfigError(f"{path}: output_type {kind!r} is not trained. Remedy: multiple_choice or generate_until.")
    chooses, subset = kind == "multiple_choice", values.get("dataset_name")
    files, revision = _data(file)
    return Task(
        name=str(values.get("task", path.stem)),
        hub=str(values["dataset_path"]),
        subset=None if subset is None else str(subset),
        revision=revision,
        train=str(train or ""),
        test=tested,
        causal=choosing(file) if chooses else answering(file),
        loss="options" if chooses else "target",
        metric="accuracy" if chooses else "f1",
        digest=file.digest,
        untrained=_untrained(path, train, tested),
        harness=_harness(file, chooses, files),
    )


def _check_fields(file: HarnessFile) -> None:
    values, path = file.values, file.path
    if isinstance(values.get("task"), list):
        raise ConfigError(f"{path} is a group of tasks. Remedy: name its tasks one by one.")
    for name in _REFUSED:
        if values.get(name) is not None:
            raise ConfigError(f"{path}: {name} is not read here. Remedy: evaluate the task by its name in lm-eval.")
    for name in values:
        if name not in _KNOWN | set(_REFUSED):
            raise ConfigError(f"{path}: {name!r} is no field of a task. Remedy: remove it or correct its name.")
    for name in ("dataset_path", "doc_to_text", "doc_to_target"):
        given = values.get(name)
        if given is None or isinstance(given, bool | Mapping):
            raise ConfigError(f"{path} has no {name}. Remedy: add it; a YAML may `include` the harness' file.")


def _untrained(path: Path, train: Any, tested: str) -> str:
    """Why the harness' file gives nothing to train on, empty where it does."""
    if not train:
        return f"{path} has no training_split, so it is not trained on. Remedy: add one; a YAML may `include` the file."
    if train == tested:
        return (
            f"{path}: the harness tests on the split {tested!r}, so it is not trained on. "
            "Remedy: name another training_split, with a test_split or validation_split beside it."
        )
    if "[" in str(train) or "+" in str(train):
        return (
            f"{path}: training_split {train!r} is a part of a split, which may hold what is tested, so it is not "
            "trained on. Remedy: name a whole split; --train-rows takes a sample of it."
        )
    return ""


def _harness(file: HarnessFile, chooses: bool, files: Mapping[str, tuple[Path, ...]] | None) -> Harness:
    values = file.values
    metrics = [str(each.get("metric")) for each in values.get("metric_list") or [] if isinstance(each, Mapping)]
    given = values.get("generation_kwargs") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{file.path}: generation_kwargs is {given!r}. Remedy: names and values.")
    until = given.get("until", [file.text("fewshot_delimiter", _DELIMITER)])
    stop = until if isinstance(until, list) else [] if until is None else [until]
    most = next((given[name] for name in _LENGTHS if given.get(name) is not None), _MOST_TOKENS)
    if not isinstance(most, int) or most < 1 or not all(isinstance(each, str) and each for each in stop):
        raise ConfigError(f"{file.path}: generation_kwargs has until {stop} and {most!r} tokens. Remedy: correct them.")
    return Harness(
        files=files,
        process=values.get("process_docs"),
        stop=tuple(stop),
        most_tokens=most,
        normed=chooses and (not metrics or "acc_norm" in metrics),
        notes=tuple(_notes(values, chooses, metrics, given)),
    )


def _notes(values: Mapping[str, Any], chooses: bool, metrics: list[str], generation: Mapping[str, Any]) -> list[str]:
    """What the harness would do and is not done here, in words."""
    found = []
    if values.get("num_fewshot"):
        found.append(f"num_fewshot is {values['num_fewshot']}, and no demonstrations are shown")
    chance = generation.get("do_sample")
    sampled = bool(generation.get("temperature")) if chance is None else bool(chance)
    plain = () if sampled else ("do_sample", "temperature")
    left = [
        name
        for name, value in generation.items()
        if name not in ("until", *_LENGTHS, *plain) and (name, value) != ("num_beams", 1)
    ]
    if not chooses and left:
        found.append(f"generation_kwargs: {', '.join(left)} are left out, an answer is greedy")
    measured = ("acc", "acc_norm") if chooses else ("f1",)
    other = [name.removeprefix("!function ") for name in metrics if name not in measured]
    if other:
        said = "accuracy" if chooses else "token F1"
        found.append(f"metric_list: {', '.join(other)} is not measured, {said} is")
    for name in ("process_results", "filter_list"):
        if values.get(name):
            found.append(f"{name} is not applied")
    if int(values.get("repeats") or 1) > 1:
        found.append(f"repeats is {values['repeats']}, and each answer is asked for once")
    return found


def _data(file: HarnessFile) -> tuple[Mapping[str, tuple[Path, ...]] | None, str | None]:
    """The files of each split where the file names some, and the data set's revision. Raises ConfigError."""
    given = file.values.get("dataset_kwargs") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{file.path}: dataset_kwargs is {given!r}. Remedy: names and values.")
    # trust_remote_code has no effect: `datasets` runs no scripts any more, and the harness leaves it out too.
    other = [str(name) for name in given if name not in ("data_files", "revision", "trust_remote_code")]
    if other:
        raise ConfigError(
            f"{file.path}: dataset_kwargs has {', '.join(other)}, which is not read here. Remedy: put the rows into "
            "files, and give --data-dir with the key removed."
        )
    revision = given.get("revision")
    named = given.get("data_files")
    if named is None:
        return None, None if revision is None else str(revision)
    builder = str(file.values["dataset_path"])
    if builder not in _BUILDERS:
        raise ConfigError(
            f"{file.path}: data_files are read with dataset_path {', '.join(_BUILDERS)}, not with {builder!r}. Remedy: "
            "download them, and give --data-dir with the key removed."
        )
    splits = named if isinstance(named, Mapping) else {"train": named}
    return {str(split): _found(file, builder, each) for split, each in splits.items()}, None


def _found(file: HarnessFile, builder: str, given: Any) -> tuple[Path, ...]:
    """The files that a text or a list of texts names, in the working folder or the task's; `*` as in a shell."""
    found: list[Path] = []
    for name in given if isinstance(given, list) else [given]:
        if not isinstance(name, str) or is_function(name):
            raise ConfigError(f"{file.path}: data_files names {name!r}. Remedy: a file, or a list of files.")
        here, beside = _matching(Path(), name), _matching(file.path.parent, name)
        if here and beside and here != beside:
            raise ConfigError(
                f"{file.path}: data_files {name!r} is in the working folder and beside the file. Remedy: a whole path."
            )
        there = here or beside
        if not there:
            raise ConfigError(
                f"{file.path}: data_files {name!r} is neither in the working folder nor beside the file. Remedy: "
                "correct the path."
            )
        wrong = [path for path in there if path.suffix.lower() not in _BUILDERS[builder]]
        if wrong:
            raise ConfigError(f"{file.path}: {wrong[0]} is no file of dataset_path {builder}. Remedy: correct one.")
        found += there
    return tuple(found)


def _matching(folder: Path, name: str) -> list[Path]:
    """Whole paths of the files of this name or pattern."""
    named = [name] if (folder / name).is_file() else sorted(glob.glob(name, root_dir=folder))
    return [(folder / each).resolve() for each in named]
