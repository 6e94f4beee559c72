"""Skipping the blocks below the scope: same bits, fewer calls, a memory budget, and reasons when it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import (
    batch_for,
    flat,
    forwards_of,
    loss,
    normals,
    same_bits,
    seeded,
    takes_closures,
    tiny,
    train,
    weights,
)
from torch import Tensor, nn

from zotune.reuse import Reuse

one_thread = models.one_thread
methods = pytest.mark.parametrize("method", models.METHOD_ROWS)
BUDGET = 1 << 20
# A batch of 3 rows, 6 tokens and 16 hidden units in float32.
BYTES = 3 * 6 * 16 * 4


def prepared(optimizer: Any, objective: Any, batch: Any, budget: int = BUDGET) -> Reuse:
    reuse = Reuse(optimizer.perturber, budget)
    reuse.prepare(objective, batch, next(point for point in optimizer.estimator.points(0, 0) if point.scale))
    return reuse


class Calls:
    """Counts the calls of each block."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.counts = [0] * len(layers)
        for index, layer in enumerate(layers):
            layer.register_forward_hook(lambda *_, index=index: self.add(index))

    def add(self, index: int) -> None:
        self.counts[index] += 1

    def take(self) -> list[int]:
        found, self.counts = self.counts, [0] * len(self.counts)
        return found


@methods
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "opt", "gpt2", "bert", "roberta", "t5", "qwen3_moe"])
@pytest.mark.parametrize("lanes", ["auto", "off"])
def test_losses_and_weights_are_the_same_bits_with_and_without(method: str, family: str, lanes: Any) -> None:
    """Three epochs over two batches of different sizes, scope in the last block, with the same losses and weights.

    One probe at a time they are the same bits. In lanes the lower blocks run on one batch instead of two stacked
    ones, where float32 products may be summed in another order: 5e-6 on losses near 4.
    """
    ends = []
    for reusing in (True, False):
        model = tiny(family)
        optimizer = train(method, model, lr=1e-3, scope="last:1", lanes=lanes, queries=2)
        batches = [batch_for(family, rows=rows, seed=rows) for rows in (3, 5)]
        reuse = prepared(optimizer, loss, batches[0])
        assert (reuse.depth, reuse.reason) == (1, "")
        losses = []
        for step in range(6):
            batch = batches[step % 2]
            options = {"within": reuse.within(loss, batch, step % 2)} if reusing else {}
            losses.append(optimizer.estimate(loss, batch, **options))
            optimizer.step()
        assert (reuse.kept_bytes > 0) == reusing
        ends.append((losses, optimizer.evaluator.mode, weights(model)))
    assert ends[0][1] == ends[1][1]
    if ends[0][1] == "sequential":
        assert ends[0][0] == ends[1][0]
        assert same_bits(ends[0][2], ends[1][2])
    assert ends[0][0] == pytest.approx(ends[1][0], abs=5e-6)


@methods
def test_lower_blocks_run_once_per_batch(method: str) -> None:
    """Probes one at a time: the lower block runs once, the upper one for each; a kept batch not at all."""
    model, batch = tiny("llama"), batch_for("llama")
    optimizer = train(method, model, scope="last:1", lanes="off", queries=2)
    if not takes_closures(method):
        pytest.skip("evaluates examples one by one, which reuses nothing")
    reuse, calls = prepared(optimizer, loss, batch), Calls(model.model.layers)
    optimizer.step(loss, batch)
    every = forwards_of(optimizer)
    assert calls.take() == [every, every]
    for expected in ([1, every], [0, every], [0, every]):
        optimizer.estimate(loss, batch, within=reuse.within(loss, batch, "unit 0"))
        optimizer.step()
        assert calls.take() == expected


def test_only_what_fits_the_budget_is_kept() -> None:
    """Room for one batch of two: the second is captured anew each time it comes, once, and nothing else is kept."""
    model = tiny("llama")
    optimizer = train("mezo", model, scope="last:1", lanes="off")
    batches = [batch_for("llama", seed=seed) for seed in range(2)]
    reuse, calls = prepared(optimizer, loss, batches[0], budget=int(1.5 * BYTES)), Calls(model.model.layers)
    for epoch in range(3):
        for index, batch in enumerate(batches):
            optimizer.estimate(loss, batch, within=reuse.within(loss, batch, index))
            optimizer.step()
            assert calls.take() == [1 if epoch == 0 or index == 1 else 0, 2]
            assert reuse.kept_bytes == BYTES


def test_nothing_is_kept_where_nothing_may_be() -> None:
    """Processes that run side by side capture each batch anew, so that all of them run the same blocks."""
    model, batch = tiny("llama"), batch_for("llama")
    optimizer = train("mezo", model, scope="last:1", lanes="off")
    reuse, calls = Reuse(optimizer.perturber, BUDGET, keep=False), Calls(model.model.layers)
    reuse.prepare(loss, batch, optimizer.estimator.points(0, 0)[0])
    calls.take()
    for _ in range(2):
        optimizer.estimate(loss, batch, within=reuse.within(loss, batch, 0))
        optimizer.step()
        assert calls.take() == [1, 2] and not reuse.kept_bytes


def test_the_two_batches_are_not_mixed_up() -> None:
    """Each name keeps its own activations: another batch under another name gives another loss."""
    model = tiny("llama")
    optimizer = train("mezo", model, scope="last:1", lr=0.0)
    batches = [batch_for("llama", seed=seed) for seed in range(2)]
    reuse = prepared(optimizer, loss, batches[0])
    found = [
        [optimizer.estimate(loss, batch, within=reuse.within(loss, batch, i)) for i, batch in enumerate(batches)]
        for _ in range(2)
    ]
    assert found[0] == found[1] and found[0][0] != found[0][1]


@pytest.mark.parametrize(
    ("family", "scope", "reason"),
    [
        ("llama", "full", "before or inside the first block"),
        ("llama", "norms", "before or inside the first block"),
        ("qwen3", "regex:embed_tokens|layers.1", "before or inside the first block"),
        ("gpt2", "regex:wte|h.1", "before or inside the first block"),
    ],
)
def test_a_scope_that_begins_below_leaves_nothing_to_skip(family: str, scope: str, reason: str) -> None:
    """Tied embeddings in scope are used at the bottom, whatever else is at the top: depth 0, with the reason."""
    model, batch = tiny(family), batch_for(family)
    optimizer = train("mezo", model, scope=scope)
    reuse = prepared(optimizer, loss, batch)
    assert reuse.depth == 0 and reason in reuse.reason
    calls = Calls(model.model.layers if family != "gpt2" else model.transformer.h)
    optimizer.estimate(loss, batch, within=reuse.within(loss, batch, 0))
    assert min(calls.take()) > 0


def test_no_budget_and_no_blocks_are_reasons() -> None:
    """Each says why nothing is skipped."""
    optimizer = train("mezo", tiny("llama"), scope="last:1")
    assert "no memory" in prepared(optimizer, loss, batch_for("llama"), budget=0).reason
    plain = train("mezo", seeded(lambda: nn.Linear(4, 4)))
    batch = {"x": normals((3, 4), 1)}
    assert "no list of blocks" in prepared(plain, lambda m, b: m(b["x"]).mean(1), batch).reason
    assert Reuse(optimizer.perturber, BUDGET).reason == "not prepared"


class Block(nn.Module):
    """A linear layer that knows its number; `inplace` writes into its input."""

    def __init__(self, index: int, inplace: bool) -> None:
        super().__init__()
        self.index, self.inplace = index, inplace
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.linear(x)) if self.inplace else x + self.linear(x)


class Stack(nn.Module):
    """Three blocks whose `index` the model reads, a table below and a head above."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(index, inplace) for index in range(3))
        self.head = nn.Linear(4, 2)
        self.read: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        for layer in self.layers:
            self.read.append(layer.index)
            assert isinstance(layer.linear, nn.Linear)
            x = layer(x)
        return self.head(x)


def mean(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    output: Tensor = model(batch["x"])
    return output.square().mean(1)


def test_attributes_of_a_replaced_block_can_be_read_and_it_comes_back() -> None:
    """The model asks its blocks for things (their kind of attention, say): a stand-in answers for its block."""
    model = seeded(Stack)
    optimizer = train("mezo", model, scope="regex:layers.2|head")
    batch = {"x": normals((3, 4), 1)}
    before, listed = weights(model), list(model.layers)
    reuse = prepared(optimizer, mean, batch)
    assert reuse.depth == 2
    model.read.clear()
    with torch.inference_mode(), reuse.within(mean, batch, 0)(1):
        model.read.clear()
        assert torch.equal(model(batch["x"]), flat_forward(listed, model.head, batch["x"]))
        assert model.read == [0, 1, 2]
        assert model.layers[0] is not listed[0] and model.layers[0].index == 0
        assert same_bits(
            weights(model), {k: v for k, v in before.items() if "layers.0" not in k and "layers.1" not in k}
        )
    assert list(model.layers) == listed and same_bits(weights(model), before)


def flat_forward(layers: list[Any], head: Any, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return head(x)  # type: ignore[no-any-return]


def test_blocks_that_write_into_their_input_are_not_given_a_kept_one() -> None:
    """A block in place would spoil the capture for the second probe: the proof runs twice, and refuses."""
    model = seeded(lambda: Stack(inplace=True))
    optimizer = train("mezo", model, scope="regex:layers.2|head")
    batch = {"x": normals((3, 4), 1)}
    reuse = prepared(optimizer, mean, batch)
    assert reuse.depth == 0 and "changed a loss" in reuse.reason
    before = flat(model)
    optimizer.estimate(mean, batch, within=reuse.within(mean, batch, 0))
    assert torch.equal(flat(model), before)


def test_an_error_above_leaves_the_blocks_in_place() -> None:
    """The list of blocks is whole again after a forward that raised."""
    model = seeded(Stack)
    optimizer = train("mezo", model, scope="regex:layers.2|head")
    batch = {"x": normals((3, 4), 1)}
    reuse, listed = prepared(optimizer, mean, batch), list(model.layers)
    with pytest.raises(ZeroDivisionError), reuse.within(mean, batch, 0)(2):
        raise ZeroDivisionError
    assert list(model.layers) == listed


class Said:
    """Minus the logits of the words that a model says greedily after prompts padded on the left, summed: (B,)."""

    one_forward, goes_on = False, True

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        more = {"output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad():
            said = model.generate(**batch, **settings, **more)
        return -torch.stack([scores.max(1).values for scores in said.logits]).sum(0)


def prompts(seed: int, rows: int = 3) -> dict[str, Tensor]:
    """Prompts of ten tokens, longer than the window of families that have one; the first is shorter than the others."""
    ids = torch.randint(3, models.VOCAB, (rows, 10), generator=torch.Generator().manual_seed(seed))
    seen = torch.ones_like(ids)
    seen[0, :3] = 0
    return {"input_ids": ids, "attention_mask": seen}


@pytest.mark.parametrize("lanes", ["on", "off"])
@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gemma3", "opt", "gpt2", "mistral", "phi", "gpt_neox", "qwen3_moe"]
)
def test_a_generation_reads_the_prompts_once_below_the_scope(family: str, lanes: Any) -> None:
    """Losses are the same, in float64: the words that follow run through all blocks."""
    found = []
    for reusing in (True, False):
        model = tiny(family, torch.float64)
        optimizer = train("mezo", model, lr=1e-3, eps=0.1, scope="last:1", lanes="auto" if lanes == "on" else "off")
        batches, said = [prompts(seed, rows) for seed, rows in ((1, 3), (2, 4))], Said()
        reuse = prepared(optimizer, said, batches[0])
        assert (reuse.depth, reuse.reason) == (1, "")
        layers = next(each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == 2)
        read: list[int] = []
        layers[0].register_forward_hook(lambda module, args, output, read=read: read.append(args[0].shape[1]))
        losses = []
        for step in range(4):
            batch = batches[step % 2]
            options = {"within": reuse.within(said, batch, step % 2)} if reusing else {}
            losses.append(optimizer.estimate(said, batch, **options))
            optimizer.step()
        found.append((losses, optimizer.evaluator.mode, read.count(10), reuse.kept_bytes > 0))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12) and found[0][1] == found[1][1]
    assert len(set(found[0][0])) == 4
    assert found[0][2] < found[1][2] and found[0][3] and not found[1][3]


def test_only_the_lower_blocks_keys_are_kept_of_a_generation() -> None:
    """The bytes of a batch: the lower block's output, its keys and its values; beyond the budget nothing is kept."""
    model, said = tiny("llama"), Said()
    optimizer = train("mezo", model, scope="last:1", lanes="off")
    reuse = prepared(optimizer, said, prompts(1))
    optimizer.estimate(said, prompts(1), within=reuse.within(said, prompts(1), 0))
    # 3 rows, 10 tokens: 16 hidden units, and one head of 8 for keys and for values.
    assert reuse.kept_bytes == 3 * 10 * (16 + 2 * 8) * 4
    small = prepared(optimizer, said, prompts(1), budget=1000)
    optimizer.step()
    optimizer.estimate(said, prompts(1), within=small.within(said, prompts(1), 0))
    assert small.depth == 1 and small.kept_bytes == 0


def test_a_generation_without_such_a_cache_reuses_nothing() -> None:
    """An encoder-decoder has two caches in one: depth 0, with the reason, and the losses are found all the same."""
    said = Said()
    optimizer = train("mezo", tiny("t5"), scope="last:1")
    reuse = prepared(optimizer, said, prompts(1))
    assert reuse.depth == 0 and "no cache that its blocks could be handed" in reuse.reason
    optimizer.estimate(said, prompts(1), within=reuse.within(said, prompts(1), 0))


def test_a_cache_whose_kept_layers_are_written_into_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that changes its tensors in place would spoil the capture for the second probe: the proof refuses."""
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def spoiling(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_initialized and self.keys.numel():
            self.keys.mul_(1.5)
        return update(self, *args, **kwargs)

    monkeypatch.setattr(DynamicLayer, "update", spoiling)
    optimizer = train("mezo", tiny("llama"), scope="last:1")
    reuse = prepared(optimizer, Said(), prompts(1))
    assert reuse.depth == 0 and "changed a loss" in reuse.reason
