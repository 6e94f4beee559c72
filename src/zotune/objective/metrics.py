"""Scores of generated answers, and generating them."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zotune.errors import ConfigError
from zotune.objective.generate import counts_padding, said, unpadded
from zotune.objective.tokens import TextCoder

# Answers that say that there is none: they are right or wrong as a whole.
_NO_ANSWER = ("CANNOTANSWER", "no answer")
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_f1(said: str, answers: Sequence[str]) -> float:
    """The largest token F1 of what was said against the answers, 0..1 (SQuAD's, as MeZO computes it).

    Case, punctuation and articles do not count. An answer that says there is none must be met exactly.
    """
    return max(_f1(said, answer) for answer in answers)


def answer_exact(said: str, answers: Sequence[str]) -> float:
    """1 where what was said is one of the answers, else 0. Case, punctuation, articles and spaces do not count."""
    return float(any(_words(said) == _words(answer) for answer in answers))


def answer_same(said: str, answers: Sequence[str]) -> float:
    """1 where what was said is one of the answers to the letter, but for white space around it, else 0."""
    return float(said.strip() in {answer.strip() for answer in answers})


def _f1(said: str, answer: str) -> float:
    found, wanted = _words(said), _words(answer)
    if answer.startswith(_NO_ANSWER):
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def _words(text: str) -> list[str]:
    return [word for word in text.lower().translate(_PUNCTUATION).split() if word not in _ARTICLES]


def stop_tokens(coder: TextCoder) -> list[int]:
    """The tokens that end an answer: the line end, and the end of the text where the tokenizer has one."""
    line = coder.encode(["\n"])[0][-1:]
    end = getattr(coder.tokenizer, "eos_token_id", None)
    return [*line, *([] if end is None else [int(end)])]


def _added(model: nn.Module, prompts: Tensor, seen: Tensor, config: Any, decoder_only: bool) -> list[list[int]]:
    """The tokens that the model adds to each prompt."""
    if counts_padding(model, seen):
        return [_added(model, *each, config, decoder_only)[0] for each in unpadded(prompts, seen)]
    out = said(model, prompts, seen, config)
    found: list[list[int]] = (out[:, prompts.shape[1] :] if decoder_only else out[:, 1:]).tolist()
    return found


def generate(model: nn.Module, coder: TextCoder, prompts: Tensor, seen: Tensor, room: int) -> list[str]:
    """What the model says after each prompt, greedily, up to a line end or `room` tokens; stripped.

    prompts (B, T) int64, padded on the left for decoders; seen (B, T), 0 at padding.
    Raises ConfigError for a model that cannot generate.
    """
    from transformers import GenerationConfig

    if not hasattr(model, "generate"):
        raise ConfigError(f"{type(model).__name__} cannot generate. Remedy: use a language model of transformers.")
    stops = stop_tokens(coder)
    config: Any = GenerationConfig
    greedy = config(max_new_tokens=room, do_sample=False, eos_token_id=stops, pad_token_id=coder.pad)
    decoder_only = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    texts = []
    for ids in _added(model, prompts, seen, greedy, decoder_only):
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        texts.append(str(coder.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip())
    return texts
