"""The table of tasks. The first eleven are MeZO's for decoder models, the others LM-BFF's for masked models.

A hub id names files that `datasets` reads without running a script.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from zotune.errors import ConfigError
from zotune.tasks import choice, decoder, lm_bff, reading
from zotune.tasks.base import Task
from zotune.tasks.harness_file import SUFFIXES
from zotune.tasks.lm_eval import read_task

GLUE, SUPER = "nyu-mll/glue", "aps/super_glue"
_OPINION = ("terrible", "great")
_RELATION = ("Yes", "Maybe", "No")

_ROWS = (
    Task(
        name="sst2",
        hub=GLUE,
        subset="sst2",
        causal=decoder.sst2,
        masked=lm_bff.after(("sentence", "text"), "It was", _OPINION, decoder.SENTIMENT),
        classes=decoder.SENTIMENT,
    ),
    Task(
        name="rte",
        hub=SUPER,
        subset="rte",
        causal=decoder.rte,
        masked=lm_bff.questioned(
            ("premise", "sentence1"), ("hypothesis", "sentence2"), ("Yes", "No"), decoder.ENTAILED
        ),
        classes=decoder.ENTAILED,
        limits={"premise": 240, "sentence1": 240},
    ),
    Task(
        name="cb",
        hub=SUPER,
        subset="cb",
        causal=decoder.cb,
        classes=decoder.COMMITMENT,
        dev_rows=100,
    ),
    Task(
        name="boolq",
        hub="google/boolq",
        causal=decoder.boolq,
        classes=decoder.ANSWER,
    ),
    Task(
        name="wsc",
        hub=SUPER,
        subset="wsc.fixed",
        causal=decoder.wsc,
        classes=decoder.TRUTH,
    ),
    Task(
        name="wic",
        hub=SUPER,
        subset="wic",
        causal=decoder.wic,
        classes=decoder.TRUTH,
    ),
    Task(
        name="multirc",
        hub=SUPER,
        subset="multirc",
        causal=decoder.multirc,
        classes=decoder.TRUTH,
    ),
    Task(
        name="copa",
        hub=SUPER,
        subset="copa",
        causal=choice.copa,
        loss="target",
        classes=choice.CHOICE,
        dev_rows=100,
    ),
    Task(
        name="record",
        hub=SUPER,
        subset="record",
        causal=choice.record,
        loss="target",
    ),
    Task(
        name="squad",
        hub="rajpurkar/squad",
        causal=reading.squad,
        loss="target",
        metric="f1",
    ),
    Task(
        name="drop",
        hub="ucinlp/drop",
        causal=reading.drop,
        loss="target",
        metric="f1",
    ),
    Task(
        name="sst5",
        hub="SetFit/sst5",
        test="test",
        masked=lm_bff.after(("text", "sentence"), "It was", ("terrible", "bad", "okay", "good", "great"), lm_bff.STARS),
        classes=lm_bff.STARS,
        limits={"text": 110, "sentence": 110},
    ),
    Task(
        name="snli",
        hub="stanfordnlp/snli",
        masked=lm_bff.questioned(("premise",), ("hypothesis",), _RELATION, lm_bff.INFERENCE),
        classes=lm_bff.INFERENCE,
    ),
    Task(
        name="mnli",
        hub=GLUE,
        subset="mnli",
        test="validation_matched",
        masked=lm_bff.questioned(("premise",), ("hypothesis",), _RELATION, lm_bff.INFERENCE),
        classes=lm_bff.INFERENCE,
        limits={"premise": 240},
    ),
    Task(
        name="trec",
        hub="SetFit/TREC-QC",
        test="test",
        masked=lm_bff.trec,
        classes=lm_bff.QUESTION,
        limits={"text": 110},
    ),
    Task(
        name="qnli",
        hub=GLUE,
        subset="qnli",
        masked=lm_bff.questioned(("question",), ("sentence",), ("Yes", "No"), lm_bff.QUESTION_ENTAILED),
        classes=lm_bff.QUESTION_ENTAILED,
    ),
    Task(
        name="qqp",
        hub=GLUE,
        subset="qqp",
        masked=lm_bff.joined(("question1",), ("question2",), ("No", "Yes"), lm_bff.SAME),
        classes=lm_bff.SAME,
    ),
    Task(
        name="mrpc",
        hub=GLUE,
        subset="mrpc",
        masked=lm_bff.joined(("sentence1",), ("sentence2",), ("No", "Yes"), lm_bff.SAME),
        classes=lm_bff.SAME,
    ),
    Task(
        name="mr",
        hub="cornell-movie-review-data/rotten_tomatoes",
        test="test",
        masked=lm_bff.after(("text", "sentence"), "It was", _OPINION, decoder.SENTIMENT),
        classes=decoder.SENTIMENT,
        limits={"text": 110, "sentence": 110},
    ),
    Task(
        name="cr",
        hub="SetFit/CR",
        test="test",
        masked=lm_bff.after(("text", "sentence"), "It was", _OPINION, decoder.SENTIMENT),
        classes=decoder.SENTIMENT,
        limits={"text": 110, "sentence": 110},
    ),
    Task(
        name="mpqa",
        hub="rahulsikder223/SentEval-MPQA",
        test="test",
        masked=lm_bff.after(("sentence", "text"), "It was", _OPINION, decoder.SENTIMENT),
        classes=decoder.SENTIMENT,
        limits={"sentence": 110, "text": 110},
    ),
    Task(
        name="subj",
        hub="SetFit/subj",
        test="test",
        masked=lm_bff.after(("text", "sentence"), "This is", ("objective", "subjective"), lm_bff.SUBJECTIVE),
        classes=lm_bff.SUBJECTIVE,
        limits={"text": 110, "sentence": 110},
    ),
    Task(
        name="cola",
        hub=GLUE,
        subset="cola",
        masked=lm_bff.after(("sentence", "text"), "This is", ("incorrect", "correct"), lm_bff.ACCEPTABLE),
        classes=lm_bff.ACCEPTABLE,
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ROWS}


def find(name: str, allow_code: bool = False) -> Task:
    """The task of this name (any case, `-` and `_` ignored), or of an lm-evaluation-harness YAML file.

    `allow_code`: whether functions that a file names are imported, which runs code of its folder.
    Raises ConfigError naming the nearest.
    """
    if name.endswith(SUFFIXES):
        return read_task(Path(name), allow_code)
    plain = name.lower().replace("-", "").replace("_", "")
    if plain in TASKS:
        return TASKS[plain]
    near = difflib.get_close_matches(plain, TASKS, n=1)
    hint = f" The nearest is {near[0]!r}." if near else ""
    raise ConfigError(f"unknown task {name!r}.{hint} Remedy: use one of {', '.join(TASKS)}.")
