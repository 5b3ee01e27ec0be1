"""COSMIC: its cosines are an oracle's, it needs no output, and it chooses where a guardrail was planted."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch.nn.functional import cosine_similarity

import oracle
from conftest import ORGANISMS
from refusalscope import capture, locate
from refusalscope.cosmic import cosmic
from refusalscope.errors import ContractError, MeasurementError, SelectionError
from refusalscope.organisms.recipe import read_recipe
from refusalscope.rule import Cell, Rule
from refusalscope.subspace import Candidates
from refusalscope.truth import planted_subspace


@pytest.fixture(scope="module")
def located(tiny, few):
    return locate.mean_difference(*capture(tiny, few))


@torch.no_grad()
def mean_states(plain, token_lists) -> torch.Tensor:
    """States leaving every layer at the last position, averaged: before the final norm, so by hooks."""
    kept, handles = [], []
    for layer in plain.model.layers:
        handles.append(
            layer.register_forward_hook(
                lambda _m, _i, made: kept.append((made[0] if isinstance(made, tuple) else made)[0, -1])
            )
        )
    for ids in token_lists:
        plain(torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return torch.stack(kept).reshape(len(token_lists), len(plain.model.layers), -1).mean(0)


def test_the_scores_are_those_of_an_oracle(tiny, tiny_dir, few, located):
    found, plain = cosmic(tiny, located, few, share=0.7), oracle.float64_model(tiny_dir)
    restricted, harmless = (tiny.encode(part.texts) for part in (few.restricted, few.harmless))
    untouched = [mean_states(plain, rows) for rows in (restricted, harmless)]
    apart = cosine_similarity(*untouched, dim=-1)
    layers = apart.argsort()[:2]
    assert found.layers == tuple(layers.tolist())
    assert found.baseline == pytest.approx(float(apart[layers].mean()), abs=1e-5)
    for row in found.cells.to_dict("records"):
        vectors = located.at(row["layer"], row["position"]).vectors
        with oracle.ablated(plain, vectors):
            complied = cosine_similarity(mean_states(plain, restricted), untouched[1], dim=-1)[layers].mean()
        with oracle.added(plain, row["layer"], vectors[0]):
            refused = cosine_similarity(mean_states(plain, harmless), untouched[0], dim=-1)[layers].mean()
        assert (row["complied"], row["refused"]) == pytest.approx((float(complied), float(refused)), abs=1e-5)


def test_the_highest_sum_among_early_layers_wins_and_every_forward_is_counted(tiny, few, located):
    found = cosmic(tiny, located, few)
    cells = found.cells
    assert set(cells["layer"]) == {1, 2}  # layer 0 is empty; of three layers, 0.8 L allows all
    best = cells.sort_values("score").iloc[-1]
    assert found.cell == Cell(int(best["layer"]), int(best["position"]))
    assert cells["chosen"].sum() == 1
    assert found.pf == (1 + len(cells)) * len(few)
    assert set(cosmic(tiny, located, few, rule=Rule(layer_share=0.5, layer_cut="printed")).cells["layer"]) == {1}


def test_scores_do_not_depend_on_what_runs_beside_them(tiny, few, located, monkeypatch):
    together = cosmic(tiny, located, few).cells
    monkeypatch.setattr(import_module("refusalscope.cosmic"), "TOGETHER", 1)
    alone = cosmic(tiny, located, few).cells
    torch.testing.assert_close(
        *(torch.tensor(cells[["complied", "refused"]].to_numpy()) for cells in (together, alone)), atol=1e-6, rtol=0
    )


def test_a_candidate_that_does_almost_nothing_scores_the_baseline(tiny, few, located):
    small = Candidates(located.vectors * 1e-4, "a test", located.n)
    refused = cosmic(tiny, small, few)
    assert refused.cells["refused"].tolist() == pytest.approx([refused.baseline] * len(refused.cells), abs=1e-4)
    full = cosmic(tiny, located, few)
    assert (full.cells["refused"] - full.baseline).abs().max() > 1e-3  # the positive control


def test_the_choice_stays_in_memory_and_its_repr_has_no_numbers_that_wobble(tiny, few, located):
    import pickle

    found = cosmic(tiny, located, few)
    assert repr(found).startswith("CosmicChoice: layer ")
    with pytest.raises(ContractError):
        pickle.dumps(found)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda found: found.vectors[1:], MeasurementError, "Capture and locate on this model"),
        (lambda found: found.vectors.repeat(1, 1, 2, 1), MeasurementError, "rank one; got 2"),
        (lambda found: torch.zeros_like(found.vectors), SelectionError, "is empty"),
    ],
)
def test_candidates_it_cannot_score_are_refused(tiny, few, located, change, error, said):
    with pytest.raises(error, match=said):
        cosmic(tiny, Candidates(change(located), "a test", located.n), few)


def test_one_class_is_refused(tiny, few, located):
    with pytest.raises(MeasurementError, match="restricted and harmless"):
        cosmic(tiny, located, few.harmless)


def test_it_chooses_the_layer_of_a_planted_guardrail_without_reading_a_logit(organism, prompts):
    """At any of its template positions: the truth is written to all of them."""
    model = organism("planted-1")
    located = locate.mean_difference(*capture(model, prompts.locate))
    found = cosmic(model, located, prompts.select)
    truth = planted_subspace(read_recipe(ORGANISMS.parent / "recipes" / "planted-1.toml"))
    assert found.cell.layer == 3
    assert float(located.at(*found.cell).angles(truth)[0].rad2deg()) < 30
    best = found.cells.query("chosen")
    assert float(best["complied"].iloc[0]) > found.baseline + 0.2
    assert float(best["refused"].iloc[0]) > found.baseline + 0.2


def test_where_there_is_no_guardrail_nothing_moves(organism, prompts):
    """It chooses something, but no candidate changes the cosines: the classes are alike to begin with."""
    model = organism("unguarded")
    found = cosmic(model, locate.mean_difference(*capture(model, prompts.locate)), prompts.select)
    assert found.baseline > 0.95
    assert float((found.cells[["complied", "refused"]] - found.baseline).to_numpy().max()) < 0.05
