"""Dose: how much of a subspace has to go, and at what dose refusal is half gone."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from refusalscope.attack import Attack
from refusalscope.curves.curve import Curve
from refusalscope.curves.landmarks import crossing, mark
from refusalscope.curves.points import PLACEBOS, Answer, Point, answered, clusters, guarded, per_prompt, rows
from refusalscope.effect import Baseline
from refusalscope.errors import MeasurementError
from refusalscope.placebo import Kind, random_like
from refusalscope.stats import Estimate
from refusalscope.subspace import Subspace

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
HALF = 0.5


def dose(
    before: Baseline,
    subspace: Subspace,
    *,
    doses: Sequence[float] = DOSES,
    placebos: int = PLACEBOS,
    kind: Kind = random_like,
    seed: int = 0,
) -> Curve:
    """Returns bypass, suppression and KL by dose λ of the ablation, each beside placebos at the same dose.

    Landmarks, each linear between the measured doses: ``λ50`` is the smallest dose at which the mean suppression is one
    half, the mean margin then being halfway from restricted to harmless; ``λ50 of bypass`` the smallest at which half
    of the refused prompts are bypassed. Their intervals are BCa over clusters of prompts. At dose 0 nothing changes,
    whatever is ablated, so no placebo is run.

    Raises:
        MeasurementError: without a guardrail, or for doses that are not finite, ascending and at least two.
    """
    guarded(before)
    if len(doses) < 2 or not all(math.isfinite(x) for x in doses) or sorted(set(doses)) != list(doses):
        raise MeasurementError(f"Doses {tuple(doses)} do not make a curve: give two or more finite ones, ascending.")
    began, nulls = time.perf_counter(), kind(subspace, placebos, seed=seed)
    points = [_point(subspace, nulls, x) for x in doses]
    answers = answered(before, points, what="dose curve")
    return Curve(
        "dose",
        rows(before, answers),
        _landmarks(before, answers, doses, seed),
        sum(answer.pf for answer in answers),
        time.perf_counter() - began,
    )


def _point(subspace: Subspace, nulls: Sequence[Subspace], x: float) -> Point:
    if x == 0:
        return Point({"dose": x}, (Attack(subspace, x),), (), inert=len(nulls))
    return Point({"dose": x}, (Attack(subspace, x),), tuple(Attack(null, x) for null in nulls))


def _landmarks(before: Baseline, answers: Sequence[Answer], doses: Sequence[float], seed: int) -> dict[str, Estimate]:
    """Returns λ50 of suppression and of bypass."""
    each, found = [per_prompt(before, answer.read) for answer in answers], {}
    for label, name in (("λ50", "suppression"), ("λ50 of bypass", "bypass")):
        values = torch.cat([scores[name] for scores in each])
        found[label] = mark(
            lambda drawn, values=values: crossing(doses, values[:, drawn].mean(1), HALF),
            clusters(before)[name],
            cap=2 * doses[-1] - doses[-2],
            seed=seed,
            never=f"mean {name} does not reach one half at any dose up to {doses[-1]:g}",
        )
    return found
