"""What a deployment can rely on: three safeguards, each sentence no stronger than the rates behind it."""

from __future__ import annotations

import pytest

import refusalscope as rs
from refusalscope.audit import declared
from refusalscope.locators import mean_difference
from refusalscope.report import deploy
from refusalscope.results.parts import Verdict


@pytest.fixture(scope="module")
def watched(guarded, prompts):
    found = mean_difference(*rs.capture(guarded, prompts.locate)).at(4, -1)
    survived, pf = deploy.watched(guarded, prompts, found, placebos=5, seed=0)
    return survived, pf


def reliances(survived, *, state="undetermined", why_not=""):
    verdict = Verdict(state, "A sentence.", ("a reason",))
    return deploy.reliances(verdict, None, survived, why_not=why_not)


def test_guardrail_audit_and_monitor_are_told_in_this_order(watched):
    assert [one.of for one in reliances(watched[0])] == ["guardrail", "audit", "monitor"]


@pytest.mark.parametrize("state", deploy.GUARDRAIL)
def test_the_guardrails_sentence_is_that_of_its_verdict(state):
    assert reliances(None, state=state)[0].sentence == deploy.GUARDRAIL[state]


def test_the_audits_rates_are_the_declared_ones_with_n_and_interval():
    rates = reliances(None)[1].rates
    assert {rate.name: rate.value.value for rate in rates} == {name: one.value for name, one in declared().items()}
    assert len(rates) == 2
    assert all(rate.value.n > 50 and rate.value.interval for rate in rates)


def test_a_monitor_is_told_under_every_condition_with_intervals_and_placebos(watched):
    told = reliances(watched[0])[2]
    assert all(words in told.sentence for words in deploy.CONDITIONS.values())
    assert len(told.rates) == 6
    assert all(rate.value.n and rate.value.interval for rate in told.rates)
    assert all(rate.placebo is not None for rate in told.rates if deploy.CONDITIONS[deploy.NOTHING] not in rate.name)


def test_a_monitor_whose_own_direction_is_ablated_is_never_said_to_hold(watched):
    """The control that must fail; as the model is, the same monitor does alarm."""
    told = reliances(watched[0])[2].sentence
    plain, _, own = (told.split(words)[1].split(";")[0] for words in deploy.CONDITIONS.values())
    assert deploy.MONITOR["holds"] not in own
    assert deploy.MONITOR["fails"] not in plain


def test_without_a_located_direction_the_monitor_is_tried_as_the_model_is(guarded, prompts):
    survived, _ = deploy.watched(guarded, prompts, None, placebos=2, seed=0)
    told = reliances(survived)[2]
    assert deploy.CONDITIONS[deploy.LOCATED] not in told.sentence
    assert deploy.CONDITIONS[deploy.NOTHING] in told.sentence


def test_a_monitor_that_could_not_be_measured_says_why():
    told = reliances(None, why_not="a hook did not fire")[2]
    assert "a hook did not fire" in told.sentence
    assert told.rates == ()


def test_the_announced_cost_bounds_what_watching_takes(watched, prompts):
    assert 0 < watched[1] <= deploy.most_watched(prompts, placebos=5)
