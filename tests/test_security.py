"""What comes from somebody else's run or model: it runs no code, reaches no file outside, opens no connection."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from zotune.cli import main
from zotune.config import TrainConfig
from zotune.errors import ConfigError, RunError, UserError
from zotune.history.branch import branch
from zotune.history.checkout import checkout
from zotune.history.undo import undo
from zotune.history.verify import verify
from zotune.journal import Journal, StepRecord, read
from zotune.load import load_model
from zotune.resolve import resolve
from zotune.revisit import evaluate_run, log_rows, replay
from zotune.run import RunFolder, RunPaths
from zotune.train import resume, train
from zotune.watch import Quiet

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "zotune"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Who may talk to a network: the demo fetches its model and data, push uploads, when asked to. lock.py and
# worker.py ask for the host's name, ray_crew.py whether somebody answers at the address that the user gave.
NETWORK = {"http", "socket", "ssl", "urllib", "requests", "httpx", "huggingface_hub", "ftplib", "smtplib", "xmlrpc"}


# --- the sources ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_network_and_no_trust_by_itself(path: Path) -> None:
    """Only demo, load (of the hub's cache) and push import a network library; trust_remote_code is the user's flag."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    alone = dict.fromkeys(("lock.py", "worker.py", "ray_crew.py"), {"socket"}) | dict.fromkeys(
        ("load.py", "push.py"), {"huggingface_hub"}
    )
    allowed = NETWORK if path.parent.name == "demo" else alone.get(path.name, set())
    assert imported & NETWORK <= allowed
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) in ("trust_remote_code", "config.trust_remote_code", "trust"), node.lineno
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained") and allowed != NETWORK:
            assert "trust_remote_code" in {word.arg for word in node.keywords}, node.lineno
    if path.name == "lock.py":
        calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert {call for call in calls if call.startswith("socket.")} == {"socket.gethostname"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_wall_clock(path: Path) -> None:
    """Outside the demo's cache nothing asks for the time of day, so a clock that is set back changes nothing."""
    asked = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    wall = {"time.time", "time.time_ns", "datetime", "datetime.now", "time.localtime", "time.gmtime"}
    assert path.parent.name == "demo" or not asked & wall


# --- connections ------------------------------------------------------------------------------------------------------

WATCHED = """
import sys, os
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "socket.gethostbyname"):
        os.write(2, f"NETWORK {event} {arguments}\\n".encode())
        os._exit(99)
sys.addaudithook(hook)
from zotune.cli import main
import json
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            sys.exit(ended.code)
"""


@pytest.mark.parametrize(("offline", "scope"), [("1", "full"), pytest.param("0", "lora", marks=pytest.mark.slow)])
def test_no_socket_is_opened(config: Callable[..., TrainConfig], tmp_path: Path, offline: str, scope: str) -> None:
    """With a model in a folder no command connects to anything or asks for an address: offline, or not."""
    file, run, to = tmp_path / "c.yaml", str(tmp_path / "run"), str(tmp_path / "to")
    file.write_text(config(scope=scope, steps=2).to_yaml())
    commands = [
        ["train", "--config", str(file)], ["resume", run], ["replay", run, "--verify"], ["eval", run], ["log", run],
        ["verify", run], ["checkout", run, "--step", "1", "--to", to], ["undo", run, "1"], ["diff", run, run],
        ["branch", run, "--to", str(tmp_path / "b")],
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": offline, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", WATCHED, json.dumps(commands)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "NETWORK" not in done.stderr, done.stderr[-2000:]
    assert (tmp_path / "b" / "journal.zoj").exists() and (tmp_path / "to" / "tokenizer.json").exists()


OFFLINE = """
import contextlib, io, json, os, sys
def hook(event, arguments):
    internet = event == "socket.__new__" and arguments[1] in (2, 10)
    asks = event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "socket.gethostbyname")
    fetches = event == "subprocess.Popen" and "pip" in map(str, arguments[1])
    if internet or asks or fetches:
        os.write(2, f"NETWORK {event} {arguments}\\n".encode())
        os._exit(99)
sys.addaudithook(hook)
from zotune.cli import main
found = []
for words in json.loads(sys.argv[1]):
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    found.append([code, said.getvalue()[-600:]])
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", pytest.param("TRANSFORMERS_OFFLINE", marks=pytest.mark.slow)])
def test_offline_no_command_opens_a_socket(
    config: Callable[..., TrainConfig], movies: Path, tmp_path: Path, name: str
) -> None:
    """What would have to be fetched is refused in a sentence, before a connection is made or pip is called."""
    train(config(steps=1), Quiet())
    run, rows = str(tmp_path / "run"), str(movies / "eval.jsonl")
    file, new = tmp_path / "hub.yaml", str(tmp_path / "new")
    file.write_text(config().to_yaml())
    own = file.with_name("own.yaml")
    own.write_text(config(track=["wandb"]).to_yaml())
    hub = ["--model", "nobody/nothing-at-all"]
    task = ["--task", "sst2", "--output-dir", new, "--model", config().model]
    refused = [
        ["demo", "--output-dir", new], ["push", run, "me/it"], ["push", run, "me/it", "--private"],
        ["train", "--config", str(file), *hub, "--output-dir", new], ["plan", "--config", str(file), *hub],
        ["tune", "--config", str(file), *hub], ["eval", *hub, "--eval", rows, "--label-words", "a,b"],
        ["sensitive", "--config", str(file), *hub, "--to", new],
        ["train", *task], ["eval", run, "--tasks", "sst2"], ["plan", *task], ["data", *task],
        ["train", "--config", str(own), "--output-dir", new], ["resume", run, "--track", "comet_ml"],
    ]  # fmt: skip
    fine = [
        ["push", run, "me/it", "--to", str(tmp_path / "pushed")], ["export", run, "--to", str(tmp_path / "exported")],
        ["report", run], ["ls", str(tmp_path)], ["cp", run, str(tmp_path / "copy")], ["cat", run], ["doctor"],
        ["methods"], ["schema"], ["init", str(tmp_path / "init.yaml")], ["data", rows, "--model", config().model],
        ["resume", run],
    ]  # fmt: skip
    clean = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    places = {"HF_HOME": str(tmp_path / "hub"), "ZOTUNE_CACHE": str(tmp_path / "cache")}
    environment = clean | {name: "1", "OMP_NUM_THREADS": "1"} | places
    program = [sys.executable, "-c", OFFLINE, json.dumps(refused + fine)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0 and "NETWORK" not in done.stderr, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for words, (code, said) in zip(refused + fine, found, strict=True):
        in_a_sentence = code in (2, 3, 4) and "Remedy: " in said and "Traceback" not in said
        assert in_a_sentence == (words in refused), (words, said)
        assert words in refused or code == 0, (words, code, said)


@pytest.mark.slow
def test_offline_hub_id(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """A hub id offline is one clear error, without a connection."""
    file = tmp_path / "c.yaml"
    file.write_text(config().to_yaml())
    words = [["train", "--config", str(file), "--model", "nobody/nothing-at-all"]]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    program = [sys.executable, "-c", WATCHED, json.dumps(words)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and "NETWORK" not in done.stderr and "Remedy: " in done.stderr, done.stderr[-2000:]


# --- code that comes with a model -------------------------------------------------------------------------------------


def test_a_models_own_code_does_not_run(
    config: Callable[..., TrainConfig], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """A run whose config and model ask for remote code: no command runs it unasked, and no file can ask for it."""
    model, ran = tmp_path / "model", tmp_path / "ran"
    train(config(), Quiet())
    run = config().output_dir
    shutil.copytree(tiny("llama"), model)
    settings = json.loads((model / "config.json").read_text())
    settings |= {"model_type": "other", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (model / "config.json").write_text(json.dumps(settings))
    (model / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    file = run / "config.yaml"
    file.write_text(file.read_text().replace(str(tiny("llama")), str(model)))
    for act in (
        lambda: resume(run, Quiet()),
        lambda: replay(run, False, Quiet()),
        lambda: verify(run, Quiet()),
    ):
        with pytest.raises(UserError, match="code of its own.*--trust-remote-code"):
            act()
    file.write_text(file.read_text() + "trust_remote_code: true\n")
    for act in (lambda: resume(run, Quiet()), lambda: branch(run, 2, tmp_path / "b", {})):
        with pytest.raises(UserError, match="trust_remote_code cannot be set by a file"):
            act()
    assert not ran.exists()


# --- functions that a run names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["reward: [{}:f]", "reward: [antigravity:f]", "metric: {}:f"])
def test_a_runs_reward_is_not_imported(config: Callable[..., TrainConfig], tmp_path: Path, named: str) -> None:
    """A run whose config names a file or a module of code: no command imports it unasked, also before a first step."""
    ran, evil = tmp_path / "ran", tmp_path / "own.py"
    source = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    evil.write_text(source + "def f(completions=(), predictions=(), references=()): return [0.0] * len(completions)\n")
    options = {"label_words": None, "scope": "norms", "max_new_tokens": 2, "completion_column": "text"}
    train(config(**options, reward=["f1"], steps=2), Quiet())
    run, begun = config().output_dir, tmp_path / "begun"
    file = run / "config.yaml"
    line = named.format(evil)
    text = file.read_text().replace("reward:\n- f1\n", "reward: null\n")
    file.write_text(text.replace(f"{line.split(':')[0]}: null\n", line + "\n"))
    assert line in file.read_text()
    begun.mkdir()
    shutil.copy(file, begun)
    for act in (
        lambda: resume(run, Quiet()),
        lambda: resume(begun, Quiet()),
        lambda: evaluate_run(resolve({}, file), run, Quiet()),
    ):
        with pytest.raises(ConfigError, match="names code, .*not run unasked. Remedy: .*--trust-reward"):
            act()
    with pytest.raises(SystemExit, match="2"):
        main(["eval", str(run), "--max-new-tokens", "3"])
    assert replay(run, True, Quiet())["verified"] and verify(run, Quiet())["verified"]
    checkout(run, 1, tmp_path / "to", Quiet())
    branch(run, 1, tmp_path / "branch", {})
    assert not ran.exists() and "antigravity" not in sys.modules
    if line.startswith("reward: [/"):
        assert evaluate_run(resolve({}, file), run, Quiet(), trust_reward=True)["reward"] == 0 and ran.exists()


# --- files that a run or a model names --------------------------------------------------------------------------------


def _linked(path: Path) -> None:
    elsewhere = path.parent.with_suffix(".elsewhere")
    path.replace(elsewhere) if path.exists() else elsewhere.write_text("mine")
    path.symlink_to(elsewhere)


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_linked, _pipe])
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "timing.jsonl", "journal.zoj", "config.yaml", "lock", "snapshots", "undone"]
)
def test_a_run_stays_in_its_folder(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    """A file that is a link or a pipe is refused, at once, by all that read or write a run; nothing outside changes."""
    folder = tmp_path / "run"
    with RunFolder.create(folder, "model: m\ntrain: t.jsonl\noutput_dir: o\n") as made:
        with Journal.create(made.paths.journal, {}) as journal:
            journal.append(StepRecord(0, (1.0,), (1.0,)))
    make(folder / name)
    outside = tmp_path / "run.elsewhere"
    before = outside.read_bytes() if outside.exists() else None
    for act in (
        RunPaths(folder).check,
        lambda: undo(folder, 1),
        lambda: resume(folder, Quiet()),
        lambda: log_rows(folder),
        lambda: replay(folder, False, Quiet()),
        lambda: RunFolder.open(folder),
    ):
        with pytest.raises(RunError, match=f"{name} is not a .* Remedy"):
            act()
    assert (outside.read_bytes() if outside.exists() else None) == before


COMMANDS = (
    "resume RUN", "log RUN", "cat RUN", "report RUN --output NEW", "plan RUN", "verify RUN", "replay RUN",
    "checkout RUN --step 1 --to NEW", "undo RUN 1", "branch RUN --step 1 --to NEW", "diff RUN RUN", "eval RUN",
    "export RUN --to NEW", "cp RUN NEW", "push RUN me/it --to NEW",
)  # fmt: skip


@pytest.mark.parametrize("make", [_linked, _pipe])
@pytest.mark.parametrize("name", ["journal.zoj", "config.yaml"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_stay_in_the_folder_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, make: Callable[[Path], None]
) -> None:
    """Nothing waits at a pipe and nothing follows a link: each command that takes a run refuses it as a run's error."""
    with RunFolder.create(tmp_path / "run", "model: m\ntrain: t.jsonl\noutput_dir: o\n") as made:
        Journal.create(made.paths.journal, {}).close()
    make(tmp_path / "run" / name)
    words = [{"RUN": str(tmp_path / "run"), "NEW": str(tmp_path / "new")}.get(word, word) for word in command.split()]
    with in_seconds(30), pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 4 and f"{name} is not a plain file" in said and "Remedy: " in said, said
    assert not (tmp_path / "new").exists()


@contextmanager
def in_seconds(count: int) -> Iterator[None]:
    """TimeoutError for what takes longer, as waiting at a pipe does."""

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(count)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("part", ["folder", "tensors"])
def test_a_snapshot_that_is_a_link(config: Callable[..., TrainConfig], tmp_path: Path, part: str) -> None:
    """A snapshot, or its tensors, that lies elsewhere is not read and not deleted; the run resumes without it."""
    train(config(snapshot_every=2), Quiet())
    run = config().output_dir
    undo(run, 1)
    path = run / "snapshots" / "step-0000000006"
    path = path / "tensors.safetensors" if part == "tensors" else path
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert resume(run, Quiet())["steps"] == 7
    assert (tmp_path / "elsewhere").exists()
    assert part == "tensors" or (tmp_path / "elsewhere" / "COMPLETE").exists()


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/hostname", "a/b.safetensors", "a\\b", "x\0y", "..", "", 3]
)
def test_an_index_that_leads_outside(
    config: Callable[..., TrainConfig], tiny: Callable[[str], Path], tmp_path: Path, name: Any
) -> None:
    """The index of a sharded checkpoint may name files beside it alone."""
    model = Path(shutil.copytree(tiny("llama"), tmp_path / "model"))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder. Remedy"):
        load_model(config(model=str(model)))
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is not an index of weights. Remedy"):
        load_model(config(model=str(model)))


def test_sharded_checkpoints_load(
    config: Callable[..., TrainConfig], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """A real index is no obstacle."""
    import torch

    whole = load_model(config())
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")  # type: ignore[operator]
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    again = load_model(config(model=str(tmp_path / "sharded")))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


# --- a journal from somewhere -----------------------------------------------------------------------------------------


def test_records_that_do_not_fit(config: Callable[..., TrainConfig]) -> None:
    """Records without losses or learning rates are listed, and refused by a replay."""
    train(config(steps=1), Quiet())
    path = config().output_dir / "journal.zoj"
    header = read(path)[0]
    for record, said in (
        (StepRecord(0, (0.1,), ()), "has 0 losses"),
        (StepRecord(0, (0.1,), (1.0,)), "has 1 losses"),
        (StepRecord(0, (), (1.0, 1.0)), "does not follow"),
        (StepRecord(3, (0.1,), (1.0, 1.0)), "does not follow"),
    ):
        path.unlink()
        with Journal.create(path, header) as journal:
            journal.append(record)
        assert log_rows(config().output_dir)[0]["losses"] == list(record.losses)
        with pytest.raises(UserError, match=f"{said}.*Remedy"):
            replay(config().output_dir, False, Quiet())
