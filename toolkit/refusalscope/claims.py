"""Claims: sentences a notebook stands by, with the numbers behind them. The text is compared, the digits are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refusalscope.reprs import Shown, facts

BROKEN = "DOES NOT HOLD"


@dataclass(frozen=True, repr=False)
class Claim(Shown):
    """A sentence, whether the measurements bear it out, and the evidence: names to estimates, ranks or counts."""

    sentence: str
    holds: bool
    evidence: Mapping[str, object]

    def __repr__(self) -> str:
        return f"{'Holds' if self.holds else BROKEN}: {self.sentence}"

    def _repr_html_(self) -> str:
        return facts(self.evidence, caption=repr(self))


def claim(sentence: str, holds: bool, evidence: Mapping[str, object]) -> Claim:
    """Returns a claim for the last line of a cell. ``holds`` is a comparison of numbers, written where it is made.

    Example:
        >>> claim("Ablation bypasses the guardrail.", effect.bypass.low > 0.8, {"bypass rate": effect.bypass})
    """
    return Claim(sentence, bool(holds), dict(evidence))
