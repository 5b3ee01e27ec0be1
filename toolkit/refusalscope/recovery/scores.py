"""Scores: every contender beside the truth, and what its ablation does."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import curves
from refusalscope.attack import Attack, respond
from refusalscope.curves.landmarks import beats, first_at
from refusalscope.curves.points import Read, clusters, estimated, per_prompt, placebo_columns
from refusalscope.curves.rank import NEARLY_ALL
from refusalscope.effect import placebo_effects
from refusalscope.errors import MeasurementError
from refusalscope.linalg import project
from refusalscope.model import ChatModel
from refusalscope.placebo import random_like
from refusalscope.progress import bar, quiet
from refusalscope.prompts import ContrastSet
from refusalscope.recovery.contenders import Bench, Found, bench_of, contenders
from refusalscope.subspace import Subspace

TRUTH = "planted truth"
PLACEBOS, DRAWN_ANGLES = 39, 499
UNBEATEN = "no rank bypasses more than its placebos"
PLACE = ("organism", "truth_rank", "locator", "rank", "layer", "position", "chosen_by")
NUMBERS = ("angle", "random_low", "random_high", "nearest", "spread", "bypass", "low", "high", "n")
NUMBERS += ("suppression", "kl", "placebo_low", "placebo_high", "placebo_n", "p", "causal_rank", "causal_note")


def recovered(
    model: ChatModel,
    truth: Subspace,
    prompts: ContrastSet,
    *,
    per_label: int = 64,
    placebos: int = PLACEBOS,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Returns one row per locator and rank: how near to the truth it comes, and what ablating its finding does.

    Locators are fitted on ``locate``, of rank 1 and of the rank of the truth. The cell is the one the selection rule
    takes on ``select`` from the locator's own candidates, as it would where no truth is known; where the rule leaves
    none, COSMIC's, and ``why`` has the rule's diagnosis. Gradients descend from the difference in means at its cell. A
    locator that cannot be fitted keeps its row, with the reason. The last row is the truth itself: what a perfect
    locator would score.

    Columns: ``organism truth_rank locator rank layer position chosen_by``; ``angle_1`` to ``angle_k``, the principal
    angles in degrees, ascending, and ``angle``, the largest of them: the truth is recovered where it is small at the
    rank of the truth. ``random_low random_high``, the central 95% of ``angle`` for random subspaces of that rank;
    ``nearest``, the smallest ``angle`` of any cell of the grid, which only who knows the truth could have chosen;
    ``spread``, the variance within classes along the finding, in units of that along an average direction.
    ``bypass low high n``, ``suppression`` and ``kl`` of ablating it, on ``report``; ``placebo_low placebo_high
    placebo_n p`` of bypass among random subspaces; ``causal_rank`` (see ``curves.rank``) and ``causal_note``, why there
    is none; ``why``.

    Args:
        truth: such as ``truth.planted_subspace`` of the organism's recipe.
        per_label: prompts of each label kept of ``select`` and ``report``.
        placebos: random subspaces whose bypass rate is measured, for every rank.

    Raises:
        MeasurementError: without a guardrail, for a truth of another width, or fewer prompts than clusters.
    """
    if truth.vectors.shape[1] != model.d_model:
        raise MeasurementError(f"The truth has width {truth.vectors.shape[1]}, {model.origin.name} {model.d_model}.")
    with quiet(progress):
        bench = bench_of(model, prompts, per_label=per_label, seed=seed)
    chance, rows = _Chance(bench, truth, placebos), []
    tried = {**contenders(bench, truth.rank), (TRUTH, truth.rank): lambda: Found(truth)}
    with quiet(progress), bar(len(tried), model.origin.name, after=0) as shown:
        for (name, rank), find in tried.items():
            try:
                found = find()
                numbers = _scored(bench, truth, chance, found)
            except MeasurementError as failed:
                found, numbers = Found(None, why=str(failed)), {}
            rows.append({"locator": name, "rank": rank, "chosen_by": found.by} | numbers | {"why": found.why})
            shown.update()
    angles = [f"angle_{number}" for number in range(1, truth.rank + 1)]
    frame = pd.DataFrame(rows).assign(organism=model.origin.name, truth_rank=truth.rank)
    return frame.reindex(columns=[*PLACE, *angles, *NUMBERS, "why"])


class _Chance:
    """Random subspaces of every rank, each measured when it is first asked for."""

    def __init__(self, bench: Bench, truth: Subspace, placebos: int) -> None:
        self.bench, self.truth, self.placebos = bench, truth, placebos
        self.bypass, self.angles = cache(self._bypass), cache(self._angles)

    def _drawn(self, rank: int, count: int) -> list[Subspace]:
        return random_like(replace(self.truth, vectors=self.truth.vectors[:rank]), count, seed=self.bench.seed)

    def _bypass(self, rank: int) -> Float[Tensor, " placebo"]:
        rates = placebo_effects(self.bench.report, self._drawn(rank, self.placebos))["bypass"]
        return torch.from_numpy(rates.to_numpy().copy())

    def _angles(self, rank: int) -> tuple[float, float]:
        """The central 95% of the largest angle to the truth."""
        worst = torch.tensor([_degrees(one, self.truth)[-1] for one in self._drawn(rank, DRAWN_ANGLES)])
        return float(worst.quantile(0.025)), float(worst.quantile(0.975))


def _scored(bench: Bench, truth: Subspace, chance: _Chance, found: Found) -> dict[str, object]:
    assert found.subspace is not None
    one = found.subspace
    degrees, (low, high) = _degrees(one, truth), chance.angles(one.rank)
    angles = {f"angle_{number}": degree for number, degree in enumerate(degrees, 1)}
    place = {"layer": one.layer, "position": one.position}
    near = {"angle": degrees[-1], "random_low": low, "random_high": high, "nearest": _nearest(found, truth)}
    return place | angles | near | {"spread": _spread(bench, one)} | _effect(bench, chance, one)


def _effect(bench: Bench, chance: _Chance, found: Subspace) -> dict[str, object]:
    """Bypass and damage of all of it, its rank among random subspaces, and how many of its dimensions it takes."""
    before = bench.report
    answers = respond(before, [Attack(part) for part in curves.nested(found)])
    each = per_prompt(before, Read(answers.margins, answers.kl, answers.refuses))
    bypass = estimated(each["bypass"][-1], clusters(before)["bypass"], unit="rate")
    mark = _causal_rank(each["bypass"].mean(1).nan_to_num(), chance)  # an invalid rank bypasses nothing
    return {
        **{"bypass": bypass.value, "low": bypass.low, "high": bypass.high, "n": bypass.n},
        **{measure: float(each[measure][-1].mean()) for measure in ("suppression", "kl")},
        **placebo_columns(bypass.value, chance.bypass(found.rank)),
        **{"causal_rank": mark, "causal_note": UNBEATEN if math.isnan(mark) else ""},
    }


def _causal_rank(rates: Float[Tensor, " rank"], chance: _Chance) -> float:
    """The landmark of ``curves.rank``, without its interval: placebos are measured once for all locators."""
    needed = first_at(range(1, len(rates) + 1), rates, NEARLY_ALL * float(rates.max()))
    found = math.isfinite(needed) and beats(float(rates[int(needed) - 1]), chance.bypass(int(needed)))
    return needed if found else math.nan


def _nearest(found: Found, truth: Subspace) -> float:
    grid = found.candidates
    if grid is None:
        return math.nan
    return min(_degrees(grid.at(*cell), truth)[-1] for cell in grid.cells() if not grid.is_empty(*cell))


def _spread(bench: Bench, found: Subspace) -> float:
    if found.layer is None or found.position is None:
        return math.nan
    singly = [side.each for side in bench.acts if side.each is not None]
    here = [each[:, found.layer, found.position].double() for each in singly]
    residuals = torch.cat([x - x.mean(0) for x in here])
    inside = project(residuals, found.basis).square().sum() / found.rank
    return float(inside / (residuals.square().sum() / residuals.shape[1]))


def _degrees(found: Subspace, truth: Subspace) -> list[float]:
    return torch.rad2deg(found.angles(truth)).tolist()
