"""A journal's header from anywhere: refused by name, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from zotune.config import TrainConfig
from zotune.errors import JournalError
from zotune.header import check_arguments, check_header
from zotune.journal import Journal, read
from zotune.revisit import replay
from zotune.train import train
from zotune.watch import Quiet


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h["arguments"].update(rank=10**9), "rank is 1000000000"),
        (lambda h: h["parameters"].append(h["parameters"][0]), "each of its parameters once"),
        (lambda h: h["parameters"].clear(), "each of its parameters once"),
        (lambda h: h["arguments"].update(groups=2**63), "groups is 9223372036854775808"),
        (lambda h: h["parameters"][0].update(shape=[-1]), "parameters is "),
        (lambda h: h["parameters"][0].pop("name"), "parameters is "),
        (lambda h: h["groups"][0].update(weight_decay=float("nan")), "groups is "),
        (lambda h: h["groups"][0].update(weight_decay=10**400), "groups is "),
        (lambda h: h.update(parameters=None), "parameters is 'None'"),
        (lambda h: h.update(blocks=[]), "blocks is "),
        (lambda h: h.update(fold_every=0), "fold_every is '0'"),
        (lambda h: h.update(base_sha256=5), "base_sha256 is '5'"),
        (lambda h: h.update(config="x"), "config is 'x'"),
        (lambda h: h.update(functions={"f": 3}), "functions is "),
        (lambda h: h.update(seed=-1), "seed is '-1'"),
        (lambda h: h.update(seed=True), "seed is 'True'"),
        (lambda h: h.update(stream=3), "stream is '3'"),
        (lambda h: h.pop("arguments"), "no arguments"),
        (lambda h: h.pop("method"), "no method"),
    ],
)
def test_header(config: Callable[..., TrainConfig], change: Callable[[dict[str, Any]], Any], said: str) -> None:
    """A whole header with counts or shapes that no run writes is refused before a model is touched."""
    train(config(steps=1), Quiet())
    header = read(config().output_dir / "journal.zoj")[0]
    check_header(header)
    change(header)
    with pytest.raises(JournalError, match=f"{said}.*Remedy"):
        check_header(header)


@pytest.mark.parametrize(
    "change",
    [
        {"law": []}, {"law": 10**9}, {"law": "other"}, {"eps": "x"}, {"queries": 1.5}, {"x": 1}, {"eps": 1e300},
        {"queries": 10**9}, {"history": 2**63}, {"samples_over": True},
    ],
)  # fmt: skip
def test_arguments_of_another_type(config: Callable[..., TrainConfig], change: dict[str, Any]) -> None:
    """Arguments that the method does not take, or of another type, are refused by a replay with the whole header."""
    train(config(steps=1), Quiet())
    path = config().output_dir / "journal.zoj"
    header, records, _ = read(path)
    header["arguments"].update(change)
    path.unlink()
    with Journal.create(path, header) as journal:
        for record in records:
            journal.append(record)
    with pytest.raises(JournalError, match=f"{next(iter(change))}.*Remedy"):
        replay(config().output_dir, False, Quiet())


def test_the_largest_seed() -> None:
    """64 bits and no more; a header without anything trained is whole."""
    header = {"stream": {}, "method": "mezo", "arguments": {}, "parameters": [], "groups": []}
    for seed in (0, 2**64 - 1):
        check_header({**header, "seed": seed})
    with pytest.raises(JournalError, match="seed is '18446744073709551616'"):
        check_header({**header, "seed": 2**64})


def build(
    model: Any, law: Literal["gaussian", "rademacher"] = "gaussian", eps: float = 1e-3, queries: int = 1,
    folded: bool = False, other: list[int] | None = None, clip: float | None = None, interval: int = 1,
) -> None:  # fmt: skip
    """A factory as those of the methods."""


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("law", ["gaussian", "rademacher"], ["", "Gaussian", 1, None, ["gaussian"]]),
        ("eps", [1e-3, 1, 0, -2.5, 1e30], [True, "1e-3", None, [1.0], 1e31, float("nan"), float("inf")]),
        ("queries", [0, 7, 65536], [True, 1.0, "1", None, 65537]),
        ("interval", [2**24], [2**24 + 1, -(2**63)]),
        ("clip", [None, 1.5], [True, "1.5", [1.5], 1e300]),
        ("folded", [True, False], [0, 1, "true"]),
        ("other", [None, [1]], ["a word", 1]),
        ("unknown", [], ["what this version does not know", None]),
    ],
)
def test_a_value_has_the_type_of_its_argument(name: str, right: list[Any], wrong: list[Any]) -> None:
    """As a run would have written it: true is no number, 1.0 no count, and a word one of those that there are."""
    for value in right:
        check_arguments(build, {name: value})
    for value in wrong:
        with pytest.raises(JournalError, match=f"is not of a run: {name} is .*Remedy: restore the file"):
            check_arguments(build, {"eps": 0.1, name: value})
