"""The score of a candidate: a few signals, each bounded, in a line whose weights are fitted by ``rates``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FEATURES = ("targeted", "induction_kept", "gap_kept")
CEILING = 1.5  # of a signal: an answer that grew says nothing more


@dataclass(frozen=True)
class Rule:
    """A score that is linear in standardised signals, and the threshold above which a candidate is called edited.

    Attributes:
        weights: by signal, on its own scale; ``intercept`` with them.
        threshold: the quantile of benign candidates of families that were left out of the fit.
        false_positives: the declared rate.
        clean: by signal, where nine in ten of the benign candidates lie.
        cases: SHA-256 of the file the rule was fitted on.
    """

    weights: Mapping[str, float]
    intercept: float
    threshold: float
    false_positives: float
    clean: Mapping[str, tuple[float, float]]
    cases: str

    def score(self, signals: Mapping[str, float]) -> float:
        """Returns the score of one candidate, in logits."""
        held = {name: min(CEILING, max(-CEILING, signals[name])) for name in self.weights}
        return self.intercept + sum(weight * held[name] for name, weight in self.weights.items())
