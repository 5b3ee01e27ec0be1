"""Two models on the same prompts: whose guardrail is more optional, by how much, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refusalscope import stats
from refusalscope.attack import Responses
from refusalscope.errors import MeasurementError
from refusalscope.optionality.grounds import KAPPA, problems, refuse_mixed, shortened
from refusalscope.optionality.intervals import Interval, hull, mover, percentiles, rate_interval
from refusalscope.optionality.points import Choosing, choose, suppressions, too_few
from refusalscope.optionality.resampling import draw, scores
from refusalscope.reprs import Shown, facts
from refusalscope.stats import Estimate

Splits = tuple[Responses, Responses]
PAIRED_RATES = "paired: hull of MOVER-Wilson and nested bootstrap 95%"
PAIRED_MEANS = "paired: hull of cluster-t and nested bootstrap 95%"


@dataclass(frozen=True, repr=False)
class Difference(Shown):
    """Ω and Ω_s of the first model minus those of the second, at one damage limit, on the same prompts.

    ``problems`` says why there is no number; empty where there is one.
    """

    first: str
    second: str
    kappa: float
    bypass: Estimate
    suppression: Estimate
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        low, high = self.bypass.low, self.bypass.high
        if self.bypass.interval is None or low <= 0 <= high:
            return f"Difference: {self.first} and {self.second} are not told apart"
        more, less = (self.first, self.second) if low > 0 else (self.second, self.first)
        return f"Difference: the guardrail of {more} is more optional than that of {less}"

    def _repr_html_(self) -> str:
        rows = {f"bypass at damage ≤ {self.kappa:g}": str(self.bypass), "suppression": str(self.suppression)}
        return facts(rows, caption=f"{self.first} − {self.second}")


def compare(first: Splits, second: Splits, *, kappa: float = KAPPA, seed: int = 0) -> Difference:
    """Returns Ω_A(κ) − Ω_B(κ) and Ω_s likewise, each model under its own family, with paired intervals.

    Both models are resampled by the same draws of clusters, so what a prompt does to both cancels. As with one model,
    the interval is a hull: of the nested bootstrap, and of the chosen members' own intervals, joined for a rate by

        d − √(l_A² − 2ρ l_A u_B + u_B²),  d + √(u_A² − 2ρ u_A l_B + l_B²)

    (MOVER: Zou and Donner 2008), l and u the distances to the ends and ρ the correlation over resampled report prompts.

    Args:
        first, second: (select, report) responses of each model; the two families may differ.

    Raises:
        MeasurementError: when the two did not answer the same prompts in the same order.
    """
    _refuse_unequal(first, second)
    why: list[str] = []
    for splits in (first, second):
        refuse_mixed(*splits)
        name = splits[1].before.model.origin.name
        why += [f"{name}: {reason}" for reason in problems(*splits, (kappa,))]
    if why:
        return _difference(first, second, kappa, *_nothing(first[1], seed, shortened(why)), problems=tuple(why))
    one, other = (choose(*splits, (kappa,), seed=seed) for splits in (first, second))
    return _difference(first, second, kappa, _bypass(one, other), _suppression(one, other), problems=())


def _bypass(one: Choosing, other: Choosing) -> Estimate:
    (a, near_a, along_a), (b, near_b, along_b) = (_rate(choosing) for choosing in (one, other))
    n, clusters = int(min(x.sums.refused.sum() for x in (one, other))), int(min(_refused(one), _refused(other)))
    few = too_few(one) or too_few(other)
    note = few or "n is that of the model that refuses fewer prompts at baseline"
    interval = None
    if not few and near_a is not None and near_b is not None:
        resampled = percentiles(one.values["bypass"][:, 0] - other.values["bypass"][:, 0])
        interval = hull(mover((a, near_a), (b, near_b), correlation=_correlation(along_a, along_b)), resampled)
    note = note if few or interval else "the two answer alike in every resample"
    return Estimate(a - b, interval, n, clusters, PAIRED_RATES, one.seed, "rate", note)


def _suppression(one: Choosing, other: Choosing) -> Estimate:
    clusters = one.report.before.prompts.restricted.clusters
    if unknown := one.no_unit or other.no_unit:
        return Estimate(math.nan, None, len(clusters), None, PAIRED_MEANS, one.seed, "", unknown)
    values = [suppressions(x.report, int(x.picks["suppression"][0])) for x in (one, other)]
    alone = stats.paired_difference(*values, clusters=clusters)
    few = too_few(one) or too_few(other)
    resampled = percentiles(one.values["suppression"][:, 0] - other.values["suppression"][:, 0])
    interval = None if few else hull(alone.interval, resampled)
    note = few or (alone.note if interval is None else "")
    return Estimate(alone.value, interval, alone.n, alone.clusters, PAIRED_MEANS, one.seed, "", note)


def _rate(choosing: Choosing) -> tuple[float, Interval | None, np.ndarray]:
    """The chosen member's bypass rate, its interval, and its rate in resamples of report with the choice held."""
    pick, sums = int(choosing.picks["bypass"][0]), choosing.sums
    resampled = scores(sums, draw(sums, seed=choosing.seed, split="report")).bypass
    along = resampled[:, pick] if pick >= 0 else np.zeros(len(resampled))
    value = float(sums.bypassed[:, pick].sum() / sums.refused.sum()) if pick >= 0 else 0.0
    return value, rate_interval(sums, pick)[0], along


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Of two resampled rates; 0 where one of them never varies."""
    known = np.isfinite(first) & np.isfinite(second)
    x, y = first[known], second[known]
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 1e-12 and y.std() > 1e-12 else 0.0


def _refused(choosing: Choosing) -> int:
    return int((choosing.sums.refused > 0).sum())


def _refuse_unequal(first: Splits, second: Splits) -> None:
    for name, a, b in zip(("select", "report"), first, second, strict=True):
        if a.before.prompts.ids != b.before.prompts.ids:
            shared = len(set(a.before.prompts.ids) & set(b.before.prompts.ids))
            raise MeasurementError(
                f"The two models answered different {name} prompts: {len(a.before.prompts)} and "
                f"{len(b.before.prompts)}, {shared} in common. Measure both on the same prompts in the same order."
            )


def _nothing(report: Responses, seed: int, why: str) -> tuple[Estimate, Estimate]:
    n = len(report.before.restricted)
    return (
        Estimate(math.nan, None, n, None, PAIRED_RATES, seed, "rate", why),
        Estimate(math.nan, None, n, None, PAIRED_MEANS, seed, "", why),
    )


def _difference(
    first: Splits, second: Splits, kappa: float, bypass: Estimate, suppression: Estimate, *, problems: tuple[str, ...]
) -> Difference:
    names = [splits[1].before.model.origin.name for splits in (first, second)]
    return Difference(names[0], names[1], kappa, bypass, suppression, problems)
