"""From curves, transfer matrices and cost tables in memory to what may be stored of them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from refusalscope.curves import Curve
from refusalscope.results.curves import (
    Band,
    CostFacts,
    CurveFacts,
    CurvePoint,
    LargerModel,
    StepCost,
    TransferCell,
    TransferFacts,
)
from refusalscope.results.facts import one_line, value
from refusalscope.results.from_optionality import number
from refusalscope.results.parts import Value

AXES = ("dose", "rank", "pairs", "locate_pf", "first", "last", "scope", "depth", "condition", "label")
UNITS = {"bypass": "rate", "suppression": "", "kl": "nats"}
Row = dict[Any, Any]


def curve_facts(curve: Curve) -> CurveFacts:
    """Returns a curve as it is stored, without single draws."""
    return CurveFacts(
        name=curve.name,  # pyright: ignore[reportArgumentType]
        landmarks={name: value(mark) for name, mark in curve.landmarks.items()},
        points=tuple(_point(row) for row in curve.frame.to_dict("records")),
        pf=curve.pf,
        seconds=curve.seconds,
    )


def transfer_facts(frame: pd.DataFrame) -> TransferFacts:
    """Returns transfer matrices as they are stored."""
    cells = tuple(
        TransferCell(
            grouping=row["grouping"],
            source=one_line(row["source"]),
            target=one_line(row["target"]),
            measure=row["metric"],
            value=stored_value(row, unit=UNITS[row["metric"]]),
            random=stored_band(row, "random", p="random_p"),
            shuffled=stored_band(row, "shuffled", p="shuffled_p"),
        )
        for row in frame.to_dict("records")
    )
    return TransferFacts(cells, float(frame.attrs["pf"]))


def cost_facts(steps: pd.DataFrame, larger: pd.DataFrame, *, note: str) -> CostFacts:
    """Returns the cost table of this model, and the totals of larger ones with the assumptions behind them."""
    totals = larger.query("step == 'total'").to_dict("records")
    return CostFacts(
        steps=tuple(
            StepCost(
                row["step"], row["pf"], row["tokens"], row["flops"], row["attention_flops"], number(row["seconds"])
            )
            for row in steps.to_dict("records")
        ),
        larger=tuple(
            LargerModel(row["model"], row["parameters"], row["active"], int(row["layers"]), *_spent(row))
            for row in totals
        ),
        assumptions=tuple(larger.loc[larger["model"] == "assumption", "assumption"]),
        note=note,
    )


def _spent(row: Row) -> tuple[float, float, float]:
    return row["pf"], row["flops"], row["seconds"]


def _point(row: Row) -> CurvePoint:
    at = {axis: _place(row[axis]) for axis in AXES if axis in row}
    return CurvePoint(at, row["measure"], stored_value(row, unit=row["unit"]), stored_band(row, "placebo", p="p"))  # pyright: ignore[reportArgumentType]


def _place(x: object) -> float | str:
    return x if isinstance(x, str) else float(x)  # pyright: ignore[reportArgumentType]


def stored_value(row: Row, *, unit: str) -> Value:
    """Returns the columns ``value low high n clusters method note`` of a tidy row as they are stored."""
    known = not (math.isnan(row["low"]) or math.isnan(row["high"]))
    clusters = row["clusters"]
    return Value(
        number(row["value"]),
        (float(row["low"]), float(row["high"])) if known else None,
        int(row["n"]),
        None if clusters is None or pd.isna(clusters) else int(clusters),
        row["method"],
        None,
        unit,  # pyright: ignore[reportArgumentType]
        one_line(row["note"], longest=300),
    )


def stored_band(row: Row, name: str, *, p: str) -> Band | None:
    """Returns a tidy row's placebo columns as they are stored; None where no placebo ran."""
    low, high, rank = (float(row[key]) for key in (f"{name}_low", f"{name}_high", p))
    return None if math.isnan(low) or math.isnan(rank) else Band(low, high, rank, int(row[f"{name}_n"]))
