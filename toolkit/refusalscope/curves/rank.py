"""Rank: how many dimensions have to go before refusal does."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from refusalscope.attack import Attack
from refusalscope.curves.curve import Curve
from refusalscope.curves.landmarks import beats, first_at, mark
from refusalscope.curves.points import (
    PLACEBOS,
    Answer,
    Point,
    answered,
    clusters,
    guarded,
    per_prompt,
    rows,
)
from refusalscope.effect import Baseline
from refusalscope.errors import MeasurementError
from refusalscope.placebo import Kind, random_like
from refusalscope.stats import Estimate
from refusalscope.subspace import Subspace

NEARLY_ALL = 0.98


def rank(
    before: Baseline,
    subspaces: Sequence[Subspace],
    *,
    placebos: int = PLACEBOS,
    kind: Kind = random_like,
    seed: int = 0,
) -> Curve:
    """Returns bypass, suppression and KL by rank k, each beside placebos of the same rank.

    The landmark ``causal rank`` is the smallest k whose bypass rate is at least 0.98 of the full effect, the largest
    bypass rate of the family; there is none when it bypasses no more than its own placebos do. It depends on the family
    and on the order of its dimensions: it is an upper bound on the number that carry refusal. In a narrow model random
    subspaces of high rank bypass too: read it beside the band. Its interval is BCa over clusters.

    Args:
        subspaces: of growing rank, each usually inside the next (``nested`` makes such a family of one).

    Raises:
        MeasurementError: without a guardrail, or for ranks that do not grow.
    """
    guarded(before)
    ranks = [subspace.rank for subspace in subspaces]
    if not ranks or sorted(set(ranks)) != ranks:
        raise MeasurementError(f"Ranks {ranks} do not make a curve: give subspaces of growing rank.")
    began = time.perf_counter()
    points = [
        Point({"rank": s.rank}, (Attack(s),), tuple(Attack(null) for null in kind(s, placebos, seed=seed)))
        for s in subspaces
    ]
    answers = answered(before, points, what="rank curve")
    frame = rows(before, answers)
    landmarks = {"causal rank": _causal_rank(before, answers, ranks, seed=seed)}
    return Curve("rank", frame, landmarks, sum(answer.pf for answer in answers), time.perf_counter() - began)


def nested(subspace: Subspace) -> list[Subspace]:
    """Returns the spans of its first vector, its first two, and so on, up to the subspace itself."""
    return [
        Subspace(subspace.vectors[:k], subspace.layer, subspace.position, subspace.locator)
        for k in range(1, subspace.rank + 1)
    ]


def _causal_rank(before: Baseline, answers: Sequence[Answer], ranks: Sequence[int], *, seed: int) -> Estimate:
    values = torch.cat([per_prompt(before, answer.read)["bypass"] for answer in answers])

    def smallest(drawn: Tensor) -> float:
        rates = values[:, drawn].mean(1).nan_to_num()  # an invalid rank bypasses nothing
        return first_at(ranks, rates, NEARLY_ALL * float(rates.max()))

    found = smallest(torch.arange(values.shape[1]))
    at = ranks.index(int(found)) if math.isfinite(found) else None
    # An effect as full as it gets must be an effect of these directions, and not of any.
    beaten = at is not None and beats(float(values[at].mean()), answers[at].placebos["bypass"])
    return mark(
        smallest if beaten else lambda drawn: math.inf,
        clusters(before)["bypass"],
        cap=ranks[-1] + 1,
        seed=seed,
        never="no rank bypasses more than its placebos",
    )
