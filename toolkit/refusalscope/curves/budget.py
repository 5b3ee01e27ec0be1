"""Prompt budget: how many contrast pairs it takes to locate what ablates refusal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from refusalscope.activations import Activations, ContrastActivations
from refusalscope.attack import Attack
from refusalscope.curves.curve import Curve
from refusalscope.curves.landmarks import beats, mark, settled_at
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
from refusalscope.placebo import located_on_shuffled, subset
from refusalscope.reprs import Shown
from refusalscope.stats import Estimate, torch_generator
from refusalscope.subspace import Candidates, Subspace

SHARE = 0.9
DRAWS = 20

Locate = Callable[[Activations, Activations], Subspace]


@dataclass(frozen=True, repr=False)
class Sampling(Shown):
    """How often a budget is drawn: draws of prompts, label-shuffled placebos per size, and the seed of both."""

    draws: int = DRAWS
    placebos: int = PLACEBOS
    seed: int = 0


def budget(
    before: Baseline,
    acts: ContrastActivations,
    *,
    locate: Locate,
    sizes: Sequence[int] = (),
    sampling: Sampling | None = None,
) -> Curve:
    """Returns bypass, suppression and KL by the number of contrast pairs a subspace was located on.

    Every point is the mean over ``draws`` random subsets of the captured prompts, so no forward is needed to locate;
    each draw adds prompts to its own smaller subset. All pairs together are one draw. The placebo shuffles the labels
    of as many prompts into halves of equal class shares: halves of unequal ones point along the located direction, and
    an ablation knows no lengths (``label_shuffled`` says more). Column ``locate_pf`` is what capturing that many would
    take, 2 per pair.

    The landmark ``pairs for 90%`` is the smallest size at which, and at every larger one, the suppression averaged
    over draws is at least 0.9 of that with all pairs; there is none when all pairs do no more than their placebos. Its
    interval is BCa over clusters of report prompts; ``each`` holds the same number for every draw (``needed``), and
    the note says how far draws spread. A draw in which the locator raises MeasurementError counts as no effect.

    Args:
        acts: captured with ``keep_each=True``; row i of both classes is pair i where the classes are of one size.
        locate: from restricted and harmless activations to a subspace: ``at_cell`` of a locator, or a function that
            also chooses the cell.
        sizes: pairs; by default powers of two and all.

    Raises:
        MeasurementError: without a guardrail or single activations, or for sizes that are not there.
    """
    guarded(before)
    began, plan, most = time.perf_counter(), sampling or Sampling(), min(len(_rows(part)) for part in acts)
    wanted = list(sizes) or sizes_of(most)
    if sorted(set(wanted)) != wanted or wanted[0] < 1 or wanted[-1] > most:
        raise MeasurementError(f"Sizes {wanted} are not ascending numbers of pairs from 1 to the {most} captured.")
    if wanted[-1] < most:
        wanted.append(most)
    orders = [_order(acts, plan.seed, draw) for draw in range(plan.draws)]
    answers = answered(before, [_point(acts, locate, size, orders, plan) for size in wanted], what="budget curve")
    each = _each(before, answers, wanted)
    pf, landmark = sum(answer.pf for answer in answers), _landmark(before, answers, wanted, each, plan.seed)
    frame = rows(before, answers)
    return Curve("prompt budget", frame, {"pairs for 90%": landmark}, pf, time.perf_counter() - began, each)


def at_cell(locator: Callable[[Activations, Activations], Candidates], layer: int, position: int) -> Locate:
    """Returns a function that locates as ``locator`` does and takes the candidate of one cell."""
    return lambda restricted, harmless: locator(restricted, harmless).at(layer, position)


def sizes_of(most: int) -> list[int]:
    """Returns 2, 4, 8, … and the number of all pairs."""
    return sorted({2**power for power in range(1, most.bit_length()) if 2**power <= most} | {most})


def _order(acts: ContrastActivations, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    """Returns the order in which a draw takes in restricted and harmless prompts: the same where they are paired."""
    noise = torch_generator(seed, f"prompt budget, draw {draw}")
    restricted = torch.randperm(acts.restricted.n, generator=noise)
    paired = acts.restricted.n == acts.harmless.n
    return restricted, restricted if paired else torch.randperm(acts.harmless.n, generator=noise)


def _point(
    acts: ContrastActivations, locate: Locate, size: int, orders: Sequence[tuple[Tensor, Tensor]], plan: Sampling
) -> Point:
    everything = size == acts.restricted.n == acts.harmless.n
    subsets = [acts] if everything else [_subset(acts, size, order) for order in orders]
    found = [_located(locate, *pair, size=size) for pair in subsets]

    def shuffled(restricted: Activations, harmless: Activations) -> Attack | None:
        return _located(locate, restricted, harmless, size=size)

    nulls = located_on_shuffled(*acts, plan.placebos, locate=shuffled, seed=plan.seed + size, pairs=size, balanced=True)
    x = {"pairs": size, "locate_pf": 2 * size}
    return Point(
        x,
        tuple(attack for attack in found if attack),
        tuple(attack for attack in nulls if attack),
        failed=tuple(draw for draw, attack in enumerate(found) if attack is None),
        failed_placebos=nulls.count(None),
        drawn=True,
    )


def _subset(acts: ContrastActivations, size: int, order: tuple[Tensor, Tensor]) -> tuple[Activations, Activations]:
    # Sorted, so that one set of prompts gives one sum to the last bit, in whatever order it was drawn.
    first, second = (kept[:size].sort().values for kept in order)
    return (
        subset(acts.restricted, _rows(acts.restricted), first),
        subset(acts.harmless, _rows(acts.harmless), second),
    )


def _located(locate: Locate, restricted: Activations, harmless: Activations, *, size: int) -> Attack | None:
    try:
        found = locate(restricted, harmless)
        found.basis  # noqa: B018  a subspace without a basis is not one
    except MeasurementError:
        return None
    return Attack(found, n_prompts=2 * size, pf=2.0 * size)


def _rows(activations: Activations) -> Tensor:
    if activations.each is None:
        raise MeasurementError("A budget curve draws from single activations: capture with keep_each=True.")
    return activations.each


def _each(before: Baseline, answers: Sequence[Answer], sizes: Sequence[int]) -> pd.DataFrame:
    """Returns one row per size and draw with its means, and the pairs each draw needed (nan: never)."""
    scores = [{name: v.mean(1) for name, v in per_prompt(before, a.read).items()} for a in answers]
    draws = max(len(means["suppression"]) for means in scores)
    # All pairs together are one draw, which ends the curve of every draw.
    curves = torch.stack([means["suppression"].expand(draws) for means in scores])
    needed = [settled_at(sizes, curve, SHARE) for curve in curves.T]
    made = [
        {"pairs": size, "draw": draw, **{name: float(v[draw]) for name, v in means.items()}, "needed": needed[draw]}
        for size, means in zip(sizes, scores, strict=True)
        for draw in range(len(means["suppression"]))
    ]
    return pd.DataFrame(made).replace(math.inf, math.nan)


def _landmark(
    before: Baseline, answers: Sequence[Answer], sizes: Sequence[int], each: pd.DataFrame, seed: int
) -> Estimate:
    values = torch.stack([per_prompt(before, answer.read)["suppression"].mean(0) for answer in answers])
    beaten = beats(float(values[-1].mean()), answers[-1].placebos["suppression"])
    found = mark(
        lambda drawn: settled_at(sizes, values[:, drawn].mean(1), SHARE) if beaten else math.inf,
        clusters(before)["suppression"],
        cap=sizes[-1] + 1,
        seed=seed,
        never="all pairs together suppress no more than their placebos",
    )
    if math.isnan(found.value):
        return found
    least, most = each["needed"].min(), each["needed"].max()
    spread = f"single draws need {least:g} to {most:g} pairs"
    return replace(found, note=f"{found.note}; {spread}" if found.note else spread)
