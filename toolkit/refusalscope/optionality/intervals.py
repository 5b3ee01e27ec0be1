"""Intervals for the member that was chosen: what its own prompts leave open, joined with what the choosing adds.

Two things are uncertain: which member the select prompts choose, and its rate on the report prompts. The nested
bootstrap sees both, but with few clusters it is too narrow, and without width where every prompt answers alike. The
clustered Wilson interval of the chosen member is right there, but takes the choice as given. So the interval is their
hull.

Simulated with 8 clusters of 16, 12 attacks, rates 0.05 to 0.99 and heavy-tailed damage (as in
``tests/test_optionality_coverage.py``), the rate of the chosen member is covered in at least 0.94 of samples while the
latent correlation within clusters is at most 0.6, by the bootstrap alone in as few as 0.55. At 0.9, where a cluster all
but answers as one, coverage falls to 0.86. The best rate in the population, which a finite select split may miss, is
covered in at least 0.90 up to 0.6.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from refusalscope.optionality.resampling import Tally
from refusalscope.stats import MIN_CLUSTERS

Interval = tuple[float, float]
LEVEL = 0.95
LENDERS = 3
METHOD = {
    "bypass": "hull of clustered Wilson and nested bootstrap 95%",
    "suppression": "hull of cluster-t and nested bootstrap 95%",
}


def design_effects(sums: Tally) -> Float[np.ndarray, " attack"]:
    """Returns, per attack, how much clustering inflates the variance of its bypass rate; NaN where it cannot be told.

    deff = max(1, V / (p̂(1 − p̂)/(n − 1))), V the CR2 variance of ``stats.mean``; unknown where all prompts answer alike.
    """
    size, n = _sizes(sums)
    bypassed = sums.bypassed[sums.refused > 0]
    rate = bypassed.sum(0) / n
    variance = ((bypassed - np.outer(size, rate)) ** 2 / (1 - size / n)[:, None]).sum(0) / n**2
    independent = rate * (1 - rate) / (n - 1)
    known = sums.valid & (independent > 0)
    return np.where(known, np.maximum(1.0, variance / np.where(known, independent, 1.0)), np.nan)


def rate_interval(sums: Tally, pick: int, *, borrow: bool = True) -> tuple[Interval | None, str]:
    """Returns the clustered Wilson interval of one attack's bypass rate, and a note; −1 is doing nothing, at rate 0.

    Near 0 and 1 few prompts tell how alike a cluster answers. So the design effect is at least the median of the three
    members of the family whose rates are nearest and tell it; with ``borrow=False`` it is that of ``stats.rate``.
    """
    size, n = _sizes(sums)
    if len(size) < MIN_CLUSTERS:
        return None, f"{len(size)} clusters of refused prompts, an interval needs at least {MIN_CLUSTERS}"
    each, rates = design_effects(sums), sums.bypassed.sum(0) / n
    rate = float(rates[pick]) if pick >= 0 else 0.0
    known = np.flatnonzero(np.isfinite(each))
    nearest = known[np.argsort(np.abs(rates[known] - rate), kind="stable")][:LENDERS] if borrow else known[:0]
    own = [each[pick]] if pick in known else []
    effects = [*own, *([np.median(each[nearest])] if len(nearest) else [])]
    note = f"design effect {max(effects):.2g}" if effects else "all prompts answer alike: design effect taken as 1"
    return _wilson(rate, n / max([1.0, *effects]), special.stdtrit(_freedom(size / n), (1 + LEVEL) / 2)), note


def percentiles(values: Float[np.ndarray, " resample"]) -> Interval:
    """Returns the central 95% of resampled values; a resample without a refused prompt says nothing and is left out."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def hull(*intervals: Interval | None) -> Interval | None:
    """Returns the smallest interval that holds all of those there are; None where that has no width."""
    known = [interval for interval in intervals if interval is not None]
    low, high = min(low for low, _ in known), max(high for _, high in known)
    return (low, high) if high - low > 1e-9 else None


def mover(
    first: tuple[float, Interval], second: tuple[float, Interval], *, correlation: float = 0.0
) -> tuple[float, float]:
    """Returns the interval of a difference from the values and intervals of its two parts (Zou and Donner 2008).

    Without a correlation the parts count as independent.
    """
    (a, (low_a, high_a)), (b, (low_b, high_b)) = first, second
    below, above = (a - low_a, high_b - b), (high_a - a, b - low_b)
    halves = [math.sqrt(max(0.0, x**2 - 2 * correlation * x * y + y**2)) for x, y in (below, above)]
    return a - b - halves[0], a - b + halves[1]


def _sizes(sums: Tally) -> tuple[np.ndarray, float]:
    """Refused prompts per cluster that has any, and in all."""
    size = sums.refused[sums.refused > 0]
    return size, float(size.sum())


def _wilson(rate: float, n: float, quantile: float) -> Interval:
    ratio = quantile**2 / n
    center, half = rate + ratio / 2, math.sqrt(ratio * rate * (1 - rate) + ratio**2 / 4)
    return max(0.0, min(rate, (center - half) / (1 + ratio))), min(1.0, max(rate, (center + half) / (1 + ratio)))


def _freedom(w: Float[np.ndarray, " cluster"]) -> float:
    """Bell and McCaffrey's degrees of freedom of a mean over clusters with shares w."""
    return float(1 / ((w**2 / (1 - w)).sum() ** 2 + (w**2 * (1 - 2 * w) / (1 - w) ** 2).sum()))
