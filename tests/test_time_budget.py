"""A plan that fits a time budget, and the number format that is proposed: what they choose, leave out and refuse."""

from __future__ import annotations

import sys
import time

import pytest
import torch

import refusalscope as rs
from conftest import ORGANISMS
from refusalscope.machine import bfloat16_speedup
from refusalscope.optionality import Menu
from refusalscope.prompts import Prompts
from refusalscope.report.time_budget import (
    LADDER,
    TimeBudget,
    fit_plan,
    parse_duration,
    shrink_menu,
    time_prompt_forward,
)

PROMPTS = ORGANISMS.parent / "prompts" / "organism.jsonl"


@pytest.fixture(scope="module")
def model():
    return rs.load(ORGANISMS / "guarded-0")


@pytest.fixture(scope="module")
def prompts():
    return rs.ContrastSet.read(PROMPTS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15 min", 900), ("15m", 900), ("90s", 90), ("1.5h", 5400), ("2 hours", 7200), (45, 45), ("20 minutes", 1200)],
)
def test_a_duration_is_read_as_people_write_it(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0m", "-5m", "15 parsecs", "1e9x", "0.2s", "nan"])
def test_what_is_no_duration_is_refused_in_one_line(text):
    with pytest.raises(rs.MeasurementError, match="Give one such as") as error:
        parse_duration(text)
    assert "\n" not in str(error.value)


def test_a_budget_runs_down():
    budget = TimeBudget(100.0, began=time.perf_counter() - 30)
    assert 69 < budget.left < 70.1


def test_larger_budgets_take_larger_plans_of_whole_clusters(model, prompts):
    pace = time_prompt_forward(model, prompts.report)
    small = fit_plan(model, prompts, TimeBudget(pace * 6000), whole=1e12)
    large = fit_plan(model, prompts, TimeBudget(pace * 60000), whole=1e12)
    assert len(small.prompts.prompts) < len(large.prompts.prompts) <= len(prompts.prompts)
    for part, whole in ((large.prompts.report, prompts.report), (large.prompts.select, prompts.select)):
        kept = set(part.clusters)
        assert [row.id for row in part] == [row.id for row in whole if row.cluster in kept]
    assert any("prompts: left out to fit the budget" in line for line in small.left_out)


def test_where_every_prompt_is_a_cluster_a_large_budget_takes_more_than_the_ladder_names(model):
    texts = [row.text for row in rs.ContrastSet.read(PROMPTS).prompts]
    singles = rs.ContrastSet.from_texts(texts[:300], texts[300:600])
    found = fit_plan(model, singles, TimeBudget(1e7), whole=1e12)
    reported = (len(found.prompts.report.restricted), len(singles.report.restricted))
    assert reported[0] == min(len(singles.select.restricted), len(singles.locate.restricted), reported[1])
    assert reported[0] > 2 * LADDER[-1].clusters


def test_the_pace_is_that_of_a_readout_with_many_places(model, prompts, monkeypatch):
    """Where beginnings cannot be packed each is a forward: a trial of one place would plan for a sixteenth of them."""
    places = []
    module = sys.modules["refusalscope.report.time_budget"]  # whose name a function took
    monkeypatch.setattr(module, "read", lambda _m, _p, known, **_: places.append(len(known.tree)))
    time_prompt_forward(model, prompts.report)
    monkeypatch.setitem(vars(model), "is_organism", False)
    time_prompt_forward(model, prompts.report)
    assert places == [1, 1, 16, 16]


def test_the_readout_is_judged_on_twenty_prompts_of_each_label_though_fewer_are_measured(model, prompts, monkeypatch):
    module = sys.modules["refusalscope.report.time_budget"]  # whose name a function took
    monkeypatch.setattr(module, "time_prompt_forward", lambda *_: 1.0)
    small = fit_plan(model, prompts, TimeBudget(3000.0), whole=1e12)
    judged = small.judged
    assert len(small.prompts.select.restricted) < 20 == len(judged.restricted) == len(judged.harmless)
    assert set(small.prompts.select.ids) < set(judged.ids) < set(prompts.select.ids)
    some = (*prompts.select.restricted[:4], *prompts.select.harmless[:4])
    few = rs.ContrastSet(Prompts((*prompts.locate, *some, *prompts.report)), "few")
    assert len(fit_plan(model, few, TimeBudget(1e7), whole=1e12).judged) == 8


def test_openings_are_found_on_forty_prompts_of_each_label_unless_only_the_smallest_plan_fits(
    model, prompts, monkeypatch
):
    module = sys.modules["refusalscope.report.time_budget"]  # whose name a function took
    monkeypatch.setattr(module, "time_prompt_forward", lambda *_: 1.0)
    prices = [module._price(model, module._taken(prompts, rung), rung, judged=40) for rung in LADDER[:2]]
    smallest, second = (fit_plan(model, prompts, TimeBudget(1.02 * price / 0.85), whole=1e12) for price in prices)
    sizes = [(len(one.prompts.locate.restricted), len(one.prompts.locate.harmless)) for one in (smallest, second)]
    assert max(sizes[0]) < 40
    assert sizes[1] == (40, 40)
    assert len(second.prompts.report) == len(smallest.prompts.report)
    assert "at least 40 prompts" in second.prompts.split_note


def test_of_twenty_sentences_none_is_left_out_and_none_is_said_to_be(model, prompts):
    texts = [row.text for row in prompts.prompts]
    own = rs.ContrastSet.from_texts(texts[:10], texts[-10:])
    assert not any("prompts: left out" in line for line in fit_plan(model, own, TimeBudget(1e7), whole=1e12).left_out)


def test_the_full_plan_is_taken_where_it_fits(model, prompts):
    few = LADDER[-1].clusters
    found = fit_plan(model, prompts, TimeBudget(1e7), whole=1.0)
    assert found.plan.name == ("full" if few else "")
    assert found.left_out == ()


def test_a_budget_that_nothing_fits_says_how_long_it_takes(model, prompts):
    with pytest.raises(rs.MeasurementError, match=r"the smallest plan takes about .* minutes") as error:
        fit_plan(model, prompts, TimeBudget(0.01), whole=1e12)
    assert "Give a larger budget" in str(error.value)


def test_a_card_ends_within_its_budget_and_says_what_it_left_out(model, prompts):
    rs.check_instrument()  # once in an environment: seconds that are not the card's
    began = time.perf_counter()
    card = rs.measure(model, prompts, budget="40s", progress=False)
    assert time.perf_counter() - began < 1.1 * 40
    assert card.plan == "budget"
    assert card.optionality is not None
    assert card.optionality.placebo
    assert any("left out to fit the budget" in line for line in card.missing)
    assert any("time budget" in line for line in card.not_shown)


def test_bfloat16_is_timed_against_float32():
    assert 0 < bfloat16_speedup(size=128) < 1000


def test_bfloat16_changes_margins_by_rounding_and_hardly_any_decision(model, prompts):
    narrow = rs.load(ORGANISMS / "guarded-0", dtype=torch.bfloat16)
    assert narrow.origin.dtype == "bfloat16"
    readout = rs.readout(model, prompts.locate)
    wide, rounded = (rs.baseline(one, prompts.report, readout) for one in (model, narrow))
    changed = (wide.restricted - rounded.restricted).abs()
    assert 0 < float(changed.max()) < 0.1 * wide.gap
    assert float((wide.refused == rounded.refused).double().mean()) > 0.97


def test_a_menu_shrinks_to_the_time_that_is_left_and_no_further_than_it_can():
    menu = Menu(best=2, doses=(0.5, 1.0, 1.5), cells=8, spans=True, rank_on=32)
    sizes = {"pace": 1.0, "chosen": 64, "reported": 64}
    assert shrink_menu(menu, left=1e6, **sizes) == menu
    smaller = shrink_menu(menu, left=1200.0, **sizes)
    assert (smaller.spans, smaller.cells < 8) == (False, True)
    least = shrink_menu(menu, left=1.0, **sizes)
    assert (least.cells, least.doses, least.rank_on) == (2, (0.5, 1.0), 6)
    assert shrink_menu(Menu(), left=1.0, **sizes) == Menu()
