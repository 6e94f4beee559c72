"""vLLM as the server of a run: tests of it run where it is installed, what needs no engine runs everywhere."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import models
from tests.engines.test_served import SERVED, apart
from tests.engines.torch_server import Between
from tests.tiny import save_tiny

from zotune.config import TrainConfig
from zotune.engines import vllm as engine
from zotune.engines.server import Order, Question
from zotune.engines.vllm import Vllm
from zotune.errors import ConfigError, CoverageError, RunError, UserError
from zotune.journal import read
from zotune.rebuild import steps_of
from zotune.revisit import replay
from zotune.session import Session
from zotune.train import resume, train
from zotune.watch import Quiet

one_thread = models.one_thread
Config = Callable[..., TrainConfig]
PROMPTS = ["the film was", "a good plot but"]

with_vllm = [
    pytest.mark.skipif(not engine.installed(), reason="vLLM is not installed: pip install 'zotune[vllm]'"),
    # vLLM's and its libraries' own imports warn.
    pytest.mark.filterwarnings("ignore"),
]


def needs_vllm(test: Any) -> Any:
    for mark in with_vllm:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two blocks with heads of 32 numbers, the fewest that vLLM's attention takes."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    save_tiny("llama", folder, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    return folder


@pytest.fixture
def served(config: Config, wide: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run on `wide` that vLLM can score: little memory, no compiling."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    return lambda **options: config(**{"model": str(wide), "max_new_tokens": 12, **SERVED, **options})


EAGER = {"enforce_eager": True}


@needs_vllm
def test_a_run_scored_by_vllm_that_answers_in_between(served: Config) -> None:
    """Losses of all steps within 1e-5 of the model's; both a thread and the watch are answered by what is trained."""
    settings, said, meanwhile = served(lr=3e-2), list[list[str]](), list[str]()
    server, over = Vllm(EAGER), threading.Event()

    def go_on_asking() -> None:
        while not over.is_set():
            try:
                meanwhile.extend(server.generate(PROMPTS[:1], max_tokens=2, temperature=0))
            except RunError:  # the run has not begun
                over.wait(0.1)

    other = threading.Thread(target=go_on_asking)
    other.start()
    try:
        watch = Between(lambda: said.append(server.generate(PROMPTS, max_tokens=8, temperature=0, ignore_eos=True)))
        result = train(settings, watch, server=server)
        with pytest.raises(UserError, match="vLLM refuses the request.*Remedy: a shorter one"):
            server.generate(["good " * 500])
        question = Question((2, 7, 9, 11, 6), tuple(range(4, 27)), True)  # more than the 20 of vLLM's `max_logprobs`
        with server.serving() as slot:
            (answer,) = server._answer([question], [slot])
    finally:
        over.set()
        other.join()
        server.close()
    run = Path(result["run"])
    assert replay(run, True, Quiet())["verified"] and apart(settings, run) < 1e-5
    assert meanwhile and said[0] != said[-1]  # what is answered changes as the model does
    session = Session(settings).begin()
    for record, answers in zip(steps_of(read(run / "journal.zoj")[1]), said, strict=True):
        session.replay(record)
        assert [text.strip() for text in answers] == [greedy(session, prompt, 8) for prompt in PROMPTS]
    with session.optimizer.settled(), torch.inference_mode():
        expected = session.model(input_ids=torch.tensor([question.read])).logits[0].log_softmax(-1)
    found = torch.tensor([*answer.inner, *(answer.follow[token] for token in question.follow)])
    own = torch.cat([expected[:-1].gather(1, torch.tensor(question.read[1:])[:, None])[:, 0], expected[-1, 4:27]])
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)


def greedy(session: Session, prompt: str, count: int) -> str:
    """What the model at the session's present weights goes on with."""
    from zotune.load import load_tokenizer

    tokenizer = load_tokenizer(session.config)
    ids = tokenizer(prompt)["input_ids"]
    before = len(ids)
    with session.optimizer.settled(), torch.inference_mode():
        for _ in range(count):
            model: Any = session.model
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[before:], skip_special_tokens=True))


def workers() -> list[int]:
    """Processes that descend from this one and belong to vLLM."""
    found, parents = [], {os.getpid()}
    for folder in sorted((f for f in Path("/proc").iterdir() if f.name.isdigit()), key=lambda f: int(f.name)):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) in parents:
            parents.add(int(folder.name))
            if "VLLM" in name:
                found.append(int(folder.name))
    return found


@needs_vllm
def test_an_engine_that_dies_loses_nothing(served: Config) -> None:
    """SIGKILL to vLLM in the middle: a RunError that says how to go on; the model alone ends the run.

    Here whole texts are scored. The losses until then are within 1e-5 of the model's.
    """
    settings = served(label_words=None, template=None)
    server, steps = Vllm(EAGER), [0]

    def kill() -> None:
        steps[0] += 1
        if steps[0] == 3:
            assert workers()
            for process in workers():
                os.kill(process, signal.SIGKILL)

    try:
        with pytest.raises(RunError, match="vLLM stopped.*Remedy: `zotune resume RUN`"):
            train(settings, Between(kill), server=server)
    finally:
        server.close()
    assert apart(settings, settings.output_dir) < 1e-5
    result = resume(settings.output_dir, Quiet())
    assert result["steps"] == 7 and replay(result["run"], True, Quiet())["verified"]


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("method", ["lozo_m", "eggroll"])
def test_bfloat16_and_other_methods(served: Config, method: str) -> None:
    """Started by the config alone: the first batch agrees within the dtype's rounding, the run replays to its hash."""
    arguments = {"lozo_m": {"interval": 3, "rank": 2}, "eggroll": {"population": 4, "rank": 2}}[method]
    other = {"method": method, "method_args": arguments, "dtype": "bfloat16", "eps": 3e-2}
    result = train(served(scorer="vllm", scorer_args=EAGER, **other), Quiet())
    assert result["steps"] == 7 and replay(result["run"], True, Quiet())["verified"]


@needs_vllm
@pytest.mark.slow
def test_layers_that_vllm_does_not_adapt_are_named(served: Config) -> None:
    """The worker counts: a layer in scope that vLLM has no adapter for, and one of other rows, are errors here."""
    session = Session(served())
    header = session.build().header()
    names = [parameter["name"] for parameter in header["parameters"]]
    header["parameters"].append({"name": "model.router.bank_delta", "shape": [4, 64], "dtype": "float32"})
    header["groups"] = [{"names": [*names, "model.router.bank_delta"], "weight_decay": 0.0}]
    layers = tuple(name.removesuffix(".bank_delta") for name in header["groups"][0]["names"])
    said = json.dumps(header).encode()
    order = Order(session.config.model, "float32", False, said, 8, 12, layers, slots=2, length=9, reply=1)
    server = Vllm(EAGER)
    try:
        with pytest.raises(CoverageError, match="no adapter for model.router of 15 layers.*Remedy: a narrower scope"):
            server.start(order)
    finally:
        server.close()


def test_options_are_sizes_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a file could run code with, or compute something else with."""
    monkeypatch.setattr(engine, "installed", lambda: True)
    with pytest.raises(ConfigError, match="scorer_args has 'worker_extension_cls'. Remedy: one of enforce_eager"):
        Vllm({"worker_extension_cls": "os.system"})
    with pytest.raises(ConfigError, match="max_num_seqs is 'many'. Remedy: a value of type int"):
        Vllm({"max_num_seqs": "many"})
    Vllm({"gpu_memory_utilization": 1, "enforce_eager": True}).close()


def test_a_folder_called_vllm_is_not_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's folder in the working directory does not make it look installed."""
    (tmp_path / "vllm").mkdir()
    before = engine.installed()
    monkeypatch.syspath_prepend(tmp_path)
    assert engine.installed() == before


def test_without_vllm_the_extra_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is loaded, and no run folder is left."""
    monkeypatch.setattr(engine, "installed", lambda: False)
    settings = config(**SERVED, scorer="vllm")
    with pytest.raises(ConfigError, match=r"--scorer vllm needs vLLM. Remedy: pip install 'zotune\[vllm\]'"):
        train(settings, Quiet())
    assert not settings.output_dir.exists()


def test_a_rank_beyond_what_vllm_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 columns; the remedy names what adds up to them."""
    monkeypatch.setattr(engine, "installed", lambda: True)
    order = Order("m", "float32", False, b"{}", 600, 604, ("a",), 2, 10, 1)
    with pytest.raises(ConfigError, match="rank 604 are needed.*512 at most. Remedy: a smaller --bank-rank"):
        Vllm().start(order)
    with pytest.raises(ConfigError):  # it did not start, so it may be asked again
        Vllm().start(replace(order, rank=513))
