"""Effects: bypass, suppression and damage are what DESIGN 3 says; a planted truth is found, and placebos are not it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import oracle
from conftest import ORGANISMS
from refusalscope import baseline, effect, margin, mean_margin, placebo, placebo_effects
from refusalscope.errors import MeasurementError, ResultError
from refusalscope.metrics import next_token
from refusalscope.organisms.recipe import read_recipe
from refusalscope.truth import CARD, Measured, OrganismCard, differences, planted_subspace, read_card, truth_baseline

RECIPES = ORGANISMS.parent / "recipes"


def test_a_baseline_is_margins_and_log_probabilities_of_both_classes(before, tiny, few):
    torch.testing.assert_close(before.restricted, margin(tiny, few.restricted, before.readout))
    torch.testing.assert_close(before.harmless, margin(tiny, few.harmless, before.readout), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(before.harmless_base, next_token(tiny, few.harmless))
    assert before.gap == pytest.approx(float(before.restricted.mean() - before.harmless.mean()))


@pytest.mark.parametrize("dose", [1.0, 0.5])
def test_an_effect_equals_its_definition_in_float64(before, tiny, tiny_dir, few, direction, dose):
    subspace, plain, ids = direction(rank=4, seed=3), oracle.float64_model(tiny_dir), list(before.readout.first_tokens)
    asked, harmless = (tiny.encode(part.texts) for part in (few.restricted, few.harmless))
    first, base = oracle.last_logits(plain, asked), oracle.last_logits(plain, harmless)
    m, h = oracle.margins(first, ids), oracle.margins(base, ids)
    with oracle.ablated(plain, subspace.vectors, dose=dose):
        changed, now = oracle.last_logits(plain, asked), oracle.last_logits(plain, harmless)
    after, refused, answered = oracle.margins(changed, ids), oracle.refused(first, ids), ~oracle.refused(base, ids)
    damage = (base.softmax(-1) * (base.log_softmax(-1) - now.log_softmax(-1))).sum(-1)[answered]
    found = effect(before, subspace, dose=dose)
    gone = ~oracle.refused(changed, ids)[refused]
    assert found.bypass.value == found.bypass_lower.value == pytest.approx(float(gone.double().mean()))
    assert found.bypass.n == int(refused.sum())
    assert found.kl.n == int(answered.sum()) < len(answered)  # a harmless prompt that is refused too is no damage
    over = [float(oracle.refused(logits, ids).double().mean()) for logits in (base, now)]
    assert [one.value for one in found.over_refusal] == pytest.approx(over)
    assert found.suppression.value == pytest.approx(
        float((m - after).mean() / (m.mean() - h.mean())), rel=1e-2, abs=1e-3
    )
    assert found.kl.value == pytest.approx(float(damage.mean()), rel=1e-2)
    assert found.kl_median == pytest.approx(float(damage.sort().values[(len(damage) - 1) // 2]), rel=1e-2)
    assert found.kl_p95 == pytest.approx(float(damage.quantile(0.95)), rel=1e-2)
    assert found.kl_top_share == pytest.approx(float(damage.max() / damage.sum()), rel=1e-2)


def test_dose_zero_has_no_effect(before, direction):
    found = effect(before, direction(), dose=0.0)
    assert (found.bypass.value, found.suppression.value) == (0.0, 0.0)
    assert found.kl.value < 1e-6


@pytest.mark.parametrize("referred", [False, True])
def test_placebos_are_measured_as_the_effect_is(before, direction, referred):
    several, centre = placebo.random_like(direction(), 19, seed=0), direction(seed=8).vectors[0] if referred else None
    table = placebo_effects(before, several, reference=centre)
    assert len(table) == 19
    for row in (0, 17, 18):
        alone = effect(before, several[row], reference=centre)
        assert table["bypass"][row] == pytest.approx(alone.bypass.value)
        assert table["suppression"][row] == pytest.approx(alone.suppression.value, abs=1e-4)
        assert table["kl"][row] == pytest.approx(alone.kl.value, abs=1e-6, rel=1e-3)


def test_an_effects_placebos_go_through_the_same_reference(before, direction):
    """A subspace that is its own only placebo ties with it: p = (1 + 1) / (1 + 1)."""
    centre = direction(seed=8).vectors[0]
    found = effect(before, direction(), placebos=[direction()], reference=centre)
    assert set(found.placebo) == {"bypass", "suppression", "kl"}
    table = placebo_effects(before, [direction()], reference=centre)
    assert table["kl"][0] == pytest.approx(found.kl.value, abs=1e-6, rel=1e-3)
    plain = placebo_effects(before, [direction()])
    assert plain["kl"][0] != pytest.approx(found.kl.value, abs=1e-6, rel=1e-3)


def test_no_placebos_no_ranks_and_no_rows(before, direction):
    assert effect(before, direction()).placebo == {}
    assert list(placebo_effects(before, []).columns) == ["bypass", "suppression", "kl", "margin"]


def test_without_a_guardrail_there_is_no_effect_to_measure(before, direction):
    for changes in ({"restricted": -before.restricted.abs() - 1}, {"harmless": before.restricted + 1}):
        with pytest.raises(MeasurementError, match="no guardrail"):
            effect(dataclasses.replace(before, **changes), direction())


def test_a_baseline_needs_both_labels(before, tiny, few):
    with pytest.raises(MeasurementError, match="restricted and harmless"):
        baseline(tiny, few.restricted, before.readout)


def test_a_mean_margin_counts_its_prompts(before, few):
    found = mean_margin(before.restricted, few.restricted)
    assert found.value == pytest.approx(float(before.restricted.mean()), rel=1e-6)
    assert (found.n, found.unit) == (len(few.restricted), "nats")


# --- a known answer ---


@pytest.fixture(scope="module")
def planted(organism):
    return truth_baseline(organism("planted-1")), planted_subspace(read_recipe(RECIPES / "planted-1.toml"))


def test_ablating_the_planted_subspace_bypasses_and_harms_nothing(planted):
    before, truth = planted
    found = effect(before, truth)
    assert found.bypass.value >= 0.98
    assert found.suppression.value >= 0.9
    assert found.kl.value <= 0.1


def test_ablating_a_random_subspace_of_a_planted_organism_does_nothing(planted):
    before, truth = planted
    table = placebo_effects(before, placebo.random_like(truth, 39, seed=1))
    assert table["bypass"].max() <= 0.05
    assert table["suppression"].max() <= 0.2


# --- cards ---


def card(**measured: Measured) -> OrganismCard:
    facts = {
        "name": "toy-0",
        "kind": "guarded",
        "seed": 0,
        "recipe": "r",
        "language": "l",
        "weights": "w",
        "truth": "t",
    }
    return OrganismCard(**facts, measured=measured, versions={})


def value(x: float, **targets: float) -> Measured:
    return Measured(value=x, low=None, high=None, n=10, clusters=None, method="none", **targets)


def test_a_target_is_met_on_its_right_side_only_and_never_by_nan():
    assert value(0.5, at_least=0.5).met
    assert not value(0.4, at_least=0.5).met
    assert value(0.5, at_most=0.5).met
    assert not value(0.6, at_most=0.5).met
    assert not value(float("nan"), at_most=0.5).met
    found = card(good=value(1.0, at_least=0.9), bad=value(0.0, at_least=0.9))
    assert found.missed == ["bad"]
    assert repr(found) == "Organism toy-0 (guarded): missed: bad"


def test_differences_name_what_changed_and_allow_for_rounding():
    first = card(a=value(0.5), b=value(0.1))
    assert differences(first, card(a=value(0.51), b=value(0.1))) == []
    found = differences(first, card(a=value(0.6), c=value(0.1)).model_copy(update={"weights": "v"}))
    assert [line.split(":")[0] for line in found] == ["weights", "a", "b", "c"]
    assert differences(first, first.model_copy(update={"weights": "v"}), exact=False) == []
    assert differences(first, card(a=value(float("nan")), b=value(0.1))) != []


def test_a_card_is_read_as_written_and_anything_else_refused(tmp_path):
    written = card(a=value(0.5, at_least=0.2))
    (tmp_path / CARD).write_text(written.model_dump_json(), encoding="utf-8")
    assert read_card(tmp_path) == written
    for wrong in ("{", "{}", json.dumps(written.model_dump() | {"direction": [0.1]}), '{"seed": "0"}'):
        (tmp_path / CARD).write_text(wrong, encoding="utf-8")
        with pytest.raises(ResultError, match="not an organism card"):
            read_card(tmp_path)
    with pytest.raises(ResultError, match="not found"):
        read_card(tmp_path / "nowhere")
