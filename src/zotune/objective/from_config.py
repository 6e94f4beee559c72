"""From a config to an objective on a score: what is generated, or decided, and by which functions it is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zotune.config import TrainConfig
from zotune.data import chat
from zotune.data.asked import Ask, ask_chat, ask_task, ask_template
from zotune.data.rendered import Row
from zotune.data.template import Template
from zotune.errors import ConfigError
from zotune.objective.base import Objective
from zotune.objective.decided import Decided
from zotune.objective.functions import Functions, Named, find, given
from zotune.objective.generate import Decoding
from zotune.objective.generated import Generated
from zotune.objective.label_words import LabelWords
from zotune.objective.model_kind import Kind
from zotune.objective.named import is_named, named
from zotune.objective.options import OptionLikelihood
from zotune.objective.reward import Reward, Score, Weighted
from zotune.objective.set_metric import SetMetric
from zotune.tasks.base import Task

# One line end more is one answer more: answers that are compared end there.
_LINE = ("\n",)


def find_functions(config: TrainConfig) -> Functions:
    """Import what the config names; this runs that code. Raises ConfigError."""
    rewards = tuple(find(name) for name in config.reward or () if not is_named(name))
    return Functions(rewards, None if config.metric is None else find(config.metric))


def functions_of_run(config: TrainConfig, trusted: bool, passed: Functions) -> Functions:
    """Those that were passed, else what a run's own config names. Raises ConfigError rather than import it unasked."""
    if passed.all():
        return passed
    names = [name for name in (*(config.reward or ()), *filter(None, [config.metric])) if not is_named(name)]
    if names and not trusted:
        raise ConfigError(
            f"this run's config names code, {', '.join(names)}, which is not run unasked. Remedy: read that code, then "
            "pass --trust-reward."
        )
    return find_functions(config)


def given_functions(rewards: Any = (), metric: Callable[..., Any] | None = None) -> Functions:
    """Functions that were passed from Python: one reward or several, or a metric."""
    listed = (rewards,) if callable(rewards) else tuple(rewards)
    return Functions(tuple(map(given, listed)), None if metric is None else given(metric))


def generated(
    config: TrainConfig, tokenizer: Any, kind: Kind, functions: Functions, task: Task | None, row: Row
) -> Generated:
    """The objective on what the model says. `row` is the first one, which tells the columns."""
    ask = _ask(config, tokenizer, row) if task is None else _ask_task(task, kind)
    score: Score | SetMetric
    if functions.metric is not None:
        score = SetMetric(functions.metric, config.reward_timeout)
    else:
        score = _score(config, functions.reward)
    stop = _LINE if config.stop is None and not functions.all() else tuple(config.stop or ())
    decoding = Decoding(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, stop=stop, seed=config.seed
    )
    return Generated(tokenizer, ask, kind, config.max_length, decoding, score)


def decided(config: TrainConfig, inner: Objective, classes: bool) -> Decided:
    """The objective on the candidates that a model chooses. classes: whether they mean the same in every row."""
    if not isinstance(inner, LabelWords | OptionLikelihood) or inner.for_evaluation().metric != "accuracy":
        raise ConfigError(
            f"objective {config.objective} needs candidates to choose from. Remedy: give --label-words, rows with "
            "choices, or a task that is measured by accuracy."
        )
    if config.objective == "macro_f1" and not classes:
        raise ConfigError(
            "objective macro_f1 needs the same classes in every row. Remedy: --objective accuracy, or --label-words."
        )
    return Decided(inner, "macro_f1" if config.objective == "macro_f1" else "accuracy")


def _score(config: TrainConfig, functions: tuple[Named, ...]) -> Score:
    own = iter(functions)
    names = config.reward if config.reward is not None else [config.objective]
    scores = [named(n) if is_named(n) else Reward(next(own), config.reward_timeout) for n in map(str, names)]
    return Weighted(scores, config.reward_weights)


def _ask(config: TrainConfig, tokenizer: Any, row: Row) -> Ask:
    reference = config.completion_column or ("completion" if "completion" in row else None)
    column = "prompt" if "prompt" in row else config.text_column
    value = row.get(column)
    if config.template is None and chat.is_chat(value):
        return ask_chat(tokenizer, column, reference)
    return ask_template(Template(config.template or f"{{{{ {column} }}}}"), reference)


def _ask_task(task: Task, kind: Kind) -> Ask:
    if task.causal is None or kind == "masked":
        raise ConfigError(f"task {task.name} has no prompt to complete. Remedy: take a task and a model for decoders.")
    return ask_task(task.causal)
