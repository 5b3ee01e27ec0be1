"""A drawing of the over-refusal trade-off: what one dose does to the refusals of several kinds of prompts."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusalscope import canvas
from refusalscope.canvas import End

DOSE_NAMES = {"ablation": "ablated: dose λ", "addition": "added: multiples of the vector"}


def trade_off(frame: pd.DataFrame, *, title: str) -> Figure:
    """Refusal rates against the dose, a panel per intervention and a named line with its interval per kind of prompt.

    The grey bands are what random directions of the same norm do to each kind at the same dose.

    Args:
        frame: `by` (`ablation` or `addition`), `dose`, `prompts`, `value`, `low`, `high`, `random_low`, `random_high`.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "by", "dose", "prompts", "value", gaps=("low", "high", "random_low", "random_high"))
    inks, panels = canvas.colours(frame["prompts"]), list(dict.fromkeys(frame["by"]))
    width = canvas.COLUMN if len(panels) == 1 else canvas.PAGE
    with canvas.panels(title, height=2.2, columns=len(panels), width=width) as (figure, axes):
        for ax, by in zip(axes, panels, strict=True):
            part = frame.loc[frame["by"] == by]
            ends = _random(ax, part)
            ends += canvas.curves(ax, part, x="dose", y="value", by="prompts", inks=inks, band=("low", "high"))
            ax.set(xlabel=DOSE_NAMES[by], ylim=(-0.06, 1.06), yticks=(0, 0.5, 1))
            canvas.name_ends(ax, ends)
        axes[0].set_ylabel("share of prompts refused")
    return figure


def _random(axes: Axes, part: pd.DataFrame) -> list[End]:
    """The bands of random directions, the first of them as an end to name."""
    ends: list[End] = []
    for _, line in part.sort_values("dose").groupby("prompts", sort=False):
        low, high = (line[column].astype(float) for column in ("random_low", "random_high"))
        axes.fill_between(line["dose"], low, high, color=canvas.GREY, alpha=0.25, lw=0.6, zorder=0)
        ends.append(("random, 95% band", canvas.GREY, float(line["dose"].iloc[-1]), float((low + high).iloc[-1] / 2)))
    return ends[:1]
