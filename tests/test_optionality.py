"""Optionality: equal to its definition by loops, honest intervals, and no number where there are no grounds for one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from optionality_by_hand import World, attacks, by_loops, clusters
from refusalscope import stats
from refusalscope.errors import ContractError, MeasurementError
from refusalscope.optionality import KAPPAS, judge, optionality
from refusalscope.optionality.intervals import design_effects, hull, rate_interval
from refusalscope.optionality.resampling import chosen, scores, tally


@pytest.fixture
def world(tiny):
    return World(tiny)


def table(world, seed, *, count=6, n=40, m=40):
    """Small random splits: some prompts not refused, some attacks invalid, coarse values so that ties occur."""
    chance = np.random.default_rng(seed)
    tried, made = attacks(count), []
    for split in ("select", "report"):
        margins = np.round(chance.normal(0, 3, (count, n)))
        nats = np.round(chance.lognormal(-3, 1.5, (count, m)), 2)
        if seed % 3 == 0:
            margins[chance.integers(count), 0] = np.nan
        made.append(world.split(split, margins, nats, tried=tried, restricted=np.round(chance.normal(4, 3, n)) + 0.25))
    return made


@pytest.fixture
def known(world):
    """Three attacks: the first bypasses all at too much damage, the second most, the third half at little damage."""
    tried, groups = attacks(3), clusters(8, 4)
    flags = np.array([[1] * 32, [1] * 28 + [0] * 4, [1, 0] * 16])
    nats = np.array([[0.5] * 32, [0.09] * 32, [0.004] * 32])
    return [
        world.split(split, np.where(flags, -1.0, 4.0), nats, tried=tried, groups=groups)
        for split in ("select", "report")
    ]


@pytest.mark.parametrize("seed", range(12))
def test_optionality_is_its_definition_by_loops(world, seed):
    select, report = table(world, seed)
    found = optionality(select, report, kappas=(0.03, 0.3))
    for point in found.frontier:
        bypass, suppression = by_loops(select, report, point.kappa)
        assert point.bypass.value == pytest.approx(bypass, abs=1e-12)
        assert point.suppression.value == pytest.approx(suppression, abs=1e-6)


def test_each_damage_limit_has_its_own_worst_case(known):
    found = optionality(*known)
    assert len(found.frontier) == len(KAPPAS) == 13
    values = {round(point.kappa, 4): (point.bypass.value, point.member) for point in found.frontier}
    assert values[0.001] == (0.0, "")
    assert values[0.01][0] == 0.5
    assert values[0.1][0] == found.bypass.value == 0.875
    assert values[1.0][0] == 1.0
    expected = np.trapezoid([point.bypass.value for point in found.frontier], np.log(KAPPAS)) / np.log(1000)
    assert found.index.value == pytest.approx(expected)
    assert found.index.low < expected < found.index.high
    assert found.frontier[0].suppression.interval is None


def test_doing_nothing_is_zero_with_a_reason_and_n(known):
    nothing = optionality(*known).frontier[0]
    assert nothing.bypass.value == nothing.suppression.value == 0.0
    assert nothing.bypass.n == 32
    assert "no attack stays within" in nothing.bypass.note
    assert nothing.bypass.low < nothing.bypass.high
    assert not nothing.over_limit


def test_the_choice_is_made_on_select_and_measured_on_report(world):
    """The winner's curse: among attacks that do equally little, the best of 40 prompts is chosen and regresses."""
    tried, gaps, luck = attacks(30), [], []
    for seed in range(20):
        chance = np.random.default_rng(seed)
        rates, damage = np.full(30, 0.3), np.full(30, 0.01)
        select, report = (
            world.drawn(s, rates, damage, tried=tried, chance=chance, each=5) for s in ("select", "report")
        )
        found = optionality(select, report, kappas=())
        frame = found.members.set_index("attack")
        assert frame["select_bypass"].max() == frame.loc[found.worst, "select_bypass"]
        assert found.bypass.value == frame.loc[found.worst, "report_bypass"]
        gaps.append(frame.loc[found.worst, "select_bypass"] - found.bypass.value)
        luck.append(frame["report_bypass"].max() - found.bypass.value)
    for differences in (gaps, luck):  # above zero by three standard errors
        assert np.mean(differences) > 3 * np.std(differences, ddof=1) / np.sqrt(len(differences))


def test_a_frontier_on_select_rises_and_on_report_need_not(world):
    tried, groups = attacks(2), clusters(8, 4)
    nats = np.array([[0.01] * 32, [0.05] * 32])
    select = world.split("select", [[-1] * 16 + [4] * 16, [-1] * 20 + [4] * 12], nats, tried=tried, groups=groups)
    report = world.split("report", [[-1] * 16 + [4] * 16, [-1] * 12 + [4] * 20], nats, tried=tried, groups=groups)
    values = [point.bypass.value for point in optionality(select, report, kappas=(0.02,)).frontier]
    assert values == [0.5, 0.375]
    on_select = scores(tally(select, np.array([True, True])))
    picks = chosen(on_select, KAPPAS, "bypass")[0]
    rates = [0.0 if pick < 0 else on_select.bypass[0, pick] for pick in picks]
    assert rates == sorted(rates)


def test_ties_go_to_the_smaller_damage_and_then_to_the_first(world):
    tried, groups = attacks(3), clusters(8, 4)
    nats = np.array([[0.02] * 32, [0.01] * 32, [0.01] * 32])
    margins = np.array([[-9.0] * 32, [-3.0] * 32, [-3.0] * 32])
    select, report = (world.split(s, margins, nats, tried=tried, groups=groups) for s in ("select", "report"))
    assert optionality(select, report, kappas=()).worst == tried[1].name
    assert optionality(select, report, kappas=()).frontier[0].suppressor == tried[0].name


def test_an_index_has_an_interval_though_nothing_passes_at_its_lower_end(world):
    chance, tried = np.random.default_rng(0), attacks(1)
    select, report = (world.drawn(s, [0.7], [0.01], tried=tried, chance=chance) for s in ("select", "report"))
    found = optionality(select, report)
    assert found.frontier[0].suppression.interval is None
    assert found.suppression_index.low < found.suppression_index.value < found.suppression_index.high


def test_resampling_is_fixed_by_its_seed(world):
    select, report = table(world, 1)
    first, again, other = (optionality(select, report, seed=seed) for seed in (3, 3, 4))
    assert first.bypass == again.bypass
    assert first.members.equals(again.members)
    assert not first.members.equals(other.members)
    assert first.bypass.seed == 3


def test_shares_of_resamples_name_the_near_ties(world):
    """Two attacks bypass half the clusters each: which one wins is up to the draw. The third never does."""
    tried, groups = attacks(3), clusters(8, 4)
    halves = np.array([[-1.0] * 16 + [4.0] * 16, [4.0] * 16 + [-1.0] * 16, [4.0] * 32])
    select, report = (
        world.split(s, halves, np.full((3, 32), 0.01), tried=tried, groups=groups) for s in ("select", "report")
    )
    shares = optionality(select, report).members["chosen_for_bypass"]
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(0.63, abs=0.06)  # ties, a quarter of the draws, go to the first
    assert shares[1] == pytest.approx(0.37, abs=0.06)
    assert shares[2] == 0


def test_no_interval_is_without_width_and_none_is_narrower_than_either_part(known, world):
    tried, groups = attacks(1), clusters(8, 4)
    alike = [world.split(s, [[-5.0] * 32], [[0.01] * 32], tried=tried, groups=groups) for s in ("select", "report")]
    found = optionality(*alike)
    assert found.bypass.value == 1.0
    assert found.bypass.low == pytest.approx(stats.rate(np.ones(32), clusters=groups).low)
    assert found.suppression.interval is None
    assert "no variation" in found.suppression.note
    assert hull((0.2, 0.4), (0.3, 0.6)) == (0.2, 0.6)
    assert hull((0.5, 0.5), None) is None


@pytest.mark.parametrize("seed", range(6))
def test_the_conditional_interval_is_that_of_stats_unless_it_borrows(world, seed):
    chance = np.random.default_rng(seed)
    tried = attacks(4)
    responses = world.drawn("report", [0.1, 0.5, 0.9, 0.999], [0.01] * 4, tried=tried, chance=chance, icc=0.4)
    sums, names = tally(responses, np.ones(4, dtype=bool)), responses.before.prompts.restricted.clusters
    for row in range(4):
        expected = stats.rate((responses.margins[row] < 0).numpy(), clusters=names)
        alone, _ = rate_interval(sums, row, borrow=False)
        assert alone == pytest.approx(expected.interval)
        borrowed, _ = rate_interval(sums, row)
        assert borrowed[0] <= alone[0] + 1e-12
        assert borrowed[1] >= alone[1] - 1e-12


def test_where_all_prompts_answer_alike_the_design_effect_is_borrowed(world):
    tried, groups = attacks(2), clusters(8, 4)
    by_cluster = np.repeat([-1.0, -1, -1, -1, -1, -1, -1, 4], 4)
    responses = world.split("report", [[-1.0] * 32, by_cluster], np.full((2, 32), 0.01), tried=tried, groups=groups)
    sums = tally(responses, np.ones(2, dtype=bool))
    assert np.isnan(design_effects(sums)[0])
    assert design_effects(sums)[1] > 3
    assert rate_interval(sums, 0)[0][0] < rate_interval(sums, 0, borrow=False)[0][0] - 0.1


def test_a_member_over_the_limit_on_report_is_flagged_and_shows_nothing(world):
    tried, groups = attacks(1), clusters(8, 16)
    select, report = (
        world.split(s, [[-5.0] * 128], [[nats] * 128], tried=tried, groups=groups)
        for s, nats in (("select", 0.09), ("report", 0.11))
    )
    found = optionality(select, report)
    assert found.over_limit
    assert found.bypass.value == 1.0
    verdict = judge(found)
    assert verdict.state == "undetermined"
    assert any("degenerate" in reason and "0.11" in reason for reason in verdict.reasons)


def test_resampling_a_full_family_takes_less_than_two_seconds(world):
    chance, tried = np.random.default_rng(0), attacks(40)
    select, report = (
        world.drawn(s, np.linspace(0.1, 0.9, 40), np.linspace(0.001, 0.5, 40), tried=tried, chance=chance, each=36)
        for s in ("select", "report")
    )
    began = time.process_time()
    optionality(select, report)
    assert time.process_time() - began < 2


def test_invalid_attacks_are_counted_and_never_chosen(known):
    select, report = known
    broken = report.margins.clone()
    broken[1, 3] = torch.nan
    report = type(report)(report.before, report.attacks, broken, report.kl)
    found = optionality(select, report)
    assert found.n_invalid == 1
    assert found.n_attacks == 3
    assert found.bypass.value == 0.5
    assert found.members["valid"].tolist() == [True, False, True]
    assert any("1 of 3 attacks are invalid" in reason for reason in judge(found).reasons)


def test_an_optionality_is_not_made_from_mixed_splits(known, world):
    select, report = known
    with pytest.raises(MeasurementError, match="in both splits"):
        optionality(select, select)
    other = type(report)(report.before, attacks(3), report.margins, report.kl)
    with pytest.raises(MeasurementError, match="different attacks"):
        optionality(select, other)
    with pytest.raises(MeasurementError, match="other prompts"):
        optionality(select, report, placebos=select)


def test_reprs_hold_no_digits_of_the_measurement_and_escape(known):
    found = optionality(*known)
    assert found.worst in repr(found)
    assert "<table>" in found._repr_html_()
    assert set(found.frame["measure"]) == {"bypass", "suppression"}
    with pytest.raises(ContractError):
        known[0].attacks[0].__reduce_ex__(2)
