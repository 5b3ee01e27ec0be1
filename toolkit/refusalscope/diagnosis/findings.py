"""Findings and the diagnosis they make: values that say what was found, on which numbers, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pandas as pd

from refusalscope.reprs import Shown, table
from refusalscope.rule import Cell
from refusalscope.stats import MIN_CLUSTERS, Estimate

State = Literal["fired", "clear", "cannot tell", "invalid"]
Side = Literal["above", "below", "open"]
GIVE_MORE = "Give more prompts, in at least five clusters per label and split."
FIRST = "Settle the other findings first."
NOTHING_TO_DO = "Nothing to do."
BYPASS, MOST = "bypass rate", 0.5
CARRIED: dict[Side, str] = {
    "above": "fits the picture",
    "below": "nothing is in the way of measuring it, but the direction found does not carry its refusals",
    "open": "nothing is in the way of measuring it, but whether the direction found carries its refusals is open",
}


@dataclass(frozen=True, repr=False)
class Exact(Shown):
    """A number that is counted or computed, not estimated: ``value``, out of or over ``n`` of something."""

    value: float | int
    n: int
    of: str

    def __repr__(self) -> str:
        return f"Exact: counted, of {self.of}"

    def __str__(self) -> str:
        spelled = str(self.value) if isinstance(self.value, int) else f"{self.value:.3g}"
        return f"{spelled} (n = {self.n} {self.of})"

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, a value that is no finite number as None."""
        return asdict(self) | {"value": self.value if math.isfinite(self.value) else None}


Number = Estimate | Exact


@dataclass(frozen=True, repr=False)
class Finding(Shown):
    """One way of not fitting the picture, and whether this model is that way.

    Attributes:
        name: which of the six.
        state: ``fired``: it is so; ``clear``: it is not; ``cannot tell``: the numbers leave it open or there are none;
            ``invalid``: a hook did not do what it declares, so that nothing measured under it counts.
        sentence: the claim, without digits.
        numbers: what the claim stands on.
        action: the one thing to do.
        reason: why it cannot be told or is invalid, with digits; empty for the other two.
    """

    name: str
    state: State
    sentence: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    action: str = NOTHING_TO_DO
    reason: str = ""

    @property
    def fired(self) -> bool:
        """True where the model does not fit the picture in this way."""
        return self.state == "fired"

    def __repr__(self) -> str:
        return f"Finding ({self.state}): {self.sentence}"

    def _repr_html_(self) -> str:
        return table(_rows(self), caption=repr(self))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for strict JSON."""
        numbers = {name: number.to_dict() for name, number in self.numbers.items()}
        return {**{key: getattr(self, key) for key in _TEXTS}, "numbers": numbers}


_TEXTS = ("name", "state", "sentence", "reason", "action")


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """Which of the six a model is. It holds scalars and sentences only.

    Attributes:
        model: name of the model.
        findings: in the order in which one explains the next.
        cell: where the direction was looked at: the selection rule's choice, else the best rejected cell; None where
            nothing was located.
        pf: prompt-forwards spent.
    """

    model: str
    findings: tuple[Finding, ...]
    cell: Cell | None
    pf: float

    @property
    def in_the_way(self) -> bool:
        """True where a finding fired, is invalid or was left open."""
        return any(one.state != "clear" for one in self.findings)

    @property
    def fits(self) -> bool:
        """True where nothing is in the way and the direction that was found carries most refusals."""
        return not self.in_the_way and self._carried == "above"

    @property
    def fired(self) -> tuple[Finding, ...]:
        """The findings that fired."""
        return tuple(one for one in self.findings if one.fired)

    def __getitem__(self, name: str) -> Finding:
        """The finding of a name. Raises KeyError naming those there are."""
        named = {one.name: one for one in self.findings}
        if name not in named:
            raise KeyError(f"There is no finding {name!r}: take one of {', '.join(map(repr, named))}.")
        return named[name]

    @property
    def claim(self) -> str:
        """The diagnosis in one line, without digits."""
        invalid = [one.name for one in self.findings if one.state == "invalid"]
        unknown = [one.name for one in self.findings if one.state == "cannot tell"]
        if not self.in_the_way:
            return CARRIED[self._carried]
        parts = [f"invalid ({', '.join(invalid)})"] if invalid else []
        if self.fired:
            parts += ["does not fit the picture: " + " ".join(one.sentence for one in self.fired)]
        return " ".join([*parts, *([f"Cannot tell: {', '.join(unknown)}."] if unknown else [])])

    @property
    def _carried(self) -> Side:
        """Whether ablating the direction bypasses most refusals: one that resists is measured, not misread."""
        rates = [one.numbers[BYPASS] for one in self.findings if BYPASS in one.numbers]
        return side(rates[0], MOST) if rates and isinstance(rates[0], Estimate) else "open"

    @property
    def frame(self) -> pd.DataFrame:
        """One row per number: ``finding state number value low high n clusters method``."""
        rows = [_row(one, name, number) for one in self.findings for name, number in one.numbers.items()]
        return pd.DataFrame(
            rows, columns=["finding", "state", "number", "value", "low", "high", "n", "clusters", "method"]
        )

    def __repr__(self) -> str:
        return f"Diagnosis of {self.model}: {self.claim}"

    def _repr_html_(self) -> str:
        place = "" if self.cell is None else f"; looked at layer {self.cell.layer}, position {self.cell.position}"
        cost = ("cost", f"{self.pf:,.0f} prompt-forwards{place}")
        return table([*(row for one in self.findings for row in _rows(one)), cost], caption=repr(self))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for strict JSON."""
        cell = None if self.cell is None else {"layer": self.cell.layer, "position": self.cell.position}
        head = {"schema": 1, "model": self.model, "fits": self.fits, "claim": self.claim, "cell": cell, "pf": self.pf}
        return head | {"findings": [one.to_dict() for one in self.findings]}


def side(estimate: Estimate, limit: float) -> Side:
    """Returns on which side of a limit a whole interval lies; ``open`` where it holds the limit or there is none.

    Values that do not vary at all between enough clusters have no interval either: there the value itself decides.
    """
    low, high = (estimate.value,) * 2 if _does_not_vary(estimate) else (estimate.low, estimate.high)
    if low > limit:
        return "above"
    return "below" if high < limit else "open"  # NaN is neither


def why_open(numbers: Mapping[str, Estimate]) -> str:
    """Returns why numbers decide nothing: the first without an interval and its note, else that there are too few."""
    for name, one in numbers.items():
        if one.interval is None:
            return f"{name}: {one.note}"
    return "the intervals hold the limits: " + "; ".join(f"{name} {one}" for name, one in numbers.items())


def _does_not_vary(estimate: Estimate) -> bool:
    units = estimate.n if estimate.clusters is None else estimate.clusters
    return estimate.interval is None and units >= MIN_CLUSTERS


def _rows(one: Finding) -> list[tuple[str, str]]:
    told = f"{one.sentence} ({one.reason})" if one.reason else one.sentence
    return [(f"{one.name}: {one.state}", f"{told} {one.action}"), *((n, str(x)) for n, x in one.numbers.items())]


def _row(one: Finding, name: str, number: Number) -> tuple:
    if isinstance(number, Exact):
        return one.name, one.state, name, float(number.value), math.nan, math.nan, number.n, None, f"of {number.of}"
    return (one.name, one.state, name, number.value, number.low, number.high, number.n, number.clusters, number.method)
