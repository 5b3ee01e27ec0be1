"""Contrasts of two classes of prompts, as Estimates: a difference in means, an AUROC, and the row a frame holds.

Both statistics are means over all prompts of linearised values (their influence functions), so the clustered mean of
``stats`` gives their intervals, whether or not the classes are paired: prompts of one template stay together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.estimate import finite_vector
from refusalscope.stats import Estimate

Row = dict[str, object]


def difference(restricted: ArrayLike, harmless: ArrayLike, *, clusters: Sequence[str], unit: str = "") -> Estimate:
    """Returns mean(restricted) − mean(harmless) with a cluster-t interval.

    A restricted prompt counts as D + (N / n_R)(x − x̄_R) and a harmless one as D − (N / n_H)(x − x̄_H): their mean is
    the difference D, their clustered variance that of D.

    Args:
        restricted, harmless: one finite number per prompt.
        clusters: labels of the restricted prompts, then of the harmless ones.
        unit: of the numbers.
    """
    x, y = _both(restricted, harmless)
    found = float(x.mean() - y.mean())
    return stats.mean(_linearised(found, x - x.mean(), y.mean() - y), clusters=clusters, unit=unit)


def auroc(restricted: ArrayLike, harmless: ArrayLike, *, clusters: Sequence[str]) -> Estimate:
    """Returns the chance that a restricted prompt scores above a harmless one, ties counted half.

    The interval is DeLong's for clustered prompts (Obuchowski 1997, Biometrics 53:567): each prompt counts with its
    placement, the share of the other class it beats. Not clipped to [0, 1]. Arguments as ``difference``.
    """
    x, y = _both(restricted, harmless)
    wins = (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)
    found = float(wins.mean())
    return stats.mean(_linearised(found, wins.mean(1) - found, wins.mean(0) - found), clusters=clusters)


def nothing(reason: str) -> Estimate:
    """Returns the Estimate of a cell that could not be measured: a row that says why, never a row left out."""
    return Estimate(math.nan, None, n=0, clusters=None, method="not measured", note=reason)


def columns(estimate: Estimate) -> Row:
    """Returns an Estimate as the columns ``value low high n clusters method note`` of a tidy frame."""
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "n", "clusters", "method", "note")}


def placebo_columns(value: float, placebos: ArrayLike, *, name: str, larger_is_stronger: bool = True) -> Row:
    """Returns ``<name>_low <name>_high <name>_p <name>_n``: the band of 95% of placebos, p = (1 + b) / (1 + K), and K.

    b counts placebos at least as strong. NaN where there is no value or no placebo, or where one could not be measured:
    none is dropped.
    """
    null = np.asarray(placebos, dtype=float)
    if not (math.isfinite(value) and len(null) and np.isfinite(null).all()):
        return {f"{name}_low": math.nan, f"{name}_high": math.nan, f"{name}_p": math.nan, f"{name}_n": len(null)}
    rank = stats.placebo_rank(value, null, larger_is_stronger=larger_is_stronger)
    return {f"{name}_low": rank.band[0], f"{name}_high": rank.band[1], f"{name}_p": rank.p, f"{name}_n": rank.k}


def _both(restricted: ArrayLike, harmless: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = finite_vector(restricted, "restricted"), finite_vector(harmless, "harmless")
    if not len(x) or not len(y):
        raise MeasurementError(f"A contrast needs prompts of both classes; got {len(x)} restricted, {len(y)} harmless.")
    return x, y


def _linearised(found: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    n = len(first) + len(second)
    return found + np.concatenate([first * (n / len(first)), second * (n / len(second))])
