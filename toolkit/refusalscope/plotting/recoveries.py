"""A drawing of recovery: how near every locator comes to what was planted."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusalscope import canvas

NEAR = 20.0  # degrees: within it a truth counts as found
HEIGHT = 0.22  # inches of a row
LANE = 0.17  # of a row: one direction above, as many as planted below


def recovery_by_locator(frame: pd.DataFrame, *, title: str, near: float = NEAR) -> Figure:
    """Angles to the planted directions, a row per locator and a panel per number of directions planted.

    A circle is one direction that was found, a diamond the largest angle of as many as were planted, with a line from
    the smallest. Several organisms of a panel stand one below the other, in the order of their names. Grey bars are
    what random subspaces of the same rank reach. A locator that failed has no mark.

    Args:
        frame: `organism`, `truth_rank`, `locator`, `rank`, `angle_1`, `angle` (degrees), `random_low`, `random_high`,
            and `rule` (bool): drawn open where the selection rule left no cell. Locators keep the frame's order.
        near: degrees within which a truth counts as found, drawn dashed.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    gaps = ("angle_1", "angle", "random_low", "random_high")
    canvas.need(frame, "organism", "truth_rank", "locator", "rank", "rule", gaps=gaps)
    locators, planted = list(dict.fromkeys(frame["locator"])), sorted({*frame["truth_rank"]})
    width = canvas.COLUMN if len(planted) == 1 else canvas.PAGE
    most = max(len(set(frame["organism"][frame["truth_rank"] == rank])) for rank in planted)
    height = 1.3 + HEIGHT * len(locators) * max(1.0, 0.6 * most)
    with canvas.panels(title, height=height, columns=len(planted), width=width) as (figure, axes):
        for ax, rank in zip(axes, planted, strict=True):
            part = frame.loc[frame["truth_rank"] == rank]
            _chance(ax, part, locators)
            _marks(ax, part, locators)
            ax.axvline(near, color=canvas.INK, ls="--", lw=0.8, zorder=1)
            ax.set(xlim=(-3, 93), xticks=(0, round(near), 45, 90))
            ax.set_title("\n".join([_planted(rank), ", ".join(dict.fromkeys(part["organism"]))]), loc="left")
            canvas.rows(ax, locators if ax is axes[0] else [""] * len(locators))
        key = "○ one direction" + ("; ◇ as many as planted, largest angle" if planted[-1] > 1 else "")
        key = textwrap.fill(f"{key}; open: the selection rule left no cell; grey: random", round(15 * width))
        figure.supxlabel(f"angle to what was planted (degrees)\n{key}", fontsize=7.5)
    return figure


def _chance(axes: Axes, part: pd.DataFrame, locators: list[str]) -> None:
    """The widest band of the organisms, for every locator and rank."""
    for name, rank in dict.fromkeys(zip(part["locator"], part["rank"], strict=True)):
        here = part.loc[(part["locator"] == name) & (part["rank"] == rank)]
        low, high = here["random_low"].min(), here["random_high"].max()
        y, thick = _lane(part, locators.index(name), rank)
        axes.barh(y, high - low, thick, low, color=canvas.FAINT, lw=0, zorder=0)


def _marks(axes: Axes, part: pd.DataFrame, locators: list[str]) -> None:
    names = list(dict.fromkeys(part["organism"]))
    for row in part.to_dict("records"):
        lane, thick = _lane(part, locators.index(row["locator"]), row["rank"])
        y = lane + thick * ((names.index(row["organism"]) + 0.5) / len(names) - 0.5)
        axes.plot([row["angle_1"], row["angle"]], [y, y], "-", color=canvas.GREY, lw=0.8, zorder=2)
        face = canvas.INK if row["rule"] else "white"
        look: dict[str, Any] = {
            "marker": "o" if row["rank"] == 1 else "D",
            "ms": 3.4,
            "mfc": face,
            "mec": canvas.INK,
            "mew": 0.8,
        }
        axes.plot(row["angle"], y, ls="", zorder=3, **look)


def _lane(part: pd.DataFrame, row: int, rank: int) -> tuple[float, float]:
    """Where the findings of one rank stand in a row, and how thick that is."""
    if len(set(part["rank"])) == 1:
        return float(row), 4 * LANE
    return row + (-LANE if rank == 1 else LANE), 2 * LANE * 0.9


def _planted(rank: int) -> str:
    return f"{rank} planted direction" + ("s" if rank > 1 else "")
