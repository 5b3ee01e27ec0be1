"""Does any candidate survive the selection rule, and if none does, what removed them and which came nearest?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from refusalscope import stats
from refusalscope.diagnosis.findings import Exact, Finding, Number
from refusalscope.errors import SelectionError
from refusalscope.prompts import Prompts
from refusalscope.rule import KINDS, Cell, Kind, Rule, search
from refusalscope.scoring import ModelScorer
from refusalscope.subspace import NotExported

SELECTION = "selection"
REMOVED: dict[str, tuple[str, str]] = {
    "does not induce": (
        "adding it does not make the model refuse",
        "Give prompts that this model clearly declines, or look at the layers where the classes separate.",
    ),
    "damages": (
        "ablating it changes how harmless prompts are answered",
        "Locate with winsorised or standardised activations, or from more prompts.",
    ),
    "late layer": ("it lies in the last layers", "Raise the rule's layer_share, and say so."),
    "invalid": ("it could not be scored", "Load the model again, in float32."),
}


@dataclass(frozen=True, eq=False)
class Searched(NotExported):
    """What the rule made of every cell.

    Attributes:
        reasons: per cell, why it was removed, in the rule's own words; ``kept`` and ``not needed`` otherwise.
        cell: the rule's choice, else the best rejected cell; None where not one was scored.
        found: whether the rule chose it.
        pf: prompt-forwards spent.
    """

    scorer: ModelScorer
    rule: Rule
    reasons: Mapping[Cell, str]
    cell: Cell | None
    found: bool
    pf: float


def searched(scorer: ModelScorer, cells: Sequence[Cell], *, rule: Rule) -> Searched:
    """Returns the selection rule applied to ``cells``, whether or not one survives it."""
    try:
        found = search(scorer, cells, rule=rule, mode="winner")
    except SelectionError as none:
        reasons = _reasons(none.cells)
        return Searched(scorer, rule, reasons, _nearest(scorer, reasons), False, _spent(scorer))
    return Searched(scorer, rule, _reasons(found.cells), found.chosen, True, _spent(scorer))


def _reasons(cells: pd.DataFrame) -> Mapping[Cell, str]:
    rows = zip(cells["layer"], cells["position"], cells["reason"], strict=True)
    return {Cell(int(layer), int(position)): str(reason) for layer, position, reason in rows}


def _spent(scorer: ModelScorer) -> float:
    """Prompt-forwards that ran: the scores asked for, and those of the two baselines that any of them needed."""
    baselines = {"restricted_margin": scorer.restricted, "harmless_base": scorer.harmless}
    needed = sum(len(prompts) for name, prompts in baselines.items() if name in vars(scorer))
    return float(needed + sum(scorer.cost(kind, cell) for kind in KINDS for cell in scorer.values[kind]))


def selection(made: Searched, prompts: Prompts) -> Finding:
    """Returns whether a cell survives, with how many each filter removed and what the best one failed by."""
    numbers: dict[str, Number] = {
        f"cells: {reason}": Exact(count, len(made.reasons), "cells") for reason, count in _counts(made.reasons)
    }
    if made.cell is not None:
        role = "chosen" if made.found else "best rejected"
        numbers |= {f"{role} cell, {name}": number for name, number in _scores(made, made.cell, prompts).items()}
    if made.found:
        return Finding(SELECTION, "clear", "A candidate survives the selection rule.", numbers)
    if all(reason in ("invalid", "late layer") for reason in made.reasons.values()):
        sentence = "No candidate could be scored, so nothing is said about what the rule would choose."
        return Finding(SELECTION, "invalid", sentence, numbers, REMOVED["invalid"][1], "every score is no number")
    why, action = REMOVED[made.reasons[made.cell] if made.cell else _counts(made.reasons)[0][0]]
    sentence = f"No candidate survives the selection rule; of the best one, {why}."
    return Finding(SELECTION, "fired", sentence, numbers, action)


def _counts(reasons: Mapping[Cell, str]) -> list[tuple[str, int]]:
    named = list(reasons.values())
    return sorted(((one, named.count(one)) for one in dict.fromkeys(named)), key=lambda pair: (-pair[1], pair[0]))


def _mean(scorer: ModelScorer, kind: Kind, cell: Cell) -> float | None:
    values = scorer.values[kind].get(cell)
    return None if values is None else float(values.double().mean())


def _nearest(scorer: ModelScorer, reasons: Mapping[Cell, str]) -> Cell | None:
    """The rejected cell with the lowest margin under ablation; where none was asked for it, the strongest inducer."""
    real = [cell for cell, reason in reasons.items() if reason != "invalid" and not scorer.candidates.is_empty(*cell)]
    bypass = {cell: score for cell in real if (score := _mean(scorer, "bypass", cell)) is not None}
    induce = {cell: score for cell in real if (score := _mean(scorer, "induce", cell)) is not None}
    return min(bypass, key=bypass.__getitem__) if bypass else max(induce, key=induce.__getitem__, default=None)


def _scores(made: Searched, cell: Cell, prompts: Prompts) -> Mapping[str, Number]:
    names: dict[Kind, tuple[str, Prompts]] = {
        "bypass": ("margin under ablation", prompts.restricted),
        "induce": ("margin under addition", prompts.harmless),
        "kl": ("KL(base‖ablated)", prompts.harmless),
    }
    numbers: dict[str, Number] = {
        name: stats.mean(made.scorer.values[kind][cell].double().numpy(), clusters=asked.clusters, unit="nats")
        for kind, (name, asked) in names.items()
        if cell in made.scorer.values[kind]
    }
    by = _fails_by(made, cell)
    return numbers if by is None else numbers | {"fails by, nats": Exact(by, len(prompts.harmless), "harmless prompts")}


def _fails_by(made: Searched, cell: Cell) -> float | None:
    kl, induce = _mean(made.scorer, "kl", cell), _mean(made.scorer, "induce", cell)
    if made.reasons[cell] == "damages" and kl is not None:
        return kl - made.rule.kl_limit
    return made.rule.induce_floor - induce if made.reasons[cell] == "does not induce" and induce is not None else None
