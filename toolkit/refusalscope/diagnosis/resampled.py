"""Statistics of several columns per prompt, with an interval from resampling whole clusters of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from refusalscope import stats
from refusalscope.stats import Estimate

RESAMPLES = 999


def over_prompts(statistic: Callable[[np.ndarray], float], clusters: Sequence[str], *, seed: int) -> Estimate:
    """Returns a statistic of prompt indices with its BCa interval: ``statistic`` takes which prompts were drawn."""
    indices = np.arange(len(clusters), dtype=float)
    return stats.bca(
        indices,
        seed=seed,
        statistic=lambda drawn: statistic(np.asarray(drawn).astype(int)),
        clusters=clusters,
        resamples=RESAMPLES,
    )


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns P(score of a positive > that of a negative) + half of ties (Mann and Whitney); NaN for one class only."""
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return math.nan
    return float((rankdata(scores)[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Returns Spearman's ρ, ties at their mean rank; NaN where one of the two is constant."""
    a, b = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else math.nan
