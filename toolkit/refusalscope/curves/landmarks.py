"""Landmarks: numbers read off a curve, with intervals over the prompts that the curve is a mean of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.stats import Estimate


def mark(
    statistic: Callable[[Tensor], float], groups: Sequence[str], *, cap: float | int, seed: int, never: str
) -> Estimate:
    """Returns a landmark of a curve with a BCa interval over clusters of prompts, or nan and the reason.

    Args:
        statistic: from the rows of the prompts drawn to the landmark; infinite where it is never reached.
        groups: one cluster per prompt.
        cap: a value past the last point: what "never reached" counts as in a resample. An interval that comes to it
            has no known end and is not given.
        never: the reason to give when all prompts together never reach it.
    """

    def capped(drawn: object) -> float:
        return float(min(statistic(torch.as_tensor(drawn, dtype=torch.long)), cap))

    everyone = torch.arange(len(groups))
    if not math.isfinite(statistic(everyone)):
        return Estimate(math.nan, None, n=len(groups), clusters=None, method="none", note=never)
    found = stats.bca(everyone.double().numpy(), seed=seed, statistic=capped, clusters=groups)
    if found.interval is None or found.high < cap:
        return found
    facts = {"n": found.n, "clusters": found.clusters, "method": found.method, "seed": seed}
    return Estimate(found.value, None, **facts, note="the interval reaches past the last point of the curve")


def beats(value: float, placebos: Float[Tensor, " placebo"]) -> bool:
    """Whether a value lies above the central 95% of its placebos; true where none ran."""
    return len(placebos) == 0 or value > float(placebos.quantile(0.975))


def crossing(x: Sequence[float | int], y: Float[Tensor, " point"], level: float) -> float:
    """Returns the smallest x at which y, linear between the points, is at least ``level``; infinite if never."""
    values = y.tolist()
    if values[0] >= level:
        return float(x[0])
    for i in range(1, len(values)):
        if values[i] >= level:
            return x[i - 1] + (x[i] - x[i - 1]) * (level - values[i - 1]) / (values[i] - values[i - 1])
    return math.inf


def first_at(x: Sequence[float | int], y: Float[Tensor, " point"], level: float) -> float:
    """Returns the smallest x of the points at which y is at least a positive ``level``; infinite where none is."""
    return next((float(at) for at, value in zip(x, y.tolist(), strict=True) if value >= level > 0), math.inf)


def settled_at(x: Sequence[float | int], y: Float[Tensor, " point"], share: float) -> float:
    """Returns the smallest x from which on y is at least a share of its last value; infinite if that is not above 0."""
    values, full = y.tolist(), float(y[-1])
    if not full > 0:
        return math.inf
    short = [i for i, value in enumerate(values) if not value >= share * full]
    return float(x[short[-1] + 1 if short else 0])
