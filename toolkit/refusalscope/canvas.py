"""What every drawing shares: the theme, checked columns, panels under one title, bands, and line names."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.optimize import isotonic_regression

from refusalscope.errors import MeasurementError

COLUMN, PAGE = 3.4, 7.0  # inches: one column of print, and two
PALETTE = tuple(sns.color_palette("colorblind").as_hex())
BLUE, ORANGE = PALETTE[0], PALETTE[3]
INK, GREY, FAINT = "#262626", "#6e6e6e", "#dedede"
TICK_SIZE = 7
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": TICK_SIZE,
    "ytick.labelsize": TICK_SIZE,
    "figure.titlesize": 8.5,
    "figure.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,  # type is laid out at the resolution it is saved in, in a notebook as elsewhere
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
}
MARKS = "os^Dv*PX<>"  # of lines by their colour: apart in grey print too; dashes mean limits and placebos
CHARACTERS_PER_INCH = 13  # of the title's type
NAME_WIDTH = 18  # characters of the name of a row
LINE_HEIGHT = 0.15  # inches between names at the ends of lines
Band = tuple[float | int, float | int]
End = tuple[str, str, float, float]  # name, colour, x, y


def theme() -> AbstractContextManager[None]:
    """A context in which figures are drawn: type that is readable at column width; outside it nothing changes."""
    settings: dict[Any, Any] = {**sns.axes_style("ticks"), **sns.plotting_context("paper"), **SETTINGS}
    return mpl.rc_context(settings)


def need(frame: pd.DataFrame, *columns: str, gaps: Iterable[str] = ()) -> None:
    """Refuses a frame that cannot be drawn whole.

    Args:
        columns: must be there, without nan.
        gaps: must be there; a nan is drawn as a gap.

    Raises:
        MeasurementError: names the first column that is missing, empty, or has a nan.
    """
    for column in (*columns, *gaps):
        if column not in frame.columns:
            raise MeasurementError(f"No column {column!r} to draw: the frame has {sorted(map(str, frame.columns))}.")
        if frame.empty:
            raise MeasurementError(f"Column {column!r} has no rows: nothing was measured, so nothing is drawn.")
        if column in columns and (blank := int(pd.isna(frame[column]).to_numpy().sum())):
            raise MeasurementError(f"Column {column!r} has {blank} nan among {len(frame)} rows. Report them apart.")


@contextmanager
def panels(
    title: str, *, height: float, columns: int = 1, width: float = COLUMN
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A themed figure with panels side by side under a title wrapped to its width; laid out when the block ends.

    On an error the figure is closed, so that none is left behind half drawn.
    """
    text = textwrap.fill(title, round(width * CHARACTERS_PER_INCH))
    with theme():
        figure, axes = plt.subplots(1, columns, figsize=(width, height + 0.14 * text.count("\n")), squeeze=False)
        figure.suptitle(text, x=0.02, ha="left")
        try:
            yield figure, list(axes[0])
            for each in figure.axes:
                each.tick_params(labelsize=TICK_SIZE)  # on this, not on the settings, the number of ticks then depends
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # each further drawing would move things again
        except BaseException:
            plt.close(figure)
            raise


def minus(name: Hashable) -> str:
    """The name as text, with a true minus sign before a number, as on the axes."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", str(name))


def scattered(n: int) -> np.ndarray:
    """Offsets in ±0.25 that spread n points over a strip, the same ones each time (multiples of the golden ratio)."""
    return 0.5 * ((np.arange(n) * 0.6180339887) % 1 - 0.5)


def colours(names: Iterable[Hashable]) -> dict[Hashable, str]:
    """A colour for each distinct name, in order."""
    return dict(zip(dict.fromkeys(names), cycle(PALETTE), strict=False))


def rows(axes: Axes, names: Sequence[str], *, inks: Sequence[str] = ()) -> None:
    """One named row for each estimate, the first on top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(minus(name), NAME_WIDTH) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for label, ink in zip(axes.get_yticklabels(), inks, strict=False):
        label.set_color(ink)


def estimates(
    axes: Axes,
    frame: pd.DataFrame,
    at: Sequence[float | int],
    *,
    inks: Sequence[str],
    digits: str = "",
    between: str = "\n",
) -> None:
    """A point with its interval for each row of `value`, `low`, `high`; no bar where there is no interval.

    Args:
        at: the row to draw each one on.
        digits: format of the numbers to write at the right of the row; empty writes none.
        between: what stands between a value and its interval; a space where rows are close to each other.
    """
    for (value, low, high), y, ink in zip(frame[["value", "low", "high"]].to_numpy(float), at, inks, strict=True):
        axes.plot([low, high], [y, y], "|-", color=ink, lw=1.2, ms=5, mew=1, zorder=3)
        axes.plot(value, y, "o", color=ink, ms=3.2, zorder=4)
        if digits:
            ends = "" if np.isnan(low) else f"{between}[{minus(f'{low:{digits}}')}, {minus(f'{high:{digits}}')}]"
            where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(1.02, y, minus(f"{value:{digits}}") + ends, fontsize=6.5, **where)


def placebo_band(axes: Axes, band: Band | None, *, vertical: bool = False) -> list[End]:
    """A grey band for what placebos reach, named above it; a band across the axes returns its name as an `End`."""
    if band is None:
        return []
    (axes.axvspan if vertical else axes.axhspan)(*band, color=FAINT, lw=0, zorder=0)
    middle = sum(band) / 2
    if not vertical:
        return [("placebo band", GREY, axes.get_xlim()[1], middle)]
    place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    axes.text(middle, 1.01, "placebo band", color=GREY, fontsize=6.5, **place)  # pyright: ignore[reportArgumentType]
    return []


def curves(
    axes: Axes, frame: pd.DataFrame, *, x: str, y: str, by: str, inks: Mapping[Hashable, str], band: tuple[str, str]
) -> list[End]:
    """Draws a line with points for each value of `by`, over its band where the frame has the band's columns.

    Each has the colour of `inks` and the marker of its place there.

    Returns:
        The name, the colour and the last drawn point of each line.
    """
    ends, markers = [], dict(zip(inks, cycle(MARKS), strict=False))
    for name, line in frame.sort_values(x).groupby(by, sort=False):
        axes.plot(line[x], line[y], markers[name] + "-", color=inks[name])
        if set(band) <= set(frame.columns):
            axes.fill_between(line[x], line[band[0]], line[band[1]], color=inks[name], alpha=0.18, lw=0)
        last = line.dropna(subset=[y])[[x, y]].to_numpy(float)[-1:]
        ends += [(minus(name), inks[name], *map(float, point)) for point in last]
    return ends


def outline(axes: Axes, grid: pd.DataFrame, cell: tuple[int, int] | None) -> None:
    """A frame around the cell (column, row) of a grid drawn as an image; nothing without one.

    Raises:
        MeasurementError: the grid has no such cell.
    """
    if cell is None:
        return
    if cell[0] not in grid.columns or cell[1] not in grid.index:
        raise MeasurementError(f"The marked cell, layer {cell[0]} and position {cell[1]}, is not in the frame.")
    corner = (list(grid.columns).index(cell[0]) - 0.5, list(grid.index).index(cell[1]) - 0.5)
    for ink, width in (("white", 2.6), ("black", 1.2)):
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=ink, lw=width))


def name_ends(axes: Axes, ends: Sequence[End], *, header: str = "") -> None:
    """Writes each name at the right of the axes, level with the end of its line but clear of the other names."""
    if not ends:
        return
    ends = sorted(ends, key=lambda end: end[3])
    axes.get_ylim()  # settles the limits, on which the levels depend
    level = (axes.transData + axes.transAxes.inverted()).transform([end[2:] for end in ends])[:, 1]
    places = apart(level, gap=LINE_HEIGHT * axes.get_figure(root=True).dpi / axes.bbox.height)  # pyright: ignore
    for (name, ink, x, y), place in zip(ends, places, strict=True):
        leader = {
            "relpos": (0, 0.5),
            "arrowstyle": "-",
            "color": ink,
            "lw": 0.5,
            "alpha": 0.5,
            "shrinkA": 1,
            "shrinkB": 2,
        }
        where: dict[str, Any] = {"xy": (x, y), "xytext": (1.04, place), "textcoords": "axes fraction"}
        axes.annotate(name, **where, arrowprops=leader, color=ink, va="center", fontsize=7, annotation_clip=False)
    axes.text(1.04, 1.08, header, transform=axes.transAxes, color=GREY, fontsize=7, va="bottom")


def apart(level: np.ndarray, *, gap: float) -> np.ndarray:
    """Rising levels moved as little as keeps them `gap` apart (least squares), inside [0, 1] while there is room."""
    steps = gap * np.arange(len(level))
    return np.clip(isotonic_regression(level - steps).x, 0, max(0.0, 1 - steps[-1])) + steps
