"""From one value per prompt to an `Estimate`: rates, means and differences of clustered prompts; seeded generators."""

from __future__ import annotations

import hashlib
import math
import operator
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special
from scipy import stats as scipy_stats

from refusalscope.errors import MeasurementError
from refusalscope.estimate import Estimate, cluster_codes, finite_pair, finite_vector
from refusalscope.estimate import PlaceboRank as PlaceboRank
from refusalscope.estimate import placebo_rank as placebo_rank

Labels = Iterable[object]  # one cluster label per prompt
MIN_CLUSTERS = 5
BATCH = 2_000_000  # numbers held at once while resampling
NOTHING = "nothing was measured"


def wilson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """The rate successes / n with its Wilson score interval.

    All p with (p̂ − p)² <= z² p(1 − p) / n: (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927). Never
    without width. Too narrow when the n trials are not independent: give `rate` their clusters.

    Raises:
        MeasurementError: successes is not in 0..n, or level is not in (0, 1).
    """
    estimate = partial(Estimate, n=int(n), clusters=None, method=f"Wilson {_percent(level)}", unit="rate")
    if not 0 <= successes <= n or successes % 1 or n % 1:
        raise MeasurementError(f"{successes} successes of n = {n}: give whole numbers with 0 <= successes <= n.")
    if n == 0:
        return estimate(math.nan, None, note=NOTHING)
    return estimate(successes / n, _wilson_interval(successes / n, n, quantile=special.ndtri((1 + level) / 2)))


def rate(flags: ArrayLike, *, clusters: Labels | None = None, level: float = 0.95) -> Estimate:
    """The share of true flags with a Wilson interval, widened when flags come in clusters.

    With clusters: Wilson at n / deff with deff = max(1, V / (p̂(1 − p̂)/(n − 1))), with V and the t quantile of `mean`
    in place of z (Korn and Graubard 1998; Dean and Pagano 2015). Wide for independent flags (covers 0.98), down to 0.90
    for rates near 0 or 1 when clusters differ much. Flags that are all equal cannot tell deff: it is taken as 1 and the
    note says so, which is too narrow when the prompts of a cluster answer as one.

    Args:
        flags: one bool, or 0 / 1, per prompt.
        clusters: one label per prompt (category or template); below 5 distinct ones there is no interval.

    Raises:
        MeasurementError: flags that are missing or not 0 / 1, labels that do not match them, or a bad level.
    """
    x = finite_vector(flags, "flags")
    if not np.isin(x, (0.0, 1.0)).all():
        raise MeasurementError(f"flags must be true or false (1 or 0), received {x[~np.isin(x, (0.0, 1.0))][0]:g}.")
    if clusters is None or len(x) == 0:
        return wilson(int(x.sum()), len(x), level=level)
    codes, n, p = cluster_codes(clusters, len(x)), len(x), float(x.mean())
    method = f"clustered Wilson {_percent(level)}"
    estimate = partial(Estimate, p, n=n, clusters=_count(codes), method=method, unit="rate")
    if _count(codes) < MIN_CLUSTERS:
        return estimate(None, note=_too_few(_count(codes), "clusters"))
    error, df = _cluster_error(x, codes)
    independent = p * (1 - p) / (n - 1)
    deff = max(1.0, error**2 / independent) if independent > 0 else 1.0
    note = f"design effect {deff:.2g}" if independent > 0 else "all flags are equal: design effect unknown, taken as 1"
    return estimate(_wilson_interval(p, n / deff, quantile=special.stdtrit(df, (1 + level) / 2)), note=note)


def mean(values: ArrayLike, *, clusters: Labels | None = None, level: float = 0.95, unit: str = "") -> Estimate:
    """The mean over prompts with a t interval: cluster-robust, or adjusted for skew when prompts are independent.

    With clusters: x̄ ± t √V, V = Σ_g (Σ_{i∈g} e_i)² / (1 − w_g) / n², w_g = n_g / n (CR2), on the degrees of freedom of
    Bell and McCaffrey (2002): G − 1 for equal clusters, fewer when some dominate. Without: one-sample t after Hall's
    (1992) transformation, the plain t interval when a sample has no skew. Wrong when the labels miss a dependence.

    Args:
        values: one finite number per prompt, in `unit` ("nats" for margins and KL).
        clusters: one label per prompt (category or template); below 5 distinct ones there is no interval.

    Raises:
        MeasurementError: a value is nan or infinite (missing cells are never dropped), wrong labels, or a bad level.
    """
    x = finite_vector(values, "values")
    return _mean(x, None if clusters is None else cluster_codes(clusters, len(x)), level=level, unit=unit, sources=x)


def paired_difference(
    after: ArrayLike, before: ArrayLike, *, clusters: Labels | None = None, level: float = 0.95, unit: str = ""
) -> Estimate:
    """The mean of after − before over the same prompts, as `mean` of the differences.

    Args:
        after: one finite number per prompt, in `unit`.
        before: the same prompts in the same order. A wrong order still gives a number: the wrong interval.

    Raises:
        MeasurementError: as `mean`, and when the two differ in length.
    """
    a, b = finite_pair(after, before, names=("after", "before"))
    codes = None if clusters is None else cluster_codes(clusters, len(a))
    return _mean(a - b, codes, level=level, unit=unit, sources=np.stack([a, b]))


def bca(
    values: ArrayLike,
    *,
    seed: int,
    statistic: Callable[..., float] = np.mean,
    clusters: Labels | None = None,
    resamples: int = 9999,
    level: float = 0.95,
) -> Estimate:
    """A statistic over prompts with its BCa bootstrap interval (Efron 1987), the check on `mean`.

    Prompts, or whole clusters, are drawn with replacement; the acceleration leaves out one at a time. Too narrow when
    there are few of them.

    Args:
        values: one finite number per prompt.
        statistic: vector to number; one with an `axis` argument is called on many resamples at once.
        clusters: one label per prompt. Below 5 units to resample there is no interval.

    Raises:
        MeasurementError: as `mean`.
    """
    x = finite_vector(values, "values")
    codes = None if clusters is None else cluster_codes(clusters, len(x))
    units, kind = (len(x), "values") if codes is None else (_count(codes), "clusters")
    estimate = partial(Estimate, float(statistic(x)) if len(x) else math.nan, n=len(x), seed=seed)
    estimate = partial(estimate, clusters=None if codes is None else units, method=f"BCa {_percent(level)}")
    if units < MIN_CLUSTERS:
        return estimate(None, note=_too_few(units, kind))
    data, of_drawn = x, statistic
    if codes is not None:
        groups = [x[codes == g] for g in range(units)]  # drawn ones are sorted: equal draws must tie to the last bit
        data, of_drawn = np.arange(units), lambda drawn: statistic(np.concatenate([groups[g] for g in np.sort(drawn)]))
    options = {"n_resamples": resamples, "confidence_level": level, "batch": max(1, BATCH // len(data))}
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", scipy_stats.DegenerateDataWarning)  # its nan becomes a note below
        found = scipy_stats.bootstrap((data,), of_drawn, method="BCa", rng=generator(seed, "bca"), **options)
    low, high = map(float, found.confidence_interval)
    if not high - low > _rounding(x):
        return estimate(None, note="BCa is undefined: too little variation between resamples")
    return estimate((low, high))


def permutation(a: ArrayLike, b: ArrayLike, *, seed: int, paired: bool = True, resamples: int = 9999) -> float:
    """The two-sided permutation p-value of the difference in means: (1 + b) / (1 + K), never 0.

    b of K rearrangements have |mean difference| at least the observed one (Phipson and Smyth 2010). Paired: the signs
    of a − b flip; otherwise values change sides. When there are no more than `resamples` in all, each is used once.
    `a` and `b` hold one finite number per prompt. Wrong when prompts are clustered: it takes them as exchangeable.

    Raises:
        MeasurementError: no values, a nan or infinite one, or paired vectors of different lengths.
    """
    x, y = finite_pair(a, b, names=("a", "b")) if paired else (finite_vector(a, "a"), finite_vector(b, "b"))
    if min(len(x), len(y)) == 0:
        raise MeasurementError(f"A permutation needs values on both sides, received {len(x)} and {len(y)}.")
    if paired:
        x, y = x - y, np.zeros_like(y)
    options = {"n_resamples": resamples, "alternative": "greater", "rng": generator(seed, "permutation")}
    options |= {"permutation_type": "samples" if paired else "independent", "batch": max(1, BATCH // (len(x) + len(y)))}
    found = scipy_stats.permutation_test((x, y), lambda x, y, axis: abs(x.mean(axis) - y.mean(axis)), **options)
    return float(found.pvalue)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A numpy generator fixed by (seed, purpose) through SHA-256; two purposes of one seed are independent."""
    return np.random.default_rng(_hashed(seed, purpose))


def torch_generator(seed: int, purpose: str) -> torch.Generator:
    """A torch generator on the CPU, fixed by (seed, purpose) as in `generator`."""
    return torch.Generator(device="cpu").manual_seed(_hashed(seed, purpose))


def _hashed(seed: int, purpose: str) -> int:
    """63 bits of SHA-256 of seed and purpose."""
    return int.from_bytes(hashlib.sha256(f"{operator.index(seed)}:{purpose}".encode()).digest()[:8], "big") >> 1


def _mean(x: np.ndarray, codes: np.ndarray | None, *, level: float, unit: str, sources: np.ndarray) -> Estimate:
    """`mean` of checked values; the rounding of `sources`, from which they came, bounds what counts as variation."""
    method = f"{'skew-adjusted t' if codes is None else 'cluster-t'} {_percent(level)}"
    estimate = partial(Estimate, float(x.mean()) if len(x) else math.nan, n=len(x), method=method, unit=unit)
    estimate = partial(estimate, clusters=None if codes is None else _count(codes))
    if len(x) < 2:
        return estimate(None, note="one value has no variation to measure" if len(x) else NOTHING)
    if codes is not None and _count(codes) < MIN_CLUSTERS:
        return estimate(None, note=_too_few(_count(codes), "clusters"))
    low, high = _skewed_interval(x, level) if codes is None else _cluster_interval(x, codes, level)
    if not high - low > _rounding(sources):
        return estimate(None, note=f"no variation between {'values' if codes is None else 'clusters'}")
    return estimate((low, high))


def _wilson_interval(p: float, n: int | float, *, quantile: float) -> tuple[float, float]:
    """Wilson bounds at n effective trials; they contain p and stay in [0, 1] despite rounding."""
    ratio = quantile**2 / n
    center, half = p + ratio / 2, math.sqrt(ratio * p * (1 - p) + ratio**2 / 4)
    low, high = (center - half) / (1 + ratio), (center + half) / (1 + ratio)
    return max(0.0, min(p, low)), min(1.0, max(p, high))


def _skewed_interval(x: np.ndarray, level: float) -> tuple[float, float]:
    """Hall (1992): invert g(T) = T + γT²/3 + γ²T³/27 + γ/6n, T = (x̄ − μ)/s, at t quantiles; γ is the skewness."""
    n, e = len(x), x - x.mean()
    s, moment = x.std(ddof=1), (e**2).mean()
    skew = (e**3).mean() / moment**1.5 if moment > 0 else 0.0
    u = np.array([1, -1]) * special.stdtrit(n - 1, (1 + level) / 2) / math.sqrt(n) - skew / (6 * n)
    c = np.cbrt(1 + skew * u)
    low, high = x.mean() - s * 3 * u / (c**2 + c + 1)  # = 3(c − 1)/γ, without its 0/0 at γ = 0
    return float(low), float(high)


def _cluster_interval(x: np.ndarray, codes: np.ndarray, level: float) -> tuple[float, float]:
    error, df = _cluster_error(x, codes)
    half = float(special.stdtrit(df, (1 + level) / 2)) * error
    return float(x.mean()) - half, float(x.mean()) + half


def _cluster_error(x: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """CR2 standard error of the mean and its Bell-McCaffrey degrees of freedom, in closed form for a mean."""
    w = np.bincount(codes) / len(x)
    sums = np.bincount(codes, weights=x - x.mean())
    df = 1 / ((w**2 / (1 - w)).sum() ** 2 + (w**2 * (1 - 2 * w) / (1 - w) ** 2).sum())
    return float(np.sqrt((sums**2 / (1 - w)).sum()) / len(x)), float(df)


def _percent(level: float) -> str:
    if not 0 < level < 1:
        raise MeasurementError(f"level must be between 0 and 1, received {level}.")
    return f"{100 * level:g}%"


def _count(codes: np.ndarray) -> int:
    return int(codes.max(initial=-1)) + 1


def _too_few(count: int, units: str) -> str:
    return f"{count} {units}, an interval needs at least {MIN_CLUSTERS}"


def _rounding(x: np.ndarray) -> float:
    """The width below which an interval over such numbers is rounding, not variation."""
    return 16 * float(np.finfo(np.float64).eps) * float(np.abs(x).max(initial=0))
