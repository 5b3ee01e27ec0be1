"""The curve: a tidy frame, its landmarks, and what it took to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

import pandas as pd

from refusalscope.effect import Baseline
from refusalscope.errors import MeasurementError
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown
from refusalscope.stats import Estimate

T = TypeVar("T")


@dataclass(frozen=True, repr=False, eq=False)
class Curve(Shown):
    """How the effect of an ablation changes with one thing, and where it turns.

    Attributes:
        name: what varies.
        frame: tidy, one row per point and measure; the columns are those of ``curves.points.rows``.
        landmarks: named values read off the curve, with intervals; nan with a reason where never reached.
        pf: prompt-forwards spent, placebos included.
        seconds: wall-clock time, of one run.
        each: one row per draw, where a point is a mean over draws.
    """

    name: str
    frame: pd.DataFrame
    landmarks: Mapping[str, Estimate]
    pf: float
    seconds: float
    each: pd.DataFrame | None = None

    def __repr__(self) -> str:
        found = (
            f"{name} {f'not found: {mark.note}' if math.isnan(mark.value) else 'found'}"
            for name, mark in self.landmarks.items()
        )
        return f"Curve of {self.name}" + "".join(f"; {text}" for text in found)

    def _repr_html_(self) -> str:
        marks = "".join(f"<p>{escape(name)}: {escape(str(mark))}</p>" for name, mark in self.landmarks.items())
        shown = [c for c in self.frame.columns if c not in ("method", "unit", "clusters", "note")]
        table = self.frame[shown].to_html(index=False, escape=True, float_format=lambda x: f"{x:.3g}")
        return f"<p>{escape(f'Curve of {self.name}')}</p>{marks}{table}<p>{self.pf:,.0f} prompt-forwards</p>"


def thinned(before: Baseline, per_label: int) -> Baseline:
    """Returns the baseline of about ``per_label`` prompts of each label, as many from each cluster; no forwards.

    Within a cluster they are evenly spaced, in their order, so that categories that follow one another are all there; a
    cluster with fewer keeps them all. Where there are more clusters than ``per_label``, that many of them keep one
    prompt each. Suppression is then in units of the gap between the prompts that were kept.

    Raises:
        MeasurementError: when not one prompt of each label is to be kept.
    """
    if per_label < 1:
        raise MeasurementError(f"{per_label} prompts per label leave nothing to measure. Keep one at least.")
    kept = {label: _spread(part, per_label) for label, part in _labelled(before).items()}
    return before.only(kept["restricted"], kept["harmless"])


def _labelled(before: Baseline) -> dict[str, Prompts]:
    return {"restricted": before.prompts.restricted, "harmless": before.prompts.harmless}


def _spread(prompts: Sequence, per_label: int) -> list[int]:
    """Returns the rows to keep, in order: per_label / clusters from each, evenly spaced over its prompts."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(prompts):
        places.setdefault(row.cluster, []).append(i)
    clusters = [places[name] for name in evenly_spaced(list(places), per_label)]
    return sorted(i for there in clusters for i in evenly_spaced(there, per_label // len(clusters)))


def evenly_spaced(rows: Sequence[T], count: int) -> list[T]:
    """Returns ``count`` of the rows, the first of each of as many equal stretches; all where there are fewer."""
    return [rows[step * len(rows) // count] for step in range(count)] if count < len(rows) else list(rows)
