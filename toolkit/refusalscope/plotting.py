"""Drawings of tidy frames: one message each, stated by the caller's title. They compute nothing but where ink goes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from refusalscope.errors import MeasurementError

COLUMN, PAGE = 3.4, 7.0  # inches: one column of print, and two
KL_LIMIT, LAYER_CUT = 0.1, 0.8  # of the selection rule
COLOURS = tuple(sns.color_palette("colorblind"))
BLUE, ORANGE, GREEN = COLOURS[0], COLOURS[3], COLOURS[2]
INK, GREY, BAND = "0.15", "0.5", "0.88"
LABELS = {"restricted": ORANGE, "harmless": BLUE}
PANELS = {
    "bypass": "margin of restricted prompts,\ndirection ablated (nats)",
    "induce": "margin of harmless prompts,\ndirection added (nats)",
    "kl": "KL(base‖ablated) on\nharmless prompts (nats)",
}
OURS = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.titlesize": 8.5,
    "figure.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
}
Band = tuple[float, float]


def theme() -> AbstractContextManager[None]:
    """A context in which figures are drawn: type that is readable at column width, nothing changed outside it."""
    return mpl.rc_context({**sns.axes_style("ticks"), **sns.plotting_context("paper"), **OURS})


def margins(
    frame: pd.DataFrame, *, title: str, placebo: Band | None = None, summary: pd.DataFrame | None = None
) -> Figure:
    """A strip of points for each condition and label: the refusal margin of every prompt, refusing right of zero.

    Args:
        frame: `condition`, `label` (restricted or harmless), `value` (nats), one row per prompt.
        placebo: lowest and highest margin that placebos leave.
        summary: `condition`, `label`, `value`, `low`, `high`: the estimate to draw on each strip.

    Raises:
        MeasurementError: a column is missing or has a nan, there are no rows, or a summary is for no strip.
    """
    _need(frame, "condition", "label", "value")
    strips = dict(list(frame.groupby(["condition", "label"], sort=False)["value"]))
    with theme():
        figure, axes = _panels(title, rows=len(strips))
        for y, ((_, label), values) in enumerate(strips.items()):
            axes[0].scatter(values, y + _scatter(len(values)), s=7, alpha=0.45, lw=0, color=LABELS.get(label, GREY))
        _rows(axes[0], [f"{condition}, {label}" for condition, label in strips])
        _placebo(axes[0], placebo, vertical=True)
        axes[0].axvline(0, color=INK, ls="--", lw=0.8, zorder=1)
        axes[0].set_xlabel("refusal margin (nats per prompt)")
        _estimates(axes[0], summary, strips)
    return figure
