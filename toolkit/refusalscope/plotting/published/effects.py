"""Drawings of what interventions do, published and measured: losses, refusals left against damage, judges."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusalscope import canvas

CONDITIONS = {"base": canvas.FAINT, "ablated": canvas.ORANGE, "added": canvas.INK}
MARKERS = ("o", "^", "s")
CLOSE = (0.35, 8)  # decades of KL, and refusals of 100, within which names would collide


def losses(frame: pd.DataFrame, *, title: str) -> Figure:
    """Cross-entropy with and without intervention, a panel per corpus, a row per model (Arditi 2024, appendix G).

    Args:
        frame: `model corpus condition value` in nats per token, the conditions base, ablated and added.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(frame, "model", "corpus", "condition", "value")
    models, corpora = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["corpus"]))
    with canvas.panels(title, height=0.8 + 0.42 * len(models), columns=len(corpora), width=canvas.PAGE) as (
        figure,
        axes,
    ):
        for ax, corpus in zip(axes, corpora, strict=True):
            part = frame.loc[frame["corpus"] == corpus]
            for step, (condition, ink) in enumerate(CONDITIONS.items()):
                one = part.loc[part["condition"] == condition]
                at = [models.index(model) + 0.27 * (step - 1) for model in one["model"]]
                bars = ax.barh(at, one["value"], height=0.25, color=ink, edgecolor=canvas.INK, lw=0.3)
                ax.bar_label(bars, [f"{value:.2f}" for value in one["value"]], padding=1, fontsize=5.5)
            canvas.rows(ax, models if ax is axes[0] else [""] * len(models))
            ax.margins(x=0.18)
            ax.set_title(corpus, loc="left")
        figure.supxlabel("cross-entropy (nats per token): base (pale), ablated (mid), added (dark)", fontsize=7.5)
    return figure


def removals(panels: dict[str, pd.DataFrame], *, title: str) -> Figure:
    """What still refuses against the damage, a point with its interval for each edited model.

    Args:
        panels: name to `study model kl value low high`; a row with kl 0 is the unedited model, drawn dashed.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    with canvas.panels(title, height=2.5, columns=len(panels), width=canvas.PAGE) as (figure, axes):
        for ax, (name, frame) in zip(axes, panels.items(), strict=True):
            canvas.need(frame, "study", "model", "kl", "value", gaps=("low", "high"))
            for (_, part), marker, ink in zip(
                frame.groupby("study", sort=False), MARKERS, canvas.PALETTE, strict=False
            ):
                for row in part.loc[part["kl"] == 0].itertuples(index=False):
                    ax.axhline(100 * row.value, color=ink, ls="--", lw=0.8)
                    where = {"transform": ax.get_yaxis_transform(), "va": "top"}
                    ax.text(0.02, 100 * row.value - 2, f"{row.model}, unedited", color=ink, fontsize=6, **where)
                _edited(ax, part.loc[part["kl"] > 0], marker=marker, ink=ink)
            ax.set_xscale("log")
            ax.margins(x=0.16)
            ax.set(xlabel="KL(base‖edited), nats per prompt", ylim=(-14, 104), yticks=range(0, 101, 25))
            ax.set_title(name, loc="left")
        axes[0].set_ylabel("refused, of 100 prompts")
    return figure


def judges(panels: dict[str, pd.DataFrame], *, title: str) -> Figure:
    """How many of the same answers judges call refusals: a row per set of answers, a dot per judge.

    Args:
        panels: name to `answers judge value`, the value a share; the judge in the first row is drawn filled.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    for frame in panels.values():
        canvas.need(frame, "answers", "judge", "value")
    rows = max(len(set(frame["answers"])) for frame in panels.values())
    with canvas.panels(title, height=1.1 + 0.24 * rows, columns=len(panels), width=canvas.PAGE) as (figure, axes):
        for ax, (name, frame) in zip(axes, panels.items(), strict=True):
            answers, first = list(dict.fromkeys(frame["answers"])), frame["judge"].iloc[0]
            for y, (_, part) in enumerate(frame.groupby("answers", sort=False)):
                ax.plot(
                    [100 * part["value"].min(), 100 * part["value"].max()], [y, y], color=canvas.FAINT, lw=4, zorder=0
                )
                other, one = part.loc[part["judge"] != first], part.loc[part["judge"] == first]
                ax.plot(100 * other["value"], [y] * len(other), "o", mfc="none", mec=canvas.INK, ms=4.5, mew=0.8)
                ax.plot(100 * one["value"], [y] * len(one), "D", color=canvas.ORANGE, ms=4, zorder=4)
            canvas.rows(ax, answers)
            ax.set(xlim=(-4, 104), xlabel="called a refusal (% of the same answers)")
            heading = f"{name}; ◆ {first}, ○ {frame['judge'].nunique() - 1} other judges"
            ax.set_title(textwrap.fill(heading, 44), loc="left")
    return figure


def _edited(ax: Axes, part: pd.DataFrame, *, marker: str, ink: str) -> None:
    """Edited models, each with its interval and its name, placed clear of the next model to the right."""
    ordered = part.sort_values("kl").reset_index(drop=True)
    decades, refused = np.log10(ordered["kl"].to_numpy(float)), 100 * ordered["value"].to_numpy(float)
    few = refused < CLOSE[1]
    for at, (kl, low, high, model) in enumerate(ordered[["kl", "low", "high", "model"]].itertuples(index=False)):
        ax.plot([kl, kl], [100 * low, 100 * high], color=ink, lw=1)
        ax.plot(kl, refused[at], marker, color=ink, ms=4)
        after, before = decades - decades[at], decades[at] - decades
        close, behind = (after > 0) & (after <= CLOSE[0]), (before > 0) & (before <= CLOSE[0])
        rise = (refused - refused[at])[close]
        if few[at]:
            y, shift = refused[at], 4 * (int((few & close).any()) - int((few & behind).any()))
            place = {"xytext": (shift, -5), "ha": {4: "right", 0: "center", -4: "left"}[shift]}
        elif bool((np.abs(rise) < CLOSE[1]).any()) or decades[at] > 0:
            y, place = 100 * high if bool(close.any()) else refused[at], {"xytext": (-3, 1), "ha": "right"}
        else:
            y, place = 100 * low if bool((rise > 0).any()) else refused[at], {"xytext": (4, 1), "ha": "left"}
        vertical = "top" if few[at] else "center"
        name = canvas.minus(str(model).split("/")[0])
        where = {"textcoords": "offset points", "fontsize": 6, "color": ink, "va": vertical}
        ax.annotate(name, (kl, y), **place, **where)
