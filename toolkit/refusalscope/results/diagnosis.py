"""A stored diagnosis: each finding with the numbers it stands on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from refusalscope.reprs import Shown, spelled
from refusalscope.results.files import CLOSED
from refusalscope.results.parts import LONGEST_LINE, MAX_LINES, Cost, Count, Line, Short, Value


@dataclass(frozen=True, repr=False, config=CLOSED)
class ExactFacts(Shown):
    """A number that is counted, not estimated: ``value``, out of or over ``n`` of something."""

    value: float | None
    n: Count
    of: Short

    def __repr__(self) -> str:
        return f"ExactFacts: counted, of {self.of}"

    def __str__(self) -> str:
        return f"{spelled(self.value)} (n = {self.n} {self.of})"


@dataclass(frozen=True, repr=False, config=CLOSED)
class FindingFacts(Shown):
    """One way in which a model may not fit the picture, whether it does, on which numbers, and what to do."""

    name: Short
    state: Literal["fired", "clear", "cannot tell", "invalid"]
    sentence: Line
    reason: Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=LONGEST_LINE)]
    action: Line
    estimated: Annotated[dict[Short, Value], Field(max_length=30)]
    counted: Annotated[dict[Short, ExactFacts], Field(max_length=30)]


@dataclass(frozen=True, repr=False, config=CLOSED)
class DiagnosisFacts(Shown):
    """Why a model does not fit the picture of a refusal direction, or that nothing was found in the way."""

    claim: Line
    fits: bool
    findings: Annotated[tuple[FindingFacts, ...], Field(min_length=1, max_length=MAX_LINES)]
    pf: Cost
