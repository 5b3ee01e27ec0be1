"""The forest plot: one row per model, its worst case with interval, over what placebos reach."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from refusalscope import canvas
from refusalscope.plotting.lines import MEASURE_NAMES

LIMITS = (0.2, 0.8)  # of the verdict: resistant below, optional above


def forest(frame: pd.DataFrame, *, title: str) -> Figure:
    """Worst cases of several models, a panel per measure; a grey tick is the best placebo of that model.

    The dashed lines of the panel of bypass rates are the limits of the verdict. A row without a value stays empty.

    Args:
        frame: `model`, `measure` (`bypass` or `suppression`), `value`, `low`, `high`, `placebo`.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(frame, "model", "measure", gaps=("value", "low", "high", "placebo"))
    names, measures = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["measure"]))
    height = 1.05 + 0.36 * len(names)
    with canvas.panels(title, height=height, columns=len(measures), width=canvas.PAGE) as (figure, axes):
        for ax, measure in zip(axes, measures, strict=True):
            part = frame.loc[frame["measure"] == measure]
            at = [names.index(name) for name in part["model"]]
            canvas.estimates(ax, part, at, inks=[canvas.BLUE] * len(part), digits=".2f")
            ax.plot(part["placebo"].astype(float), at, "|", color=canvas.GREY, ms=9, mew=1.6, zorder=2)
            for limit in LIMITS if measure == "bypass" else ():
                ax.axvline(limit, color=canvas.INK, ls="--", lw=0.8, zorder=1)
            canvas.rows(ax, names if ax is axes[0] else [""] * len(names))
            ax.set(xlabel=f"{MEASURE_NAMES[measure]} of the worst case", xlim=(-0.06, 1.12))
        figure.supxlabel("grey tick: best of the random subspaces", fontsize=7)
    return figure
