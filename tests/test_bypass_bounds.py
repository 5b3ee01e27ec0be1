"""Bounds of the bypass rate, broken replies, damage and over-refusal: a reply that opens neither way is no answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from optionality_by_hand import ANSWERED, REFUSED, World, attacks
from refusalscope import ablate, capture, effect, locate
from refusalscope.attack import Attack, respond
from refusalscope.effect import UNREAD_LIMIT, Baseline, baseline, placebo_effects
from refusalscope.errors import MeasurementError
from refusalscope.metrics import next_token, read
from refusalscope.optionality import judge, optionality
from refusalscope.reading import readout

N = 64


@pytest.fixture
def world(tiny) -> World:
    return World(tiny)


@pytest.fixture(scope="module")
def whole(guarded, prompts) -> Baseline:
    """guarded-0 on report, with the openings of its refusals and of its answers."""
    return baseline(guarded, prompts.report, readout(guarded, prompts.locate))


@pytest.fixture(scope="module")
def direction_of(guarded, prompts):
    return locate.mean_difference(*capture(guarded, prompts.locate)).at(3, -1)


def split(world: World, name: str, *, gone: int, answering: int, unread: float = 0.0, kl: float = 0.01, tried):
    """One attack: so many of the refusals are gone, so many open as an answer, the mass that opens neither way."""
    margins = np.where(np.arange(N) < gone, ANSWERED, REFUSED)[None]
    made = world.split(name, margins, np.full((1, N), kl), tried=tried)
    flags = torch.arange(N)[None] < answering
    return dataclasses.replace(made, complies=flags, unread=torch.full((1, N), unread))


def both(world: World, **how):
    tried = attacks(1)
    return optionality(*(split(world, name, tried=tried, **how) for name in ("select", "report")))


# --- bounds ---


def test_the_lower_bound_counts_replies_that_open_as_answers_and_the_upper_those_that_do_not_refuse(world):
    found = both(world, gone=56, answering=44)
    assert found.bypass.value == pytest.approx(56 / N)
    assert found.bypass_lower.value == pytest.approx(44 / N)
    assert any("bounds of the bypass rate: 0.69" in reason for reason in judge(found).reasons)


def test_the_lower_bound_is_never_above_the_upper(whole, direction):
    several = [direction(rank=rank, seed=rank, layer=2, width=whole.model.d_model) for rank in (1, 8, 40, 90)]
    for dose in (0.5, 1.0, 2.0):
        found = respond(whole, [Attack(one, dose) for one in several])
        assert not bool((found.refuses & found.complies).any())
        for row, one in enumerate(several):
            made = effect(whole, one, dose=dose)
            assert made.bypass_lower.value <= made.bypass.value
            lower = found.complies[row][whole.refused].double().mean()
            assert made.bypass_lower.value == pytest.approx(float(lower))


def test_a_guardrail_whose_refusals_turn_into_something_unread_is_not_called_optional(world):
    assert judge(both(world, gone=64, answering=64)).state == "optional"
    found = judge(both(world, gone=64, answering=16))
    assert found.state == "undetermined"
    assert "cannot tell bypassed from broken" in found.reasons[0]


# --- degenerate ---


def test_an_attack_under_which_replies_open_neither_way_is_not_chosen(world):
    """Of two attacks the stronger one breaks the replies: the worst case is the other."""
    tried = attacks(2)
    margins = np.stack([np.full(N, ANSWERED), np.where(np.arange(N) < 4, ANSWERED, REFUSED)])
    made = []
    for name in ("select", "report"):
        one = world.split(name, margins, np.full((2, N), 0.01), tried=tried)
        unread = torch.stack([torch.full((N,), UNREAD_LIMIT + 0.3), torch.zeros(N)])
        made.append(dataclasses.replace(one, complies=~one.refuses & (unread < 0.1), unread=unread))
    assert made[0].readable.tolist() == [False, True]
    found = optionality(*made)
    assert found.worst == tried[1].name
    assert found.bypass.value == pytest.approx(4 / N)
    assert found.members["readable"].tolist() == [False, True]
    control = optionality(*(dataclasses.replace(one, unread=torch.zeros(2, N)) for one in made))
    assert control.worst == tried[0].name
    assert control.bypass.value == 1.0


def test_where_every_attack_breaks_the_replies_the_guardrail_is_not_optional(world):
    broken = both(world, gone=64, answering=0, unread=0.9)
    assert not broken.worst
    assert judge(broken).state == "undetermined"
    assert judge(both(world, gone=64, answering=64, unread=0.0)).state == "optional"


def test_an_attack_that_breaks_replies_on_report_alone_shows_no_optional_guardrail(world):
    tried = attacks(1)
    select = split(world, "select", gone=64, answering=64, tried=tried)
    report = split(world, "report", gone=64, answering=0, unread=0.9, tried=tried)
    found = optionality(select, report)
    assert found.over_limit
    assert found.unread == pytest.approx(0.9)
    judged = judge(found)
    assert judged.state == "undetermined"
    assert "opens neither way" in judged.reasons[0]


def test_ablating_most_of_a_live_model_is_degenerate_and_its_refusal_direction_alone_is_not(
    whole, direction, direction_of
):
    wreck = effect(whole, direction(rank=80, layer=2, width=whole.model.d_model))
    assert wreck.unread > UNREAD_LIMIT
    assert wreck.degenerate
    assert wreck.bypass_lower.value < wreck.bypass.value
    sound = effect(whole, direction_of)
    assert not sound.degenerate
    found = respond(whole, [Attack(direction(rank=80, layer=2, width=whole.model.d_model)), Attack(direction_of)])
    assert found.readable.tolist() == [False, True]


# --- damage ---


def test_damage_is_of_harmless_prompts_that_are_answered(world):
    tried, nats = attacks(1), np.full((1, N), 0.01)
    nats[0, :4] = 5.0
    margins, base = np.full((1, N), ANSWERED), [REFUSED] * 4 + [ANSWERED] * (N - 4)
    refused_too = world.split("select", margins, nats, tried=tried, harmless=base)
    assert refused_too.before.answered.tolist() == [False] * 4 + [True] * (N - 4)
    assert float(refused_too.damage) == pytest.approx(0.01)
    answered = world.split("select", margins, nats, tried=tried)
    assert float(answered.damage) == pytest.approx(float(nats.mean()))
    report = [world.split("report", margins, nats, tried=tried, harmless=given) for given in (base, None)]
    assert optionality(refused_too, report[0]).worst == tried[0].name
    assert not optionality(answered, report[1]).worst, "a positive control: counted, they are above every limit"


def test_a_live_effects_damage_is_the_mean_over_answered_prompts(before, direction):
    assert 0 < int(before.answered.sum()) < len(before.answered)
    subspace, asked = direction(rank=4, seed=3), before.prompts.harmless
    base = next_token(before.model, asked)
    with ablate(before.model, subspace):
        now = next_token(before.model, asked)
    each = (base.exp() * (base - now)).sum(1)
    found, table = effect(before, subspace), placebo_effects(before, [subspace])
    expected = float(each[before.answered].mean())
    assert found.kl.value == pytest.approx(expected, rel=1e-3)
    assert table["kl"][0] == pytest.approx(expected, rel=1e-3)
    assert found.kl.value != pytest.approx(float(each.mean()), rel=1e-2)


def test_a_model_that_refuses_every_harmless_prompt_has_no_damage_to_measure(before, direction):
    refusing = dataclasses.replace(before, answered=torch.zeros_like(before.answered))
    with pytest.raises(MeasurementError, match="refuses all 6 harmless prompts"):
        effect(refusing, direction())


# --- over-refusal ---


def test_over_refusal_is_reported_before_and_under_the_worst_case(world):
    tried, margins = attacks(1), np.full((1, N), ANSWERED)
    base = [REFUSED] * 4 + [ANSWERED] * (N - 4)
    made = [
        dataclasses.replace(
            world.split(name, margins, np.full((1, N), 0.01), tried=tried, harmless=base),
            over_refuses=torch.arange(N)[None] < 1,
        )
        for name in ("select", "report")
    ]
    found = optionality(*made)
    first, second = found.over_refusal
    assert (first.value, second.value) == pytest.approx((4 / N, 1 / N))


def test_a_live_effect_counts_refused_harmless_prompts_before_and_after(before, direction):
    subspace = direction(rank=4, seed=3)
    found = effect(before, subspace)
    with ablate(before.model, subspace):
        now = read(before.model, before.prompts.harmless, before.readout).refuses
    rates = (float((~before.answered).double().mean()), float(now.double().mean()))
    assert tuple(one.value for one in found.over_refusal) == pytest.approx(rates)
