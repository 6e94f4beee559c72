"""Names and settings become configs: what a row takes from the shared one, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zotune.comparison.rows import Row, default_names, make_rows
from zotune.config import TrainConfig
from zotune.errors import ConfigError


def shared(**options: Any) -> TrainConfig:
    """A config of Sparse MeZO on the norms, with a rate of its own."""
    values: dict[str, Any] = {
        "model": "m", "train": Path("t"), "eval": Path("e"), "output_dir": Path("out"), "method": "sparse_mezo",
        "method_args": {"sparsity": 0.5}, "scope": "norms", "lr": 1e-4, "eps": 1e-2, "queries": 2,
    }  # fmt: skip
    return TrainConfig(**{**values, **options})


def one(name: str, *settings: str, **options: Any) -> Row:
    return make_rows(shared(**options), [name], settings)[0]


def test_the_configs_own_method_and_scope() -> None:
    """They take all of it; every row has a folder of its own."""
    row = one("sparse_mezo")
    assert row.config == shared(output_dir=Path("out/runs/sparse_mezo")) and row.kind == "sparse_mezo"
    assert one("sparse_mezo-norms").config.lr == 1e-4


@pytest.mark.parametrize("name", ["lozo", "sparse_mezo-lora", "adamw", "sgd-full"])
def test_other_rows_take_no_rate_of_another(name: str) -> None:
    """Another method or scope has the defaults of its own; steps, rows and seed are shared."""
    config = one(name, steps=77, seed=3).config
    assert (config.lr, config.eps, config.queries, config.method_args) == (None, None, None, {})
    assert (config.steps, config.seed, config.eval) == (77, 3, Path("e"))
    kind, _, scope = name.partition("-")
    assert config.scope == (scope or "norms")
    assert config.method == ("lozo" if kind == "lozo" else "sparse_mezo")


def test_settings_of_a_row() -> None:
    """Numbers, words and lists; a dash in a name is an underscore; a scope of its own that no name has."""
    row = one("lozo-lora", "lozo-lora.lr=3e-4", "lozo-lora.rank=2", "lozo-lora.lora-targets=q,v")
    assert row.config.lr == 3e-4 and row.config.method_args == {"rank": 2} and row.config.lora_targets == ["q", "v"]
    assert one("adamw", "adamw.scope=last:2", "adamw.steps=9").config.scope == "last:2"
    assert one("sparse_mezo", "sparse_mezo.sparsity=0.9").config.method_args == {"sparsity": 0.9}
    assert one("in-context", "in-context.demonstrations=4").given == {"demonstrations": 4}


def test_untrained_rows_get_the_model_as_it_is() -> None:
    """No adapter is added to what is asked without training."""
    assert {row.config.scope for row in make_rows(shared(scope="lora"), ["zero-shot", "in-context"])} == {"full"}


def test_the_mask_goes_to_rows_of_its_scope() -> None:
    """The rows of other scopes, also those without training, are made without it."""
    names = ["zero-shot", "mezo", "mezo-lora", "adamw"]
    rows = make_rows(shared(scope="sensitive&last:2", sensitive=Path("m")), names, ["adamw.scope=full"])
    assert [row.config.sensitive for row in rows] == [None, Path("m"), None, None]


def test_tuned_are_methods_without_a_rate() -> None:
    """Not the one that has a rate, and nothing but methods."""
    names = ["zero-shot", "sparse_mezo", "lozo", "mezo", "adamw"]
    rows = make_rows(shared(), names, ["mezo.lr=1e-5"], tune=True)
    assert [row.name for row in rows if row.tuned] == ["lozo"]


def test_what_decides_a_result() -> None:
    """Folder, device and threads do not; a rate, demonstrations and whether a row is tuned do."""
    row = one("lozo")
    assert row.settings() == one("lozo", output_dir=Path("x"), threads=3, device="cpu").settings()
    others = [one("lozo", "lozo.lr=1e-5"), one("lozo", seed=1), make_rows(shared(), ["lozo"], tune=True)[0]]
    assert all(other.settings() != row.settings() for other in others)
    # What a row has no use for does not matter to it.
    assert one("zero-shot", steps=5, lr=1.0, method="mezo", method_args={}).settings() == one("zero-shot").settings()
    assert one("adamw", eps=1.0, queries=3).settings() == one("adamw").settings() != one("adamw", steps=5).settings()
    assert one("zero-shot", max_length=9).settings() != one("zero-shot").settings()
    few, more = (one("in-context", f"in-context.demonstrations={n}").settings() for n in (2, 4))
    assert few != more


def test_a_row_goes_to_another_process() -> None:
    """As plain values and back."""
    row = one("lozo", "lozo.lr=1e-3", trust_remote_code=True)
    assert Row.of_job(row.as_job()) == row


def test_default_names() -> None:
    """What needs no training, the config's own method, and gradients."""
    names = default_names(shared())
    assert names == ["zero-shot", "in-context", "linear-probe", "sparse_mezo", "adamw", "adamw-lora"]
    assert len(make_rows(shared(), names)) == 6


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (["mezzo"], [], "unknown row 'mezzo'. The nearest is 'mezo'. Remedy"),
        (["zeroshot"], [], "unknown row 'zeroshot'"),
        (["mezo-last:2"], [], "names the scope 'last:2'. Remedy: one of full, .*--set mezo.scope"),
        (["mezo-"], [], "names the scope ''"),
        (["mezo", "mezo"], [], "one stands twice. Remedy"),
        ([], [], "names none. Remedy"),
        (["mezo"], ["mezo.lr"], "setting 'mezo.lr' is none. Remedy: --set ROW.NAME=VALUE"),
        (["mezo"], ["lozo.lr=1"], "no row 'lozo'; there are mezo. Remedy"),
        (["mezo"], ["mezo.template=x"], "row 'mezo' has no setting 'template'. Remedy: it has"),
        (["lozo"], ["lozo.rnak=2"], "no setting 'rnak'. The nearest is 'rank'"),
        (["adamw"], ["adamw.eps=1"], "row 'adamw' has no setting 'eps'"),
        (["zero-shot"], ["zero-shot.lr=1"], "row 'zero-shot' has no setting 'lr'. Remedy: it has none"),
        (["in-context"], ["in-context.demonstrations=many"], "demonstrations is 'many'. Remedy"),
        (["mezo"], ["mezo.lr=fast"], "lr is 'fast'"),
    ],
)
def test_refusals(names: list[str], settings: list[str], said: str) -> None:
    """Before any work, with what would be right."""
    with pytest.raises(ConfigError, match=said):
        make_rows(shared(), names, settings)
