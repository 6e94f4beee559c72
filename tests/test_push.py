"""What a push uploads: loadable weights, a card, and a run that others can replay; a hub in memory stands in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pytest
import yaml
from transformers import AutoModelForCausalLM

import zotune
from zotune.config import TrainConfig
from zotune.errors import ConfigError, UserError
from zotune.journal import Journal, read
from zotune.push import push
from zotune.revisit import replay
from zotune.train import train
from zotune.watch import Quiet

Config = Callable[..., TrainConfig]


@final
class Hub:
    """The two calls of HfApi that are used; keeps what was uploaded."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.folder, self.error, self.made = folder, error, {}  # type: ignore[var-annotated]

    def create_repo(self, repo: str, **options: Any) -> Any:
        """Note the repository; its address as text, as the real one has it."""
        if self.error:
            raise self.error
        self.made = {"repo": repo, **options}
        return type("RepoUrl", (str,), {"repo_id": repo})(f"https://hub/{repo}")

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Keep the folder."""
        shutil.copytree(folder_path, self.folder)
        return SimpleNamespace(commit_message=commit_message)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """An empty one."""
    return Hub(tmp_path / "hub")


def test_pushed_run_is_replayed_by_somebody_else(config: Config, hub: Hub, tmp_path: Path) -> None:
    """From the uploaded folder alone, and the base model under the name that the card says; the hash is the run's."""
    settings = config(method="lozo", scope="last:1")
    trained = train(settings, Quiet())
    found = push(settings.output_dir, "me/trained", Quiet(), private=True, api=hub)
    assert found["url"] == "https://hub/me/trained" and hub.made == {
        "repo": "me/trained", "private": True, "exist_ok": True
    }  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(hub.folder)
    whole = {name: p for name, p in loaded.named_parameters() if ".2." in name or "model.norm" in name}
    assert whole
    other = tmp_path / "elsewhere" / "run"
    shutil.copytree(hub.folder / "zotune", other)
    text = (other / "config.yaml").read_text()
    assert str(tmp_path) not in text
    (other / "config.yaml").write_text(text.replace(f"model: {Path(settings.model).name}", f"model: {settings.model}"))
    assert replay(other, True, Quiet())["weights_sha256"] == trained["weights_sha256"]
    base = AutoModelForCausalLM.from_pretrained(settings.model)
    assert zotune.replay(other / "journal.zoj", base)["weights_sha256"] == trained["weights_sha256"]


def test_card(config: Config, hub: Hub) -> None:
    """Front matter that the hub reads, the figures of the run, both hashes, and no path of this machine."""
    settings = config(scope="lora")
    trained = train(settings, Quiet())
    found = push(settings.output_dir, "me/trained", Quiet(), api=hub)
    assert found["content"] == "adapter" and "adapter_model.safetensors" in found["files"]
    card = (hub.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "peft", "tags": ["zotune", "zeroth-order", "mezo"]}
    assert trained["weights_sha256"] in card and f"| accuracy | {trained['accuracy_before']:.4g} |" in card
    assert "zotune replay trained/zotune --verify" in card and str(settings.output_dir.parent) not in card


def test_card_of_a_score(config: Config, hub: Hub) -> None:
    """Its interval stands below it, and a number that is not there is no 0."""
    settings = config()
    train(settings, Quiet())
    rows = [json.loads(line) for line in (settings.output_dir / "metrics.jsonl").read_text().splitlines()]
    rows[0]["eval"] = {"loss": -0.1, "low": 0.05, "high": 0.15, "examples": 10, "f1": 0.1, "reward_a": 0.5}
    rows[-1]["eval"] = {"loss": -0.3, "low": 0.2, "high": 0.4, "examples": 10, "f1": 0.3, "reward_a": None}
    (settings.output_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    push(settings.output_dir, "me/trained", Quiet(), "journal", api=hub)
    card = (hub.folder / "README.md").read_text()
    assert "| f1 | 0.1 | 0.3 |" in card and "| 95 % interval | 0.05 to 0.15 | 0.2 to 0.4 |" in card
    assert "| reward_a | 0.5 | - |" in card


def test_card_of_a_method_that_needs_the_rows(config: Config, hub: Hub) -> None:
    """It does not promise a replay without data."""
    settings = config(method="agzo", method_args={"rank": 2}, steps=2, eval=None)
    train(settings, Quiet())
    push(settings.output_dir, "me/trained", Quiet(), api=hub)
    card = (hub.folder / "README.md").read_text()
    assert "without data" not in card and "with the rows it was trained on" in card


@pytest.mark.parametrize(
    ("last", "row"),
    [
        ({"loss": "nan", "accuracy": 0.0}, "| loss | 0.75 | nan |"),
        ({"loss": "inf", "accuracy": None}, "| accuracy | 0.5 | - |"),
        ({"loss": 0.25, "f1": 0.125}, "| f1 | - | 0.125 |"),
    ],
)
def test_card_of_a_run_that_diverged(config: Config, hub: Hub, last: dict[str, Any], row: str) -> None:
    """NaN is written as NaN, and what was not measured as a dash: neither is 0."""
    settings = config(steps=1)
    train(settings, Quiet())
    first = {"loss": 0.75, "accuracy": 0.5, "examples": 10, "low": 0.3, "high": 0.7}
    lines = [{"step": 0, "eval": first}, {"step": 1, "eval": {**first, **last}}]
    path = settings.output_dir / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    push(settings.output_dir, "me/it", Quiet(), "journal", api=hub)
    assert row in (hub.folder / "README.md").read_text()


def test_card_of_a_header_without_its_hashes(config: Config, hub: Hub) -> None:
    """A journal of `zotune.replay`'s own kind lacks what `zotune train` adds: that is said."""
    settings = config(steps=1)
    train(settings, Quiet())
    path = settings.output_dir / "journal.zoj"
    header, records, _ = read(path)
    path.unlink()
    kept = {key: value for key, value in header.items() if key not in ("config", "base_sha256", "zotune", "torch")}
    with Journal.create(path, kept) as journal:
        for record in records:
            journal.append(record)
    push(settings.output_dir, "me/it", Quiet(), "journal", api=hub)
    assert "hash of the base weights: `not recorded`" in (hub.folder / "README.md").read_text()


def test_journal_alone(config: Config, hub: Hub) -> None:
    """No weights at all: kilobytes."""
    settings = config()
    train(settings, Quiet())
    found = push(settings.output_dir, "me/small", Quiet(), "journal", api=hub)
    assert found["files"] == ["README.md", "zotune/config.yaml", "zotune/journal.zoj", "zotune/metrics.jsonl"]
    assert found["bytes"] < 20_000


def test_to_writes_here_and_uploads_nothing(config: Config, tmp_path: Path) -> None:
    """For a look before it is public."""
    settings = config()
    train(settings, Quiet())
    found = push(settings.output_dir, "me/small", Quiet(), "journal", to=tmp_path / "look", api=Hub(tmp_path / "no"))
    assert (tmp_path / "look" / "zotune" / "journal.zoj").exists() and found["url"] is None
    assert not (tmp_path / "no").exists()


def test_what_the_hub_refuses_is_one_error(config: Config, tmp_path: Path) -> None:
    """No token, no network, no name: the thing and the remedy; nothing is changed."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    settings = config()
    train(settings, Quiet())
    before = sorted(path.name for path in settings.output_dir.iterdir())
    for error in (LocalTokenNotFoundError("no token"), ConnectionError("unreachable")):
        with pytest.raises(UserError, match="could not be pushed.*hf auth login"):
            push(settings.output_dir, "me/x", Quiet(), "journal", api=Hub(tmp_path / "no", error))
    with pytest.raises(ConfigError, match="is no name of a repository"):
        push(settings.output_dir, "a/b/c", Quiet(), api=Hub(tmp_path / "no"))
    assert sorted(path.name for path in settings.output_dir.iterdir()) == before


def test_offline_nothing_is_sent(config: Config) -> None:
    """HF_HUB_OFFLINE, under which all tests run: the real client refuses before a socket is opened."""
    settings = config()
    train(settings, Quiet())
    with pytest.raises(UserError, match="could not be pushed"):
        push(settings.output_dir, "me/x", Quiet(), "journal")
