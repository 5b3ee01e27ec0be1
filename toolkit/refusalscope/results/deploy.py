"""The stored part that says what a deployment can rely on: three safeguards, each with its measured rates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from refusalscope.reprs import Shown
from refusalscope.results.curves import Band
from refusalscope.results.files import CLOSED
from refusalscope.results.parts import Line, Short, Value


@dataclass(frozen=True, repr=False, config=CLOSED)
class Rate(Shown):
    """A measured share, with the same of random subspaces where it has such a placebo."""

    name: Short
    value: Value
    placebo: Band | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class Reliance(Shown):
    """What one safeguard can be relied on for, and the rates behind the sentence; none where it was not measured."""

    of: Literal["guardrail", "audit", "monitor"]
    sentence: Line
    rates: Annotated[tuple[Rate, ...], Field(max_length=12)]
