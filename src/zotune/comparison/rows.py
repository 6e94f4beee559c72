"""The rows of a comparison: names and settings from the command line to one config for each row.

A name is `zero-shot`, `in-context`, `linear-probe`, or what is trained: a method or `adamw`, `sgd`, alone (with the
config's scope) or with a scope: `mezo-lora`, `adamw-full`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from zotune.arguments import nearest
from zotune.config import OPTIONS, TrainConfig, takes_mask
from zotune.errors import ConfigError
from zotune.methods import METHODS, accepts

UNTRAINED = ("zero-shot", "in-context", "linear-probe")
GRADIENTS = ("adamw", "sgd")
SCOPES = ("full", "norms", "biases", "head", "lora", "prefix", "prompt")
# What a row may have for itself. All else is the same for all rows, or they would not compare.
OWN = (
    "lr", "eps", "queries", "weight_decay", "scope", "blocks", "lora_rank", "lora_alpha", "lora_targets",
    "prefix_tokens", "steps", "batch_size", "micro_batch_size", "seed", "dtype", "lr_schedule", "warmup_steps", "lanes",
    "fold_every", "on_nonfinite",
)  # fmt: skip
DEMONSTRATIONS = "demonstrations"
# What may differ when a comparison goes on: where it lies and what watches it. The rest is compared.
_FREE = ("output_dir", "device", "threads", "reward_timeout", "track", "snapshot_every", "tuned")
# Options of the config that a row without zeroth-order steps has no use for; and, without any training.
_OF_METHODS = (
    "method", "method_args", "eps", "queries", "blocks", "lanes", "fold_every", "on_nonfinite", "reuse_mb",
    "eval_every", "parallel", "check_every",
)  # fmt: skip
_OF_TRAINING = (*_OF_METHODS, *(name for name in OWN if name != "dtype"))


@final
@dataclass(frozen=True)
class Row:
    """One row. kind: the part of the name before the scope. config: of its session, or of its run, whose folder is
    `output_dir`. given: its own settings, as they were written. tuned: whether eps and lr are measured before.
    """

    name: str
    kind: str
    config: TrainConfig
    given: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = False

    def settings(self) -> dict[str, Any]:
        """What decides the row's result: a finished one is kept as long as this is the same."""
        unused = _OF_TRAINING if self.kind in UNTRAINED else _OF_METHODS if self.kind in GRADIENTS else ()
        used = {name: value for name, value in comparable(self.config).items() if name not in unused}
        return {**used, "given": sorted(self.given), "tuned": self.tuned, **self._demonstrations()}

    def _demonstrations(self) -> dict[str, Any]:
        return {DEMONSTRATIONS: self.given[DEMONSTRATIONS]} if DEMONSTRATIONS in self.given else {}

    def as_job(self) -> dict[str, Any]:
        """Plain values, for another process."""
        return {**dataclasses.asdict(self), "config": self.config.as_dict()}

    @classmethod
    def of_job(cls, job: Mapping[str, Any]) -> Row:
        """The row of `as_job`."""
        return cls(**{**job, "config": TrainConfig(**job["config"])})


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The options of a config without those that may change when it goes on."""
    return {name: value for name, value in config.as_dict().items() if name not in _FREE}


def default_names(config: TrainConfig) -> list[str]:
    """What needs no training, the config's own method, and AdamW on the same scope and on LoRA."""
    return list(dict.fromkeys([*UNTRAINED, config.method, "adamw", "adamw-lora"]))


def make_rows(config: TrainConfig, names: Sequence[str], settings: Sequence[str] = (), tune: bool = False) -> list[Row]:
    """The rows called `names`, with settings written ROW.NAME=VALUE. Raises ConfigError for what is unknown.

    The config's lr, eps, queries and method arguments are of its own method and scope: another row takes the method's
    defaults, unless a setting says otherwise; with `tune` a zeroth-order row without a lr measures lr and eps first.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"rows {', '.join(names)}: one stands twice. Remedy: name each once.")
    if not names:
        raise ConfigError("rows names none. Remedy: --rows zero-shot,mezo,adamw.")
    given = _settings(settings, names)
    return [_row(config, name, given.get(name, {}), tune) for name in names]


def _row(config: TrainConfig, name: str, given: Mapping[str, Any], tune: bool) -> Row:
    kind, scope = _parts(name)
    _check(name, kind, given)
    method = kind if kind in METHODS else config.method
    options: dict[str, Any] = {"output_dir": config.output_dir / "runs" / name}
    if scope is not None:
        options["scope"] = scope
    own = {option: value for option, value in given.items() if option in OPTIONS}
    arguments = {option: value for option, value in given.items() if option not in (*OPTIONS, DEMONSTRATIONS)}
    same = kind == config.method and (own.get("scope") or scope or config.scope) == config.scope
    if kind in UNTRAINED:
        options["scope"] = "full"  # nothing may be added to the model that is asked
    elif not same:
        options |= {"lr": None, "eps": None, "queries": None, "method_args": {}}
    options |= {"method": method, **own}
    if not takes_mask(options.get("scope", config.scope)):
        options["sensitive"] = None
    if arguments:
        options["method_args"] = {**options.get("method_args", config.method_args), **arguments}
    made = dataclasses.replace(config, **options)
    return Row(name, kind, made, given, tune and kind in METHODS and made.lr is None)


def _parts(name: str) -> tuple[str, str | None]:
    """Kind and scope of a name. Raises ConfigError naming the nearest."""
    if name in UNTRAINED:
        return name, None
    kind, dash, scope = name.partition("-")
    known = (*GRADIENTS, *METHODS)
    if kind not in known:
        raise ConfigError(
            f"unknown row {name!r}.{nearest(kind, known)} Remedy: {', '.join(UNTRAINED)}, or {', '.join(known)}, each "
            "of these also with a scope behind it, such as mezo-lora."
        )
    if dash and scope not in SCOPES:
        raise ConfigError(
            f"row {name!r} names the scope {scope!r}. Remedy: one of {', '.join(SCOPES)} behind the dash; for others "
            f"--set {kind}.scope=..."
        )
    return kind, scope or None


def _settings(settings: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    from zotune.yaml12 import parse_scalar

    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        left, equals, value = setting.partition("=")
        name, dot, option = left.strip().rpartition(".")
        if not (equals and dot and name and option):
            raise ConfigError(f"setting {setting!r} is none. Remedy: --set ROW.NAME=VALUE, such as adamw.lr=3e-5.")
        if name not in names:
            raise ConfigError(f"setting {setting!r}: no row {name!r}; there are {', '.join(names)}. Remedy: add it.")
        option = option.replace("-", "_")
        words = option == "lora_targets"
        found.setdefault(name, {})[option] = value.split(",") if words else parse_scalar(value.strip())
    return found


def _check(name: str, kind: str, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that the row does not have."""
    if kind in UNTRAINED:
        allowed: set[str] = {DEMONSTRATIONS} if kind == "in-context" else set()
    elif kind in GRADIENTS:
        allowed = set(OWN) - {"eps", "queries", "blocks", "lanes", "fold_every", "on_nonfinite"}
    else:
        allowed = {*OWN, *(set(accepts(kind)) - set(OPTIONS))}
    for option in given:
        if option not in allowed:
            raise ConfigError(
                f"row {name!r} has no setting {option!r}.{nearest(option, allowed)} "
                f"Remedy: it has {', '.join(sorted(allowed)) or 'none'}."
            )
    shown = given.get(DEMONSTRATIONS, 0)
    if not isinstance(shown, int) or isinstance(shown, bool) or shown < 0:
        raise ConfigError(f"{DEMONSTRATIONS} is {shown!r}. Remedy: a number of at least 0.")
