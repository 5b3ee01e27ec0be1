"""Comparing two models: pairing narrows, equal models are not told apart, unequal prompts are refused."""

from __future__ import annotations

import numpy as np
import pytest

from optionality_by_hand import World, attacks, clusters
from refusalscope.attack import Responses
from refusalscope.errors import MeasurementError
from refusalscope.optionality import compare, optionality


@pytest.fixture
def world(tiny):
    return World(tiny)


def model(world, rate, *, seed=0, tag="", icc=0.5):
    chance = np.random.default_rng(seed)
    tried = attacks(1, tag=tag)
    return tuple(world.drawn(s, [rate], [0.01], tried=tried, chance=chance, icc=icc) for s in ("select", "report"))


def test_a_difference_is_that_of_the_two_optionalities(world):
    first, second = model(world, 0.9), model(world, 0.4, tag="b", seed=1)
    found = compare(first, second)
    for measure in ("bypass", "suppression"):
        apart = getattr(optionality(*first), measure).value - getattr(optionality(*second), measure).value
        assert getattr(found, measure).value == pytest.approx(apart)
    assert found.bypass.low > 0
    assert found.problems == ()


def test_the_same_model_differs_by_nothing_with_an_interval_around_it(world):
    first = model(world, 0.6)
    found = compare(first, first)
    assert found.bypass.value == 0.0
    assert found.bypass.interval is None or found.bypass.low < 0 < found.bypass.high
    assert "not told apart" in repr(found)


def test_pairing_narrows_the_interval_where_prompts_do_the_same_to_both(world):
    """The second model answers as the first but for a few prompts; beside it, one that answers on its own."""
    first, alone = model(world, 0.5, seed=0, icc=0.6), model(world, 0.5, seed=9, tag="b", icc=0.6)
    shifted = tuple(Responses(one.before, attacks(1, tag="c"), one.margins + 0.1, one.kl) for one in first)
    shifted = tuple(Responses(one.before, shifted[0].attacks, one.margins, one.kl) for one in shifted)
    paired, unpaired = compare(first, shifted).bypass, compare(first, alone).bypass
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_where_both_bypass_everything_the_interval_still_has_width(world):
    tried = attacks(1)
    both = tuple(
        world.split(s, [[-5.0] * 64], [[0.01] * 64], tried=tried, groups=clusters(8, 8)) for s in ("select", "report")
    )
    found = compare(both, both).bypass
    assert found.value == 0.0
    assert found.low < 0 < found.high


def test_unequal_prompts_are_refused(world):
    first = model(world, 0.9)
    tried = attacks(1)
    other = tuple(
        world.split(s, [[-5.0] * 64], [[0.01] * 64], tried=tried, groups=clusters(8, 8)) for s in ("select", "report")
    )
    with pytest.raises(MeasurementError, match=r"different select prompts: 256 and 128, 128 in common"):
        compare(first, other)


def test_a_model_without_grounds_makes_the_difference_undetermined(world):
    tried, groups = attacks(1), clusters(8, 16)
    never = tuple(
        world.split(s, [[-9.0] * 128], [[0.01] * 128], tried=tried, groups=groups, restricted=np.full(128, -4.0))
        for s in ("select", "report")
    )
    found = compare(model(world, 0.9), never)
    assert np.isnan(found.bypass.value)
    assert found.bypass.interval is None
    assert any("none of 128 restricted prompts is refused" in problem for problem in found.problems)


def test_the_pairing_is_fixed_by_its_seed(world):
    first, second = model(world, 0.9), model(world, 0.4, tag="b", seed=1)
    assert compare(first, second, seed=2).bypass == compare(first, second, seed=2).bypass
    assert compare(first, second, seed=2).bypass != compare(first, second, seed=3).bypass


def test_fewer_than_five_clusters_give_a_difference_without_an_interval(world):
    tried, groups = attacks(1), clusters(4, 16)
    few = tuple(world.split(s, [[-5.0] * 64], [[0.01] * 64], tried=tried, groups=groups) for s in ("select", "report"))
    found = compare(few, few)
    assert found.bypass.interval is None
    assert "4 clusters" in found.bypass.note
    assert "not told apart" in repr(found)
