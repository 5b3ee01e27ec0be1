"""Drawings of selection grids, several models below each other: scores, survivors, costs, cosines of candidates."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from refusalscope import canvas
from refusalscope.plotting.cells import KL_LIMIT, first_late, shade_late

SCORES = {"bypass": "margin, ablated", "induce": "margin, added", "kl": "KL(base‖ablated)"}
BASELINES = {"bypass": "restricted", "induce": "harmless"}
STATES = {"late": (".", canvas.GREY), "rejected": (".", canvas.GREY), "survives": ("o", canvas.BLUE)}
SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}


def score_grids(cells: pd.DataFrame, *, baselines: pd.DataFrame, title: str) -> Figure:
    """The three scores of the selection rule by layer, a row per model, a line per position (Arditi 2024, appendix C).

    Args:
        cells: `model layers layer position bypass induce kl chosen`.
        baselines: `model restricted harmless`: mean margins without intervention, drawn dashed.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(cells, "model", "layers", "layer", "position", "chosen", gaps=SCORES)
    models, inks = list(dict.fromkeys(cells["model"])), canvas.colours(sorted(cells["position"].unique()))
    levels = baselines.set_index("model")
    with canvas.panels(title, height=0.5 + 1.35 * len(models), width=canvas.PAGE) as (figure, (only,)):
        only.remove()
        grid = figure.subplots(len(models), len(SCORES), squeeze=False)
        for axes, model in zip(grid, models, strict=True):
            part = cells.loc[cells["model"] == model]
            for ax, score in zip(axes, SCORES, strict=True):
                _scores(ax, part, score, inks=inks)
                if score in BASELINES:
                    ax.axhline(levels.loc[model, BASELINES[score]], color=canvas.INK, ls="--", lw=0.8, zorder=1)
            best = part.loc[part["chosen"]].iloc[0]
            axes[0].set_ylabel(f"{model}\n(nats)")
            where = f"○ layer {best['layer']}, position {canvas.minus(best['position'])}"
            axes[0].text(0, 1.03, where, transform=axes[0].transAxes, fontsize=6.5, color=canvas.INK)
        for ax, label in zip(grid[0], SCORES.values(), strict=True):
            ax.set_title(label + "\n")
        for ax in grid[-1]:
            ax.set_xlabel("layer")
    return figure


def survivors(cells: pd.DataFrame, *, title: str) -> Figure:
    """Which cells (layer, position) survive the selection rule, a panel per model, with the distance of the next best.

    Args:
        cells: `model layers layer position state gap`, as `published.survivors` makes them.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(cells, "model", "layers", "layer", "position", "state", gaps=("gap",))
    models = list(dict.fromkeys(cells["model"]))
    with canvas.panels(title, height=0.4 + 1.3 * ((len(models) + 1) // 2), width=canvas.PAGE) as (figure, (only,)):
        only.remove()
        grid = figure.subplots((len(models) + 1) // 2, 2, squeeze=False).ravel()
        for ax, model in zip(grid, models, strict=False):
            part = cells.loc[cells["model"] == model]
            _states(ax, part)
            gaps = part.loc[part["state"] == "survives", "gap"]
            next_best = f"; next best +{gaps.min():.2f} nats" if len(gaps) else ""
            kept = int(part["state"].isin(["survives", "chosen"]).sum())
            ax.set_title(f"{model}: {kept} of {len(part)} survive{next_best}", loc="left")
        for ax in grid[len(models) :]:
            ax.remove()
        figure.supxlabel("large: survives; ringed: chosen; small: rejected; shaded: too late a layer", fontsize=7.5)
    return figure


def search_costs(frame: pd.DataFrame, *, title: str) -> Figure:
    """Prompt-forwards of a full sweep and of the search that finds the same cell, a row per model.

    Args:
        frame: `model cells naive winner saving`.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(frame, "model", "cells", "naive", "winner", "saving")
    with canvas.panels(title, height=0.75 + 0.32 * len(frame)) as (figure, (ax,)):
        at = list(range(len(frame)))
        ax.barh(at, frame["naive"] / 1000, height=0.62, color=canvas.FAINT)
        ax.barh(at, frame["winner"] / 1000, height=0.62, color=canvas.BLUE)
        for y, (winner, saving) in enumerate(zip(frame["winner"], frame["saving"], strict=True)):
            ax.text(winner / 1000, y, f" {saving:.1f} times fewer", va="center", fontsize=6.5)
        canvas.rows(ax, [f"{model} ({n})" for model, n in zip(frame["model"], frame["cells"], strict=True)])
        ax.set_xlabel("thousand prompt-forwards:\nfull sweep (pale), exact search (dark)")
        ax.set_ylabel("model (cells)")
    return figure


def cosine_maps(frame: pd.DataFrame, *, title: str) -> Figure:
    """Cosines between all candidates, in order of position and then of layer, a panel per model.

    Args:
        frame: `model position layer other_position other_layer cosine`, each pair once.

    Raises:
        MeasurementError: a column is missing or empty.
    """
    canvas.need(frame, "model", "position", "layer", "other_position", "other_layer", "cosine")
    models = list(dict.fromkeys(frame["model"]))
    norm = Normalize(min(0.0, *frame["cosine"].tolist()), 1)
    with canvas.panels(title, height=3.2, columns=len(models), width=canvas.PAGE) as (figure, axes):
        for ax, model in zip(axes, models, strict=True):
            part = frame.loc[frame["model"] == model]
            keys = list(dict.fromkeys(zip(part["position"], part["layer"], strict=True)))
            lower = part.pivot(
                index=["position", "layer"], columns=["other_position", "other_layer"], values="cosine"
            ).reindex(index=keys, columns=keys)
            ax.imshow(lower.combine_first(lower.T).to_numpy(float), norm=norm, cmap="cividis")
            _blocks(ax, [position for position, _ in keys])
            ax.set_title(model, loc="left")
        figure.colorbar(axes[0].images[0], ax=axes, label="cosine between two candidates", shrink=0.8, pad=0.02)
    return figure


def _scores(ax: Axes, part: pd.DataFrame, score: str, *, inks: dict) -> None:
    """One score by layer: lines, the chosen cell, the layers left out, the limit on KL, names of the positions."""
    depth, ends = int(part["layers"].iloc[0]), []
    shapes = dict(zip(inks, SHAPES, strict=False))
    for position, line in part.sort_values("layer").groupby("position"):
        ax.plot(line["layer"], line[score], f"{shapes[position]}-", color=inks[position], ms=2.6, lw=0.9)
        name = f"{SHAPES[shapes[position]]} {canvas.minus(position)}"
        ends.append((name, inks[position], float(line["layer"].iloc[-1]), float(line[score].iloc[-1])))
    best = part.loc[part["chosen"]]
    ax.plot(best["layer"], best[score], "o", mfc="none", mec=canvas.INK, mew=1.2, ms=8, zorder=5)
    shade_late(ax, first_late(part, depth), depth)
    ax.set_xlim(-0.5, depth - 0.5)
    ax.locator_params(axis="x", integer=True, nbins=6)
    ax.margins(y=0.1)
    if score == "kl":
        ax.set_yscale("symlog", linthresh=1e-2)
        ax.axhline(KL_LIMIT, color=canvas.INK, ls="--", lw=0.8, zorder=1)
        ax.set_ylim(-2e-3, max(0.2, *(2 * part["kl"]).tolist()))
        canvas.name_ends(ax, ends, header="position")


def _states(ax: Axes, part: pd.DataFrame) -> None:
    """The cells of a grid by what the rule says of them, the chosen one ringed."""
    for state, (marker, ink) in STATES.items():
        one = part.loc[part["state"] == state]
        ax.plot(one["layer"], one["position"], marker, color=ink, ms=4 if state == "survives" else 2.5, ls="none")
    best = part.loc[part["state"] == "chosen"]
    ax.plot(best["layer"], best["position"], "o", color=canvas.ORANGE, mec=canvas.INK, ms=6.5, mew=1.2)
    depth = int(part["layers"].iloc[0])
    shade_late(ax, first_late(part, depth), depth)
    positions = sorted(part["position"].unique())
    ax.set_yticks(positions, [canvas.minus(position) for position in positions])
    ax.set(xlim=(-0.7, depth - 0.3), ylim=(positions[0] - 0.6, -0.4), xlabel="layer", ylabel="position")
    ax.locator_params(axis="x", integer=True, nbins=8)


def _blocks(ax: Axes, positions: list[int]) -> None:
    """A tick in the middle of each position's block, and a line between blocks."""
    names = list(dict.fromkeys(positions))
    firsts = [positions.index(name) for name in names]
    middles = [first + (positions.count(name) - 1) / 2 for first, name in zip(firsts, names, strict=True)]
    for first in firsts[1:]:
        ax.axhline(first - 0.5, color="white", lw=0.6)
        ax.axvline(first - 0.5, color="white", lw=0.6)
    labels = [canvas.minus(name) for name in names]
    ax.set_xticks(middles, labels)
    ax.set_yticks(middles, labels)
    ax.set(xlabel="position (within it, layers in order)", ylabel="position")
    ax.tick_params(length=0)
