"""Calibration: intervals cover what they promise, and random families are not taken for attacks."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.special import expit, logit

from optionality_by_hand import World, attacks
from refusalscope.attack import Attack
from refusalscope.optionality import compare, optionality, placebo_family
from refusalscope.optionality.placebos import chance_of_a_maximum, placebo_ranks
from refusalscope.optionality.resampling import chosen, picked, scores, tally

DAMAGE = np.array([0.4, 0.3, 0.2, 0.15, 0.06, 0.05, 0.04, 0.04, 0.03, 0.02, 0.01, 0.005])
STEPS = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.3, -0.3, -0.6, -0.6, -0.9, -1.2, -1.5])
SAMPLES = 40
PROMISED = 0.93


@pytest.fixture
def world(tiny):
    return World(tiny)


@pytest.mark.parametrize("icc", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("best", [0.05, 0.85, 0.99])
def test_the_interval_covers_the_rate_of_the_chosen_member(world, best, icc):
    """Twelve attacks: the best within 0.1 nats has the given rate, weaker ones damage less, stronger ones too much."""
    tried, rates = attacks(12), expit(logit(best) + STEPS)
    named = dict(zip([attack.name for attack in tried], rates, strict=True))
    covered = 0
    for seed in range(SAMPLES):
        chance = np.random.default_rng([seed, 7])
        select = world.drawn("select", rates, DAMAGE, tried=tried, chance=chance, each=36, icc=icc)
        report = world.drawn("report", rates, DAMAGE, tried=tried, chance=chance, each=16, icc=icc)
        found = optionality(select, report, kappas=(0.1,), seed=seed)
        covered += found.bypass.low <= named.get(found.worst, 0.0) <= found.bypass.high
    noise = math.sqrt(PROMISED * (1 - PROMISED) / SAMPLES)
    assert covered / SAMPLES >= PROMISED - 2.5 * noise


def test_the_interval_of_a_difference_covers_it(world):
    tried, rates = (attacks(3), attacks(3, tag="b")), (np.array([0.9, 0.6, 0.3]), np.array([0.7, 0.5, 0.2]))
    damage, covered = np.array([0.05, 0.03, 0.01]), 0
    for seed in range(SAMPLES):
        chance = np.random.default_rng([seed, 8])
        splits = [
            tuple(
                world.drawn(s, one, damage, tried=names, chance=chance, each=each, icc=0.2)
                for s, each in (("select", 36), ("report", 16))
            )
            for one, names in zip(rates, tried, strict=True)
        ]
        found = compare(*splits, seed=seed)
        covered += found.bypass.low <= 0.2 <= found.bypass.high
    assert covered / SAMPLES >= PROMISED - 2.5 * math.sqrt(PROMISED * (1 - PROMISED) / SAMPLES)


def test_random_families_are_flagged_no_more_often_than_declared(world):
    """500 families of ten random attacks beside 199 placebos of the same kind: p < 0.05 in at most 7%, p never 0."""
    chance, ps = np.random.default_rng(5), {"bypass": [], "suppression": []}
    tried, pool = attacks(10), attacks(199, tag=" placebo")
    for _ in range(500):
        rates = np.clip(chance.beta(0.5, 20, 209), 1e-4, None)  # a few random directions do something
        damage = np.full(209, 0.01)
        select = world.drawn("select", rates[:10], damage[:10], tried=tried, chance=chance, each=4)
        both = world.drawn("report", rates, damage, tried=(*tried, *pool), chance=chance, each=4)
        report = type(both)(both.before, tried, both.margins[:10], both.kl[:10])
        placebos = type(both)(both.before, pool, both.margins[10:], both.kl[10:])
        every = np.ones(10, dtype=bool)
        chosen_on, seen = scores(tally(select, every)), scores(tally(report, every))
        values = {by: float(picked(getattr(seen, by), chosen(chosen_on, [0.1], by))[0, 0]) for by in ps}
        for by, rank in placebo_ranks(values, tried, placebos, 0.1).items():
            ps[by].append(rank.p)
    for values in ps.values():
        assert min(values) > 0
        assert np.mean(np.array(values) <= 0.05) <= 0.07


def test_a_family_that_does_something_is_told_from_random_ones(world):
    chance = np.random.default_rng(5)
    tried, pool = attacks(8), attacks(199, tag=" placebo")
    select, report = (world.drawn(s, [0.9] * 8, [0.01] * 8, tried=tried, chance=chance) for s in ("select", "report"))
    placebos = world.drawn("report", [0.02] * 199, [0.01] * 199, tried=pool, chance=chance)
    found = optionality(select, report, placebos=placebos)
    assert found.placebo["bypass"].p == pytest.approx(8 / 207)
    assert found.placebo["bypass"].note == ""
    assert found.frontier[-1].placebo["bypass"] == found.placebo["bypass"].best
    few = placebo_ranks(
        {"bypass": 0.9, "suppression": 0.9},
        tried,
        type(placebos)(placebos.before, pool[:20], placebos.margins[:20], placebos.kl[:20]),
        0.1,
    )
    assert "cannot go below" in few["bypass"].note


@pytest.mark.parametrize("family", [1, 2, 3])
@pytest.mark.parametrize("stronger", [0, 1, 4])
def test_the_chance_of_a_maximum_is_counted_over_all_families(family, stronger):
    """Of all ways to draw the family from family and placebos, the share that holds one at least as strong."""
    pool = 5
    strong = set(range(stronger + 1))  # the observed one, and the placebos at least as strong
    draws = list(combinations(range(pool + family), family))
    share = sum(bool(strong & set(drawn)) for drawn in draws) / len(draws)
    assert chance_of_a_maximum(stronger, pool, family) == pytest.approx(share)
    assert chance_of_a_maximum(pool, pool, family) == 1.0


def test_doses_of_one_subspace_are_one_try(world):
    one, other = attacks(2)
    doses = [Attack(one.subspace, dose) for dose in (0.5, 1.0, 1.5)] + [Attack(other.subspace, 1.0)]
    pool = placebo_family(doses, count=7, seed=0)
    assert [attack.dose for attack in pool] == [1.5] * 4 + [1.0] * 3
    assert {attack.subspace.locator for attack in pool} == {"random placebo"}
    assert len({tuple(attack.subspace.vectors[0].tolist()) for attack in pool}) == 7
    norms = [attack.subspace.norm for attack in pool]
    assert norms == pytest.approx([one.subspace.norm] * 4 + [other.subspace.norm] * 3)
    chance = np.random.default_rng(0)
    placebos = world.drawn("report", [0.01] * 7, [0.01] * 7, tried=pool, chance=chance)
    ranked = placebo_ranks({"bypass": 0.9, "suppression": 0.9}, doses, placebos, 0.1)
    assert ranked["bypass"].p == pytest.approx(2 / 9)
