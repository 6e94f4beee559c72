"""`zotune tune --trials`: eps and lr by optuna, which tries short runs and judges them on held-out rows.

The range test of `tune.py` needs a few hundred forwards and gives the order of magnitude; this takes as long as its
runs, and is for the last factor of two. Needs the extra `tune`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zotune.config import TrainConfig
from zotune.errors import ConfigError, NonFiniteLoss
from zotune.session import Session
from zotune.tune import tune
from zotune.watch import Watch

_LOOKS = 3  # evaluations of a trial; one that is behind at the first or second is given up
_WIDE = {"lr": 30.0, "eps": 10.0}  # how far from where the search begins, either way


def search(
    config: TrainConfig, watch: Watch, trials: int = 20, steps: int | None = None, study: Path | None = None
) -> dict[str, Any]:
    """Try `trials` pairs of lr and eps, log-uniform around the config's (without them: the range test's), each in a
    run of `steps` steps (the config's, without a number) that is not kept.

    With `study`, a SQLite file of optuna's, trials are kept and a search goes on where it was stopped. Returns lr, eps,
    loss (of the held-out rows, the least that was reached), trials (lr, eps, loss; None where one was given up or
    ended in numbers that are not finite). Raises ConfigError without held-out rows or optuna.
    """
    if config.eval is None and config.task is None:
        raise ConfigError("trials are judged on held-out rows. Remedy: give --eval FILE, best of a dev split.")
    try:
        import optuna
    except ImportError:
        raise ConfigError("optuna is missing. Remedy: pip install 'zotune[tune]', or leave --trials out.") from None
    optuna.logging.set_verbosity(logging.WARNING)
    begin = {"lr": config.lr, "eps": config.eps}
    if None in begin.values():
        found = tune(config, watch)
        begin = {name: value if value is not None else found[name] for name, value in begin.items()}
    session = Session(config).begin()
    base = {target.name: target.data.clone() for target in session.optimizer.perturber.targets()}
    kept = session.reuse  # blocks below the scope stay what they are: their outputs serve every trial

    def objective(trial: Any) -> float:
        lr, eps = (
            trial.suggest_float(name, value / _WIDE[name], value * _WIDE[name], log=True)  # type: ignore[operator]
            for name, value in begin.items()
        )
        settings = dataclasses.replace(config, lr=lr, eps=eps, steps=steps or config.steps)
        loss = _run(session, settings, base, kept, lambda at, loss: _judge(trial, at, loss))
        watch.say(f"trial {trial.number + 1}: lr {lr:.2e}, eps {eps:.2e}, loss {loss:.4f}")
        return loss

    found_study = optuna.create_study(
        storage=None if study is None else f"sqlite:///{study.absolute()}",
        study_name="zotune",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=config.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    if not found_study.trials:
        found_study.enqueue_trial(begin)  # where it begins is tried too
    left = max(0, trials - len(found_study.trials) + sum(t.state.name == "WAITING" for t in found_study.trials))
    found_study.optimize(objective, n_trials=left)
    tried = [
        {**trial.params, "loss": trial.value if trial.state.name == "COMPLETE" else None}
        for trial in found_study.trials
    ]
    if all(row["loss"] is None for row in tried):
        raise ConfigError("no trial ended with a finite loss. Remedy: a smaller --lr to begin with.")
    best = found_study.best_trial
    return {**best.params, "loss": best.value, "trials": tried}


def _judge(trial: Any, at: int, loss: float) -> None:
    import optuna

    trial.report(loss, at)
    if trial.should_prune():
        raise optuna.TrialPruned


def _run(
    session: Session,
    settings: TrainConfig,
    base: dict[str, torch.Tensor],
    kept: Any,
    judge: Callable[[int, float], None],
) -> float:
    """A run on the base weights, in memory alone. Returns the held-out loss at its end."""
    import optuna

    with torch.no_grad():
        for target in session.optimizer.perturber.targets():
            target.data.copy_(base[target.name])
    session.config = settings
    session.begin().reuse.share(kept)
    loss = float("inf")
    try:
        for look in range(1, _LOOKS + 1):
            while session.optimizer.steps < settings.steps * look // _LOOKS:
                session.step()
            found = session.evaluate()
            assert found is not None
            loss = found.loss
            if not loss < float("inf"):
                raise optuna.TrialPruned
            judge(session.optimizer.steps, loss)
    except NonFiniteLoss:
        raise optuna.TrialPruned from None
    return loss
