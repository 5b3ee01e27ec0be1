"""Whether sources agree with themselves: a paper with its run, printed numbers with those recomputed from its table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.published.facts import choices, removals, stated
from refusalscope.reprs import Shown

LARGE_KL = 1.0


@dataclass(frozen=True, repr=False)
class Agreement(Shown):
    """What comparing the published facts with each other gives.

    Attributes:
        moved: models whose chosen position differs between the paper and the run its authors published.
        relayered: the same for the layer.
        interval_gap: largest difference between a printed end of an interval and the recomputed one, as a share.
        printed_r: correlation of damage with refusals left, as printed (Young 2025).
        recomputed_r: the same from the table, over `n` models.
        mild_r: the same over the `n_mild` models with KL below 1 nat.
        passing: model to cells that pass the rule in the authors' file.
    """

    moved: tuple[str, ...]
    relayered: tuple[str, ...]
    interval_gap: float
    printed_r: float
    recomputed_r: float
    mild_r: float
    n: int
    n_mild: int
    passing: dict[str, int]

    def __repr__(self) -> str:
        return "Agreement: what published sources state, beside what follows from their own numbers"


def agreement(facts: pd.DataFrame) -> Agreement:
    """Returns how far the published facts agree with each other."""
    cells, edited = choices(facts), removals(facts).dropna(subset=["stated_low"])
    printed = edited[["stated_low", "stated_high"]].to_numpy()
    mild = edited.loc[edited["kl"] < LARGE_KL]
    passing = stated(facts, topic="selection", metric="n_candidates_passing")
    return Agreement(
        moved=tuple(cells.loc[cells["paper_position"] != cells["run_position"], "model"]),
        relayered=tuple(cells.loc[cells["paper_layer"] != cells["run_layer"], "model"]),
        interval_gap=float(abs(edited[["low", "high"]].to_numpy() - printed).max()),
        printed_r=float(stated(facts, topic="removals", metric="Pearson_r_KL_vs_refusals")["value"].iloc[0]),
        recomputed_r=_correlation(edited),
        mild_r=_correlation(mild),
        n=len(edited),
        n_mild=len(mild),
        passing=dict(zip(passing["model"], map(int, passing["value"]), strict=True)),
    )


def _correlation(edited: pd.DataFrame) -> float:
    """Pearson's r of damage with refusals left."""
    return float(np.corrcoef(edited["kl"].to_numpy(float), edited["value"].to_numpy(float))[0, 1])
