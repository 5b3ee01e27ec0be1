"""ROC curves of scores, with bands."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from refusalscope import canvas


def roc(frame: pd.DataFrame, *, title: str, anchor: tuple[float, float] | None = None) -> Figure:
    """Detection against false positives, a named line with its band for each score; chance is dotted.

    Args:
        frame: `false_positive`, `detection`, `low`, `high`, `score`.
        anchor: a published (false positives, detection) to mark.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "false_positive", "detection", "score", gaps=("low", "high"))
    inks = canvas.colours(frame["score"])
    with canvas.panels(title, height=2.6) as (figure, (axes,)):
        ends = []
        for name, line in frame.groupby("score", sort=False):
            ends.append(_stepped(axes, line, str(name), inks[name]))
        axes.plot([0, 1], [0, 1], ":", color=canvas.GREY, lw=0.8)
        if anchor is not None:
            axes.plot(*anchor, "x", color=canvas.INK, ms=5, zorder=5)
            axes.annotate("published", anchor, xytext=(4, -8), textcoords="offset points", fontsize=6.5)
        axes.set(xlabel="false-positive rate", ylabel="detection", xlim=(-0.02, 1), ylim=(0, 1.02))
        canvas.name_ends(axes, ends)
    return figure


def _stepped(axes, line: pd.DataFrame, name: str, ink: str) -> canvas.End:
    axes.step(line["false_positive"], line["detection"], where="post", color=ink)
    axes.fill_between(line["false_positive"], line["low"], line["high"], step="post", color=ink, alpha=0.18, lw=0)
    # Every line ends at (1, 1): it is named where it crosses the middle, so that names come in the lines' order.
    middle = line.loc[line["false_positive"] <= 0.1, "detection"].max()
    return name, ink, 1.0, float(middle)
