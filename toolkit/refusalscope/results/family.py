"""The stored parts of an optionality: the attack family with its budgets, the frontier, and the worst case on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from refusalscope.reprs import Shown
from refusalscope.results.files import CLOSED
from refusalscope.results.parts import Cost, Count, Line, Lines, PlaceboFacts, Share, Short, Value

MAX_ATTACKS, MAX_KAPPAS = 500, 50


@dataclass(frozen=True, repr=False, config=CLOSED)
class AttackScores(Shown):
    """What one attack does on one split: bypass rate, suppression, and mean KL(base‖intervened) in nats."""

    bypass: float | None
    suppression: float | None
    damage: float | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class AttackFacts(Shown):
    """One member of the family: what it ablates, what it cost to locate, and what it does.

    ``chosen`` is the share of resamples of the select split that choose it for its bypass rate; a member that is not
    ``valid`` did not happen as declared.
    """

    locator: Line
    rank: Annotated[int, Field(ge=1)]
    dose: float
    scope: Short
    n_prompts: Count
    pf: Cost
    valid: bool
    select: AttackScores
    report: AttackScores
    chosen: Share


@dataclass(frozen=True, repr=False, config=CLOSED)
class FrontierPoint(Shown):
    """The frontier at one damage limit κ in nats, with the names of the members chosen there; None: none is within it.

    ``damage`` is that of the member chosen for its bypass rate, on report; ``placebo_*`` the best of all placebos.
    """

    kappa: Annotated[float, Field(gt=0)]
    bypass: Value
    suppression: Value
    member: Line | None
    suppressor: Line | None
    damage: Value | None
    placebo_bypass: float | None
    placebo_suppression: float | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class OptionalityFacts(Shown):
    """Ω(κ) and Ω_s(κ), their means over log κ, the frontier, the family, and where both stand among placebos.

    A placebo rank counts maxima of families of as many random subspaces. ``problems`` says why there is no number.
    """

    kappa: Annotated[float, Field(gt=0)]
    bypass: Value
    bypass_lower: Value | None
    unread: float | None
    over_refusal_before: Value | None
    over_refusal_after: Value | None
    margin_after: Value | None
    placebo_margins: tuple[float, float] | None
    suppression: Value
    index: Value
    suppression_index: Value
    worst: Line | None
    over_limit: bool
    frontier: Annotated[tuple[FrontierPoint, ...], Field(max_length=MAX_KAPPAS)]
    attacks: Annotated[tuple[AttackFacts, ...], Field(max_length=MAX_ATTACKS)]
    n_attacks: Count
    n_invalid: Count
    n_invalid_placebos: Count
    placebo: dict[Literal["bypass", "suppression"], PlaceboFacts]
    placebo_note: Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=300)]
    problems: Lines
    pf: Cost
