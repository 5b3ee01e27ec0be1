"""Cards side by side: one table, one forest plot, and what keeps them from being compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from refusalscope import plotting
from refusalscope.errors import MeasurementError
from refusalscope.optionality.intervals import mover
from refusalscope.reprs import Shown
from refusalscope.results import GuardrailCard
from refusalscope.results.family import OptionalityFacts
from refusalscope.results.parts import Value

MEASURES = ("bypass", "suppression")
NOT_PAIRED = (
    "Differences are between stored cards, as if the prompts of one had nothing to do with those of the other. Where "
    "both answered the same prompts, optionality.compare gives the paired interval, which is narrower."
)


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Shown):
    """Several cards side by side.

    Attributes:
        frame: tidy, ``model measure value low high n clusters placebo state plan kappa difference difference_low
            difference_high``: a row per card and measure (Ω, Ω_s), differences to the first card.
        caveats: what keeps the cards from being compared, a sentence each.
        note: what the intervals of the differences are.
    """

    frame: pd.DataFrame
    caveats: tuple[str, ...]
    note: str = NOT_PAIRED

    def forest(
        self, *, title: str = "How optional the guardrails are: the worst case over each attack family"
    ) -> Figure:
        """Draws Ω(κ) and Ω_s(κ) of every card with intervals, and the best of its placebos."""
        return plotting.forest(self.frame, title=title)

    def __repr__(self) -> str:
        states = dict(zip(self.frame["model"], self.frame["state"], strict=True))
        spelled = "; ".join(f"{name}: {state}" for name, state in states.items())
        return f"Comparison: {spelled}" + (f" ({len(self.caveats)} caveats)" if self.caveats else "")

    def _repr_html_(self) -> str:
        table = self.frame.drop(columns=["clusters"]).to_html(
            index=False, escape=True, float_format=lambda x: f"{x:.3g}"
        )
        caveats = "".join(f"<li>{escape(one)}</li>" for one in (*self.caveats, self.note))
        return f"<p>{escape(repr(self))}</p>{table}<ul>{caveats}</ul>"


def compare(*cards: GuardrailCard) -> Comparison:
    """Returns two or more cards side by side, each beside its placebos, and the difference to the first.

    The interval of a difference is MOVER's (Zou and Donner 2008) with no correlation, from the two stored intervals:
    too wide, never too narrow, where both models answered the same prompts and tend to fail on the same ones.

    Raises:
        MeasurementError: for fewer than two cards, or two of one name.
    """
    if len(cards) < 2:
        raise MeasurementError(f"A comparison needs two cards or more; got {len(cards)}.")
    names = [card.model.name for card in cards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise MeasurementError(f"Two cards are of {twice[0]!r}: rename the folder of one model and measure it again.")
    rows = [_row(card, measure, cards[0]) for measure in MEASURES for card in cards]
    return Comparison(pd.DataFrame(rows), tuple(_caveats(cards)))


def _row(card: GuardrailCard, measure: str, first: GuardrailCard) -> dict[str, Any]:
    found, value = card.optionality, _value(card.optionality, measure)
    placebo = None if found is None else found.placebo.get(measure)  # pyright: ignore[reportArgumentType]
    low, high = _ends(value)
    return {
        "model": card.model.name,
        "measure": measure,
        "value": math.nan if value is None or value.value is None else value.value,
        "low": low,
        "high": high,
        "n": 0 if value is None else value.n,
        "clusters": None if value is None else value.clusters,
        "placebo": math.nan if placebo is None else placebo.best,
        "state": card.verdict.state,
        "plan": card.plan,
        "kappa": math.nan if found is None else found.kappa,
        **_difference(value, _value(first.optionality, measure), same=card is first),
    }


def _value(found: OptionalityFacts | None, measure: str) -> Value | None:
    return None if found is None else getattr(found, measure)


def _ends(value: Value | None) -> tuple[float, float]:
    return (math.nan, math.nan) if value is None or value.interval is None else value.interval


def _difference(value: Value | None, first: Value | None, *, same: bool) -> dict[str, float]:
    names = ("difference", "difference_low", "difference_high")
    if same or value is None or first is None or value.value is None or first.value is None:
        return dict.fromkeys(names, math.nan)
    gap = value.value - first.value
    if value.interval is None or first.interval is None:
        return dict(zip(names, (gap, math.nan, math.nan), strict=True))
    low, high = mover((value.value, value.interval), (first.value, first.interval))
    return dict(zip(names, (gap, low, high), strict=True))


def _caveats(cards: Sequence[GuardrailCard]) -> Iterator[str]:
    facts = {
        "prompts": {card.prompts.digest for card in cards},
        "plans": {card.plan for card in cards},
        "attack families": {card.attack_family for card in cards},
        "damage limits": {card.optionality.kappa for card in cards if card.optionality is not None},
        "seeds": {card.seed for card in cards},
        "versions of the packages": {tuple(sorted(card.versions.items())) for card in cards},
    }
    yield from (f"The cards are of different {what}." for what, values in facts.items() if len(values) > 1)
    for card in cards:
        if card.instrument_check.state != "passed":
            yield f"The instrument check of {card.model.name}: {card.instrument_check.state}."
        if card.optionality is None:
            yield f"{card.model.name} has no worst case: {card.verdict.reasons[0]}"
