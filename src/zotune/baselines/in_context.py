"""In-context learning: answered training rows stand before the row that is asked, and no weight changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from zotune.errors import ConfigError
from zotune.evaluate import Evaluation, evaluate
from zotune.load import load_tokenizer
from zotune.objective.base import Example
from zotune.objective.label_words import LabelWords
from zotune.objective.options import OptionLikelihood
from zotune.objective.tokens import Ids, TextCoder
from zotune.session import Session

# Between demonstrations, and before the row that is asked (MeZO).
SEPARATOR = "\n\n"


def in_context(session: Session, shots: int = 32, seed: int = 0) -> Evaluation:
    """What `session.evaluate()` measures, with up to `shots` demonstrations before each row; 0 is zero-shot.

    As in MeZO's experiments (arXiv 2305.17333, appendix E.4), each held-out row has demonstrations of its own, drawn
    without replacement from the training rows; which they are is a function of (seed, number of the row). Those that
    do not fit into max_length tokens are left out, the last drawn first. A calibrated task's prompt without content
    has none.
    Raises ConfigError for a model that is not causal, for rows without candidates, and without held-out or, for
    `shots`, training rows.
    """
    if session.eval_examples is None:
        raise ConfigError("there are no rows to evaluate on. Remedy: --eval FILE.")
    size = session.config.eval_batch_size
    return evaluate(session.model, session.measure, demonstrated(session, shots, seed), size)


def demonstrated(session: Session, shots: int, seed: int = 0) -> list[Example]:
    """The held-out examples with their demonstrations in the prompt, as token ids. Raises as `in_context`."""
    objective, asked = session.objective, session.eval_examples or []
    if shots < 0:
        raise ValueError(f"shots must be at least 0, not {shots}")
    if not isinstance(objective, LabelWords | OptionLikelihood) or objective.kind != "causal":
        raise ConfigError(
            "in-context learning needs a causal model and rows with candidates. Remedy: leave this baseline out."
        )
    if not shots:
        return list(asked)
    if not session.examples:
        raise ConfigError("in-context learning needs training rows. Remedy: --train FILE.")
    coder = TextCoder(load_tokenizer(session.config))
    gap = coder.encode([SEPARATOR])[0]
    answered = [(*coder.split(e.prompt)[1], *e.options[e.label], *gap) for e in session.examples]
    # One generator for all rows, in their order: its seed has 32 bits on a CPU, too few to tell rows apart as well.
    generator = torch.Generator().manual_seed(seed)
    answer = objective.choice.answer_tokens if isinstance(objective, OptionLikelihood) else 0
    found = []
    for example in asked:
        longest = max(*map(len, example.options), answer + 1)
        # The last token of a candidate is predicted, never fed.
        room = objective.max_length - (longest - 1) - len(example.prompt)
        drawn = torch.randperm(len(answered), generator=generator)[:shots].tolist()
        shown = _fitting([answered[i] for i in drawn], room)
        begin = coder.prefix if coder.split(example.prompt)[1] != example.prompt else ()
        body = example.prompt[len(begin) :]
        found.append(replace(example, prompt=(*begin, *(token for demo in shown for token in demo), *body)))
    return found


def _fitting(demonstrations: Sequence[Ids], room: int) -> list[Ids]:
    """The first of them that fit into `room` tokens together."""
    kept: list[Ids] = []
    for demonstration in demonstrations:
        room -= len(demonstration)
        if room < 0:
            break
        kept.append(demonstration)
    return kept
