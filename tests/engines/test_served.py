"""Steps that a server scores: the model's own losses, the same journal rules, requests in between, clear refusals.

The server here is one of torch (`torch_server.py`); tests/engines/test_vllm.py does the same with vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import models
from tests.engines.torch_server import Between, TorchServer

import zotune
from zotune.config import TrainConfig
from zotune.data.batching import units_of_step
from zotune.engines.served import _questions, server_of
from zotune.engines.server import Answer, Question
from zotune.errors import ConfigError, NonFiniteLoss, RunError
from zotune.estimate import Point
from zotune.journal import read
from zotune.noise import Key
from zotune.objective.sequences import Scored, sequences
from zotune.rebuild import steps_of
from zotune.revisit import replay
from zotune.session import Session
from zotune.train import resume, train
from zotune.watch import Console, Quiet

one_thread = models.one_thread
Config = Callable[..., TrainConfig]
SERVED: dict[str, Any] = {"scope": "bank", "method": "lozo", "method_args": {"interval": 3, "rank": 2}}


def apart(settings: TrainConfig, run: Path) -> float:
    """The largest difference of a run's losses and those of the model itself, at the same points and weights."""
    session = Session(replace(settings, output_dir=run, lanes="off")).begin()
    optimizer, found = session.optimizer, 0.0
    for record in steps_of(read(run / "journal.zoj")[1]):
        units = units_of_step(len(session.units), session.units_per_step, settings.seed, record.step)
        points = optimizer.estimator.points(settings.seed, record.step)
        losses = torch.cat(
            [optimizer.evaluator.losses(session.objective, session.batch(session.units[u]), points) for u in units], 1
        )
        found = max(found, float((losses.mean(1) - torch.tensor(record.losses, dtype=torch.float64)).abs().max()))
        session.replay(record)
    return found


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"label_words": ["good bad", "great fine"]},
        {"label_words": None, "template": None},
        {"micro_batch_size": 4, "queries": 2},
        {"method": "eggroll", "method_args": {"population": 4}},
        {"method": "zo_muon", "method_args": {"rank": 4, "interval": 3}, "lr": 1e-3},
        {"scope": "bank&regex:v_proj|down_proj"},
    ],
    ids=[
        "words",
        "candidates of several tokens",
        "language model",
        "micro-batches, queries",
        "population",
        "matrix sign",
        "layers",
    ],
)
def test_losses_are_those_of_the_model(config: Config, other: dict[str, Any]) -> None:
    """At every step, at the same points and weights: to 1e-5; the run replays to its hash without a server."""
    settings = config(**{**SERVED, **other})
    server = TorchServer()
    result = train(settings, Quiet(), server=server)
    assert replay(result["run"], True, Quiet())["verified"]
    assert apart(settings, Path(result["run"])) < 1e-5
    assert result["forwards"] == 7 * settings.batch_size // (settings.micro_batch_size or 8) * len(
        settings_points(settings)
    )
    assert not server.closed  # it was given, and stays open


def settings_points(settings: TrainConfig) -> list[Point]:
    return Session(settings).build().estimator.points(settings.seed, 0)


def test_only_seeds_and_scalars_cross(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The workers hear a header without weights at the start, and then 34 bytes a step. The run says who scores."""
    server = TorchServer()
    train(config(**SERVED), Console(), server=server)
    said = capsys.readouterr().err
    assert "torch, adapters of rank 10\n" in said and "a server evaluates the steps" in said and "memory   " not in said
    assert len(server.order.header) < 6000 and server.followed == 6 * 34  # of the last step nobody asked
    with server.serving() as slot:
        assert slot == 3 and server.followed == 7 * 34 + 41  # and the hash at the end


def test_a_stopped_run_goes_on_with_or_without_a_server(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new server hears the whole journal: the same bytes as undisturbed. The model alone can go on too."""
    settings = config(**SERVED, eval_every=3, snapshot_every=2)
    whole = train(replace(settings, output_dir=settings.output_dir.parent / "whole"), Quiet(), server=TorchServer())
    step = Session.step

    def stopping(session: Session) -> None:
        if session.optimizer.steps == 5:
            raise KeyboardInterrupt
        step(session)

    monkeypatch.setattr(Session, "step", stopping)
    for name in ("run", "alone"):
        with pytest.raises(KeyboardInterrupt):
            train(replace(settings, output_dir=settings.output_dir.parent / name), Quiet(), server=TorchServer())
    monkeypatch.setattr(Session, "step", step)
    result = resume(settings.output_dir, Quiet(), server=TorchServer())
    assert result["weights_sha256"] == whole["weights_sha256"]
    for name in ("journal.zoj", "metrics.jsonl"):
        assert (settings.output_dir / name).read_bytes() == (Path(whole["run"]) / name).read_bytes()
    alone = resume(settings.output_dir.parent / "alone", Quiet())
    assert alone["steps"] == 7 and replay(alone["run"], True, Quiet())["verified"]


def test_a_server_that_is_wrong_is_found_out(config: Config) -> None:
    """One layer without its adapter: the losses of the first batch tell, before the first step."""
    with pytest.raises(RunError, match="server's losses differ from the model's by .* eps on the first batch.*Remedy"):
        train(config(**SERVED), Quiet(), server=TorchServer(without="model.layers.1.self_attn.v_proj"))


def test_requests_are_answered_with_what_is_learned(config: Config) -> None:
    """Between steps the serving slot holds the trained state; asking changes no byte of the run."""
    settings, asked = config(**SERVED), list[tuple[float, ...]]()
    server = TorchServer()

    def ask() -> None:
        with server.serving() as slot:
            asked.append(tuple(server._answer([Question((2, 7, 9, 11, 6), (), True)], [slot])[0].inner))

    with pytest.raises(RunError, match="no run has started this server"), server.serving():
        pass
    result = train(settings, Between(ask), server=server)
    quiet = train(replace(settings, output_dir=settings.output_dir.parent / "quiet"), Quiet(), server=TorchServer())
    assert result["weights_sha256"] == quiet["weights_sha256"] and len(set(asked)) == 7
    session = Session(settings).begin()
    for record, found in zip(steps_of(read(Path(result["run"]) / "journal.zoj")[1]), asked, strict=True):
        session.replay(record)
        with session.optimizer.settled(), torch.inference_mode():
            logits = session.model(input_ids=torch.tensor([[2, 7, 9, 11, 6]])).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor([7, 9, 11, 6])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)


def test_what_candidates_share_is_read_once(config: Config) -> None:
    """Words of one token are one question for a row, and equal rows ask it once, at each of two points."""
    settings, server = config(**SERVED, steps=0), TorchServer()
    session = Session(settings, server=server).begin()
    rows = [0, 1, 0, 0]
    batch, before = session.batch(rows), server.asked
    losses = session.optimizer.evaluator.losses(session.objective, batch, settings_points(settings))
    assert len({each.tokens for each in sequences(batch)}) == 2 * 2 and server.asked - before == 2 * 2
    assert losses.shape == (2, 4) and torch.equal(losses[:, 0], losses[:, 3])


def test_questions_answer_all_sequences() -> None:
    """Some candidates are scored at their last token, others before it too; 300 words are three questions."""
    asked = [Scored((1, 2, 7), (2,)), Scored((1, 2, 8), (1, 2)), Scored((1, 3, 7), (2,)), Scored((1, 2, 7), (2,))]
    assert _questions(asked) == ([0, 0, 1, 0], [Question((1, 2), (7, 8), True), Question((1, 3), (7,), False)])
    assert _questions([Scored((1, 2, 7), (1,))]) == ([0], [Question((1, 2), (7,), True)])
    places, questions = _questions([Scored((1, 2, word), (2,)) for word in range(300)])
    assert [len(each.follow) for each in questions] == [128, 128, 44]
    assert all(word in questions[place].follow for word, place in enumerate(places))


def test_two_phases_from_python(config: Config) -> None:
    """The optimizer's own interface: estimates add up, `record` tells the server."""
    session, server = Session(config(**SERVED)), TorchServer()
    session.server = server
    optimizer = session.begin().optimizer
    optimizer.record = server.tell
    for half in ([0, 1], [2, 3]):
        optimizer.estimate(session.objective, session.batch(half))
    optimizer.step()
    optimizer.step(session.objective, session.batch([4, 5]))
    assert server.mirror.step == 1 and server.followed == 34 and isinstance(optimizer, zotune.ZerothOrder)


def test_a_loss_that_is_not_finite_stops_the_step(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the model's own forwards: named, not applied, and left out where the run says so."""
    settings, server = config(**SERVED, on_nonfinite="skip"), TorchServer()
    real = TorchServer._one
    calls = [0]

    def sick(self: TorchServer, question: Question, slot: int) -> Answer:
        calls[0] += 1
        found = real(self, question, slot)
        return replace(found, follow=dict.fromkeys(found.follow, float("nan"))) if calls[0] == 100 else found

    monkeypatch.setattr(TorchServer, "_one", sick)
    result = train(settings, Quiet(), server=server)
    losses = [record.losses for record in steps_of(read(Path(result["run"]) / "journal.zoj")[1])]
    assert sum(len(each) == 1 for each in losses) == 1 and replay(result["run"], True, Quiet())["verified"]
    calls[0] = 0
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step"):
        train(
            replace(settings, on_nonfinite="stop", output_dir=settings.output_dir.parent / "stop"),
            Quiet(),
            server=TorchServer(),
        )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "mezo", "scope": "full"}, "mezo with scope full trains other weights.*Remedy: --scope bank"),
    ({"method": "mezo", "method_args": {}}, "mezo has no low-rank form for .*Remedy: --method lozo"),
    ({"method": "grzo", "method_args": {}}, "grzo.*Remedy: --method lozo"),
    ({"method": "agzo", "method_args": {}}, "agzo has no low-rank form.*Remedy: --method lozo"),
    ({"objective": "accuracy"}, "no function of candidates' log-probabilities.*Remedy: --scorer torch"),
    ({"family": "bert"}, "left to right.*Remedy: --scorer torch"),
    ({"quantize": "int8"}, "scorer and quantize cannot be used together.*Remedy: leave --quantize out"),
    ({"blocks": "cycle"}, "scorer and blocks cannot"),
    ({"offload": "cpu"}, "scorer and offload cannot"),
    ({"parallel": "data"}, "scorer and parallel cannot"),
]


@pytest.mark.parametrize(("other", "said"), REFUSED, ids=lambda value: "-".join(map(str, value)) if value else "")
def test_what_cannot_be_served_is_refused(config: Config, other: dict[str, Any], said: str) -> None:
    """One clear error before the server starts."""
    server = TorchServer()
    with pytest.raises(ConfigError, match=said):
        train(config(**{**SERVED, **other}), Quiet(), server=server)
    assert not hasattr(server, "order")


def test_answers_get_the_room_that_is_left(config: Config, tmp_path: Path) -> None:
    """Of the model's 64 positions; rows that fill them leave none for the token that every server generates."""
    server, rows = TorchServer(), tmp_path / "long.jsonl"
    settings = config(**SERVED, steps=0, train=rows, eval=None, label_words=None, template=None)
    rows.write_text('{"text": "' + " good" * 59 + '"}\n')
    train(settings, Quiet(), server=server)
    assert (server.order.length, server.order.reply) == (59, 5)
    rows.write_text('{"text": "' + " good" * 70 + '"}\n')
    with pytest.raises(ConfigError, match="fill the model's 64 positions.*Remedy: --max-length 63"):
        train(replace(settings, max_length=64, output_dir=tmp_path / "full"), Quiet(), server=TorchServer())


def test_a_server_serves_one_run_of_one_process(config: Config) -> None:
    """A second run and helpers are refused; without a server the model evaluates."""
    server = TorchServer()
    train(config(**SERVED, steps=1), Quiet(), server=server)
    with pytest.raises(RunError, match="serves a run already"):
        train(config(**SERVED, output_dir=Path(config().output_dir).parent / "other"), Quiet(), server=server)
    with pytest.raises(ConfigError, match="no pool or torchrun"), server_of(config(**SERVED), server, alone=False):
        pass
    with server_of(config(), None, alone=True) as none:
        assert none is None


def test_a_worker_that_is_out_of_step_says_so(config: Config) -> None:
    """Probes of another step would be scored silently otherwise."""
    session, server = Session(config(**SERVED)), TorchServer()
    session.server = server
    optimizer = session.begin().optimizer
    ahead = [Point(Key(4, 2), 1e-2)]
    with pytest.raises(RunError, match="asked for step 2 after 0"):
        optimizer.evaluator.losses(session.objective, session.batch([0]), ahead)
