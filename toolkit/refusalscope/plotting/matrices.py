"""Drawings of transfer matrices: what was located on one group of prompts, measured on every other."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from refusalscope import canvas
from refusalscope.canvas import Band
from refusalscope.errors import MeasurementError

COLORMAP = ListedColormap(mpl.colormaps["Blues"](np.linspace(0, 0.55, 256)))  # so light that dark digits stand on it
MOST_UPRIGHT = 4  # columns that a print column holds, with names side by side


def transfer(frame: pd.DataFrame, *, title: str, unit: str, limits: Band = (0, 1)) -> Figure:
    """A heat map for each grouping: sources down, targets across, the value in every cell, over what placebos reach.

    The small digits of a cell are the upper end of its label-shuffled placebos, the row below the map that of random
    directions, on the scale of the map. Cells that were not measured are hatched.

    Args:
        frame: `grouping`, `source`, `target`, `value`, `random_high`, `shuffled_high`; one row per cell.
        unit: what the values are, with their unit.
        limits: of the scale; it does not follow the data, so that cells which are alike look alike.

    Raises:
        MeasurementError: a column is missing or empty, or a cell comes twice.
    """
    canvas.need(frame, "grouping", "source", "target", gaps=("value", "random_high", "shuffled_high"))
    if frame.duplicated(["grouping", "source", "target"]).any():
        raise MeasurementError("Column 'value' has several rows for one cell. Give the rows of one metric.")
    parts = {str(name): _grids(part) for name, part in frame.groupby("grouping", sort=False)}
    sizes = [len(grids["value"].columns) for grids in parts.values()]
    tallest = max(len(grids["value"]) for grids in parts.values())
    width = canvas.COLUMN if sum(sizes) <= MOST_UPRIGHT else canvas.PAGE
    with canvas.panels(title, height=1.15 + 0.33 * (tallest + 1), columns=len(parts), width=width) as (figure, axes):
        figure.axes[0].get_gridspec().set_width_ratios(sizes)  # pyright: ignore[reportOptionalMemberAccess]
        for ax, (name, grids) in zip(axes, parts.items(), strict=True):
            _map(ax, grids, norm=Normalize(*limits))
            ax.set_title(f"by {name}", loc="left")
            ax.set_xlabel("measured on")
        axes[0].set_ylabel("located on")
        note = f"{unit}; ≤ upper end of the placebos' 95% band: shuffled labels in a cell, random directions below"
        figure.supxlabel(textwrap.fill(note, round(18 * width)), fontsize=6.5, color=canvas.GREY)
    return figure


def _grids(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Value and placebos of one grouping as tables of sources and targets, in the order they come in."""
    order = {axis: list(dict.fromkeys(part[axis])) for axis in ("source", "target")}
    return {
        column: part.pivot(index="source", columns="target", values=column).loc[order["source"], order["target"]]
        for column in ("value", "random_high", "shuffled_high")
    }


def _map(axes: Axes, grids: dict[str, pd.DataFrame], *, norm: Normalize) -> None:
    value, shuffled = (grids[column].to_numpy(float) for column in ("value", "shuffled_high"))
    random = grids["random_high"].bfill().iloc[0].to_numpy(float)  # the same directions stand against every source
    axes.patch.set(hatch="////", edgecolor=canvas.FAINT)
    axes.imshow(np.vstack([value, random]), aspect="auto", norm=norm, cmap=COLORMAP)
    axes.axhline(len(value) - 0.5, color="white", lw=4)
    for (row, column), number in np.ndenumerate(value):
        _digits(axes, (column, row), f"{number:.2f}", lift=0 if math.isnan(shuffled[row, column]) else 4, size=7.5)
        _digits(axes, (column, row), f"≤{shuffled[row, column]:.2f}", lift=-5, size=6)
    for column, number in enumerate(random):
        _digits(axes, (column, len(value)), f"≤{number:.2f}", lift=0, size=6.5)
    _names(axes, [*map(str, grids["value"].index), "random"], list(map(str, grids["value"].columns)))


def _digits(axes: Axes, cell: tuple[int, int], digits: str, *, lift: float | int, size: float | int) -> None:
    """Digits in a cell, so many points above its middle; none for a nan."""
    if "nan" not in digits:
        where: dict[str, Any] = {"xytext": (0, lift), "textcoords": "offset points", "ha": "center", "va": "center"}
        axes.annotate(canvas.minus(digits), cell, **where, color=canvas.INK, fontsize=size)


def _names(axes: Axes, down: Sequence[str], across: Sequence[str]) -> None:
    canvas.rows(axes, down)
    axes.set_xticks(range(len(across)), across, rotation=90 if len(across) > MOST_UPRIGHT else 0)
    axes.tick_params(axis="x", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
