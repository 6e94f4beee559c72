"""Completions of a batch of prompts by the model's own `generate`, greedily or with random numbers of one's own.

Sampling adds Gumbel noise to the logits and takes the largest: that draws from softmax(logits / temperature). The noise
is a function of (seed, step, example, position), so that both sides of a probe meet the same, whatever the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.random import PCG64, SeedSequence
from torch import Tensor, nn

from zotune.errors import ConfigError
from zotune.objective.model_kind import accepts, ignores_positions, whole_product
from zotune.objective.tokens import Ids, TextCoder

# Separate these uses of numbers from those of data/batching.py.
_DECODING, _FORCING = 3, 4
_FORCED = 2  # tokens of a proof: one that is said after the prompt, and one after a token that was said


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """temperature 0 is greedy. stop: texts that end a completion and are no part of it. seed: the run's."""

    max_new_tokens: int = 50
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def says(self) -> str:
        """In words."""
        how = f"sampled at temperature {self.temperature:g}" if self.temperature else "greedy"
        return f"{how}, up to {self.max_new_tokens} tokens"


@final
@dataclass(frozen=True, slots=True)
class Completion:
    """ids: without what ends it. text: special tokens left out, not stripped. finite: whether its logits were."""

    ids: Ids
    text: str
    finite: bool


def complete(
    model: nn.Module, coder: TextCoder, prompts: Tensor, seen: Tensor, decoding: Decoding, draw: Sequence[Sequence[int]]
) -> list[Completion]:
    """What the model says after each prompt, up to its end token, a stop text, or `max_new_tokens`.

    prompts (B, T) int64, padded on the left for decoders; seen (B, T), 0 at padding. draw: for each prompt the numbers
    that, with the seed, decide its noise. Raises ConfigError for a model that cannot generate.
    """
    if counts_padding(model, seen):
        alone = zip(unpadded(prompts, seen), draw, strict=True)
        return [complete(model, coder, *each, decoding, [own])[0] for each, own in alone]
    ends = end_tokens(model, coder)
    start = _start(model, prompts)
    logits = _Logits(decoding, draw, start, prompts.device)
    stops = [_Stops(coder, decoding.stop, start)] if decoding.stop else []
    out = _generated(model, coder, prompts, seen, decoding.max_new_tokens, ends, logits, stops)
    rows = zip(out[:, start:].tolist(), logits.finite.tolist(), strict=True)
    return [_cut(coder, ids, ends, decoding.stop, finite) for ids, finite in rows]


def forced(
    model: nn.Module, coder: TextCoder, prompts: Tensor, seen: Tensor, numbers: Sequence[Sequence[int]], most: int
) -> Tensor:
    """Log-probability (B,) of two tokens (`most` of them at most) that each row is made to say, chosen by its numbers.

    A generation like any other but for the choice of the words, so that it can be compared to rounding.
    """
    if counts_padding(model, seen):
        alone = zip(unpadded(prompts, seen), numbers, strict=True)
        return torch.cat([forced(model, coder, *each, [own], most) for each, own in alone])
    words = _Forced(numbers, _start(model, prompts))
    _generated(model, coder, prompts, seen, min(most, _FORCED), [], words, [])
    return words.said


def _generated(
    model: nn.Module,
    coder: TextCoder,
    prompts: Tensor,
    seen: Tensor,
    most: int,
    ends: Sequence[int],
    logits: Any,
    stops: Any,
) -> Tensor:
    """Prompts and what follows, (B, T + most) at most. Raises ConfigError for a model that cannot generate."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    if not hasattr(model, "generate"):
        raise ConfigError(f"{type(model).__name__} cannot generate. Remedy: use a language model of transformers.")
    config: Any = GenerationConfig
    # What a model's own generation config sets is named here, so that nothing of it slips in.
    settings = config(
        max_new_tokens=most, do_sample=False, num_beams=1, temperature=1.0, top_p=1.0, top_k=50,
        repetition_penalty=1.0, no_repeat_ngram_size=0, eos_token_id=list(ends) or None, pad_token_id=coder.pad,
        disable_compile=True,
    )  # fmt: skip
    more = {"logits_processor": LogitsProcessorList([logits]), "stopping_criteria": StoppingCriteriaList(stops)}
    return said(model, prompts, seen, settings, **more)


def said(model: Any, prompts: Tensor, seen: Tensor, config: Any, **more: Any) -> Tensor:
    """What the model's own `generate` gives for a batch whose padding does not count."""
    with torch.no_grad(), whole_product(model), warnings.catch_warnings():
        # PEFT, of the positions that transformers makes up: without padding they are the same without it.
        warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
        out: Tensor = model.generate(input_ids=prompts, attention_mask=seen, generation_config=config, **more)
    return out


def counts_padding(model: nn.Module, seen: Tensor) -> bool:
    """Whether padding would be counted: virtual tokens stand before it, and PEFT leaves out where the text begins."""
    lengths = seen.sum(1)
    return not _encodes(model) and ignores_positions(model) and bool((lengths != lengths[0]).any())


def unpadded(prompts: Tensor, seen: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each prompt alone, without what stands before it."""
    lengths = seen.sum(1).tolist()
    return [(ids[None, -n:], mask[None, -n:]) for ids, mask, n in zip(prompts, seen, lengths, strict=True)]


def _start(model: nn.Module, prompts: Tensor) -> int:
    """Where what is said begins."""
    return prompts.shape[1] if not _encodes(model) else 1


def rehearse(model: nn.Module, prompts: Tensor, seen: Tensor, count: int, times: Callable[[float], None]) -> None:
    """The forwards of `complete` where every completion has `count` tokens: the prompts, and two of the others.

    No value is read, so meta tensors do. The cost of a forward grows evenly with what came before it: weighted with
    what is given to `times`, the second and the third tell that of all. What the cache will hold is held meanwhile.
    """
    tuned: Any = model
    given: dict[str, Any] = {"use_cache": True}
    if accepts(model, "logits_to_keep"):
        given["logits_to_keep"] = 1
    word, ids = prompts[:, :1], prompts
    rest: list[Tensor] = []
    if _encodes(model):
        given["encoder_outputs"] = tuned.get_encoder()(input_ids=prompts, attention_mask=seen)
        ids = word
    last = (count - 1) * (count / 2 - 1)
    for weight in (1.0, count - 1 - last, last)[: min(count, 3)]:
        times(weight)
        named = {"decoder_input_ids": ids} if _encodes(model) else {"input_ids": ids}
        with whole_product(model):
            cache = given["past_key_values"] = tuned(**named, attention_mask=seen, **given).past_key_values
        if count > 2 and not rest:
            times(0.0)
            layers = getattr(cache, "self_attention_cache", cache).layers
            rest = [each.new_empty(each[:, :, :1].numel() * (count - 2)) for y in layers for each in (y.keys, y.values)]
        ids = word
        seen = seen if _encodes(model) else torch.cat((seen, torch.ones_like(word)), 1)


def end_tokens(model: nn.Module, coder: TextCoder) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's own generation config (chat models)."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = [*(own if isinstance(own, list) else [own]), getattr(coder.tokenizer, "eos_token_id", None)]
    return sorted({int(token) for token in listed if token is not None})


@final
class _Logits:
    """Watches the logits of each new token, and adds noise where completions are sampled."""

    def __init__(self, decoding: Decoding, draw: Sequence[Sequence[int]], start: int, device: torch.device) -> None:
        self._decoding, self._draw, self._start = decoding, draw, start
        self.finite = torch.ones(len(draw), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # A token banned by the model's own settings is -inf; NaN is never right.
        self.finite &= ~scores.isnan().any(dim=1)
        if not self._decoding.temperature:
            return scores
        position, seed = input_ids.shape[1] - self._start, self._decoding.seed
        noise = np.stack([_gumbel((seed % 2**64, *own, position), scores.shape[1]) for own in self._draw])
        return scores.double() / self._decoding.temperature + torch.from_numpy(noise).to(scores.device)


@final
class _Forced:
    """Makes each row say tokens that its numbers decide, and sums their log-probabilities."""

    def __init__(self, numbers: Sequence[Sequence[int]], start: int) -> None:
        self._numbers, self._start = numbers, start
        self.said = torch.zeros(len(numbers), dtype=torch.float64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self._start
        words = [_word((*own, position), scores.shape[1]) for own in self._numbers]
        chosen = torch.tensor(words, device=scores.device)[:, None]
        found = scores.double().log_softmax(1).gather(1, chosen)
        self.said += found[:, 0].cpu()
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _word(key: Sequence[int], count: int) -> int:
    """A token of `count`, the same for the same numbers."""
    return int(PCG64(SeedSequence([_FORCING, *key])).random_raw() % count)


def _gumbel(key: Sequence[int], count: int) -> Any:
    """-log(-log u) for `count` uniforms within (0, 1), from the raw output of PCG64, which numpy keeps stable."""
    raw = PCG64(SeedSequence([_DECODING, *key])).random_raw(count)
    return -np.log(-np.log(((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53))


@final
class _Stops:
    """Ends a row once its new text holds a stop text."""

    def __init__(self, coder: TextCoder, stop: Sequence[str], start: int) -> None:
        self._coder, self._stop, self._start = coder, stop, start

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        texts = [_text(self._coder, ids) for ids in input_ids[:, self._start :].tolist()]
        done = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _cut(coder: TextCoder, ids: Sequence[int], ends: Sequence[int], stop: Sequence[str], finite: bool) -> Completion:
    """A row up to its end token and its first stop text; what stands behind is padding."""
    ids = ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
    text = _text(coder, ids)
    places = [text.find(each) for each in stop if each in text]
    if not places:
        return Completion(tuple(ids), text, finite)
    before = text[: min(places)]
    # The ids whose text is within what stays: a token that spans the seam belongs to the stop text.
    kept = max((n for n in range(len(ids) + 1) if len(_text(coder, ids[:n])) <= len(before)), default=0)
    return Completion(tuple(ids[:kept]), before, finite)


def _text(coder: TextCoder, ids: Sequence[int]) -> str:
    return str(coder.tokenizer.decode(list(ids), skip_special_tokens=True))


def _encodes(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
