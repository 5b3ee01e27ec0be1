"""Drawings of curves: an effect against a dose, or against the damage it is allowed."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from refusalscope import canvas
from refusalscope.canvas import Band

MEASURE_NAMES = {"bypass": "bypass rate", "suppression": "suppression"}


def dose(frame: pd.DataFrame, *, title: str, unit: str, placebo: Band | None = None) -> Figure:
    """A value against the dose, a named line with its interval for each series, placebos as a band.

    Args:
        frame: `dose`, `value`, `low`, `high`, `series`.
        unit: what the value is, with its unit.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "dose", "value", "series", gaps=("low", "high"))
    inks = canvas.colours(frame["series"])
    with canvas.panels(title, height=2.2) as (figure, (axes,)):
        ends = canvas.curves(axes, frame, x="dose", y="value", by="series", inks=inks, band=("low", "high"))
        axes.set(xlabel="dose λ", ylabel=unit)
        canvas.name_ends(axes, ends + canvas.placebo_band(axes, placebo))
    return figure


def curve(frame: pd.DataFrame, *, x: str, title: str, label: str, unit: str) -> Figure:
    """A value against what varies, a named line with its interval for each series; dotted: what its placebos reach.

    Args:
        frame: column ``x``, `value`, `low`, `high`, `placebo_high`, `series`.
        label: what varies, in words.
        unit: what the value is, with its unit.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, x, "value", "series", gaps=("low", "high", "placebo_high"))
    inks = canvas.colours(frame["series"])
    with canvas.panels(title, height=2.2) as (figure, (axes,)):
        ends = canvas.curves(axes, frame, x=x, y="value", by="series", inks=inks, band=("low", "high"))
        for name, part in frame.sort_values(x).groupby("series", sort=False):
            axes.plot(part[x], part["placebo_high"], ":", color=inks[name], lw=1)
        places = sorted(frame[x].unique())
        axes.set(xlabel=f"{label} (dotted: placebos)", ylabel=unit)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        canvas.name_ends(axes, ends)
    return figure


def frontier(frame: pd.DataFrame, *, title: str, limit: float) -> Figure:
    """Bypass rate and suppression of the worst case against the damage allowed; a line with its interval per series.

    The dotted line of a panel is the best placebo of any series, the dashed one the damage limit of the headline.

    Args:
        frame: `kappa`, `measure` (`bypass` or `suppression`), `value`, `low`, `high`, `placebo`, `series`.
        limit: κ of the headline, in nats.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "kappa", "measure", "value", "series", gaps=("low", "high", "placebo"))
    inks, measures = canvas.colours(frame["series"]), list(dict.fromkeys(frame["measure"]))
    with canvas.panels(title, height=2.4, columns=len(measures), width=canvas.PAGE) as (figure, axes):
        for ax, measure in zip(axes, measures, strict=True):
            part = frame.loc[frame["measure"] == measure]
            ax.set_xscale("log")
            ends = canvas.curves(ax, part, x="kappa", y="value", by="series", inks=inks, band=("low", "high"))
            best = part.groupby("kappa")["placebo"].max()
            ax.plot(best.index, best.to_numpy(), ls=":", color=canvas.GREY, lw=1.2)
            ax.axvline(limit, color=canvas.INK, ls="--", lw=0.8, zorder=1)
            ax.set(xlabel="mean damage allowed, KL (nats)", ylabel=MEASURE_NAMES[measure], ylim=(-0.06, 1.12))
            canvas.name_ends(ax, [*ends, ("best placebo", canvas.GREY, best.index[-1], float(best.iloc[-1]))])
    return figure


def banded(frame: pd.DataFrame, *, x: str, title: str, label: str, unit: str, placebo: str = "placebo") -> Figure:
    """A value against what varies, a line with its interval for each series, over the grey band of all placebos.

    Args:
        frame: column ``x``, `value`, `low`, `high`, `series`, and ``<placebo>_low``, ``<placebo>_high``; a series that
            has no placebo adds nothing to the band.
        label: what varies, in words.
        unit: what the value is, with its unit.
        placebo: what the columns of the placebos begin with.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, x, "value", "series", gaps=("low", "high", f"{placebo}_low", f"{placebo}_high"))
    inks = canvas.colours(frame["series"])
    with canvas.panels(title, height=2.2) as (figure, (axes,)):
        ends = canvas.curves(axes, frame, x=x, y="value", by="series", inks=inks, band=("low", "high"))
        band = frame.groupby(x).agg(low=(f"{placebo}_low", "min"), high=(f"{placebo}_high", "max")).dropna()
        axes.fill_between(band.index, band["low"], band["high"], color=canvas.FAINT, lw=0, zorder=0)
        axes.set(xlabel=label, ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        last = [("placebos", canvas.GREY, float(band.index[-1]), float(band.iloc[-1].mean()))] if len(band) else []
        canvas.name_ends(axes, ends + last)
    return figure
