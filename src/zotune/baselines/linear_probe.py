"""Linear probing: a logistic regression on the model's last hidden state, where its head would read the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from zotune.errors import ConfigError
from zotune.evaluate import Evaluation, evaluating, wilson
from zotune.head import head_of
from zotune.load import load_tokenizer
from zotune.objective.base import Example, to_device
from zotune.objective.label_words import LabelWords
from zotune.objective.options import OptionLikelihood
from zotune.objective.readers import make_reader
from zotune.objective.scoring import best
from zotune.objective.tokens import TextCoder
from zotune.session import Session

# Strengths of the penalty that are tried, relative to the loss of all examples; the folds decide.
PENALTIES = tuple(10.0**power for power in range(-4, 5))
FOLDS = 5


def linear_probe(session: Session) -> Evaluation:
    """Fit on the training rows, judged on the held-out rows: accuracy, its interval, and the mean cross entropy (nats).

    As in MeZO's experiments (arXiv 2305.17333, appendix F.1) the features are those of the position whose logits give
    the answer, and cross-validation chooses the penalty. Features are standardised by the training rows. Nothing is
    random: the folds are every fifth row.
    Raises ConfigError without rows, and for rows whose candidates differ, of which no probe could tell them apart.
    """
    if not session.examples or not session.eval_examples:
        raise ConfigError("linear probing needs training and held-out rows. Remedy: --train FILE and --eval FILE.")
    _check_candidates(session, [*session.examples, *session.eval_examples])
    train, held_out = (features(session, each) for each in (session.examples, session.eval_examples))
    centre, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    train, held_out = (train - centre) / spread, (held_out - centre) / spread
    labels = torch.tensor([example.label for example in session.examples])
    classes = len(session.examples[0].options)
    weight = fit(train, labels, classes, _best_penalty(train, labels, classes))
    scores = held_out @ weight.T
    wanted = torch.tensor([example.label for example in session.eval_examples])
    correct, count = int((best(scores) == wanted).sum()), len(wanted)
    return Evaluation(
        float(functional.cross_entropy(scores, wanted)), correct / count, correct, count, *wilson(correct, count)
    )


def features(session: Session, examples: Sequence[Example]) -> Tensor:
    """(N, D) float64 on the CPU: what the output head reads where it predicts the first token of an answer.

    Raises ConfigError for a model that names no output head.
    """
    assert isinstance(session.objective, LabelWords | OptionLikelihood)
    kind, model = session.objective.kind, session.model
    reader = make_reader(kind, TextCoder(load_tokenizer(session.config)))
    size, found = session.config.eval_batch_size, []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(examples), size):
            batch = to_device(reader.collate_words(examples[start : start + size]), session.device)
            with _head_input(model) as seen:
                reader.word_scores(model, batch)
            x = seen.states[-1]
            # A causal head reads the last `keep` positions; for the other kinds the one that matters is the last.
            if kind == "causal":
                at = batch["position"] + (x.shape[1] - batch["keep"])
            else:
                at = torch.full((len(x),), x.shape[1] - 1, device=x.device)
            found.append(x[torch.arange(len(x), device=x.device), at].to("cpu", torch.float64))
    return torch.cat(found)


def fit(x: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """(classes, D) minimising the summed cross entropy of `x W'` plus penalty / 2 |W|^2, by L-BFGS in float64."""
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(x @ weight.T, labels, reduction="sum") + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.inference_mode(False), torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach()


def _best_penalty(x: Tensor, labels: Tensor, classes: int) -> float:
    """The largest penalty of those with the most right answers on rows that were left out of the fit."""
    number, right = torch.arange(len(x)), []
    for penalty in PENALTIES:
        correct = 0
        for fold in range(min(FOLDS, len(x))):
            out = number % FOLDS == fold
            if out.all():
                continue
            weight = fit(x[~out], labels[~out], classes, penalty)
            correct += int(((x[out] @ weight.T).argmax(1) == labels[out]).sum())
        right.append(correct)
    return max(p for p, correct in zip(PENALTIES, right, strict=True) if correct == max(right))


def _check_candidates(session: Session, examples: Sequence[Example]) -> None:
    kinds = LabelWords | OptionLikelihood
    same = isinstance(session.objective, LabelWords) or len({example.options for example in examples}) == 1
    if not isinstance(session.objective, kinds) or not same or len(examples[0].options) < 2:
        raise ConfigError(
            "linear probing needs the same candidates in every row. Remedy: compare with --scope head instead."
        )


@final
class _Seen:
    def __init__(self) -> None:
        self.states: list[Tensor] = []


@contextmanager
def _head_input(model: nn.Module) -> Iterator[_Seen]:
    """Within the context, collects what the output head is given. The hook comes last, after those that narrow it."""
    seen = _Seen()

    def see(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        seen.states.append(args[0])

    handle = head_of(model).register_forward_hook(see)
    try:
        yield seen
    finally:
        handle.remove()
