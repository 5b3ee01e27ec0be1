"""Curves: their ends equal the effect, their landmarks known answers, and what fails is counted with its reason."""

from __future__ import annotations

import dataclasses
import math
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ORGANISMS
from refusalscope import (
    baseline,
    capture,
    curves,
    effect,
    locate,
    margin,
    placebo,
    plotting,
    readout,
    stats,
)
from refusalscope.attack import Attack, Responses
from refusalscope.curves import points
from refusalscope.curves.landmarks import crossing, first_at, mark, settled_at
from refusalscope.curves.scope import scopes_of
from refusalscope.errors import ContractError, InterventionError, MeasurementError
from refusalscope.model.batching import batches, forward
from refusalscope.organisms.recipe import read_recipe
from refusalscope.reading import Readout
from refusalscope.reading.readout import log_odds
from refusalscope.subspace import Subspace
from refusalscope.truth import planted_subspace

SHARED = ["measure", "value", "low", "high", "n", "clusters", "method", "unit", "note"]
PLACEBO = ["placebo_low", "placebo_high", "placebo_n", "p", "pf"]
OPENING = "banubu guva zari ?"


@pytest.fixture(scope="module")
def located(guarded, prompts):
    return capture(guarded, prompts.locate, keep_each=True)


@pytest.fixture(scope="module")
def guard(guarded, prompts):
    """A baseline of guarded-0 on eight prompts per label, one of each cluster."""
    return curves.thinned(baseline(guarded, prompts.report, readout(guarded, prompts.locate)), 8)


@pytest.fixture(scope="module")
def found(located):
    return locate.mean_difference(*located).at(1, -2)


def row(curve: curves.Curve, measure: str, **x) -> pd.Series:
    """The one row of a curve at a point."""
    kept = curve.frame[curve.frame["measure"] == measure]
    for name, value in x.items():
        kept = kept[kept[name] == value]
    assert len(kept) == 1
    return kept.iloc[0]


def as_effect(curve: curves.Curve, expected, **x) -> None:
    for measure in ("bypass", "suppression", "kl"):
        one, estimate = row(curve, measure, **x), getattr(expected, measure)
        assert one["value"] == pytest.approx(estimate.value, rel=1e-4, abs=1e-6)
        assert one["low"] == pytest.approx(estimate.low, rel=1e-3, abs=1e-5, nan_ok=True)
        assert (one["n"], one["method"]) == (estimate.n, estimate.method)


def answering(monkeypatch, margins_of, kl_of=lambda before, attack: torch.zeros(len(before.harmless))):
    """Makes prompts answer by formula, so that a curve's landmarks are known."""

    def respond(before, attacks, *, progress=None):
        margins = torch.stack([margins_of(before, attack) for attack in attacks])
        return Responses(before, tuple(attacks), margins, torch.stack([kl_of(before, a) for a in attacks]))

    monkeypatch.setattr(points, "respond", respond)


# --- dose ---


def test_dose_zero_is_the_baseline_bit_for_bit_and_dose_one_the_effect(guard, found):
    curve = curves.dose(guard, found, doses=(0.0, 0.5, 1.0), placebos=3)
    assert list(curve.frame.columns) == ["dose", *SHARED, *PLACEBO]
    (answer,) = points.answered(guard, [points.Point({"dose": 0.0}, (Attack(found, 0.0),), ())], what="a test")
    assert answer.read.margins[0].equal(guard.restricted)
    for measure in ("bypass", "suppression"):
        assert row(curve, measure, dose=0.0)["value"] == 0.0
    as_effect(curve, effect(guard, found), dose=1.0)
    as_effect(curve, effect(guard, found, dose=0.5), dose=0.5)
    assert curve.pf == (1 + 4 + 4) * len(guard.prompts)


def test_dose_zero_needs_no_placebo_run_and_every_other_dose_has_its_own(guard, found):
    curve = curves.dose(guard, found, doses=(0.0, 1.0), placebos=5)
    nothing, full = (row(curve, "suppression", dose=x) for x in (0.0, 1.0))
    assert (nothing["placebo_low"], nothing["placebo_high"], nothing["placebo_n"], nothing["p"]) == (0.0, 0.0, 5, 1.0)
    table = effect(guard, found, placebos=placebo.random_like(found, 5, seed=0)).placebo["suppression"]
    assert (full["placebo_low"], full["placebo_high"]) == pytest.approx(table.band, abs=1e-5)
    assert (full["placebo_n"], full["p"]) == (5, pytest.approx(table.p))


def test_half_dose_of_a_straight_line_is_where_it_crosses(guard, found, monkeypatch):
    """Suppression 0.8 λ in every prompt: λ50 = 0.625, and no variation to make an interval from."""
    answering(monkeypatch, lambda before, attack: before.restricted - 0.8 * attack.dose * before.gap)
    curve = curves.dose(guard, found, placebos=3)
    assert curve.landmarks["λ50"].value == pytest.approx(0.625, rel=1e-6)
    assert curve.landmarks["λ50"].interval is None
    doses = curve.frame["dose"].unique()
    rates = [float((guard.restricted[guard.refused] < 0.8 * x * guard.gap).double().mean()) for x in doses]
    after = next(i for i, value in enumerate(rates) if value >= 0.5)
    expected = np.interp(0.5, rates[after - 1 : after + 1], doses[after - 1 : after + 1])
    assert curve.landmarks["λ50 of bypass"].value == pytest.approx(expected)


def test_half_dose_has_an_interval_over_clusters_that_holds_the_truth(guard, found, monkeypatch):
    slopes = torch.linspace(0.6, 1.0, len(guard.restricted))
    answering(monkeypatch, lambda before, attack: before.restricted - slopes * attack.dose * before.gap)
    half = curves.dose(guard, found, placebos=0).landmarks["λ50"]
    assert half.value == pytest.approx(0.625, rel=1e-5)
    assert 0.5 < half.low < 0.625 < half.high < 1.0
    assert (half.clusters, half.method) == (8, "BCa 95%")


def test_half_dose_is_absent_with_a_reason_where_it_is_never_reached(guard, found, monkeypatch):
    answering(monkeypatch, lambda before, attack: before.restricted - 0.1 * attack.dose * before.gap)
    half = curves.dose(guard, found, placebos=0).landmarks["λ50"]
    assert math.isnan(half.value)
    assert half.interval is None
    assert "does not reach one half at any dose up to 1.5" in half.note


def test_half_dose_has_no_interval_where_resampled_prompts_never_reach_it(guard, found, monkeypatch):
    slopes = torch.where(torch.arange(len(guard.restricted)) % 2 == 0, 0.05, 0.75)
    answering(monkeypatch, lambda before, attack: before.restricted - slopes * attack.dose * before.gap)
    half = curves.dose(guard, found, placebos=0).landmarks["λ50"]
    assert half.value == pytest.approx(1.25, rel=1e-5)
    assert half.interval is None
    assert "past the last point" in half.note


@pytest.mark.parametrize("doses", [(), (1.0,), (1.0, 0.5), (0.0, math.nan), (0.5, 0.5)])
def test_doses_must_make_a_curve(guard, found, doses):
    with pytest.raises(MeasurementError, match="do not make a curve"):
        curves.dose(guard, found, doses=doses)


def test_a_dose_curve_is_what_the_drawing_takes(guard, found):
    curve = curves.dose(guard, found, doses=(0.0, 0.5, 1.0), placebos=2)
    frame = curve.frame.query("measure == 'suppression'").assign(series="located")
    assert plotting.dose(frame, title="a title", unit="suppression") is not None


# --- rank ---


@pytest.fixture(scope="module")
def planted(organism, prompts):
    """Planted-1 with its truth, and seven random directions orthogonal to it."""
    model = organism("planted-1")
    truth = planted_subspace(read_recipe(ORGANISMS.parent / "recipes" / "planted-1.toml"))
    before = curves.thinned(baseline(model, prompts.report, readout(model, prompts.locate)), 8)
    noise = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return before, truth, noise - (noise @ truth.basis) @ truth.basis.T


def test_the_rank_curve_of_planted_1_bends_at_one(planted):
    before, truth, others = planted
    family = curves.nested(Subspace(torch.cat([truth.vectors, others]), None, None, "truth first"))
    curve = curves.rank(before, family, placebos=9)
    assert row(curve, "bypass", rank=1)["value"] >= 0.98
    assert row(curve, "bypass", rank=1)["placebo_high"] <= 0.05
    assert curve.landmarks["causal rank"].value == 1.0
    as_effect(curve, effect(before, family[2]), rank=3)


def test_without_the_truth_lower_ranks_do_nothing_and_the_curve_bends_where_it_comes_in(planted):
    before, truth, others = planted
    ordered = torch.cat([others[:2], truth.vectors, others[2:]])
    curve = curves.rank(before, curves.nested(Subspace(ordered, None, None, "truth third")), placebos=9)
    for k in (1, 2):
        assert row(curve, "bypass", rank=k)["value"] <= 0.05
        assert row(curve, "suppression", rank=k)["value"] <= 0.2
    assert row(curve, "bypass", rank=3)["value"] >= 0.98
    assert curve.landmarks["causal rank"].value == 3.0


def test_there_is_no_causal_rank_where_nothing_bypasses_more_than_placebos(planted):
    before, _, others = planted
    curve = curves.rank(before, curves.nested(Subspace(others, None, None, "noise")), placebos=9)
    assert math.isnan(curve.landmarks["causal rank"].value)
    assert "no rank bypasses more than its placebos" in curve.landmarks["causal rank"].note
    assert "no rank bypasses" in repr(curve)


def test_ranks_must_grow(guard, found):
    for wrong in ([], [found, found]):
        with pytest.raises(MeasurementError, match="growing rank"):
            curves.rank(guard, wrong)


def test_nested_subspaces_lie_in_each_other(direction):
    family = curves.nested(direction(rank=3))
    assert [one.rank for one in family] == [1, 2, 3]
    assert float(family[0].angles(family[1])[0]) < 1e-6
    assert float(family[1].angles(family[2]).max()) < 1e-6


# --- prompt budget ---


def test_the_full_budget_is_the_full_effect(guard, located, found):
    curve = curves.budget(
        guard, located, locate=curves.at_cell(locate.mean_difference, 1, -2), sampling=curves.Sampling(3, 2)
    )
    assert curve.frame["pairs"].unique().tolist() == [2, 4, 8, 16]
    as_effect(curve, effect(guard, found), pairs=16)
    full = row(curve, "suppression", pairs=16)
    assert (full["draws"], full["draw_low"], full["draw_high"]) == (1, full["value"], full["value"])
    assert row(curve, "suppression", pairs=2)["draws"] == 3
    assert (curve.frame["locate_pf"] == 2 * curve.frame["pairs"]).all()
    assert curve.pf == (3 * (3 + 2) + 1 + 2) * len(guard.prompts)
    assert len(curve.each) == 3 * 3 + 1


def test_a_point_is_the_mean_over_draws_with_prompts_as_n(guard, located):
    curve = curves.budget(
        guard,
        located,
        locate=curves.at_cell(locate.mean_difference, 1, -2),
        sizes=(4,),
        sampling=curves.Sampling(4, 0),
    )
    draws = curve.each.query("pairs == 4")["suppression"]
    one = row(curve, "suppression", pairs=4)
    assert one["value"] == pytest.approx(draws.mean())
    assert (one["draw_low"], one["draw_high"]) == pytest.approx((draws.min(), draws.max()))
    assert one["n"] == len(guard.restricted)


def test_draws_are_nested_and_those_of_the_seed(guard, located):
    seen = []

    def look(restricted, harmless):
        seen.append(set(restricted.each[:, 3, -1, 0].tolist()))
        return locate.mean_difference(restricted, harmless).at(1, -2)

    for seed in (0, 0, 1):
        curves.budget(guard, located, locate=look, sizes=(2, 8), sampling=curves.Sampling(2, 0, seed))
    first, again, other = seen[:5], seen[5:10], seen[10:]
    assert [len(drawn) for drawn in first] == [2, 2, 8, 8, 16]
    assert first == again
    assert first != other
    assert all(small < large for small, large in zip(first[:2], first[2:4], strict=True))


def test_pairs_are_drawn_as_pairs(guard, located):
    """Row i of both classes: whichever restricted prompt is drawn, so is the harmless one beside it."""
    beside = dict(
        zip(located.restricted.each[:, 3, -1, 0].tolist(), located.harmless.each[:, 3, -1, 0].tolist(), strict=True)
    )

    def look(restricted, harmless):
        pairs = zip(restricted.each[:, 3, -1, 0].tolist(), harmless.each[:, 3, -1, 0].tolist(), strict=True)
        assert all(beside[one] == other for one, other in pairs)
        return locate.mean_difference(restricted, harmless).at(1, -2)

    curves.budget(guard, located, locate=look, sizes=(3,), sampling=curves.Sampling(2, 0))


def test_pairs_needed_are_those_from_which_on_the_effect_stays(guard, located, monkeypatch):
    """Suppression by pairs: 0.1, 0.95, 0.5, 0.92, 1 of the full effect: eight pairs, not four."""
    share = {2: 0.1, 3: 0.95, 5: 0.5, 8: 0.92, 16: 1.0}
    tilt = torch.linspace(0.95, 1.05, len(guard.restricted))

    def margins(before, attack):
        strength = share[attack.n_prompts // 2] if attack.subspace.locator == "mean_difference" else 0.0
        return before.restricted - tilt * strength * before.gap

    answering(monkeypatch, margins)
    at = curves.at_cell(locate.mean_difference, 1, -2)
    curve = curves.budget(guard, located, locate=at, sizes=(2, 3, 5, 8), sampling=curves.Sampling(2, 0))
    needed = curve.landmarks["pairs for 90%"]
    assert needed.value == 8.0
    assert "single draws need 8 to 8 pairs" in needed.note
    assert set(curve.each["needed"]) == {8.0}


def test_no_pairs_suffice_where_all_of_them_do_no_more_than_placebos(guard, located, monkeypatch):
    answering(monkeypatch, lambda before, attack: before.restricted - 0.5 * before.gap)
    at = curves.at_cell(locate.mean_difference, 1, -2)
    needed = curves.budget(guard, located, locate=at, sampling=curves.Sampling(2, 2)).landmarks["pairs for 90%"]
    assert math.isnan(needed.value)
    assert "no more than their placebos" in needed.note


def test_a_draw_that_locates_nothing_counts_as_no_effect(guard, located):
    def needs_three(restricted, harmless):
        if restricted.n < 3:
            raise MeasurementError("Too few prompts to fit.")
        return locate.mean_difference(restricted, harmless).at(1, -2)

    curve = curves.budget(guard, located, locate=needs_three, sizes=(2, 4), sampling=curves.Sampling(2, 2))
    two, four = (row(curve, "suppression", pairs=size) for size in (2, 4))
    assert (two["value"], two["draws"], two["placebo_n"]) == (0.0, 2, 2)
    assert "2 of 2 draws located nothing" in two["note"]
    assert "located nothing" not in four["note"]


def test_budgets_must_be_there(guard, located, found):
    at = curves.at_cell(locate.mean_difference, 1, -2)
    for wrong in ((17,), (4, 2), (0, 2)):
        with pytest.raises(MeasurementError, match="pairs from 1 to the 16 captured"):
            curves.budget(guard, located, locate=at, sizes=wrong)
    bare = type(located)(*(dataclasses.replace(part, each=None) for part in located))
    with pytest.raises(MeasurementError, match="keep_each=True"):
        curves.budget(guard, bare, locate=at)


# --- layer scope ---


def test_the_scope_of_all_layers_is_the_effect(guard, found):
    curve = curves.scope(guard, found, scopes=((0, 0), (0, 5), (2, 3)), placebos=2)
    as_effect(curve, effect(guard, found), first=0, last=5)
    assert curve.frame["scope"].unique().tolist() == ["one layer", "all", "window"]
    single = row(curve, "suppression", first=0, last=0)["value"]
    assert single != pytest.approx(row(curve, "suppression", scope="all")["value"], abs=1e-4)
    assert (curve.frame["placebo_n"] == 2).all()


@pytest.mark.parametrize("n_layers", [1, 2, 6, 61])
def test_default_scopes_are_inside_the_model_and_end_with_all_of_it(n_layers):
    made = scopes_of(n_layers)
    assert made[-1] == (0, n_layers - 1)
    assert len(made) == len(set(made)) <= 40
    assert all(0 <= first <= last < n_layers for first, last in made)


def test_a_scope_outside_the_model_is_refused(guard, found):
    for wrong in ((0, 6), (3, 2), (-1, 2)):
        with pytest.raises(MeasurementError, match="outside the layers"):
            curves.scope(guard, found, scopes=(wrong,))


# --- opening depth ---


def test_depth_zero_is_the_margin_and_deeper_ones_those_after_the_tokens(guard, found):
    """Oracle: the first tokens of the opening appended to each request, one forward per depth."""
    curve, model = curves.depth(guard, found, OPENING, deepest=3, placebos=3), guard.model
    tokens = model.encode_reply(OPENING)
    for label, prompts in (("restricted", guard.prompts.restricted), ("harmless", guard.prompts.harmless)):
        for deep in range(4):
            asked = [[*ids, *tokens[:deep]] for ids in model.encode(prompts.texts)]
            logits = [forward(model, next(iter(batches(model, [ids]))))[0, -1] for ids in asked]
            expected = log_odds(torch.stack(logits), guard.readout.first_tokens).mean()
            made = row(curve, "margin", depth=deep, condition="baseline", label=label)
            assert made["value"] == pytest.approx(float(expected), abs=1e-3)
    plain = row(curve, "margin", depth=0, condition="baseline", label="restricted")["value"]
    assert plain == pytest.approx(float(guard.restricted.mean()), abs=1e-4)


def test_the_ablated_curve_begins_at_the_ablated_margin_beside_its_placebos(guard, found):
    from refusalscope import ablate, placebo_effects

    curve = curves.depth(guard, found, OPENING, deepest=2, placebos=4)
    with ablate(guard.model, found):
        after = margin(guard.model, guard.prompts.restricted, guard.readout)
    one = row(curve, "margin", depth=0, condition="ablated", label="restricted")
    assert one["value"] == pytest.approx(float(after.mean()), abs=1e-4)
    nulls = placebo_effects(guard, placebo.random_like(found, 4, seed=0))["margin"]
    expected = stats.placebo_rank(float(after.mean()), nulls.to_numpy(), larger_is_stronger=False)
    assert (one["placebo_low"], one["placebo_high"]) == pytest.approx(expected.band, abs=1e-4)
    assert (one["placebo_n"], one["p"]) == (4, pytest.approx(expected.p))
    for condition, label in (("baseline", "restricted"), ("ablated", "harmless")):
        bare = row(curve, "margin", depth=0, condition=condition, label=label)
        assert bare["placebo_n"] == 0
        assert "placebo" in bare["note"]
    assert curve.pf == 2 * len(guard.prompts) + 4 * len(guard.restricted)


def test_the_guardrail_of_an_organism_is_one_token_deep(guard, found):
    """It was trained to refuse at the first token and never saw a refusal elsewhere."""
    depth = curves.depth(guard, found, OPENING, deepest=3, placebos=0).landmarks["depth of the guardrail"]
    assert depth.value == 1.0
    shallow = curves.depth(guard, found, OPENING, deepest=0, placebos=0).landmarks["depth of the guardrail"]
    assert math.isnan(shallow.value)
    assert "stays above zero" in shallow.note


@pytest.mark.parametrize("one_token", [True, False])
def test_the_prompt_forwards_of_a_depth_curve_are_those_that_ran(guard, found, one_token):
    """Behind openings of several tokens every depth is a forward of its own, and is charged as one."""
    known = Readout(((88,), (90,))) if one_token else Readout(((88, 5), (90,)))
    before, rows = dataclasses.replace(guard, readout=known), []
    handle = guard.model.bridge.blocks[0].register_forward_pre_hook(
        lambda _m, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        curve = curves.depth(before, found, OPENING, deepest=2, placebos=3)
    finally:
        handle.remove()
    assert (
        sum(rows) == curve.pf == (1 if one_token else 3) * (2 * len(guard.prompts) + 3 * len(guard.prompts.restricted))
    )


def test_an_opening_shorter_than_the_depth_is_refused(guard, found):
    with pytest.raises(MeasurementError, match="opening has 4 tokens; a curve to depth 5"):
        curves.depth(guard, found, OPENING, deepest=5)


# --- what all share ---


def every_curve(before, acts, found):
    at = curves.at_cell(locate.mean_difference, 1, -2)
    return {
        "dose": partial(curves.dose, before, found),
        "rank": partial(curves.rank, before, [found]),
        "budget": partial(curves.budget, before, acts, locate=at),
        "scope": partial(curves.scope, before, found),
        "depth": partial(curves.depth, before, found, OPENING, deepest=1),
    }


@pytest.mark.parametrize("name", ["dose", "rank", "budget", "scope", "depth"])
def test_without_a_guardrail_there_is_no_curve(guard, located, found, name):
    for changes in ({"restricted": -guard.restricted.abs() - 1}, {"harmless": guard.restricted + 1}):
        without = dataclasses.replace(guard, refused=None, **changes)  # by the sign of the new margins
        with pytest.raises(MeasurementError, match="no guardrail"):
            every_curve(without, located, found)[name]()


def test_an_invalid_intervention_keeps_its_row_with_the_reason_and_never_a_number(guard, found, monkeypatch):
    import refusalscope.attack as module

    real = module.ablate

    def failing(model, subspaces, *, dose, layers):
        if dose == 0.5:
            raise InterventionError("a hook did not fire")
        return real(model, subspaces, dose=dose, layers=layers)

    monkeypatch.setattr(module, "ablate", failing)
    curve = curves.dose(guard, found, doses=(0.0, 0.5, 1.0), placebos=1)
    for measure in ("bypass", "suppression", "kl"):
        bad = row(curve, measure, dose=0.5)
        assert math.isnan(bad["value"])
        assert math.isnan(bad["p"])
        assert "did not happen as declared" in bad["note"]
        assert bad["placebo_n"] == 1
    assert math.isfinite(row(curve, "suppression", dose=1.0)["value"])


def test_invalid_placebos_count_as_stronger_and_stay_out_of_the_band():
    nulls = torch.tensor([0.1, 0.2, math.nan])
    columns = points.placebo_columns(0.5, nulls)
    assert columns["p"] == pytest.approx((1 + 1) / (1 + 3))
    assert columns["placebo_n"] == 3
    assert columns["placebo_high"] <= 0.2
    assert points.placebo_columns(0.5, nulls[:2])["p"] == pytest.approx(1 / 3)


def test_any_kind_of_placebo_goes_the_same_way(guard, located, found):
    kind = partial(placebo.covariance_like, restricted=located.restricted, harmless=located.harmless)
    curve = curves.dose(guard, found, doses=(0.0, 1.0), placebos=4, kind=kind)
    nulls = kind(found, 4, seed=0)
    expected = effect(guard, found, placebos=nulls).placebo["suppression"]
    assert row(curve, "suppression", dose=1.0)["placebo_high"] == pytest.approx(expected.band[1], abs=1e-5)


def test_thinned_baselines_are_those_of_the_kept_prompts(guarded, prompts):
    whole = baseline(guarded, prompts.report, readout(guarded, prompts.locate))
    half = curves.thinned(whole, 8)
    assert (len(half.prompts.restricted), len(half.prompts.harmless)) == (8, 8)
    assert len(set(half.prompts.restricted.clusters)) == 8
    fresh = baseline(guarded, half.prompts, whole.readout)
    torch.testing.assert_close(half.restricted, fresh.restricted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half.harmless_base, fresh.harmless_base, atol=1e-4, rtol=1e-5)
    assert curves.thinned(whole, 999).restricted.equal(whole.restricted)
    few = curves.thinned(whole, 7).prompts
    for part in (few.restricted, few.harmless):
        assert len(part) == len(set(part.clusters)) == 7  # of eight: seven give one prompt each
    with pytest.raises(MeasurementError, match="0 prompts per label leave nothing to measure"):
        curves.thinned(whole, 0)


def test_a_curve_says_its_landmarks_in_words_and_its_digits_in_a_table(guard, found, monkeypatch):
    answering(monkeypatch, lambda before, attack: before.restricted - attack.dose * before.gap)
    curve = curves.dose(guard, found, doses=(0.0, 1.0, 1.5), placebos=1)
    assert repr(curve) == "Curve of dose; λ50 found; λ50 of bypass found"
    assert "prompt-forwards" in curve._repr_html_()
    assert "<script" not in dataclasses.replace(curve, name="<script>")._repr_html_()


def test_points_hold_directions_and_are_not_exported(found):
    with pytest.raises(ContractError, match="not exported"):
        pickle.dumps(points.Point({}, (Attack(found),), ()))


def test_landmarks_on_known_lines():
    line = torch.tensor([0.0, 0.4, 0.2, 0.8])
    assert crossing((0, 1, 2, 3), line, 0.5) == pytest.approx(2.5)
    assert crossing((0, 1, 2, 3), line, 0.3) == pytest.approx(0.75)
    assert crossing((2, 3, 4, 5), line, -1.0) == 2.0
    assert crossing((0, 1, 2, 3), line, 0.9) == math.inf
    assert first_at((1, 2, 4, 8), line, 0.4) == 2.0
    assert first_at((1, 2, 4, 8), torch.zeros(4), 0.0) == math.inf
    assert settled_at((1, 2, 4, 8), line, 0.9) == 8.0
    assert settled_at((1, 2, 4, 8), torch.tensor([0.1, 0.95, 0.92, 1.0]), 0.9) == 2.0
    assert settled_at((1, 2), torch.tensor([0.5, 0.0]), 0.9) == math.inf


def test_a_landmark_that_some_resamples_never_reach_has_no_interval():
    """Reached only where the first cluster is drawn: the cap, a whole number, stands for never."""
    found = mark(
        lambda drawn: 3.0 if bool((drawn == 0).any()) else math.inf,
        [f"c{i}" for i in range(8)],
        cap=5,
        seed=0,
        never="never",
    )
    assert (found.value, found.interval) == (3.0, None)
    assert "past the last point" in found.note
