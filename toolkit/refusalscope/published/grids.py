"""Selection grids side by side: which cells survive the rule, which come near the best, what finding it costs."""

from __future__ import annotations

import pandas as pd

from refusalscope.errors import MeasurementError
from refusalscope.replay import PublishedGrid
from refusalscope.rule import Mode, Search, default_rule, search
from refusalscope.selection import Choice

STATES = {"kept": "survives", "late layer": "late"}
CELLS = ("model", "layers", "layer", "position", "bypass", "induce", "kl", "reason", "chosen")


def judged(grid: PublishedGrid, model: str, *, mode: Mode = "map") -> pd.DataFrame:
    """Returns the cells of one grid with what the rule says of each, in the columns `CELLS`."""
    return _search(grid, mode).cells.assign(model=model, layers=grid.n_layers).loc[:, list(CELLS)]


def as_grid(choice: Choice, model: str, *, layers: int) -> pd.DataFrame:
    """Returns the cells of a choice made in ``map`` mode on a live model, in the columns `CELLS`."""
    return choice.cells.assign(model=model, layers=layers).loc[:, list(CELLS)]


def survivors(cells: pd.DataFrame) -> pd.DataFrame:
    """Returns the cells with `state` (late, rejected, survives, chosen) and `gap`: nats from the chosen cell's margin.

    The gap is nan where a cell does not survive. It has no interval: a published grid holds means, no prompts.
    """
    chosen = cells.loc[cells["chosen"]].set_index("model")["bypass"]
    gap = (cells["bypass"] - chosen.loc[cells["model"]].to_numpy()).where(cells["reason"] == "kept")
    state = cells["reason"].map(lambda reason: STATES.get(reason, "rejected"))
    return cells.assign(state=state.mask(cells["chosen"], "chosen"), gap=gap)


def baselines(cells: pd.DataFrame) -> pd.DataFrame:
    """Returns mean margins without intervention, read off the cells that are exact no-ops: their KL is zero.

    Columns `model restricted harmless`, in nats. At layer 0 the template positions hold no direction, so what is scored
    there is the model as it is.

    Raises:
        MeasurementError: a model has no such cell.
    """
    idle = cells.loc[cells["kl"] == 0].groupby("model", sort=False)[["bypass", "induce"]].first().reset_index()
    if missing := sorted(set(cells["model"]) - set(idle["model"])):
        raise MeasurementError(f"{missing[0]}: no cell of its grid is a no-op, so its baselines are not in the grid.")
    return idle.rename(columns={"bypass": "restricted", "induce": "harmless"})


def unfiltered(cells: pd.DataFrame) -> pd.DataFrame:
    """Returns, per model, the cell of least margin whatever its damage: what a search without filters would take."""
    return cells.loc[cells.groupby("model", sort=False)["bypass"].idxmin()].reset_index(drop=True)


def costs(cells: pd.DataFrame, *, n_prompts: int) -> pd.DataFrame:
    """Returns what finding the best cell takes, replayed: prompt-forwards of a full sweep and of ``winner`` mode.

    Columns `model cells naive winner saving same`; `same` says that both find the same cell. Exact, so no interval.

    Args:
        n_prompts: prompts per class; the saving does not depend on it.
    """
    found = []
    for model, part in cells.groupby("model", sort=False):
        frame = part.loc[:, ["layer", "position", "bypass", "induce", "kl"]]
        quick = _search(PublishedGrid(frame, int(part["layers"].iloc[0]), n_prompts), "winner")
        best = part.loc[part["chosen"], ["layer", "position"]].iloc[0]
        row = {"model": model, "cells": len(part), "naive": quick.pf_naive, "winner": quick.pf_used}
        row |= {"saving": quick.pf_naive / quick.pf_used, "same": tuple(best) == tuple(quick.chosen)}
        found.append(row)
    return pd.DataFrame(found)


def _search(grid: PublishedGrid, mode: Mode) -> Search:
    return search(grid, grid.cells(), rule=default_rule(grid.n_layers), mode=mode)
