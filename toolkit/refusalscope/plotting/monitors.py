"""Drawings of monitors: what they still catch, dose by dose, and which layers can still be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from refusalscope import canvas

SHARES = {"caught": "caught, share of restricted", "false_alarms": "false alarms, share of harmless"}


def survival(frame: pd.DataFrame, *, title: str) -> Figure:
    """Shares above the frozen threshold against the dose, a panel per measure and a line with its interval per series.

    Dotted: the worst that random subspaces do at the same dose, over the series of the panel.

    Args:
        frame: `dose`, `measure` (`caught` or `false_alarms`), `value`, `low`, `high`, `random_low`, `random_high`,
            `series`.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "dose", "measure", "value", "series", gaps=("low", "high", "random_low", "random_high"))
    inks, measures = canvas.colours(frame["series"]), list(dict.fromkeys(frame["measure"]))
    with canvas.panels(title, height=2.4, columns=len(measures), width=canvas.PAGE) as (figure, axes):
        for ax, measure in zip(axes, measures, strict=True):
            part = frame.loc[frame["measure"] == measure]
            ends = canvas.curves(ax, part, x="dose", y="value", by="series", inks=inks, band=("low", "high"))
            of_dose = part.groupby("dose")
            worst = of_dose["random_high"].max() if measure == "false_alarms" else of_dose["random_low"].min()
            if worst.notna().any():
                ax.plot(worst.index, worst.to_numpy(), ":", color=canvas.GREY, lw=1.2)
                last = worst.dropna()
                ends = [*ends, ("worst random", canvas.GREY, float(last.index[-1]), float(last.iloc[-1]))]
            ax.set(xlabel="dose λ", ylabel=SHARES[measure], ylim=(-0.06, 1.06), yticks=(0, 0.5, 1))
            canvas.name_ends(ax, ends)
    return figure


def survival_by_layer(frame: pd.DataFrame, *, title: str) -> Figure:
    """AUROC of every layer's probe against the dose: a panel per series, a row per layer, the number in each cell.

    Args:
        frame: `layer`, `dose`, `value`, `series`; a nan is drawn as an empty cell.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(frame, "layer", "dose", "series", gaps=("value",))
    names = list(dict.fromkeys(frame["series"]))
    rows = len(set(frame["layer"]))
    with canvas.panels(title, height=0.9 + 0.24 * rows, columns=len(names), width=canvas.PAGE) as (figure, axes):
        image = None
        for ax, name in zip(axes, names, strict=True):
            grid = frame.loc[frame["series"] == name].pivot(index="layer", columns="dose", values="value")
            grid = grid.sort_index(ascending=False)
            values = grid.to_numpy(float)
            image = ax.imshow(values, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
            for (row, column), value in _cells(values):
                ink = "white" if abs(value - 0.5) > 0.35 else canvas.INK
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=ink)
            ax.set_xticks(range(grid.shape[1]), [f"{dose:g}" for dose in grid.columns])
            ax.set_yticks(range(grid.shape[0]), [str(layer) for layer in grid.index])
            ax.set_title(name, loc="left")
            ax.set(xlabel="dose λ", ylabel="layer read" if ax is axes[0] else "")
        assert image is not None
        figure.colorbar(image, ax=axes, label="AUROC", shrink=0.9, ticks=(0, 0.5, 1))
    return figure


def _cells(values: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    return [(cell, float(value)) for cell, value in np.ndenumerate(values) if not np.isnan(value)]
