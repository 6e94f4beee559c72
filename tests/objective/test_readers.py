"""What the objectives' own tests do not reach: first decoder tokens, limits of masked models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from zotune.errors import ConfigError, DataError
from zotune.objective.base import Example
from zotune.objective.readers import Masked, Seq2Seq, make_reader
from zotune.objective.tokens import TextCoder


def test_decoder_begins_as_usual(tokenizers: Any, log_probabilities: Any) -> None:
    """Where targets begin with a special token (BART), options are scored after it and it is not scored."""
    coder = TextCoder(tokenizers["roberta"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartForConditionalGeneration(
            BartConfig(
                vocab_size=len(tokenizers["roberta"]),
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                max_position_embeddings=64,
                pad_token_id=1,
                bos_token_id=0,
                eos_token_id=2,
                decoder_start_token_id=2,
                init_std=0.3,
            )
        )
    model = model.eval().double()
    reader = Seq2Seq(coder)
    prompts = [reader.fit(ids, 1, 64)[0] for ids in coder.encode(["it was great", "fine"])]
    single = [Example(prompt, ((10,), (11,))) for prompt in prompts]
    longer = [Example(prompt, ((10, 12), (11,))) for prompt in prompts]
    with torch.no_grad():
        scores = reader.word_scores(model, reader.collate_words(single)).log_softmax(-1)
        means = reader.sequence_scores(model, reader.collate_sequences(longer))
    for row in range(2):
        logs = [log_probabilities(model, "seq2seq", single[row], o, coder.prefix) for o in (0, 1)]
        torch.testing.assert_close(scores[row], torch.cat(logs).log_softmax(-1), rtol=0, atol=1e-10)
        mean = [log_probabilities(model, "seq2seq", longer[row], o, coder.prefix).mean() for o in (0, 1)]
        torch.testing.assert_close(means[row], torch.stack(mean), rtol=0, atol=1e-10)


def test_mid_sentence_form(tokenizers: Any) -> None:
    """A byte-level vocabulary gives the leading-space token, a word-level one the word."""
    for name, text in [("roberta", " great"), ("bert", "great")]:
        ids = Masked(TextCoder(tokenizers[name])).continuations(["x"], [()], ["great"])[0]
        assert len(ids) == 1 and tokenizers[name].decode(ids) == text


def test_masked_models_score_no_sequences(tokenizers: Any) -> None:
    """The message says what to do."""
    reader = make_reader("masked", TextCoder(tokenizers["bert"]))
    with pytest.raises(ConfigError, match="one token"):
        reader.collate_sequences([Example((1,), ((2, 3),))])


def test_room(tokenizers: Any) -> None:
    """Special tokens alone are no prompt."""
    coder = TextCoder(tokenizers["t5"])
    assert Seq2Seq(coder).fit((5, 6, 7), 1, 2) == ((7, *coder.suffix), -1, True)
    with pytest.raises(DataError, match="max_length 1 leaves no room"):
        Seq2Seq(coder).fit((5, 6, 7), 1, 1)
