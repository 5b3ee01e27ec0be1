"""Alignment with a direction, layer by layer: equal to a two-line oracle, nothing after an ablation, reasons."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refusalscope import ablate, capture
from refusalscope.errors import MeasurementError
from refusalscope.organisms.recipe import read_recipe
from refusalscope.transfer import alignment
from refusalscope.truth import planted_subspace

RECIPES = Path(__file__).parents[1] / "data" / "recipes"


def classes(prompts):
    return {"restricted": prompts.restricted, "harmless": prompts.harmless}


def test_alignment_is_the_mean_cosine_of_what_capture_reads(tiny, few, direction):
    along = direction(layer=1, seed=3)
    found = alignment(tiny, along, classes(few), random=9)
    for name, known in zip(classes(few), capture(tiny, few, keep_each=True), strict=True):
        cosines = torch.cosine_similarity(known.each[:, :, -1].double(), along.vectors[0], dim=-1)
        mine = found.loc[found["prompts"] == name].sort_values("layer")["value"]
        assert mine.tolist() == pytest.approx(cosines.mean(0).tolist(), abs=1e-6)
    assert (found["n"] == 6).all()
    assert found.attrs["pf"] == len(few)


def test_an_ablated_direction_has_no_alignment_left_and_another_has(tiny, few, direction):
    along, other = direction(seed=3), direction(seed=4)
    with ablate(tiny, along):
        gone = alignment(tiny, along, classes(few), random=0)
        left = alignment(tiny, other, classes(few), random=0)
    assert gone["value"].abs().max() < 1e-6
    assert left["value"].abs().max() > 1e-2


def test_random_directions_stand_beside_every_value_and_come_from_the_seed(tiny, few, direction):
    first, again, other = (alignment(tiny, direction(), classes(few), random=39, seed=s) for s in (0, 0, 1))
    assert (first["random_n"] == 39).all()
    assert (first["random_low"] < first["random_high"]).all()
    assert first["random_low"].tolist() == again["random_low"].tolist() != other["random_low"].tolist()


def test_the_planted_truth_aligns_with_restricted_requests_alone(organism, contrast):
    asked, truth = contrast.report.sample(16, seed=0), planted_subspace(read_recipe(RECIPES / "planted-1.toml"))
    found = alignment(organism("planted-1"), truth, classes(asked), random=0).set_index(["prompts", "layer"])["value"]
    assert abs(found[("restricted", 3)]) > abs(found[("harmless", 3)]) + 0.1


def test_planes_empty_classes_and_no_class_are_refused(tiny, few, direction):
    with pytest.raises(MeasurementError, match="one direction"):
        alignment(tiny, direction(rank=2), classes(few))
    with pytest.raises(MeasurementError, match="harmless without prompts"):
        alignment(tiny, direction(), {"harmless": few.restricted.harmless})
    with pytest.raises(MeasurementError, match="no class"):
        alignment(tiny, direction(), {})
