"""A metric of a set: what it is given, and what it may return."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from zotune.errors import ConfigError, DataError, FunctionError
from zotune.objective.functions import given
from zotune.objective.reward import Answers
from zotune.objective.set_metric import SetMetric

ANSWERS = Answers(
    prompts=["p", "q"],
    completions=[[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
    texts=["a", "b"],
    ids=[[1], [2]],
    references=[("x",), ("y", "z")],
    columns={"weight": [1, 3]},
    where="at step 2",
)


def test_what_it_is_given() -> None:
    """Texts, references (a list where there are several), and the columns that it takes."""
    seen: list[Any] = []

    def metric(predictions: Any, references: Any, weight: Any) -> Any:
        seen.append((predictions, references, weight))
        return np.float32(0.25)

    score = SetMetric(given(metric), 5)
    score.check(["weight", "other"], True)
    assert score(ANSWERS) == 0.25 and seen == [(["a", "b"], ["x", ["y", "z"]], [1, 3])]


@pytest.mark.parametrize("returned", [math.nan, math.inf, None, "0.5", [0.5], {"f1": 0.5}])
def test_what_is_no_number(returned: Any) -> None:
    """The function, what it returned, the step."""

    def metric(predictions: Any, references: Any) -> Any:
        return returned

    with pytest.raises(FunctionError, match="metric returned .*not a finite number, at step 2.*Remedy"):
        SetMetric(given(metric), 5)(ANSWERS)


def test_rows_that_it_cannot_score() -> None:
    """No references, or an argument that no column gives."""

    def metric(predictions: Any, references: Any, level: Any) -> Any: ...

    with pytest.raises(ConfigError, match="needs an argument 'level'"):
        SetMetric(given(metric), 5).check(["weight"], True)
    with pytest.raises(DataError, match="no column 'completion'.*--completion-column"):
        SetMetric(given(metric), 5).check(["level"], False)
