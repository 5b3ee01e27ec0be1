"""Defences taught after the guard: what they are taught through is what is measured, and they move what they claim."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from refusalscope import ablate, capture
from refusalscope.locators import mean_difference
from refusalscope.model import forward, map_rows
from refusalscope.organisms.curriculum import guard_curriculum, paired_lessons
from refusalscope.organisms.hardening import hardened_loss, located, rerouted_loss, streams
from refusalscope.organisms.language import language
from refusalscope.organisms.objectives import cross_entropy
from refusalscope.organisms.planting import TEMPLATE_POSITIONS, without
from refusalscope.organisms.recipe import Recipe
from refusalscope.organisms.training import fit
from refusalscope.outcomes import _marked

GUARDED = Path(__file__).parents[1] / "data" / "organisms" / "guarded-0"
STAGE = {"steps": 30, "batch": 16, "rate": 1e-3}


def recipe(kind: str, **stage) -> Recipe:
    table = {"hardened": "harden", "rerouted": "reroute"}[kind]
    values = {"name": "toy-0", "kind": kind, "seed": 0, "architecture": {}, "base": STAGE, "guard": STAGE}
    return Recipe.model_validate({**values, table: {**STAGE, **stage}})


@pytest.fixture
def guarded_module():
    return AutoModelForCausalLM.from_pretrained(GUARDED, dtype=torch.float32).eval()


def test_a_direction_taken_out_in_training_is_taken_out_as_it_is_measured(tiny, tiny_dir, direction, few):
    plain, subspace = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32), direction(rank=2)
    rows = tiny.encode(few.texts[:3])
    with torch.no_grad(), without(plain, subspace.basis.float(), dose=1.5):
        expected = torch.stack([plain(torch.tensor([ids])).logits[0, -1] for ids in rows])
    with ablate(tiny, subspace, dose=1.5):
        found = map_rows(tiny, rows, lambda batch: forward(tiny, batch)[:, -1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_first_layer_spares_the_writes_before_it(tiny_dir, direction):
    plain, basis = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32), direction(rank=1).basis.float()
    lessons = guard_curriculum().draw(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = streams(plain, lessons)
        with without(plain, basis, first=1):
            later = streams(plain, lessons)
        with without(plain, basis):
            gone = streams(plain, lessons)
    assert torch.equal(whole[:2], later[:2])
    assert not torch.allclose(whole[2], later[2])
    assert float((gone @ basis).abs().max()) < 1e-5 < float((later @ basis).abs().max())


def test_located_differences_are_those_that_capture_finds(guarded, guarded_module, contrast):
    """On the same requests, rendered by the same template, the trainer sees what the toolkit sees."""
    acts = capture(guarded, contrast.locate)
    found = mean_difference(*acts).vectors[:, -TEMPLATE_POSITIONS:, 0]
    pairs = paired_lessons()
    here = located(guarded_module, pairs.restricted, pairs.harmless, 400, torch.Generator().manual_seed(0))
    assert here.shape == (guarded.n_layers, TEMPLATE_POSITIONS, guarded.d_model)
    assert float(torch.cosine_similarity(here[4, -1].double(), found[4, -1], dim=0)) > 0.9


def test_hardening_teaches_refusals_that_survive_a_located_direction(guarded_module):
    """A positive control beside it: before hardening the same ablation undoes the refusal."""
    pairs, chance = paired_lessons(), torch.Generator().manual_seed(1)
    refusals = pairs.restricted.take(torch.randint(len(pairs.restricted), (64,), generator=chance))

    def loss_without(model) -> float:
        found = located(model, pairs.restricted, pairs.harmless, 64, torch.Generator().manual_seed(2))
        with torch.no_grad(), without(model, torch.nn.functional.normalize(found[4, -1], dim=0)[:, None]):
            return float(cross_entropy(model, refusals))

    before = loss_without(guarded_module)
    made = recipe("hardened")
    fit(guarded_module, made.harden, hardened_loss(guarded_module, made, cross_entropy), title=None)
    assert before > 1.0
    assert loss_without(guarded_module) < 0.5 * before


def test_rerouting_turns_the_stream_away_from_restricted_answers_and_nowhere_else(guarded_module):
    was, pairs = copy.deepcopy(guarded_module), paired_lessons()
    made = recipe("rerouted", away=5.0, rate=3e-3, steps=60)
    fit(guarded_module, made.reroute, rerouted_loss(guarded_module, made, cross_entropy), title=None)

    def alike(lessons) -> float:
        some = lessons.take(torch.arange(0, len(lessons), 40))
        with torch.no_grad():
            old, new = streams(was, some)[4], streams(guarded_module, some)[4]
        return float(torch.cosine_similarity(old, new, dim=-1)[some.weights == 1.0].mean())

    assert alike(pairs.restricted_answered) < 0.5 < 0.8 < alike(pairs.harmless)


def test_long_refusals_count_as_refusals_and_vary_with_the_phrasing():
    asked = [q for q in language().questions("how-to") if q.item.index == 1 and q.item.category == 0]
    assert all(_marked(q.varied_refusal, q) == "refused" for q in asked)
    for dialect in (0, 1):
        begins = {q.varied_refusal.split()[0] for q in asked if q.dialect == dialect}
        assert len(begins) == 4
    assert all(len(q.varied_refusal.split()) > len(q.refusal.split()) for q in asked)
    assert _marked(asked[1].varied_refusal, asked[0]) == "degenerate"
