"""A drawing of prompts between two directions: how harmful they look, and how much they are refused."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure

from refusalscope import canvas

MARKERS = ("o", "^", "s", "D")


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
        for (name, ink), marker in zip(inks.items(), cycle(MARKERS), strict=False):
            part = frame.loc[frame["prompts"] == name, ["harmfulness", "refusal"]]
            axes.scatter(part["harmfulness"], part["refusal"], s=9, marker=marker, alpha=0.5, lw=0, color=ink)
            x, y = part.median()
            axes.plot(x, y, marker, color=ink, mec="white", mew=0.8, ms=7, zorder=4)
            ends.append((canvas.minus(name), ink, float(x), float(y)))
        axes.set(xlabel="harmfulness, read at the last\ninstruction token", ylabel="refusal, read at the last token")
        canvas.name_ends(axes, ends)
    return figure
