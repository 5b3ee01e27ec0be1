"""Selecting one candidate, with its cost, its near-ties and how often resampled prompts would have chosen it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.model.chat import ChatModel
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import Readout
from refusalscope.reprs import Shown, facts
from refusalscope.rule import Cell, Kind, Mode, Rule, default_rule, search
from refusalscope.scoring import ModelScorer
from refusalscope.stats import Estimate
from refusalscope.subspace import Candidates, NotExported, Subspace

RESAMPLES = 999


@dataclass(frozen=True, repr=False, eq=False)
class Choice(Shown, NotExported):
    """The chosen candidate and everything that was measured to choose it.

    Attributes:
        subspace: the chosen candidate, in memory only.
        cells: one row per cell: ``layer position bypass induce kl reason chosen``, means in nats, NaN where not needed.
        estimates: per kind and cell, the same mean with n and interval.
        baselines: mean margins before intervening, ``restricted`` and ``harmless``.
        near_ties: cells resampled prompts would also have chosen, with the share of resamples each wins.
        pf_used, pf_naive: prompt-forwards spent, and those of the reference implementation's full sweep.
        seconds: wall-clock time.
    """

    subspace: Subspace
    cells: pd.DataFrame
    estimates: dict[Kind, dict[Cell, Estimate]]
    baselines: dict[str, Estimate]
    near_ties: pd.DataFrame
    mode: Mode
    rule: Rule
    pf_used: float
    pf_naive: float
    seconds: float
    seed: int
    readout: Readout = field(repr=False)

    @property
    def cell(self) -> Cell:
        """The chosen (layer, position)."""
        assert self.subspace.layer is not None
        assert self.subspace.position is not None
        return Cell(self.subspace.layer, self.subspace.position)

    @property
    def unchosen(self) -> float:
        """Share of resamples in which no cell survives the rule: high where the winner only just passed it."""
        return max(0.0, 1.0 - round(float(self.near_ties["share"].to_numpy().sum()), 9))

    def __repr__(self) -> str:
        tied = len(self.near_ties) - 1
        ties = "no near-ties" if tied == 0 else f"{tied} near-tie{'s' if tied > 1 else ''}"
        ties += ", and some resampled prompts leave no cell at all" if self.unchosen > 0 else ""
        return f"Choice: layer {self.cell.layer}, position {self.cell.position}, by {self.subspace.locator}; {ties}"

    def _repr_html_(self) -> str:
        rows = {"chosen": f"layer {self.cell.layer}, position {self.cell.position}"}
        rows |= {f"baseline margin, {label}": str(estimate) for label, estimate in self.baselines.items()}
        rows |= {kind: str(found[self.cell]) for kind, found in self.estimates.items()}
        rows |= {
            "cells the resampled prompts also choose": str(len(self.near_ties) - 1),
            "share of resamples that leave no cell": f"{self.unchosen:.2f} (of {RESAMPLES})",
            "prompt-forwards": f"{self.pf_used:,.0f} of {self.pf_naive:,.0f} in a full sweep",
            "seconds": f"{self.seconds:.1f}",
        }
        return facts(rows, caption=f"Choice of a candidate ({self.mode} mode)")


def select(
    model: ChatModel,
    candidates: Candidates,
    prompts: Prompts,
    readout: Readout,
    *,
    mode: Mode = "winner",
    rule: Rule | None = None,
    seed: int = 0,
) -> Choice:
    """Returns the candidate the selection rule chooses on the ``select`` split.

    Prints nothing; ``estimated_cost`` says beforehand what to expect, ``selection_bounds`` the most it can be.
    Both modes choose the same cell; ``map`` fills every cell, ``winner`` only what the argmin needs.

    Raises:
        SelectionError: when no candidate survives, with a diagnosis.
        MeasurementError: when the prompts hold one label only, or candidates and model disagree in shape.
    """
    if not len(prompts.restricted) or not len(prompts.harmless):
        raise MeasurementError(f"Selection needs restricted and harmless prompts; got {prompts!r}.")
    refuse_strangers(model, candidates)
    began, rule = time.perf_counter(), rule or default_rule(model.n_layers)
    scorer = ModelScorer(model, candidates, prompts, readout)
    chosen = search(scorer, [Cell(*cell) for cell in candidates.cells()], rule=rule, mode=mode)
    baselines = {
        "restricted": stats.mean(scorer.restricted_margin.numpy(), clusters=prompts.restricted.clusters, unit="nats"),
        "harmless": stats.mean(scorer.harmless_margin.numpy(), clusters=scorer.harmless.clusters, unit="nats"),
    }
    return Choice(
        subspace=candidates.at(*chosen.chosen),
        cells=chosen.cells,
        estimates=_estimates(scorer),
        baselines=baselines,
        near_ties=near_ties(scorer, chosen.cells, rule=rule, seed=seed),
        mode=mode,
        rule=rule,
        pf_used=chosen.pf_used,
        pf_naive=chosen.pf_naive,
        seconds=time.perf_counter() - began,
        seed=seed,
        readout=readout,
    )


def refuse_strangers(model: ChatModel, candidates: Candidates) -> None:
    """Raises MeasurementError for candidates whose grid is not this model's."""
    if (candidates.n_layers, candidates.positions) != (model.n_layers, model.positions):
        raise MeasurementError(
            f"The candidates are for {candidates.n_layers} layers and {len(candidates.positions)} positions; "
            f"{model.origin.name} has {model.n_layers} and {model.n_positions}. Capture and locate on this model."
        )


def estimated_cost(model: ChatModel, prompts: Prompts, *, rule: Rule | None = None) -> float:
    """Returns the prompt-forwards to expect of a selection in ``winner`` mode, known before anything runs.

    It is charged as if every early cell survived induction and the first KL passed: more than it takes, unless many of
    the best candidates damage the model. ``bounds.selection_bounds`` has the most it can be.
    """
    n = max(len(prompts.restricted), len(prompts.harmless))
    rule = rule or default_rule(model.n_layers)
    early = [layer for layer in range(model.n_layers) if rule.is_early(Cell(layer, -1), model.n_layers)]
    induce = sum((model.n_layers - layer) / model.n_layers if model.can_resume else 1.0 for layer in early)
    return n * (2 + model.n_positions * (induce + len(early)) + 1)


def near_ties(scorer: ModelScorer, cells: pd.DataFrame, *, rule: Rule, seed: int) -> pd.DataFrame:
    """Returns the cells that win when prompts are resampled, with the share of resamples each wins, best first.

    Bootstrap over clusters of prompts, 999 resamples, the whole rule applied again in each. A KL that was not needed
    (``winner`` mode) counts as passing, so the set can only be too large, and ``kl`` says so by being empty.
    """
    known = [
        cell
        for cell in map(Cell._make, cells[["layer", "position"]].to_numpy().tolist())
        if cell in scorer.values["bypass"]
    ]
    known = [cell for cell in known if rule.is_early(cell, scorer.n_layers)]
    harmless = _resampled(scorer.harmless.clusters, stats.generator(seed, "near-ties, harmless"))
    restricted = _resampled(scorer.restricted.clusters, stats.generator(seed, "near-ties, restricted"))
    bypass = _means(scorer, "bypass", known, restricted)
    allowed = _means(scorer, "induce", known, harmless) > rule.induce_floor
    with np.errstate(invalid="ignore"):
        allowed &= ~(_means(scorer, "kl", known, harmless) >= rule.kl_limit)
    scores = np.where(allowed & np.isfinite(bypass), bypass, np.inf)
    wins = np.bincount(scores.argmin(axis=1)[np.isfinite(scores.min(axis=1))], minlength=len(known)) / len(scores)
    frame = cells.merge(pd.DataFrame(known, columns=["layer", "position"]).assign(share=wins), on=["layer", "position"])
    tied = frame.query("share > 0 or chosen")
    return tied.sort_values("share", ascending=False, kind="stable").drop(columns="reason").reset_index(drop=True)


def _means(scorer: ModelScorer, kind: Kind, cells: Sequence[Cell], weights: np.ndarray) -> np.ndarray:
    """Returns resampled means ``[resample, cell]``; NaN for a cell whose score was not needed."""
    missing = np.full(weights.shape[1], np.nan)
    values = [scorer.values[kind][cell].double().numpy() if cell in scorer.values[kind] else missing for cell in cells]
    return weights @ np.stack(values, axis=1)


def _resampled(clusters: Sequence[str], chance: np.random.Generator) -> np.ndarray:
    """Returns bootstrap weights ``[resample, prompt]``, drawing whole clusters with replacement; rows sum to one."""
    names, codes = np.unique(clusters, return_inverse=True)
    drawn = chance.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    weights = drawn[:, codes].astype(float)
    return weights / weights.sum(axis=1, keepdims=True)


def _estimates(scorer: ModelScorer) -> dict[Kind, dict[Cell, Estimate]]:
    clusters = {
        "bypass": scorer.restricted.clusters,
        "induce": scorer.harmless.clusters,
        "kl": scorer.harmless.clusters,
    }
    return {
        kind: {
            cell: stats.mean(values.double().numpy(), clusters=clusters[kind], unit="nats")
            for cell, values in found.items()
            if bool(
                torch.isfinite(values).all()
            )  # an invalid cell keeps its row and reason in ``cells``, without an interval
        }
        for kind, found in scorer.values.items()
    }
