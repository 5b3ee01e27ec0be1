"""The placebo maximum: what the best of as many random subspaces reaches, on the very prompts it is picked on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from refusalscope.attack import Attack, Responses
from refusalscope.errors import MeasurementError
from refusalscope.optionality.resampling import Measure, scores, tally
from refusalscope.placebo import random_like
from refusalscope.stats import PlaceboRank, generator

COUNT = 199
TAILS = (0.025, 0.975)
ALPHA = 0.05


def placebo_family(attacks: Sequence[Attack], *, count: int = COUNT, seed: int) -> list[Attack]:
    """Returns ``count`` random attacks matched to a family, for ``respond`` on the report split.

    The subspaces of the family take turns: each placebo has the rank and norms of one of them in directions drawn
    uniformly, and the largest dose and widest scope that one is tried at, where a random direction does most. What is
    matched to directions of every layer has random directions at the same layers; the part is kept.
    """
    if not attacks:
        raise MeasurementError("There is no attack to match placebos to: the family is empty.")
    strongest = [max(group, key=_strength) for group in _by_subspace(attacks)]
    made: list[Attack] = []
    for member, attack in enumerate(strongest):
        share = len(range(member, count, len(strongest)))
        chance = int(generator(seed, f"placebo of member {member}").integers(2**31))
        drawn = random_like(attack.subspace, share, seed=chance) if share else []
        made += [Attack(subspace, attack.dose, attack.layers, part=attack.part) for subspace in drawn]
    return made


def placebo_ranks(
    found: dict[Measure, float], attacks: Sequence[Attack], placebos: Responses, kappa: float
) -> dict[Measure, PlaceboRank]:
    """Returns where the values found on report stand among the maxima of families of random subspaces, per measure.

    The unit is the subspace, whose doses and scopes are one try. Were the family's c subspaces random too, any c of
    all c + P would be as likely to be the family; b placebos are at least as strong as what was found, so

        p = 1 − C(c + P − b − 1, c) / C(c + P, c),

    the chance that c drawn without replacement hold one at least as strong. It is never below c / (c + P). Random
    families drawn from one pool overlap, and a share of them would not be a p-value; this counts them all, exactly.
    Conservative twice: placebos are picked on report itself, the family on select; and its report value can only be
    below its best on report. The band is of the maximum of c placebos.
    """
    c = len(_by_subspace(attacks))
    return {by: _rank(value, best_of_each(placebos, kappa, by), c) for by, value in found.items()}


def best_of_each(placebos: Responses, kappa: float, by: Measure) -> Float[np.ndarray, " subspace"]:
    """Returns the best value of every placebo subspace at damage ≤ κ on report; 0 where it has none there."""
    values = scores(tally(placebos, placebos.valid.numpy()))
    allowed = np.where(values.valid & (values.damage[0] <= kappa), getattr(values, by)[0], 0.0)
    row = {id(attack): place for place, attack in enumerate(placebos.attacks)}
    return np.array([max(allowed[row[id(attack)]] for attack in group) for group in _by_subspace(placebos.attacks)])


def chance_of_a_maximum(stronger: int, pool: int, family: int) -> float:
    """Returns p = 1 − C(n − stronger − 1, family) / C(n, family), n = pool + family: never 0."""
    n, weaker = pool + family, pool + family - stronger - 1
    if weaker < family:
        return 1.0
    logs = [math.lgamma(x + 1) - math.lgamma(x - family + 1) for x in (weaker, n)]
    return -math.expm1(logs[0] - logs[1])


def _rank(observed: float, pool: Float[np.ndarray, " subspace"], family: int) -> PlaceboRank:
    p = chance_of_a_maximum(int((pool >= observed).sum()), len(pool), family)
    floor = chance_of_a_maximum(0, len(pool), family)
    few = f"with {family} subspaces and {len(pool)} placebos p cannot go below {floor:.2g}"
    return PlaceboRank(
        observed, p, len(pool), float(pool.max()), _band(np.sort(pool), family), few if floor > ALPHA else ""
    )


def _band(ascending: Float[np.ndarray, " subspace"], family: int) -> tuple[float, float]:
    """The central 95% of the maximum of a family drawn from the pool without replacement, exactly."""
    n, c = len(ascending), min(family, len(ascending))
    below = [math.comb(rank, c) / math.comb(n, c) for rank in range(1, n + 1)]
    low, high = (float(ascending[np.searchsorted(below, tail)]) for tail in TAILS)
    return low, high


def _by_subspace(attacks: Sequence[Attack]) -> list[list[Attack]]:
    groups: dict[int, list[Attack]] = {}
    for attack in attacks:
        groups.setdefault(id(attack.subspace), []).append(attack)
    return list(groups.values())


def _strength(attack: Attack) -> tuple[float, float]:
    width = math.inf if attack.layers is None else attack.layers[1] - attack.layers[0]
    return attack.dose, width
