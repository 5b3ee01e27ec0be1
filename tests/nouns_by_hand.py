"""Nouns that annotations alone cannot make: those that hold a live model, and those whose frames have columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas as pd

import results_by_hand
from public_nouns import HOSTILE, NUMBER, hostile, public_nouns
from refusalscope.attack import Attack
from refusalscope.model import ChatModel
from refusalscope.model.writes import Component, Writers
from refusalscope.receipt import Receipt
from refusalscope.rule import Cell
from refusalscope.stats import Estimate
from refusalscope.subspace import Subspace

Given = Mapping[type, object]
LINE = HOSTILE.replace("\n", " ")


def instances(tiny: ChatModel) -> dict[str, object]:
    """An instance of every public noun by its name, hostile throughout."""
    given = {ChatModel: replace(tiny, origin=replace(tiny.origin, name=HOSTILE, architecture=HOSTILE))}
    given |= {Attack: Attack(hostile(Subspace, layer=1, position=-1))}
    return {
        name: MAKERS[name](noun, given) if name in MAKERS else hostile(noun, given)
        for name, noun in public_nouns().items()
    }


def _choice(noun: type, given: Given) -> object:
    cell = Cell(1, -1)
    frame = pd.DataFrame({"layer": [1], "position": [-1], "bypass": [NUMBER], "share": [NUMBER]})
    estimates = {"bypass": {cell: hostile(Estimate, given)}}
    subspace = hostile(Subspace, layer=1, position=-1)
    return hostile(noun, given, subspace=subspace, cells=frame, estimates=estimates, near_ties=frame, mode=HOSTILE)


def _comparison(noun: type, given: Given) -> object:
    row = {"model": HOSTILE, "state": HOSTILE, "value": NUMBER, "low": NUMBER, "high": NUMBER, "clusters": 3}
    return hostile(noun, given, frame=pd.DataFrame([row]), note=HOSTILE)


def _monitor(noun: type, given: Given) -> object:
    cells = pd.DataFrame({"auroc": [NUMBER], "worst_auroc": [NUMBER], "chosen": [True]})
    return hostile(noun, given, cells=cells, subspace=hostile(Subspace, layer=1, position=-1))


def _survival(noun: type, given: Given) -> object:
    row = {"ablated": HOSTILE, "dose": NUMBER, "state": "holds", "caught": HOSTILE}
    return hostile(noun, given, conditions=pd.DataFrame([row]))


def _attribution(noun: type, given: Given) -> object:
    row = {"component": HOSTILE, "value": NUMBER, "low": NUMBER, "high": NUMBER, "n": 3, "note": HOSTILE}
    frame = pd.DataFrame([row | {"random_low": NUMBER, "random_high": NUMBER}])
    return hostile(noun, given, frame=frame, writers=Writers((Component("mlp", 0),), ()))


MAKERS: dict[str, Callable[[type, Given], object]] = {
    "selection.Choice": _choice,
    "report.compare.Comparison": _comparison,
    "monitor.fit.Monitor": _monitor,
    "monitor.surviving.Survival": _survival,
    "attribution.direct.Attribution": _attribution,
    "receipt.Receipt": lambda _noun, _given: Receipt(HOSTILE, (HOSTILE,), checked=()),
    "results.stored.GuardrailCard": lambda _noun, _given: results_by_hand.card(name=LINE, source=LINE),
    **dict.fromkeys(
        ("objective.RdoObjective", "objective.InterchangeObjective"),
        lambda noun, given: hostile(noun, before=hostile(_baseline(), given), terms={HOSTILE: NUMBER}),
    ),
}


def _baseline() -> type:
    return public_nouns()["effect.Baseline"]
