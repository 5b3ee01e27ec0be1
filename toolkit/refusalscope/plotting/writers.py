"""A drawing of direct attribution: what every head and MLP writes along a direction, layer by layer."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusalscope import canvas

NAMED = 3
STEP = 0.11  # inches a component takes


def writers(frame: pd.DataFrame, *, title: str) -> Figure:
    """What each component writes along the direction, restricted against harmless, with its interval, layer by layer.

    Behind every component, in grey, is what it writes along random directions. The strongest are named with their
    number; filled ones enter the residual stream the direction was located in, hollow ones come after it.

    Args:
        frame: `component`, `layer`, `upstream`, `value`, `low`, `high`, `random_low`, `random_high`, a row per
            component, as `attribution(...).frame` has them.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "component", "layer", "upstream", "value", gaps=("low", "high", "random_low", "random_high"))
    table = frame.reset_index(drop=True)
    with canvas.panels(title, height=0.9 + STEP * len(table)) as (figure, (axes,)):
        axes.hlines(table.index, table["random_low"], table["random_high"], color=canvas.FAINT, lw=5, zorder=0)
        axes.hlines(table.index, table["low"], table["high"], color=canvas.BLUE, lw=1)
        for upstream, part in table.groupby("upstream"):
            face = canvas.BLUE if upstream else "white"
            axes.plot(part["value"], part.index, "o", color=canvas.BLUE, mfc=face, ms=3, ls="")
        strongest = table.loc[abs(table["value"]).argsort()[-NAMED:]]
        for row, name, value, low, high in strongest[["component", "value", "low", "high"]].itertuples():
            side, end = (1, high) if value >= 0 else (-1, low)
            where: dict[str, Any] = {"xytext": (6 * side, 0), "textcoords": "offset points", "va": "center"}
            text = canvas.minus(f"{name}  {value:.1f}")
            at = (value if pd.isna(end) else end, row)
            axes.annotate(text, at, **where, ha="left" if side > 0 else "right", fontsize=6.5)
        _layers(axes, table)
        axes.set(xlabel="written along the direction, restricted minus\nharmless (grey: along random directions)")
        axes.margins(x=0.3)
    return figure


def _layers(axes: Axes, table: pd.DataFrame) -> None:
    """One name a layer, at the middle of its components, and a thin line between layers."""
    groups = table.groupby("layer", dropna=False, sort=False)
    middles = [float(part.index.to_numpy().mean()) for _, part in groups]
    names = [_name(part) for _, part in groups]
    axes.set_yticks(middles, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(table) - 0.4, -0.6)
    for _, part in list(groups)[1:]:
        axes.axhline(part.index[0] - 0.5, color=canvas.FAINT, lw=0.5, zorder=0)


def _name(part: pd.DataFrame) -> str:
    layer = f"layer {int(part['layer'].iloc[0])}"
    return f"embedding,\n{layer}" if part["component"].iloc[0] == "embedding" else layer
