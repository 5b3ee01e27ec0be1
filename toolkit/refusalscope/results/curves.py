"""The stored parts of curves, transfer and cost: bounded tables of numbers, each with its interval and placebo."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from refusalscope.reprs import Shown, among, between
from refusalscope.results.files import CLOSED
from refusalscope.results.parts import Cost, Count, Line, Lines, Share, Short, Value

MAX_POINTS, MAX_CELLS, MAX_STEPS = 400, 2000, 20

Axis = Literal["dose", "rank", "pairs", "locate_pf", "first", "last", "scope", "depth", "condition", "label"]
CurveName = Literal["dose", "rank", "prompt budget", "layer scope", "opening depth"]


@dataclass(frozen=True, repr=False, config=CLOSED)
class Band(Shown):
    """The central 95% of ``n`` placebos, and the one-sided rank of the value among them: p = (1 + b) / (1 + n)."""

    low: float
    high: float
    p: Share
    n: Count

    def __repr__(self) -> str:
        return f"Band of placebos: {among(self.p, self.n)}"

    def __str__(self) -> str:
        return f"placebos: n = {self.n}, band {between(self.low, self.high)}, p = {self.p:.2g}"


@dataclass(frozen=True, repr=False, config=CLOSED)
class CurvePoint(Shown):
    """One measured value of a curve, at its place; ``placebo`` is None where none ran, and the note says why."""

    at: dict[Axis, float | Short]
    measure: Literal["bypass", "suppression", "kl", "margin"]
    value: Value
    placebo: Band | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class CurveFacts(Shown):
    """A curve of one subspace on part of the report split, with the numbers read off it and what it took."""

    name: CurveName
    landmarks: dict[Short, Value]
    points: Annotated[tuple[CurvePoint, ...], Field(max_length=MAX_POINTS)]
    pf: Cost
    seconds: Cost


@dataclass(frozen=True, repr=False, config=CLOSED)
class TransferCell(Shown):
    """Located on the source group, measured on the target group of the report split."""

    grouping: Short
    source: Short
    target: Short
    measure: Literal["bypass", "suppression", "kl"]
    value: Value
    random: Band | None
    shuffled: Band | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class TransferFacts(Shown):
    """Source × target matrices at one cell of the grid."""

    cells: Annotated[tuple[TransferCell, ...], Field(max_length=MAX_CELLS)]
    pf: Cost


@dataclass(frozen=True, repr=False, config=CLOSED)
class StepCost(Shown):
    """One step of locating and ablating on this model. Seconds are one wall-clock run, None where it was not timed."""

    step: Short
    pf: Cost
    tokens: Cost
    flops: Cost
    attention_flops: Cost
    seconds: Cost | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class LargerModel(Shown):
    """What the same recipe would take on a larger model: arithmetic on the assumptions, not a measurement."""

    model: Short
    parameters: Cost
    active: Cost
    layers: Count
    pf: Cost
    flops: Cost
    seconds: Cost


@dataclass(frozen=True, repr=False, config=CLOSED)
class CostFacts(Shown):
    """What one attack took here, step by step, and what it would take elsewhere under stated assumptions."""

    steps: Annotated[tuple[StepCost, ...], Field(max_length=MAX_STEPS)]
    larger: Annotated[tuple[LargerModel, ...], Field(max_length=MAX_STEPS)]
    assumptions: Lines
    note: Line
