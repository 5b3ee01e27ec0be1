"""The forest plot: one row per model, its worst case with interval, over what placebos reach."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusalscope import canvas
from refusalscope.plotting.lines import MEASURE_NAMES

ROW = 0.44  # inches: room for a value, its interval and its n
LIMITS = (0.2, 0.8)  # of the verdict: resistant below, optional above


def forest(frame: pd.DataFrame, *, title: str, panels: str = "measure") -> Figure:
    """Worst cases of several models, a panel per measure; a grey tick is the best placebo of that model.

    The dashed lines of the panel of bypass rates are the limits of the verdict. A row without a value stays empty.
    Under each value stands how many prompts it is of, and in how many clusters where these are known.

    Args:
        frame: `model`, `measure` (`bypass` or `suppression`), `n`, `value`, `low`, `high`, `placebo`, and where
            they are known `clusters`.
        panels: the column whose values are the panels, such as a family of attacks, where there is one measure.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(frame, "model", "measure", "n", panels, gaps=("value", "low", "high", "placebo"))
    names, shown = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame[panels]))
    height = 1.05 + ROW * len(names)
    with canvas.panels(title, height=height, columns=len(shown), width=canvas.PAGE) as (figure, axes):
        for ax, panel in zip(axes, shown, strict=True):
            part = frame.loc[frame[panels] == panel]
            measure = str(part["measure"].iloc[0])
            at = [names.index(name) for name in part["model"]]
            canvas.estimates(ax, part, at, inks=[canvas.BLUE] * len(part), digits=".2f")
            _counts(ax, part, at)
            ax.plot(part["placebo"].astype(float), at, "|", color=canvas.GREY, ms=9, mew=1.6, zorder=2)
            for limit in LIMITS if measure == "bypass" else ():
                ax.axvline(limit, color=canvas.INK, ls="--", lw=0.8, zorder=1)
            canvas.rows(ax, names if ax is axes[0] else [""] * len(names))
            of = "the worst case" if panels == "measure" else panel
            ax.set(xlabel=f"{MEASURE_NAMES[measure]} of {of}", xlim=(-0.06, 1.12))
        figure.supxlabel("grey tick: best of the random subspaces", fontsize=7)
    return figure


def before_after(frame: pd.DataFrame, *, title: str, unit: str) -> Figure:
    """A value of several models before and under an intervention, with intervals, over the grey span of placebos.

    Args:
        frame: `model`, `when` (two values), `value`, `low`, `high`, `n`, `placebo_low`, `placebo_high`.
        unit: what the value is, with its unit.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(frame, "model", "when", "value", "n", gaps=("low", "high", "placebo_low", "placebo_high"))
    names, inks = list(dict.fromkeys(frame["model"])), canvas.colours(frame["when"])
    with canvas.panels(title, height=0.95 + ROW * len(names), width=canvas.PAGE) as (figure, (ax,)):
        for model, part in frame.groupby("model", sort=False):
            y = names.index(str(model))
            ax.plot(part["placebo_low"].iloc[:1].tolist() + part["placebo_high"].iloc[:1].tolist(), [y, y], lw=7)
            ax.lines[-1].set(color=canvas.GREY, alpha=0.4, solid_capstyle="butt")
        for offset, (when, ink) in zip((-0.14, 0.14), inks.items(), strict=True):
            part = frame.loc[frame["when"] == when]
            at = [names.index(name) + offset for name in part["model"]]
            canvas.estimates(ax, part, at, inks=[ink] * len(part), digits=".1f", between=" ")
            ax.plot([], [], "o", ms=4, color=ink, label=when)
        ax.axvline(0, color=canvas.INK, ls="--", lw=0.8, zorder=1)
        counts = frame.drop_duplicates("model").set_index("model")["n"]
        canvas.rows(ax, [f"{name} (n = {counts[name]:g})" for name in names])
        ax.set(xlabel=f"{unit}; grey: all placebos")
        ax.legend(frameon=False, fontsize=7, loc="best")
    return figure


def _counts(ax: Axes, part: pd.DataFrame, at: Sequence[int]) -> None:
    """Writes n and clusters, small and grey, under the number of each row that has one."""
    clusters = part["clusters"] if "clusters" in part else pd.Series(index=part.index, dtype=float)
    rows = zip(at, part["n"], clusters, part["value"].notna(), part["low"].notna(), strict=True)
    for y, n, groups, has_value, has_interval in rows:
        if not has_value:
            continue
        said = f"n = {n:g}" + ("" if pd.isna(groups) else f", {groups:g} clusters")
        below = {"xytext": (0, -8.2 if has_interval else -4.4), "textcoords": "offset points", "va": "top"}
        ax.annotate(said, (1.02, y), xycoords=ax.get_yaxis_transform(), color=canvas.GREY, fontsize=6, **below)
