"""The objective on completions: losses are minus the scores of what the model says, whoever asks for them and how."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import models
from torch import Tensor

import zotune
from zotune import lane_rules
from zotune.data.asked import ask_chat, ask_template
from zotune.data.template import Template
from zotune.errors import ConfigError, DataError, FunctionError, NonFiniteLoss, UserError
from zotune.evaluate import evaluate
from zotune.objective.functions import given
from zotune.objective.generate import Decoding
from zotune.objective.generated import Generated
from zotune.objective.language_model import LanguageModel
from zotune.objective.reward import Compared, Reward, Weighted
from zotune.objective.set_metric import SetMetric
from zotune.run import RunPaths
from zotune.train import train
from zotune.watch import Quiet

one_thread = models.one_thread
ROWS = [
    {"text": "great acting but", "completion": "the script is weak", "level": 1},
    {"text": "the plot is a mess and it", "completion": "was terrible", "level": 2},
    {"text": "so bad", "completion": "it hurts", "level": 3},
    {"text": "a warm and funny film", "completion": "that made me smile", "level": 4},
    {"text": "fine", "completion": "fine", "level": 5},
]
GREEDY = Decoding(max_new_tokens=5)


def checksum(completions: list[str], **columns: Any) -> list[float]:
    """A score that every other completion changes."""
    return [sum(map(ord, each)) % 97 / 97 for each in completions]


@pytest.fixture
def make(tokenizers: Any) -> Callable[..., Generated]:
    """`make(score)`: the objective on the completions of the texts."""

    def build(score: Any, name: str = "llama", decoding: Decoding = GREEDY, template: str = "{{ text }}") -> Generated:
        kind = {"t5": "seq2seq", "bert": "masked"}.get(name, "causal")
        ask = ask_template(Template(template), "completion")
        return Generated(tokenizers[name], ask, kind, 64, decoding, score)  # type: ignore[arg-type]

    return build


def reward(function: Any, seconds: float = 10) -> Reward:
    """The reward of a function."""
    return Reward(given(function), seconds)


def plain_text(model: Any, tokenizer: Any, prompt: Any) -> str:
    """What `generate` itself says to one prompt."""
    ids = torch.tensor([prompt])
    # With its mask: without one, transformers takes a first token for padding where it has the same id.
    options = {"attention_mask": torch.ones_like(ids), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    out = model.generate(ids, max_new_tokens=5, do_sample=False, **options)
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    return str(tokenizer.decode(out[0, start:], skip_special_tokens=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_losses_are_minus_the_scores(name: str, make: Any, make_model: Any, tokenizers: Any) -> None:
    """Example by example, in any batch; an evaluation is their mean."""
    objective = make(Weighted([reward(checksum), Compared("f1")]), name)
    model, tokenizer = make_model(name), tokenizers[name]
    examples = objective.encode(ROWS)
    said = [plain_text(model, tokenizer, example.prompt) for example in examples]
    right = Compared("f1")
    wanted = [checksum([text])[0] + score for text, score in zip(said, right(_answers(said)), strict=True)]
    assert len(set(wanted)) > 2
    losses = objective(model, objective.collate(examples))
    assert losses.dtype == torch.float64 and (-losses).tolist() == pytest.approx(wanted)
    found = evaluate(model, objective.for_evaluation(), examples, 2)
    assert found.score == pytest.approx(sum(wanted) / 5) == pytest.approx(-found.loss) and found.metric == "reward"


def _answers(said: list[str]) -> Any:
    from tests.objective.test_reward import answers

    found = answers(*said)
    found.references[:] = [(row["completion"],) for row in ROWS]
    return found


def test_cut_and_stacked_batches(make: Any, make_model: Any, repeat: Any) -> None:
    """Rows cut out of a batch, or the batch twice, give the same losses: constants are found through the tensors."""
    objective, model = make(reward(checksum)), make_model("llama")
    batch = objective.collate(objective.encode(ROWS))
    losses = objective(model, batch)
    part = {key: value[2:4] if isinstance(value, Tensor) else value for key, value in batch.items()}
    assert torch.equal(objective(model, part), losses[2:4])
    assert torch.equal(objective(model, repeat(batch, 2)), losses.repeat(2))


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_padding_behind_virtual_tokens_is_not_counted(name: str, kind: str, make: Any, make_model: Any) -> None:
    """Prompts of several lengths in one batch say what each says alone, in what tells of the model too; float64."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    objective = make(reward(checksum), name)
    config = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[kind](
        task_type="CAUSAL_LM", num_virtual_tokens=3
    )
    with warnings.catch_warnings():  # PEFT asks transformers for an old name
        warnings.simplefilter("ignore")
        model = models.seeded(lambda: get_peft_model(make_model(name), config)).eval().double()
    examples = objective.encode(ROWS)
    assert len(set(objective.lengths(examples))) > 2
    alone = [objective.collate([example]) for example in examples]
    whole = objective.collate(examples)
    assert torch.equal(objective(model, whole), torch.cat([objective(model, each) for each in alone]))
    told = objective.witness(model, whole, 0)
    numbers = [objective.witness(model, each, 0) for each in alone[:1]]
    torch.testing.assert_close(told[:1], torch.cat(numbers), rtol=1e-12, atol=1e-12)


def test_what_a_function_is_given(make: Any, make_model: Any, tokenizers: Any) -> None:
    """Prompts, completions, their tokens and columns, in the order of the batch, without reserved names."""
    seen: dict[str, Any] = {}

    def note(prompts: Any, completions: Any, completion_ids: Any, level: Any, **rest: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, level=level, rest=rest)
        return [0.0] * len(prompts)

    objective, model = make(reward(note)), make_model("llama")
    objective(model, objective.collate(objective.encode(ROWS)))
    assert seen["prompts"] == [row["text"] for row in ROWS] and seen["level"] == [1, 2, 3, 4, 5]
    assert list(seen["rest"]) == ["text"]
    decoded = [tokenizers["llama"].decode(ids, skip_special_tokens=True) for ids in seen["ids"]]
    assert decoded == seen["completions"] and all(seen["completions"])


def test_chats(tokenizers: Any, make_model: Any) -> None:
    """Prompts as messages come back as messages, completions too; token F1 compares the text."""
    import copy

    tokenizer, seen = copy.deepcopy(tokenizers["llama"]), list[Any]()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"

    def note(prompts: Any, completions: Any) -> list[float]:
        seen.append((prompts, completions))
        return [1.0] * len(prompts)

    score = Weighted([reward(note), Compared("f1")])
    objective = Generated(tokenizer, ask_chat(tokenizer, "prompt", "completion"), "causal", 64, GREEDY, score)
    prompt = [{"role": "user", "content": "so bad"}]
    losses = objective(
        make_model("llama"), objective.collate(objective.encode([{"prompt": prompt, "completion": "x"}]))
    )
    ((prompts, completions),) = seen
    assert prompts == [prompt] and [*completions[0][0]] == ["role", "content"] and float(losses) <= -1


def test_none_is_not_applicable(make: Any, make_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is 0 in a loss, and left out of a mean; a batch without any score is said."""
    objective = make(reward(lambda completions, level: [None if each < 4 else float(each) for each in level]))
    model, examples = make_model("llama"), objective.encode(ROWS)
    assert objective(model, objective.collate(examples)).tolist() == [0, 0, 0, -4, -5]
    found = evaluate(model, objective, examples, 3)
    assert (found.score, found.loss, found.examples) == (4.5, -9 / 5, 5)
    assert "applies to no example" not in caplog.text
    objective(model, objective.collate(examples[:2]))
    assert "applies to no example of a batch: that step has no slope" in caplog.text
    nothing = make(reward(lambda completions: [None] * len(completions)))
    assert evaluate(model, nothing, nothing.encode(ROWS), 3).score is None


def test_metric_of_a_set(make: Any, make_model: Any) -> None:
    """One number for a batch; an evaluation scores all rows at once, in the order of the file."""
    seen: list[Any] = []

    def metric(predictions: Any, references: Any, level: Any) -> float:
        seen.append((references, level))
        return float(sum(number * len(text) for number, text in zip(level, predictions, strict=True)))

    objective, model = make(SetMetric(given(metric), 10)), make_model("llama")
    examples = objective.encode(ROWS)
    loss = objective(model, objective.collate(examples))
    assert loss.shape == () and objective.set_level and objective.metric == "metric"
    found = evaluate(model, objective, examples, 2)
    assert found.score == -float(loss) == -found.loss and (found.low, found.accuracy) == (None, None)
    assert seen[-1] == ([row["completion"] for row in ROWS], [1, 2, 3, 4, 5]) and len(seen) == 2


@pytest.mark.parametrize("score", ["reward", "metric"])
def test_logits_that_are_not_finite_are_never_hidden(make: Any, make_model: Any, score: str) -> None:
    """The loss is NaN whatever the function says, and the optimizer names the module."""
    made = reward(checksum) if score == "reward" else SetMetric(given(lambda predictions, references: 1.0), 10)
    objective, model = make(made), make_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    batch = objective.collate(objective.encode(ROWS))
    assert bool(objective(model, batch).isnan().all())
    with pytest.raises(NonFiniteLoss, match="first non-finite output comes from model.norm"):
        zotune.MeZO(model, lr=1e-3, eps=1e-2, scope="norms").step(objective, batch)
    assert math.isnan(evaluate(model, objective, objective.encode(ROWS), 2).loss)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_both_sides_meet_the_same(make: Any, make_model: Any, temperature: float) -> None:
    """Common random numbers: without a perturbation both sides say the same, at each step something else if sampled."""
    said: list[list[str]] = []

    def note(completions: list[str]) -> list[float]:
        said.append(completions)
        return [0.0] * len(completions)

    objective, model = (
        make(reward(note), decoding=Decoding(max_new_tokens=5, temperature=temperature)),
        make_model("llama"),
    )
    batch = objective.collate(objective.encode(ROWS))
    for step in (0, 0, 1):
        objective(model, batch | {"step": step})
    assert said[0] == said[1] and (said[0] == said[2]) == (temperature == 0)
    said.clear()
    evaluate(model, objective, objective.encode(ROWS), 5)
    evaluate(model, objective, objective.encode(ROWS), 2)
    assert sorted(said[0]) == sorted(said[1] + said[2] + said[3])


def test_a_step(make: Any, make_model: Any) -> None:
    """Both sides in one generation; losses are those of a model whose weights were really moved."""
    import copy

    objective, model = make(reward(checksum)), make_model("llama", torch.float64)
    before = copy.deepcopy(model)
    opt = zotune.MeZO(model, lr=1e-2, eps=0.3, scope="norms")
    batch = objective.collate(objective.encode(ROWS))
    opt.estimate(objective, batch)
    assert opt.evaluator.mode == "lanes"
    plus, minus = opt.probes[0].losses
    assert plus != minus
    for side, loss in ((0.3, plus), (-0.3, minus)):
        moved = copy.deepcopy(before)
        named = dict(moved.named_parameters())
        with torch.no_grad():
            for target in opt.perturber.targets():
                z = opt.direction.block(target, opt.probes[0].key, 0, target.data.numel())
                named[target.name] += side * z.view(target.data.shape)
        assert float(objective(moved, batch).mean()) == pytest.approx(loss, rel=1e-12)


def test_the_score_of_a_set_is_one_number(make: Any, make_model: Any) -> None:
    """So its points come one at a time, with the reason."""
    model = make_model("llama")
    whole = make(SetMetric(given(lambda predictions, references: 0.5), 10))
    batch = whole.collate(whole.encode(ROWS))
    opt = zotune.MeZO(model, lr=1e-2, eps=0.3, scope="norms")
    opt.estimate(whole, batch)
    assert opt.evaluator.mode == "sequential" and "a whole set of completions" in opt.evaluator.reason
    with pytest.raises(UserError, match="lanes=on, but one score is that of a whole set"):
        zotune.MeZO(model, lr=1e-2, eps=0.3, scope="norms", lanes="on").estimate(whole, batch)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5"])
@pytest.mark.parametrize("method", ["mezo", "lozo"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_sides_say_together_what_they_say_alone(
    make: Any, make_model: Any, name: str, method: str, temperature: float
) -> None:
    """All weights in scope, tables of tokens too, at a radius where both sides say other things; float64.

    The function is called once for each side, with the side's own completions in the order of the rows.
    """
    told: dict[str, list[list[str]]] = {}
    for lanes in ("on", "off"):
        said = told.setdefault(lanes, [])

        def note(completions: list[str], said: list[list[str]] = said) -> list[float]:
            said.append(list(completions))
            return checksum(completions)

        objective = make(reward(note), name, decoding=Decoding(max_new_tokens=5, temperature=temperature, seed=3))
        model = make_model(name, torch.float64)
        opt = zotune.METHODS[method].build(model, lr=1e-3, eps=0.2, lanes=lanes)
        for step in range(2):
            opt.step(objective, objective.collate(objective.encode(ROWS)) | {"step": step})
        assert opt.evaluator.mode == ("lanes" if lanes == "on" else "sequential")
        assert opt.evaluator.forwards == 4
    assert told["on"] == told["off"] and [len(each) for each in told["on"]] == [5] * 4
    assert told["on"][0] != told["on"][1]


def test_a_wrong_lane_is_found_though_all_scores_are_equal(
    make: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward that is always 0 proves nothing: the log-probabilities of what both sides are made to say do."""
    right = lane_rules.RULES[torch.nn.functional.linear]

    def swapped(lanes: Any, *rest: Any) -> Any:
        result = right(lanes, *rest)
        return result if lanes.count == 1 else torch.cat([*reversed(result.chunk(lanes.count))])

    objective, model = make(reward(lambda completions: [0.0] * len(completions))), make_model("llama")
    batch = objective.collate(objective.encode(ROWS))
    for rule, mode in ((right, "lanes"), (swapped, "sequential")):
        monkeypatch.setitem(lane_rules.RULES, torch.nn.functional.linear, rule)
        opt = zotune.MeZO(model, lr=1e-2, eps=0.1)
        opt.estimate(objective, batch)
        assert opt.evaluator.mode == mode, opt.evaluator.reason


def test_after_an_objective_that_rides_in_lanes(make: Any, make_model: Any, tokenizers: Any) -> None:
    """What was proven with another objective is not taken for this one: the function never sees a stacked batch."""
    seen: list[int] = []

    def note(completions: list[str]) -> list[float]:
        seen.append(len(completions))
        return checksum(completions)

    objective, model = make(reward(note)), make_model("llama")
    plain = LanguageModel(tokenizers["llama"], "text", 64, "causal")
    opt = zotune.MeZO(model, lr=1e-3, eps=1e-2, scope="norms")
    opt.step(plain, plain.collate(plain.encode(ROWS)))
    assert opt.evaluator.mode == "lanes"
    opt.step(objective, objective.collate(objective.encode(ROWS)))
    assert seen == [5, 5]


def test_methods_that_need_a_loss_for_each_example(make: Any, make_model: Any) -> None:
    """A reward has one for each, a metric of the set is refused."""
    model = make_model("llama")
    each, whole = make(reward(checksum)), make(SetMetric(given(lambda predictions, references: 0.5), 10))
    opt = zotune.GRZO(model, lr=1e-3, eps=0.3, scope="norms")
    opt.step(each, each.collate(each.encode(ROWS)))
    assert len(opt.probes) == 5
    with pytest.raises(UserError, match="needs one loss for each of the batch's 5 examples.*Remedy"):
        zotune.GRZO(model, lr=1e-3, eps=0.3, scope="norms").step(whole, whole.collate(whole.encode(ROWS)))


def test_a_failure_leaves_the_model_alone(make: Any, make_model: Any) -> None:
    """Whatever a reward raises: no weight is moved, no step counted, and the next one works."""
    calls: list[int] = []

    def fails(completions: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no service")
        return checksum(completions)

    objective, model = make(reward(fails)), make_model("llama")
    before = zotune.weights_sha256(dict(model.named_parameters()))
    opt = zotune.MeZO(model, lr=1e-2, eps=0.3, scope="norms")
    batch = objective.collate(objective.encode(ROWS))
    with pytest.raises(FunctionError, match="fails failed at step 0: RuntimeError: no service"):
        opt.step(objective, batch)
    assert zotune.weights_sha256(dict(model.named_parameters())) == before and opt.steps == 0
    opt.step(objective, batch)
    assert opt.steps == 1 and len(calls) == 4


@pytest.mark.parametrize(
    ("rows", "name", "error", "says"),
    [
        ([], "llama", DataError, "no rows"),
        ([{"text": "x"}], "llama", DataError, "Row 1: no column 'completion' with what is right"),
        ([{"text": "x", "completion": "y"}, {"completion": "y"}], "llama", DataError, "Row 2: .*text is missing"),
        ([{"text": "", "completion": "y"}], "gpt2", DataError, "Row 1: the prompt is empty"),
        (ROWS, "bert", ConfigError, "A masked model generates no text"),
    ],
)
def test_rows_that_cannot_be_asked(make: Any, rows: Any, name: str, error: Any, says: str) -> None:
    """Named with their row."""
    with pytest.raises(error, match=f"{says}.*Remedy"):
        make(Compared("f1"), name).encode(rows)


def test_long_prompts_keep_their_end(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Prompt and completion fit max_length together; how many were cut is said."""
    objective = make(Compared("f1"))
    (example,) = objective.encode([{"text": "fine " * 80 + "great", "completion": "x"}])
    assert len(example.prompt) == 64 - 5 and example.cut and "1 of 1 examples did not fit" in caplog.text


def test_several_rewards_are_told_apart(make: Any, make_model: Any) -> None:
    """An evaluation has the sum and the plain mean of each, over the examples that it applies to, in any batches."""

    def odd(completions: list[str], level: list[int], **columns: Any) -> list[float | None]:
        return [float(each) if each % 2 else None for each in level]

    def never(completions: list[str], **columns: Any) -> list[float | None]:
        return [None for _ in completions]

    score = Weighted([reward(checksum), reward(odd), reward(never)], [2.0, 0.5, 1.0])
    objective, model = make(score), make_model("llama")
    examples = objective.encode(ROWS)
    found = [evaluate(model, objective, examples, size) for size in (2, 5)]
    assert list(found[0].parts) == ["checksum", "odd", "never"]
    values = found[0].as_dict()
    assert found[1].as_dict() == pytest.approx(values)
    first, second, third = (values[f"reward_{name}"] for name in ("checksum", "odd", "never"))
    alone = evaluate(model, make(Weighted([reward(checksum)])), examples, 5)
    assert first == pytest.approx(alone.score) and (second, third) == (3.0, None)  # levels 1, 3 and 5
    assert values["reward"] == pytest.approx(2 * first + 0.5 * (1 + 3 + 5) / 5)
    assert alone.parts == {} and [key for key in alone.as_dict() if key.startswith("reward_")] == []


def test_a_run_tells_of_each_reward(config: Any) -> None:
    """Before and after in what `train` returns, and in the evaluations of its metrics."""

    def length(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(each)) for each in completions]

    settings = config(template=None, label_words=None, scope="norms", max_new_tokens=3, steps=2, batch_size=4)
    found = train(settings, Quiet(), rewards=[checksum, length])
    rows = [row["eval"] for row in RunPaths(settings.output_dir).logged() if row.get("eval")]
    for when, row in (("before", rows[0]), ("after", rows[-1])):
        both = [found[f"reward_{name}_{when}"] for name in ("checksum", "length")]
        assert both == [row["reward_checksum"], row["reward_length"]]
        assert sum(both) == pytest.approx(found[f"reward_{when}"])
