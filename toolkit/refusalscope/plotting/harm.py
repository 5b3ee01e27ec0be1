"""Drawings of two directions: prompts between them, and what is left of each when the other is ablated."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure

from refusalscope import canvas


def plane(frame: pd.DataFrame, *, title: str) -> Figure:
    """Every prompt at its projections on both directions, a colour and a marker for each class, named at its median.

    Args:
        frame: `prompts` (the class), `harmfulness`, `refusal`, in units of the residual stream; one row per prompt.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "prompts", "harmfulness", "refusal")
    inks, ends = canvas.colours(frame["prompts"]), []
    with canvas.panels(title, height=2.6) as (figure, (axes,)):
        for (name, ink), marker in zip(inks.items(), cycle(canvas.MARKS), strict=False):
            part = frame.loc[frame["prompts"] == name, ["harmfulness", "refusal"]]
            axes.scatter(part["harmfulness"], part["refusal"], s=9, marker=marker, alpha=0.5, lw=0, color=ink)
            x, y = part.median()
            axes.plot(x, y, marker, color=ink, mec="white", mew=0.8, ms=7, zorder=4)
            ends.append((canvas.minus(name), ink, float(x), float(y)))
        axes.set(xlabel="harmfulness, read at the last\ninstruction token", ylabel="refusal, read at the last token")
        canvas.name_ends(axes, ends)
    return figure


def independence(frame: pd.DataFrame, *, title: str) -> Figure:
    """How far activations point along each of two directions, by layer, while nothing or the other is ablated.

    A panel for each direction that is read. Dashed: the other one ablated; grey: random directions ablated instead.
    Where the two lines agree the directions are independent in the sense of Wollschläger et al. 2025, figure 6.

    Args:
        frame: `read`, `ablated` (`nothing` or the name of a direction), `layer`, `value`, `low`, `high`, `random_low`,
            `random_high`, as the rows of one metric of `transfer.cross_ablation`.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "read", "ablated", "layer", "value", gaps=("low", "high", "random_low", "random_high"))
    names = list(dict.fromkeys(frame["read"]))
    with canvas.panels(title, height=2.3, columns=len(names), width=canvas.PAGE) as (figure, axes):
        for ax, name in zip(axes, names, strict=True):
            part = frame.loc[(frame["read"] == name) & (frame["ablated"] != name)]
            band = part.groupby("layer").agg(low=("random_low", "min"), high=("random_high", "max")).dropna()
            ax.fill_between(band.index, band["low"], band["high"], color=canvas.FAINT, lw=0, zorder=0)
            inks = {ablated: canvas.BLUE if ablated == "nothing" else canvas.ORANGE for ablated in part["ablated"]}
            ends = canvas.curves(ax, part, x="layer", y="value", by="ablated", inks=inks, band=("low", "high"))
            for line, (ablated, _, _, _) in zip(ax.lines, ends, strict=True):
                line.set_linestyle("-" if ablated == "nothing" else "--")
            canvas.name_ends(ax, [(f"{ablated} ablated", ink, x, y) for ablated, ink, x, y in ends])
            ax.set(xlabel="layer (grey: random directions ablated)", ylabel=f"cosine with {name}")
            ax.set_xticks(sorted(set(part["layer"])))
    return figure
