"""Tidy frames: from measurements to the columns the drawings name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from refusalscope.activations import ContrastActivations
from refusalscope.effect import Baseline, Effect, mean_margin
from refusalscope.errors import MeasurementError
from refusalscope.rule import KINDS, Cell
from refusalscope.selection import Choice
from refusalscope.stats import Estimate
from refusalscope.subspace import Candidates, Subspace
from refusalscope.truth import OrganismCard


def margins(before: Baseline, after: Mapping[str, Float[Tensor, " prompt"]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns (points, summary): one margin per prompt, and the mean with its interval, by condition and label.

    ``after`` maps the name of a condition to margins of the restricted prompts under it.
    """
    parts = [("before", "harmless", before.harmless), ("before", "restricted", before.restricted)]
    parts += [(name, "restricted", values) for name, values in after.items()]
    sets = {"harmless": before.prompts.harmless, "restricted": before.prompts.restricted}
    points = [{"condition": name, "label": label, "value": float(x)} for name, label, values in parts for x in values]
    summary = [
        {"condition": name, "label": label, **_interval(mean_margin(values, sets[label]))}
        for name, label, values in parts
    ]
    return pd.DataFrame(points), pd.DataFrame(summary)


def separability(located: ContrastActivations, tested: ContrastActivations, candidates: Candidates) -> pd.DataFrame:
    """Returns AUROC per (layer, position): restricted against harmless prompts, projected on a candidate.

    The candidate comes from ``located``, the prompts from ``tested``, captured with ``keep_each=True``. An empty
    candidate separates nothing: it gets one half. Columns ``layer position auroc n``.
    """
    if (
        located.restricted.mean.shape != tested.restricted.mean.shape
        or tested.restricted.each is None
        or tested.harmless.each is None
    ):
        raise MeasurementError(
            "Separability needs both sets captured on one model, the tested one with keep_each=True."
        )
    n = (tested.restricted.n, tested.harmless.n)
    labels = [1] * n[0] + [0] * n[1]
    pooled = torch.cat([tested.restricted.each, tested.harmless.each]).double()
    rows = []
    for layer, position in candidates.cells():
        scores = pooled[:, layer, position] @ candidates.at(layer, position).vectors[0]
        flat = candidates.is_empty(layer, position)
        rows.append((layer, position, 0.5 if flat else float(roc_auc_score(labels, scores.numpy())), sum(n)))
    return pd.DataFrame(rows, columns=["layer", "position", "auroc", "n"])


def recovery(candidates: Candidates, truth: Subspace) -> pd.DataFrame:
    """Returns the smallest principal angle between every candidate and the planted truth, in degrees.

    Empty candidates are left out. Columns ``layer position angle_degrees``.
    """
    cells = [Cell(*cell) for cell in candidates.cells() if not candidates.is_empty(*cell)]
    degrees = [math.degrees(float(candidates.at(*cell).angles(truth)[0])) for cell in cells]
    return pd.DataFrame(cells).assign(angle_degrees=degrees)


def random_angles(truth: Subspace, placebos: list[Subspace]) -> tuple[float, float]:
    """Returns the band of angles that random directions make with the truth, in degrees: 2.5% and 97.5% quantiles."""
    degrees = torch.tensor([math.degrees(float(placebo.angles(truth)[0])) for placebo in placebos])
    return float(degrees.quantile(0.025)), float(degrees.quantile(0.975))


def grid(choice: Choice) -> pd.DataFrame:
    """Returns the selection grid with an interval for every measured score, as ``plotting.selection_grid`` takes it.

    ``n`` is the number of prompts behind a cell's scores, zero where none was measured.
    """
    frame = choice.cells.assign(n=0)
    for kind in KINDS:
        found = [
            choice.estimates[kind].get(Cell(layer, position))
            for layer, position in zip(frame["layer"], frame["position"], strict=True)
        ]
        frame[f"{kind}_low"] = [math.nan if estimate is None else estimate.low for estimate in found]
        frame[f"{kind}_high"] = [math.nan if estimate is None else estimate.high for estimate in found]
        frame["n"] = [
            n if estimate is None else max(n, estimate.n) for n, estimate in zip(frame["n"], found, strict=True)
        ]
    return frame


def ties(choice: Choice) -> pd.DataFrame:
    """Returns the near-ties with the interval of their margin, as ``plotting.near_ties`` takes them."""
    frame = choice.near_ties.copy()
    found = [
        choice.estimates["bypass"][Cell(layer, position)]
        for layer, position in zip(frame["layer"], frame["position"], strict=True)
    ]
    columns = {column: [getattr(estimate, column) for estimate in found] for column in ("low", "high", "n")}
    return frame.assign(**columns)


def doses(series: Mapping[str, Mapping[float, Effect]]) -> pd.DataFrame:
    """Returns suppression by dose, a series per ablated subspace. Columns ``dose series value low high n``."""
    rows = [
        {"dose": dose, "series": name, **_interval(found.suppression)}
        for name, curve in series.items()
        for dose, found in curve.items()
    ]
    return pd.DataFrame(rows)


def organisms(cards: list[OrganismCard], measured: str) -> pd.DataFrame:
    """Returns one rate of several organisms and its target. Columns ``condition group value low high n target``."""
    kept = [(card.name, card.measured[measured]) for card in cards if measured in card.measured]
    rows = [
        (measured, name, m.value, m.low, m.high, m.n, m.at_least if m.at_least is not None else m.at_most)
        for name, m in kept
    ]
    return pd.DataFrame(rows, columns=["condition", "group", "value", "low", "high", "n", "target"])


def counts(before: list[str], after: Mapping[str, list[str]]) -> pd.DataFrame:
    """Returns how many prompts were refused, complied with or degenerate, by condition. Sums to n in every row."""
    conditions = {"before": before, **after}
    labels = ("refused", "complied", "degenerate")
    rows = [
        {"condition": name, "n": len(marks)} | {label: marks.count(label) for label in labels}
        for name, marks in conditions.items()
    ]
    return pd.DataFrame(rows)


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def card_refusals(cards: Sequence[Any]) -> pd.DataFrame:
    """Returns shares of prompts refused at temperature zero, a row per card and label: ``group condition value …``.

    Of cards whose baseline was measured; the others have no row. Columns ``group condition value low high n clusters``.
    """
    rows = [
        {"group": card.model.name, "condition": label, **_stored(getattr(card.baseline, f"refused_{label}"))}
        for card in cards
        if card.baseline is not None
        for label in ("restricted", "harmless")
    ]
    return pd.DataFrame(rows)


def card_margins(cards: Sequence[Any]) -> pd.DataFrame:
    """Returns mean margins of restricted prompts before and under the worst case, in nats, beside those of placebos.

    Of cards with a worst case. Columns ``model when value low high n clusters placebo_low placebo_high``.
    """
    rows = []
    for card in cards:
        worst = card.optionality
        if worst is None or worst.margin_after is None:
            continue
        low, high = worst.placebo_margins or (math.nan, math.nan)
        null = {"placebo_low": low, "placebo_high": high}
        for when, one in (("before", card.baseline.restricted), ("worst case", worst.margin_after)):
            rows.append({"model": card.model.name, "when": when, **_stored(one), **null})
    return pd.DataFrame(rows)


def card_frontiers(cards: Sequence[Any]) -> pd.DataFrame:
    """Returns Ω(κ) of every card over κ, as ``plotting.frontier`` draws it: a series per model, with n and placebo."""
    rows = [
        {
            "series": f"{card.model.name} (n = {point.bypass.n})",
            "kappa": point.kappa,
            "measure": "bypass",
            **_stored(point.bypass),
        }
        | {"placebo": math.nan if point.placebo_bypass is None else point.placebo_bypass}
        for card in cards
        if card.optionality is not None
        for point in card.optionality.frontier
    ]
    return pd.DataFrame(rows)


def _stored(value: Any) -> dict[str, Any]:
    low, high = value.interval or (math.nan, math.nan)
    number = math.nan if value.value is None else value.value
    return {"value": number, "low": low, "high": high, "n": value.n, "clusters": value.clusters}
