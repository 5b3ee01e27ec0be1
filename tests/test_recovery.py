"""Recovery: angles are those that are known, no locator sees the truth, chance is chance, and failures keep a row."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta

from refusalscope import capture, locate, readout
from refusalscope.effect import baseline, effect
from refusalscope.errors import MeasurementError
from refusalscope.organisms import read_recipe
from refusalscope.placebo import random_like
from refusalscope.recovery import TRUTH, contenders, recovered
from refusalscope.subspace import Subspace
from refusalscope.truth import planted_subspace, read_card

DATA = Path(__file__).parents[1] / "data"
CARDS = [read_card(file.parent) for file in sorted((DATA / "organisms").glob("*/organism.json"))]
RECIPES = [read_recipe(DATA / "recipes" / f"{card.name}.toml") for card in CARDS if card.kind == "planted"]
PLANTED = {recipe.plant.rank: recipe for recipe in reversed(RECIPES) if recipe.plant}
FEW = {"per_label": 16, "placebos": 7, "progress": False}


@pytest.fixture(autouse=True)
def short_descents(monkeypatch):
    """Gradients of one step: what they find is tested where they are made."""
    for name, (aim, descend) in contenders.DESCENTS.items():
        monkeypatch.setitem(contenders.DESCENTS, name, (aim, partial(descend, steps=1)))


@pytest.fixture(scope="module")
def one(organism):
    """A planted organism of rank one."""
    return organism(PLANTED[1].name)


def only(patch: pytest.MonkeyPatch, **closed: contenders.Closed) -> None:
    """Tries the difference in means and the given locators, and no gradient."""
    patch.setattr(contenders, "CLOSED", {"mean_difference": contenders.CLOSED["mean_difference"]} | closed)
    patch.setattr(contenders, "DESCENTS", {})


def row(frame: pd.DataFrame, locator: str, rank: int = 1) -> pd.Series:
    (found,) = (line for _, line in frame.iterrows() if (line["locator"], line["rank"]) == (locator, rank))
    return found


def aside(direction: Subspace, degrees: float) -> Subspace:
    """A direction at a known angle to the given one."""
    other = random_like(direction, 1, seed=3)[0].vectors[0]
    along = direction.basis[:, 0]
    across = other - (other @ along) * along
    turned = math.cos(math.radians(degrees)) * along + math.sin(math.radians(degrees)) * across / across.norm()
    return Subspace(turned[None], None, None, "a test")


@pytest.fixture(scope="module")
def found(one, prompts):
    """What the difference in means is at the cell the rule chooses, and the frame of a truth thirty degrees from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "DESCENTS", {})
        cell = row(recovered(one, planted_subspace(PLANTED[1]), prompts, **FEW), "mean_difference")
        direction = locate.mean_difference(*capture(one, prompts.locate)).at(int(cell["layer"]), int(cell["position"]))
        return direction, recovered(one, aside(direction, 30), prompts, **FEW)


def test_a_known_angle_is_measured(found):
    _, frame = found
    for locator in ("mean_difference", "leace"):  # LEACE of one class difference is the difference in means
        assert row(frame, locator)["angle"] == pytest.approx(30, abs=1e-3)
        assert row(frame, locator)["chosen_by"] == "rule"
    assert row(frame, TRUTH)["angle"] == pytest.approx(0, abs=1e-3)
    assert abs(row(frame, "whitened")["angle"] - 30) > 5  # another direction has another angle
    assert (frame["angle"] == frame["angle_1"]).all()
    assert (frame["nearest"] <= frame["angle"]).where(frame["nearest"].notna(), True).all()


def test_no_locator_sees_the_truth(one, prompts, found):
    """Another truth changes angles and chance, and nothing of what was found."""
    again = recovered(one, planted_subspace(PLANTED[1]), prompts, **FEW)
    _, frame = found
    blind = ["locator", "rank", "layer", "position", "chosen_by", "spread", "bypass", "suppression", "kl", "why"]
    closed = [name for name in frame["locator"] if name != TRUTH]
    shared = [part[part["locator"].isin(closed)][blind].reset_index(drop=True) for part in (frame, again)]
    pd.testing.assert_frame_equal(*shared)
    assert (row(frame, "mean_difference")["angle"]) != row(again, "mean_difference")["angle"]
    assert {"rdo", "interchange"} <= set(again["locator"])
    assert "cone" not in set(again["locator"])  # a cone of one direction is a direction


def test_the_band_is_that_of_random_directions(one, found):
    """cos² of the angle between a fixed and a random direction is Beta(1/2, (d − 1)/2)."""
    _, frame = found
    squares = beta(0.5, (one.d_model - 1) / 2).ppf([0.975, 0.025])
    expected = np.degrees(np.arccos(np.sqrt(squares)))
    assert row(frame, "leace")[["random_low", "random_high"]].to_numpy(float) == pytest.approx(expected, abs=2)


def test_a_random_candidate_lies_in_the_band_and_does_nothing(one, prompts, monkeypatch):
    def lottery(acts, located, rank):
        return random_like(locate.mean_difference(*acts), 1, seed=6)[0]

    only(monkeypatch, lottery=lottery)
    frame = recovered(one, planted_subspace(PLANTED[1]), prompts, **FEW)
    drawn, means = row(frame, "lottery"), row(frame, "mean_difference")
    assert drawn["random_low"] < drawn["angle"] < drawn["random_high"]
    assert drawn["p"] > 0.05
    assert "more than its placebos" in drawn["causal_note"]
    assert math.isnan(drawn["causal_rank"])
    assert means["angle"] < means["random_low"]
    assert means["bypass"] > means["placebo_high"]
    assert means["causal_rank"] == 1


def test_scores_are_those_of_the_measurements_they_stand_for(one, prompts, found):
    direction, frame = found
    refusal = readout(one, prompts.locate)
    alone = effect(baseline(one, prompts.report, refusal), direction)
    scored = row(frame, "mean_difference")
    assert (scored["bypass"], scored["low"], scored["high"]) == (
        alone.bypass.value,
        alone.bypass.low,
        alone.bypass.high,
    )
    assert (scored["suppression"], scored["kl"]) == pytest.approx((alone.suppression.value, alone.kl.value), abs=1e-5)
    sides = [
        side.each[:, direction.layer, direction.position].double()
        for side in capture(one, prompts.locate, keep_each=True)
    ]
    residuals = torch.cat([x - x.mean(0) for x in sides])
    along, average = residuals @ direction.basis[:, 0], residuals.square().sum() / one.d_model
    assert scored["spread"] == pytest.approx(float(along.square().sum() / average))


def test_a_locator_that_fails_keeps_its_row_and_leaves_the_others_alone(one, prompts, monkeypatch, found):
    def broken(acts, located, rank):
        raise MeasurementError("broken: there is nothing to fit.")

    only(monkeypatch, broken=broken)
    direction, frame = found
    again = recovered(one, aside(direction, 30), prompts, **FEW)
    failed = row(again, "broken")
    assert failed["why"] == "broken: there is nothing to fit."
    assert failed[["layer", "angle", "angle_1", "bypass", "causal_rank", "p"]].isna().all()
    kept = ["mean_difference", "cosmic", TRUTH]
    others = [part[part["locator"].isin(kept)].reset_index(drop=True) for part in (frame, again)]
    pd.testing.assert_frame_equal(*others, check_dtype=False)  # a column with a gap has no whole numbers


def test_where_the_rule_leaves_no_cell_cosmic_chooses_and_the_row_says_why(one, prompts, monkeypatch):
    def backwards(acts, located, rank):
        right = locate.mean_difference(*acts)
        return replace(right, vectors=-right.vectors)

    only(monkeypatch, backwards=backwards)
    frame = recovered(one, planted_subspace(PLANTED[1]), prompts, **FEW)
    assert row(frame, "mean_difference")["why"] == ""
    assert row(frame, "backwards")["chosen_by"] == contenders.NONE_LEFT
    assert row(frame, "backwards")["why"].startswith("No cell")
    assert "does not induce" in row(frame, "backwards")["why"]
    assert row(frame, "cosmic")["chosen_by"] == "COSMIC"


def test_several_planted_directions_are_scored_one_by_one(organism, prompts, monkeypatch):
    closed = ("mean_difference", "leace", "logistic")
    monkeypatch.setattr(contenders, "CLOSED", {name: contenders.CLOSED[name] for name in closed})
    recipe = PLANTED[2]
    truth = planted_subspace(recipe)
    frame = recovered(organism(recipe.name), truth, prompts, **FEW)
    assert (row(frame, TRUTH, 2)[["angle_1", "angle_2"]].astype(float) < 1e-3).all()
    assert row(frame, TRUTH, 2)["causal_rank"] == 2  # one dimension of two does nothing, by the organism's card
    fitted = frame[frame["angle"].notna()]  # these few prompts are of one category: some locators cannot be fitted
    whole, single = fitted[fitted["rank"] == 2], fitted[fitted["rank"] == 1]
    assert (whole["angle"] == whole["angle_2"]).all()
    assert (whole["angle_1"] <= whole["angle_2"]).all()
    assert single["angle_2"].isna().all()
    assert set(frame[frame["rank"] == 2]["locator"]) == {*closed, "rdo", "interchange", "cone", TRUTH}


def test_a_rank_out_of_reach_is_a_reason_and_not_a_crash(one, prompts, monkeypatch):
    """As many restricted categories as there are give no further direction to LEACE."""
    only(monkeypatch, leace=contenders.CLOSED["leace"])
    rank = 1 + len({prompt.category for prompt in prompts.locate.restricted})
    shape = torch.ones(rank, one.d_model, dtype=torch.float64)
    frame = recovered(one, random_like(Subspace(shape, None, None, "a test"), 1, seed=0)[0], prompts, **FEW)
    assert f"rank {rank}" in row(frame, "leace", rank)["why"]
    assert math.isnan(row(frame, "leace", rank)["angle"])
    assert row(frame, "mean_difference", rank)["angle"] > 45


def test_equal_calls_give_equal_frames_and_another_seed_another_chance(one, prompts, monkeypatch):
    monkeypatch.setattr(contenders, "CLOSED", {"mean_difference": contenders.CLOSED["mean_difference"]})
    monkeypatch.setattr(contenders, "DESCENTS", {"rdo": contenders.DESCENTS["rdo"]})
    truth = planted_subspace(PLANTED[1])
    first, again, other = (recovered(one, truth, prompts, **FEW, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["random_low"] != other["random_low"]).all()


def test_without_a_guardrail_and_for_another_width_nothing_is_scored(one, organism, prompts):
    with pytest.raises(MeasurementError, match="width 3"):
        recovered(one, Subspace(torch.eye(3, dtype=torch.float64)[:1], None, None, "a test"), prompts, **FEW)
    unguarded = organism("unguarded")
    with pytest.raises(MeasurementError, match="refus"):
        recovered(
            unguarded,
            Subspace(torch.eye(unguarded.d_model, dtype=torch.float64)[:1], None, None, "a test"),
            prompts,
            **FEW,
        )


# --- the scores that are stored ---


@pytest.fixture(scope="module")
def stored() -> pd.DataFrame:
    return pd.read_csv(DATA / "recovery" / "scores.csv")


def test_every_planted_organism_is_scored_with_the_weights_that_ship(stored):
    weights = {card.name: card.weights for card in CARDS if card.kind == "planted"}
    assert set(zip(stored["organism"], stored["weights"], strict=True)) == set(weights.items())
    for recipe in RECIPES:
        rows = stored[stored["organism"] == recipe.name]
        assert list(rows["locator"]).count(TRUTH) == 1
        assert set(rows["rank"]) == {1, recipe.plant.rank}
        assert len(rows) >= 9


def test_every_stored_bypass_rate_has_an_interval_n_and_placebos(stored):
    measured = stored.dropna(subset=["bypass"])
    assert len(measured) >= len(stored) - 7
    assert measured[["low", "high", "n", "placebo_low", "placebo_high", "placebo_n", "p"]].notna().all(axis=None)
    assert measured["p"].min() > 0


def test_some_locator_comes_within_twenty_degrees_of_every_single_planted_direction(stored):
    single = stored[(stored["truth_rank"] == 1) & (stored["locator"] != TRUTH)]
    assert len(single) > 0
    assert (single.groupby("organism")["angle"].min() < 20).all()
