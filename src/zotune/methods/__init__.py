"""The one table of methods. Adding one: a file in this folder and a row here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from zotune.methods.agzo import AGZO
from zotune.methods.aimzo import AIMZO
from zotune.methods.conmezo import ConMeZO
from zotune.methods.curvzo import CurvZO
from zotune.methods.eggroll import EGGROLL
from zotune.methods.es import ES
from zotune.methods.fzoo import FZOO
from zotune.methods.grzo import GRZO
from zotune.methods.hizoo import HiZOO
from zotune.methods.kerzoo import KerZOO
from zotune.methods.loren import LOREN
from zotune.methods.lozo import LoZO
from zotune.methods.lozo_m import LoZOM
from zotune.methods.meazo import MEAZO
from zotune.methods.mezo import MeZO
from zotune.methods.qzo import QZO
from zotune.methods.sparse_mezo import SparseMeZO
from zotune.methods.subzero import SubZero
from zotune.methods.zo_muon import ZOMuon
from zotune.optimizer import ZerothOrder

__all__ = [
    "AGZO",
    "AIMZO",
    "ConMeZO",
    "CurvZO",
    "EGGROLL",
    "ES",
    "FZOO",
    "GRZO",
    "HiZOO",
    "KerZOO",
    "LOREN",
    "LoZO",
    "LoZOM",
    "MEAZO",
    "METHODS",
    "MeZO",
    "Method",
    "QZO",
    "SparseMeZO",
    "SubZero",
    "ZOMuon",
    "accepts",
    "table",
]


@final
@dataclass(frozen=True)
class Method:
    """A row: the factory `build(model, **arguments)`, its paper, and what it costs.

    forwards_per_step is an expression over the recorded arguments and, where it grows, the step's number from 0.
    """

    name: str
    build: Callable[..., ZerothOrder]
    arxiv: str
    forwards_per_step: str
    state: str
    replayable: bool


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            "mezo",
            MeZO,
            "2305.17333",
            "1 if feedback == 'residual' else 2 * queries if samples_over is None "
            "else 2 * max(1, min(step, samples_over) * queries // samples_over)",
            "none; with moments a key and a number per past direction, with scaling one number per tensor",
            True,
        ),
        Method("sparse_mezo", SparseMeZO, "2402.15751", "2 * queries", "one threshold per tensor", True),
        Method(
            "lozo",
            LoZO,
            "2410.07698",
            "2 * queries",
            "U and V of the step: rank * (rows + columns) per matrix",
            True,
        ),
        Method(
            "agzo",
            AGZO,
            "2601.17261",
            "queries + 1 if sided == 'one' else 2 * queries + 1",
            "a basis of the step: rank * inputs per layer",
            False,
        ),
        Method(
            "aimzo",
            AIMZO,
            "2609.35257",
            "probes + 1",
            "a basis: width * inputs per layer",
            False,
        ),
        Method("curvzo", CurvZO, "2603.21725", "2 * queries", "one score per tensor", True),
        Method(
            "lozo_m",
            LoZOM,
            "2410.07698",
            "2 * queries",
            "as lozo, and the momentum: rank * rows per matrix, one number per weight of a vector",
            True,
        ),
        Method(
            "hizoo",
            HiZOO,
            "2402.15173",
            "2 * queries + 1",
            "the curvature: one number per weight; rows + columns with curvature=factored, 1 with tensor",
            True,
        ),
        Method("conmezo", ConMeZO, "2511.02757", "2 * queries", "the momentum: one number per weight", True),
        Method(
            "loren",
            LOREN,
            "2511.07971",
            "queries",
            "a: columns per matrix; one number per weight with momentum",
            True,
        ),
        Method(
            "subzero",
            SubZero,
            "2410.08989",
            "2 * queries if sides == 2 else queries + 1",
            "U and V: rank * (rows + columns) per matrix; cores: rank^2 per query, Adam's moments 2 rank^2",
            True,
        ),
        Method(
            "zo_muon",
            ZOMuon,
            "2602.17155",
            "queries + 1",
            "P: rank * rows per matrix",
            True,
        ),
        Method(
            "grzo",
            GRZO,
            "2606.02857",
            "2",
            "signs of the step: rows + columns per matrix and example",
            True,
        ),
        Method("meazo", MEAZO, "2605.03869", "2 * queries * groups", "one number per group", True),
        Method("fzoo", FZOO, "2506.09034", "population + 1", "none", True),
        Method("es", ES, "2509.24372", "population", "none", True),
        Method(
            "eggroll",
            EGGROLL,
            "2511.16652",
            "population",
            "A and B of the step: rank * (rows + columns) per matrix and pair",
            True,
        ),
        Method("kerzoo", KerZOO, "2505.18886", "2 * queries", "none", True),
        Method("qzo", QZO, "2505.13430", "2 * queries", "none", True),
    )
}


def table() -> list[dict[str, Any]]:
    """The rows as plain values: name, arxiv, forwards_per_step, state, replayable."""
    keys = ("name", "arxiv", "forwards_per_step", "state", "replayable")
    return [{key: getattr(row, key) for key in keys} for row in METHODS.values()]


def accepts(name: str) -> set[str]:
    """The argument names that a method takes. Raises KeyError for an unknown method."""
    parameters = inspect.signature(METHODS[name].build).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD} - {"model"}
