"""Cosines between the directions of different groups, beside what chance gives and what sampling noise leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from refusalscope import stats
from refusalscope.placebo import random_like
from refusalscope.rule import Cell
from refusalscope.stats import Estimate
from refusalscope.subspace import NotExported, Subspace
from refusalscope.transfer.contrasts import Row, columns, nothing, placebo_columns
from refusalscope.transfer.groups import Group, Grouping, groups
from refusalscope.transfer.sources import Sources, balanced_shuffles, direction, reliability

RESAMPLES = 999


@dataclass(frozen=True, repr=False, eq=False)
class _Side(NotExported):
    """One group at one cell: its direction, how steady that is, and shuffles of its labels; or why there is none."""

    group: Group
    direction: Subspace | None
    reason: str
    reliability: float
    shuffles: list[Subspace]


def cosines(
    located: Sources,
    groupings: Mapping[str, Grouping],
    *,
    cell: Cell | tuple[int, int],
    random: int = 199,
    shuffled: int = 39,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the cosine between the directions of every two groups at one cell, all from one capture.

    Columns ``grouping source target value low high n clusters note``, then ``low high p`` of two placebos: cosines of
    the source with ``random`` directions and with ``shuffled`` balanced label shuffles of the target. ``ceiling`` is
    what two copies of one mechanism would reach with so few prompts: √(ρ_s ρ_t), where ρ is the cosine between halves
    of a group stepped up to all its prompts (Spearman 1904). Intervals: BCa over templates, drawn for both groups at
    once. Costs no forward. Groups that ask about the same items share their noise, so that their cosine can pass the
    ceiling: it then says that phrasing changes nothing, not that the direction is known.
    """
    rows: list[Row] = []
    for name, grouping in groupings.items():
        sides = [_side(located, g, cell, shuffled=shuffled, seed=seed) for g in groups(located.prompts, grouping)]
        for source, target in product(sides, sides):
            head = {"grouping": name, "source": source.group.name, "target": target.group.name}
            rows.append(head | _row(located, source, target, cell=cell, random=random, seed=seed))
    return pd.DataFrame(rows)


def cosine(first: Subspace, second: Subspace) -> float:
    """Returns the cosine between the first vectors of two subspaces."""
    a, b = first.vectors[0], second.vectors[0]
    return float(a @ b / (a.norm() * b.norm()))


def _side(located: Sources, group: Group, cell: Cell | tuple[int, int], *, shuffled: int, seed: int) -> _Side:
    made = direction(located, group, cell=cell)
    if isinstance(made, str):
        return _Side(group, None, made, math.nan, [])
    steady = reliability(located, group, cell=cell, seed=seed)
    return _Side(group, made, "", steady, balanced_shuffles(located, group, shuffled, cell=cell, seed=seed))


def _row(
    located: Sources, source: _Side, target: _Side, *, cell: Cell | tuple[int, int], random: int, seed: int
) -> Row:
    if source.direction is None or target.direction is None:
        estimate, drawn, shuffles = nothing(source.reason or target.reason), [], []
    else:
        estimate = _estimate(located, source.group, target.group, cell=cell, seed=seed)
        drawn = [cosine(source.direction, one) for one in random_like(source.direction, random, seed=seed)]
        shuffles = [cosine(source.direction, one) for one in target.shuffles]
    row = columns(estimate) | placebo_columns(estimate.value, drawn, name="random")
    row |= placebo_columns(estimate.value, shuffles, name="shuffled")
    return row | {"ceiling": math.sqrt(source.reliability * target.reliability)}


def _estimate(located: Sources, source: Group, target: Group, *, cell: Cell | tuple[int, int], seed: int) -> Estimate:
    if source == target:
        n, note = len(source.restricted) + len(source.harmless), "a direction and itself"
        return Estimate(1.0, None, n=n, clusters=None, method="by definition", note=note)
    x = pooled(located, *cell)
    return resampled_cosine(located, (x, source), (x, target), seed=seed)


def pooled(located: Sources, layer: int, position: int) -> np.ndarray:
    """Returns the activations of one cell, restricted prompts first: ``[prompt, d]``, float64."""
    each = [kept.each for kept in located.activations if kept.each is not None]
    return np.concatenate([kept[:, layer, position].double().numpy() for kept in each])


def resampled_cosine(
    located: Sources, first: tuple[np.ndarray, Group], second: tuple[np.ndarray, Group], *, seed: int
) -> Estimate:
    """Returns the cosine between two differences in means, each of one group in its own activations of all prompts.

    The interval resamples whole templates, for both groups at once. It knows nothing of items: where every template
    asks about the same few items, it is too narrow.
    """
    rows = (*located.prompts.restricted, *located.prompts.harmless)
    masks = np.stack([_mask(located, group, label) for _, group in (first, second) for label in (0, 1)])
    used = np.flatnonzero(masks.any(0))

    def statistic(drawn: np.ndarray) -> float:
        weights = masks * np.bincount(drawn.astype(int), minlength=len(rows))
        weights = weights / weights.sum(1, keepdims=True)
        a, b = (weights[0] - weights[1]) @ first[0], (weights[2] - weights[3]) @ second[0]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    clusters = [rows[index].cluster for index in used]
    return stats.bca(used, seed=seed, statistic=statistic, clusters=clusters, resamples=RESAMPLES)


def _mask(located: Sources, group: Group, label: int) -> np.ndarray:
    mask, asked = np.zeros(len(located.prompts)), len(located.prompts.restricted)
    mask[[asked + index for index in group.harmless] if label else list(group.restricted)] = 1
    return mask
