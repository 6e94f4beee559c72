"""A metric of a whole set of completions: one number, such as corpus BLEU, that is no mean over examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from zotune.errors import DataError, FunctionError
from zotune.objective.functions import REMEDY, Named, call, check_takes
from zotune.objective.reward import Answers, number


@final
class SetMetric:
    """A function `metric(predictions, references, **columns) -> float`; larger is better.

    predictions: the completions as texts. references: for each what is right: a text, or a list where a row has
    several. columns: every column of the rows, a list each. It gets those arguments that its signature takes.
    """

    def __init__(self, function: Named, seconds: float) -> None:
        self.name, self._function, self._seconds = function.short, function, seconds

    def check(self, columns: Sequence[str], referenced: bool) -> None:
        """Raises ConfigError for an argument that nothing gives, DataError for rows without references."""
        check_takes(self._function, ["predictions", "references", *columns])
        if not referenced:
            raise DataError(
                f"{self._function.name} compares with references, and the rows have no column 'completion'; columns "
                f"found: {', '.join(columns) or 'none'}. Remedy: name the column with --completion-column."
            )

    def __call__(self, answers: Answers) -> float:
        """The metric of these answers. Raises FunctionError for anything but a finite number."""
        references = [right[0] if len(right) == 1 else list(right) for right in answers.references]
        own = {"predictions": answers.texts, "references": references}
        returned = call(self._function, self._seconds, answers.where, {**answers.columns, **own})
        found = number(returned)
        if found is None:
            raise FunctionError(
                f"{self._function.name} returned {str(returned)[:60]!r} ({type(returned).__name__}), not a finite "
                f"number, {answers.where}. {REMEDY}"
            )
        return found
