"""Claims: sentences a notebook stands by, with the numbers behind them. The text is compared, the digits are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, repr=False)
class Claim:
    """A sentence, whether the measurements bear it out, and the evidence: names to estimates, ranks or counts."""

    sentence: str
    holds: bool
    evidence: Mapping[str, object]

    def __repr__(self) -> str:
        return f"{'Holds' if self.holds else 'DOES NOT HOLD'}: {self.sentence}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(_spelled(value))}</td></tr>"
            for name, value in self.evidence.items()
        )
        return (
            f"<p><b>{'Holds' if self.holds else 'DOES NOT HOLD'}</b>: {escape(self.sentence)}</p><table>{rows}</table>"
        )


def claim(sentence: str, holds: bool, evidence: Mapping[str, object]) -> Claim:
    """Returns a claim for the last line of a cell. ``holds`` is a comparison of numbers, written where it is made.

    Example:
        >>> claim("Ablation bypasses the guardrail.", effect.bypass.low > 0.8, {"bypass rate": effect.bypass})
    """
    return Claim(sentence, bool(holds), dict(evidence))


def _spelled(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
