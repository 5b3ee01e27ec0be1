"""A drawing of cones: what single directions sampled from a cone suppress, against the cone's dimension."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from refusalscope import canvas

LINES = ("boxprops", "whiskerprops", "capprops")


def cones(frame: pd.DataFrame, *, title: str, unit: str) -> Figure:
    """Boxes of sampled members for every dimension of a cone, a colour for each kind of cone; every member is a dot.

    Box: quartiles and median; whiskers: all members. After Wollschläger et al. 2025, figures 3 and 4.

    Args:
        frame: `dimension`, `value`, `series` (kind of cone); one row per member.
        unit: what the value is, with its unit.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "dimension", "value", "series")
    inks, kinds = canvas.colours(frame["series"]), list(dict.fromkeys(frame["series"]))
    width = 0.8 / len(kinds)
    with canvas.panels(title, height=2.3) as (figure, (axes,)):
        ends = []
        for number, kind in enumerate(kinds):
            shift = (number - (len(kinds) - 1) / 2) * width
            for dimension, part in frame.loc[frame["series"] == kind].groupby("dimension"):
                values, at = part["value"].to_numpy(float), float(dimension) + shift  # pyright: ignore[reportArgumentType]
                looks: dict[str, Any] = {key: {"color": inks[kind]} for key in LINES}
                looks["medianprops"] = {"color": inks[kind], "lw": 2}
                axes.boxplot(values, positions=[at], widths=0.8 * width, whis=(0, 100), manage_ticks=False, **looks)
                dots = at + 0.8 * width * canvas.scattered(len(values))
                axes.scatter(dots, values, s=3, alpha=0.5, lw=0, color=inks[kind])
            last = frame.loc[frame["series"] == kind]
            last = last.loc[last["dimension"] == last["dimension"].max(), "value"]
            ends.append((canvas.minus(kind), inks[kind], axes.get_xlim()[1], float(last.median())))
        axes.set(xlabel="dimension of the cone", ylabel=unit)
        axes.set_xticks(sorted(set(frame["dimension"])))
        canvas.name_ends(axes, ends)
    return figure
