"""What statistics take (finite vectors, cluster labels) and what they return (`Estimate`, `PlaceboRank`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from refusalscope.errors import MeasurementError, ResultError
from refusalscope.reprs import Shown, among, digits, facts, rounded, where


@dataclass(frozen=True, repr=False)
class Estimate(Shown):
    """A number, its interval, and how both came about: the only thing that is printed or plotted.

    `low <= value <= high` is not required: a BCa interval may lie beside its value. `low < high` is, strictly: an
    interval without width would claim certainty from a finite sample.

    Args:
        value: the point estimate, in `unit`; nan only when there was nothing to estimate from.
        interval: (low, high) in `unit`; None when no interval can be given, and then `note` says why.
        n: values that went in (prompts).
        clusters: groups of values that went in together; None when the values were taken as independent.
        method: how the interval was made, with its level: "Wilson 95%".
        seed: the seed that was applied; None for a method without randomness.
        unit: "nats", "rate", or empty.
        note: what a reader must know beside the number.

    Raises:
        MeasurementError: a field of the wrong type, an interval without width, or no interval and no note.

    Example:
        >>> Estimate(0.9, (0.82, 0.95), n=80, clusters=None, method="Wilson 95%", unit="rate")
        Estimate: the interval is above zero
    """

    value: float
    interval: tuple[float, float] | None
    n: int
    clusters: int | None
    method: str
    seed: int | None = None
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuses fields that contradict each other."""
        if problem := _wrong_type(self) or _wrong_value(self):
            raise MeasurementError(f"Not an Estimate: {problem}.")

    @property
    def low(self) -> float:
        """Lower end of the interval; nan when there is none."""
        return math.nan if self.interval is None else self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the interval; nan when there is none."""
        return math.nan if self.interval is None else self.interval[1]

    def __repr__(self) -> str:
        """The claim, without digits that could wobble: where the interval lies. ``print`` and the table show digits."""
        return f"Estimate{f' in {self.unit}' if self.unit == 'nats' else ''}: {where(self.interval)}"

    def __str__(self) -> str:
        """One line: value rounded to its interval, interval, method, n, clusters, seed, note."""
        value, interval = digits(self.value, self.interval)
        clusters = "" if self.clusters is None else f", {self.clusters} clusters"
        seed = "" if self.seed is None else f", seed {self.seed}"
        line = f"{value} {interval} {self.unit} ({self.method}, n = {self.n}{clusters}{seed})"
        return " ".join((line + (f": {self.note}" if self.note else "")).split())

    def _repr_html_(self) -> str:
        """A table of one column, digits rounded to the interval, every string escaped."""
        value, interval = digits(self.value, self.interval)
        rows = {"value": f"{value} {self.unit}".strip(), "interval": interval, "n": self.n, "clusters": self.clusters}
        return facts(rows | {"method": self.method, "seed": self.seed, "note": self.note or None}, caption=repr(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values under the field names, ready for strict JSON: a nan value becomes None."""
        value = None if math.isnan(self.value) else float(self.value)
        interval = None if self.interval is None else [float(end) for end in self.interval]
        return asdict(self) | {"value": value, "interval": interval}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Estimate:
        """The Estimate that `to_dict` wrote, from a closed set of keys.

        Raises:
            ResultError: a key is unknown or missing, or the values do not make an Estimate.
        """
        if not isinstance(record, Mapping):
            raise ResultError(f"An Estimate is read from a mapping, received {type(record).__name__}.")
        names = {field.name for field in fields(cls)}
        unknown, missing = sorted(map(str, set(record) - names)), sorted(names - set(record))
        if unknown or missing:
            raise ResultError(f"An Estimate has closed keys: unknown {unknown}, missing {missing}.")
        value = math.nan if record["value"] is None else _as_float(record["value"])
        ends = tuple(map(_as_float, record["interval"])) if isinstance(record["interval"], list) else record["interval"]
        try:
            return cls(**{**record, "value": value, "interval": ends})
        except MeasurementError as error:
            raise ResultError(str(error)) from error


@dataclass(frozen=True, repr=False)
class PlaceboRank(Shown):
    """Where an observed number stands among the same number from placebos.

    Args:
        p: (1 + b) / (1 + k), where b placebos are at least as strong as `observed`.
        best: the strongest placebo.
        band: 2.5% and 97.5% quantiles of the placebos.
        note: says when k is too small for a small p.
    """

    observed: float
    p: float
    k: int
    best: float
    band: tuple[float, float]
    note: str = ""

    def __repr__(self) -> str:
        """The claim: whether any placebo does as much."""
        return f"PlaceboRank: {among(self.p, self.k)}"

    def __str__(self) -> str:
        """One line: observed, p, how many placebos, their best and their band."""
        width = max(self.band[1] - self.band[0], abs(self.observed - self.best))
        observed, best, low, high = rounded((self.observed, self.best, *self.band), width)
        line = f"{observed}, p = {self.p:.2g} (placebos: k = {self.k}, best {best}, band [{low}, {high}])"
        return line + (f": {self.note}" if self.note else "")


def placebo_rank(observed: float, placebos: ArrayLike, *, larger_is_stronger: bool = True) -> PlaceboRank:
    """Where `observed` stands among placebos that went through the same procedure: p = (1 + b) / (1 + k), one-sided.

    b counts placebos at least as strong, ties included. Wrong when `observed` was selected and the placebos were not:
    compare a maximum over a grid with the placebos' maxima over that grid.

    Args:
        placebos: the number from each placebo, in the unit of `observed`.
        larger_is_stronger: False when a smaller number is the stronger effect (a margin after ablation).

    Raises:
        MeasurementError: no placebos, or a number that is nan or infinite.
    """
    null, one = finite_vector(placebos, "placebos"), finite_vector([observed], "observed")[0]
    if len(null) == 0:
        raise MeasurementError("No placebos: an effect without them says nothing. Give at least 39, better 199.")
    k, sign = len(null), 1 if larger_is_stronger else -1
    p = (1 + int((sign * null >= sign * one).sum())) / (1 + k)
    low, high = (float(end) for end in np.quantile(null, [0.025, 0.975]))
    note = "" if k >= 39 else f"with {k} placebos p cannot go below 1/{k + 1} = {1 / (k + 1):.2g}"
    return PlaceboRank(float(one), p, k, best=float(sign * (sign * null).max()), band=(low, high), note=note)


def finite_vector(values: ArrayLike, name: str) -> np.ndarray:
    """The values as a float64 vector, one per prompt, from an array, a tensor on any device, a series or a sequence.

    Raises:
        MeasurementError: not a vector of numbers, or some are nan or infinite: missing cells are never dropped.
    """
    try:
        x = np.asarray(values.detach().double().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MeasurementError(f"{name} must be numbers, one per prompt: {error}") from error
    if x.ndim != 1:
        raise MeasurementError(f"{name} must be a vector, one number per prompt, received shape {x.shape}.")
    if not np.isfinite(x).all():
        counts = f"{np.isnan(x).sum()} nan and {np.isinf(x).sum()} infinite of {len(x)}"
        raise MeasurementError(f"{name} has {counts}. Report missing prompts apart and give the measured ones.")
    return x


def finite_pair(first: ArrayLike, second: ArrayLike, *, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Two `finite_vector`s of the same length, or a MeasurementError that names both lengths."""
    x, y = finite_vector(first, names[0]), finite_vector(second, names[1])
    if len(x) != len(y):
        raise MeasurementError(f"{names[0]} has {len(x)} values and {names[1]} has {len(y)}: give the same prompts.")
    return x, y


def cluster_codes(clusters: Iterable[object], n: int) -> np.ndarray:
    """The cluster labels of n prompts as integers 0..G−1.

    Raises:
        MeasurementError: not one label per prompt, or a label is missing.
    """
    labels = clusters.tolist() if isinstance(clusters, np.ndarray | torch.Tensor) else list(clusters)
    if any(label is None or label != label for label in labels):
        raise MeasurementError("A cluster label is missing (None or nan). Give every prompt the name of its cluster.")
    array = np.asarray(labels)
    if array.shape != (n,):
        raise MeasurementError(f"clusters must be one label per prompt: {n} prompts, labels of shape {array.shape}.")
    return np.unique(array, return_inverse=True)[1]


def _is_number(x: object) -> bool:
    return isinstance(x, float) or (type(x) is int and abs(x) <= 2**53)


def _as_float(x: object) -> object:
    return float(x) if _is_number(x) else x  # pyright: ignore


def _is_count(x: object) -> bool:
    return type(x) is int and x >= 0


def _is_pair(x: object) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and all(map(_is_number, x))


def _wrong_type(estimate: Estimate) -> str:
    """The first field whose type is not the declared one, in words; empty when none is."""
    right = {
        "value": _is_number(estimate.value),
        "interval": estimate.interval is None or _is_pair(estimate.interval),
        "n": _is_count(estimate.n),
        "clusters": estimate.clusters is None or _is_count(estimate.clusters),
        "seed": estimate.seed is None or type(estimate.seed) is int,
        **{name: isinstance(getattr(estimate, name), str) for name in ("method", "unit", "note")},
    }
    return next((f"{name} is {getattr(estimate, name)!r}" for name, ok in right.items() if not ok), "")


def _wrong_value(estimate: Estimate) -> str:
    """The first contradiction between fields, in words; empty when there is none."""
    if estimate.interval is None and not estimate.note.strip():
        return "it has no interval and no note that says why"
    if estimate.interval and not (
        math.isfinite(estimate.low) and math.isfinite(estimate.high) and estimate.low < estimate.high
    ):
        return f"the interval {estimate.interval} is not finite with low < high"
    if not math.isfinite(estimate.value) and not (math.isnan(estimate.value) and estimate.interval is None):
        return f"value is {estimate.value} (nan is for no data, and has no interval)"
    if estimate.clusters is not None and estimate.clusters > estimate.n:
        return f"{estimate.clusters} clusters from n = {estimate.n} values"
    return "" if estimate.method.strip() else "method is empty"
