"""How each kind of model reads a prompt and scores what follows: token ids, batches, log-probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from zotune.errors import ConfigError, DataError
from zotune.objective.base import Batch, Example
from zotune.objective.model_kind import KINDS, Kind, last_logits, logits_at, seq2seq_logits
from zotune.objective.scoring import IGNORE, mean_nll, next_token_batch, pad_right, row_logsumexp, widen
from zotune.objective.tokens import Ids, TextCoder

Texts = Sequence[str]


class Reader(ABC):
    """Two forms of a batch. "words": every option is one token, each example is one sequence.
    "sequences": every option of every example is a sequence, score = mean log-probability of its tokens.
    """

    def __init__(self, coder: TextCoder) -> None:
        self.coder = coder

    @abstractmethod
    def continuations(self, prompts: Texts, bodies: Sequence[Ids], following: Texts) -> list[Ids]:
        """Token ids of `following[i]` after `prompts[i]`, whose own ids are `bodies[i]`, without specials."""

    @abstractmethod
    def fit(self, body: Ids, option_length: int, max_length: int) -> tuple[Ids, int, bool]:
        """The prompt with special tokens, cut so that an option fits; its mask position; if it was cut."""

    @abstractmethod
    def length(self, example: Example) -> int:
        """Tokens of its longest sequence."""

    @abstractmethod
    def collate_words(self, examples: Sequence[Example]) -> Batch: ...

    @abstractmethod
    def word_scores(self, model: nn.Module, batch: Batch, exact: bool = False) -> Tensor:
        """Logits (B, C) of the options at the one position that matters, fp32 or wider; `exact`: log-probabilities,
        which differ by a constant of the row.
        """

    @abstractmethod
    def collate_sequences(self, examples: Sequence[Example]) -> Batch: ...

    @abstractmethod
    def sequence_scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean log-probabilities (B, C), fp32 or wider."""


def make_reader(kind: Kind, coder: TextCoder) -> Reader:
    """Raises ConfigError for an unknown kind."""
    readers: dict[str, Callable[[TextCoder], Reader]] = {
        "causal": Causal,
        "masked": Masked,
        "seq2seq": Seq2Seq,
    }
    if kind not in readers:
        raise ConfigError(f"Unknown kind {kind!r}. Remedy: use one of {', '.join(KINDS)}.")
    return readers[kind](coder)


@final
class Causal(Reader):
    """Right padding without attention mask: no scored position can see what comes after it."""

    def continuations(self, prompts: Texts, bodies: Sequence[Ids], following: Texts) -> list[Ids]:
        return self.coder.continue_(prompts, bodies, following)

    def fit(self, body: Ids, option_length: int, max_length: int) -> tuple[Ids, int, bool]:
        # The last token of an option is predicted, never fed.
        room = max_length - max(0, option_length - 1)
        begin, body = self.coder.split(body)
        _need_room(room - len(begin), max_length)
        kept = body[max(0, len(begin) + len(body) - room) :]
        return (*begin, *kept), -1, len(kept) < len(body)

    def length(self, example: Example) -> int:
        return len(example.prompt) + max(map(len, example.options)) - 1

    def collate_words(self, examples: Sequence[Example]) -> Batch:
        prompts = [e.prompt for e in examples]
        shortest, longest = min(map(len, prompts)), max(map(len, prompts))
        return {
            "input_ids": pad_right(prompts, self.coder.pad),
            "words": _words(examples),
            # Within the last `keep` positions. A constant, so that no device has to be asked for it.
            "position": torch.tensor([len(p) - shortest for p in prompts], dtype=torch.int64),
            "keep": longest - shortest + 1,
        }

    def word_scores(self, model: nn.Module, batch: Batch, exact: bool = False) -> Tensor:
        words: Tensor = batch["words"]
        logits = last_logits(model, batch["keep"], input_ids=batch["input_ids"])
        rows = torch.arange(len(words), device=words.device)
        found = widen(logits[rows[:, None], batch["position"][:, None], words])
        return found - row_logsumexp(logits[rows, batch["position"]][:, None]) if exact else found

    def collate_sequences(self, examples: Sequence[Example]) -> Batch:
        pairs = [(e.prompt, option) for e in examples for option in e.options]
        inputs, targets = next_token_batch([p for p, _ in pairs], [o for _, o in pairs], self.coder.pad)
        shape = (len(examples), len(examples[0].options), -1)
        return {"input_ids": inputs.view(shape), "targets": targets.view(shape)}

    def sequence_scores(self, model: nn.Module, batch: Batch) -> Tensor:
        targets: Tensor = batch["targets"]
        logits = last_logits(model, targets.shape[2], input_ids=batch["input_ids"].flatten(0, 1))
        return -mean_nll(logits, targets.flatten(0, 1)).view(targets.shape[:2])


@final
class Masked(Reader):
    """One mask token in the prompt, options of one token. Attention goes both ways, so padding is masked."""

    def __init__(self, coder: TextCoder) -> None:
        super().__init__(coder)
        mask_id = getattr(coder.tokenizer, "mask_token_id", None)
        if mask_id is None:
            raise DataError(
                f"{type(coder.tokenizer).__name__} has no mask token. "
                "Remedy: use a masked language model's tokenizer, or kind causal."
            )
        self._mask_id = int(mask_id)

    def continuations(self, prompts: Texts, bodies: Sequence[Ids], following: Texts) -> list[Ids]:
        known = {word: self._token(word) for word in dict.fromkeys(following)}
        return [known[word] for word in following]

    def _token(self, word: str) -> Ids:
        """The one token that the word is in the middle of a sentence."""
        bare = word.strip()
        spaced, alone = self.coder.encode([" " + bare, bare])
        if len(spaced) == 1:
            return spaced
        if len(alone) == 1:
            return alone
        raise DataError(
            f"Label word {word!r} is {len(spaced)} tokens ({', '.join(self.coder.names(spaced))}), "
            "but a masked model fills in one. Remedy: choose a word that is one token."
        )

    def fit(self, body: Ids, option_length: int, max_length: int) -> tuple[Ids, int, bool]:
        found = body.count(self._mask_id)
        if found != 1:
            raise DataError(
                f"the prompt holds {found} mask tokens, not 1. Remedy: write {{{{ mask }}}} once in the "
                f"template, and keep {self.coder.tokenizer.mask_token} out of the data."
            )
        begin, body = self.coder.split(body)
        end = self.coder.suffix
        room = max_length - len(begin) - len(end)
        _need_room(room, max_length)
        at = body.index(self._mask_id)
        # The left goes first, but never the mask.
        start = min(max(0, len(body) - room), at)
        kept = body[start : start + room]
        return (*begin, *kept, *end), len(begin) + at - start, len(kept) < len(body)

    def length(self, example: Example) -> int:
        return len(example.prompt)

    def collate_words(self, examples: Sequence[Example]) -> Batch:
        position = torch.tensor([e.mask for e in examples], dtype=torch.int64)
        return {**_padded_prompts(examples, self.coder.pad), "words": _words(examples), "position": position}

    def word_scores(self, model: nn.Module, batch: Batch, exact: bool = False) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = logits_at(model, batch["position"], **inputs)
        found = widen(logits.gather(1, batch["words"]))
        return found - row_logsumexp(logits[:, None]) if exact else found

    def collate_sequences(self, examples: Sequence[Example]) -> Batch:
        raise ConfigError("A masked model cannot score sequences. Remedy: use label words of one token.")

    def sequence_scores(self, model: nn.Module, batch: Batch) -> Tensor:
        raise ConfigError("A masked model cannot score sequences. Remedy: use label words of one token.")


@final
class Seq2Seq(Reader):
    """The prompt is the encoder's, an option is what the decoder says after its usual first tokens."""

    def continuations(self, prompts: Texts, bodies: Sequence[Ids], following: Texts) -> list[Ids]:
        unique = list(dict.fromkeys(following))
        known = dict(zip(unique, self.coder.encode(unique), strict=True))
        return [known[text] for text in following]

    def fit(self, body: Ids, option_length: int, max_length: int) -> tuple[Ids, int, bool]:
        begin, body = self.coder.split(body)
        end = self.coder.suffix
        room = max_length - len(begin) - len(end)
        _need_room(room, max_length)
        kept = body[max(0, len(body) - room) :]
        return (*begin, *kept, *end), -1, len(kept) < len(body)

    def length(self, example: Example) -> int:
        return len(example.prompt)

    def collate_words(self, examples: Sequence[Example]) -> Batch:
        # The decoder is fed what stands before the word, so the first word serves for all.
        said = pad_right([(*self.coder.prefix, e.options[0][0]) for e in examples], IGNORE)
        return {**_padded_prompts(examples, self.coder.pad), "words": _words(examples), "said": said}

    def word_scores(self, model: nn.Module, batch: Batch, exact: bool = False) -> Tensor:
        logits = seq2seq_logits(model, batch["input_ids"], batch["attention_mask"], batch["said"])[:, -1]
        found = widen(logits.gather(1, batch["words"]))
        return found - row_logsumexp(logits[:, None]) if exact else found

    def collate_sequences(self, examples: Sequence[Example]) -> Batch:
        begin = self.coder.prefix
        said = pad_right([(*begin, *option) for e in examples for option in e.options], IGNORE)
        targets = said.clone()
        targets[:, : len(begin)] = IGNORE
        shape = (len(examples), len(examples[0].options), -1)
        return {
            **_padded_prompts(examples, self.coder.pad),
            "said": said.view(shape),
            "targets": targets.view(shape),
        }

    def sequence_scores(self, model: nn.Module, batch: Batch) -> Tensor:
        targets: Tensor = batch["targets"]
        # Copies of a prompt stay next to each other: a block of the batch stays a block of the sequences.
        prompts = batch["input_ids"].repeat_interleave(targets.shape[1], dim=0)
        seen = batch["attention_mask"].repeat_interleave(targets.shape[1], dim=0)
        logits = seq2seq_logits(model, prompts, seen, batch["said"].flatten(0, 1))
        return -mean_nll(logits, targets.flatten(0, 1)).view(targets.shape[:2])


def _words(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([[option[0] for option in e.options] for e in examples], dtype=torch.int64)


def _padded_prompts(examples: Sequence[Example], pad: int) -> Batch:
    prompts = [e.prompt for e in examples]
    seen = pad_right([[1] * len(p) for p in prompts], 0)
    return {"input_ids": pad_right(prompts, pad), "attention_mask": seen}


def _need_room(room: int, max_length: int) -> None:
    if room < 1:
        raise DataError(f"max_length {max_length} leaves no room for the prompt. Remedy: raise max_length.")
