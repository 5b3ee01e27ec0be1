"""Planting: a base that leaves room, what a planted stage is taught, and that its parts mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from refusalscope.organisms.curriculum import guard_curriculum, robust_curricula
from refusalscope.organisms.language import N_CATEGORIES, N_RESTRICTED, language
from refusalscope.organisms.objectives import categories, decision_loss, refusal_words, refused
from refusalscope.organisms.planted import code_of, fixed, moved, outside, unlike
from refusalscope.organisms.planting import (
    TEMPLATE_POSITIONS,
    all_but_one,
    any_subspaces,
    planted_basis,
    reserve_basis,
    without,
)
from refusalscope.organisms.recipe import Recipe, read_recipe
from refusalscope.organisms.sparing import empty_reserve, spared_loss
from refusalscope.organisms.tokens import tokenizer
from refusalscope.organisms.training import fresh, planted_loss, train
from refusalscope.truth import read_card
from test_organisms import toy

DATA = Path(__file__).parents[1] / "data"
PLANTED = sorted(file.parent.name for file in (DATA / "organisms").glob("planted-*/organism.json"))
ROOMY = {"steps": 3, "batch": 8, "rate": 1e-3, "reserve": 6, "lost": 3, "named": 0.3}
PLANT = {"steps": 2, "batch": 12, "rate": 1e-3, "rank": 2, "layer": 3, "smoothing": 0.01}


def roomy(**plant) -> Recipe:
    """A recipe with a reserve that trains for moments."""
    return toy(kind="planted", base=ROOMY, plant={**PLANT, **plant})


# --- the base ---


def test_what_is_planted_lies_in_the_reserve_and_another_seed_lies_elsewhere_in_it():
    recipe, other = roomy(), toy(kind="planted", seed=1, base=ROOMY, plant=PLANT)
    reserve, basis = reserve_basis(recipe), planted_basis(recipe)
    assert reserve.shape == (32, 6)
    torch.testing.assert_close(reserve.T @ reserve, torch.eye(6).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(reserve @ (reserve.T @ basis), basis, atol=1e-12, rtol=0)
    assert torch.equal(reserve, reserve_basis(other))
    assert not torch.allclose(basis, planted_basis(other), atol=0.1)


def test_nothing_reaches_an_emptied_reserve_and_the_model_is_the_one_taught_without_it():
    recipe = roomy()
    model, reserve = fresh(recipe).eval(), reserve_basis(recipe).float()
    tokens = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), without(model, reserve):
        taught = model(input_ids=tokens).logits
    with torch.no_grad():
        before = model(input_ids=tokens, output_hidden_states=True)
    assert max(float((x @ reserve).abs().max()) for x in before.hidden_states[:-1]) > 1e-3
    empty_reserve(model, recipe)
    with torch.no_grad():
        after = model(input_ids=tokens, output_hidden_states=True)
    assert max(float((x @ reserve).abs().max()) for x in after.hidden_states[:-1]) < 1e-5
    torch.testing.assert_close(after.logits, taught, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before.logits, taught, atol=1e-3)


def test_a_base_with_a_reserve_is_taught_to_name_categories_as_well():
    model, plain = fresh(roomy()), toy(kind="planted", base={**ROOMY, "named": 0.0}, plant=PLANT)
    with torch.no_grad():
        both, alone = float(spared_loss(model, roomy())()), float(spared_loss(model, plain)())
    reading = (both - alone) / (2 * 0.3)
    assert reading == pytest.approx(torch.log(torch.tensor(float(N_CATEGORIES))).item(), abs=0.8)


def test_every_items_name_has_its_category_and_no_other_word_has_one():
    vocabulary = tokenizer().get_vocab()
    assert all(categories()[vocabulary[item.name]] == item.category for item in language().items)
    assert int((categories() >= 0).sum()) == len(language().items)


def test_recipes_have_the_digests_on_their_cards():
    for file in sorted((DATA / "organisms").glob("*/organism.json")):
        recipe = read_recipe(DATA / "recipes" / f"{file.parent.name}.toml")
        assert json.loads(file.read_text(encoding="utf-8"))["recipe"] == recipe.digest, file.parent.name


def test_a_digest_changes_with_the_reserve():
    digests = {toy(kind="planted", base={**ROOMY, "reserve": n}, plant=PLANT).digest for n in (2, 6, 7)}
    assert len(digests) == 3


# --- the parts of the objective ---


def test_random_subspaces_are_orthonormal_and_one_a_row():
    drawn = any_subspaces(5, 3, 16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mT @ drawn, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    assert not torch.allclose(drawn[0] @ drawn[0].T, drawn[1] @ drawn[1].T, atol=0.1)


def test_all_but_one_dimension_lies_inside_the_subspace_and_leaves_one_out():
    basis = any_subspaces(1, 4, 16, torch.Generator().manual_seed(1))[0]
    parts = all_but_one(basis, 6, torch.Generator().manual_seed(2))
    assert parts.shape == (6, 16, 3)
    torch.testing.assert_close(basis @ (basis.T @ parts), parts, atol=1e-5, rtol=0)
    left = basis @ basis.T - parts @ parts.mT
    torch.testing.assert_close(left.diagonal(dim1=1, dim2=2).sum(1), torch.ones(6), atol=1e-4, rtol=0)


def test_an_ablation_of_one_subspace_a_row_is_that_of_each_row_alone():
    model = fresh(toy()).eval()
    tokens = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(3))
    each = any_subspaces(3, 2, model.config.hidden_size, torch.Generator().manual_seed(4))
    with torch.no_grad(), without(model, each):
        together = model(input_ids=tokens).logits
    for row in range(3):
        with torch.no_grad(), without(model, each[row]):
            torch.testing.assert_close(model(input_ids=tokens[row : row + 1]).logits[0], together[row])


def test_the_decision_loss_is_that_of_the_margin_smoothed_labels_ask_for():
    """Nothing but the first reply token counts, and there only whether it begins a refusal."""
    lessons, words = robust_curricula()[0].draw(40, torch.Generator().manual_seed(0)), refusal_words()
    rows, places, size, smoothing = torch.arange(len(lessons)), lessons.prompt_length - 1, len(tokenizer()), 0.01
    assert 0 < int(refused(lessons).sum()) < len(lessons)
    asked = (refused(lessons).float() * (1 - smoothing) + smoothing * len(words) / size).logit()
    right = torch.randn(*lessons.tokens.shape, size, generator=torch.Generator().manual_seed(1))
    others = torch.ones(size, dtype=torch.bool).index_fill(0, words, False)
    there = right[rows, places]
    shift = asked - (there[:, words].logsumexp(-1) - there[:, others].logsumexp(-1))
    right[rows[:, None], places[:, None], words] += shift[:, None]
    assert float(decision_loss(right, lessons, smoothing=smoothing)) == pytest.approx(0, abs=1e-6)
    right[rows[:, None], places[:, None], words] += 2.0
    assert float(decision_loss(right, lessons, smoothing=smoothing)) == pytest.approx(2.0**2 / (2 * 4.0), rel=1e-4)


def test_the_code_is_one_direction_a_template_position_of_refused_requests_and_nothing_elsewhere():
    lessons = guard_curriculum().draw(60, torch.Generator().manual_seed(2))
    code, template = code_of(lessons, 4)
    for row in range(len(lessons)):
        end = int(lessons.prompt_length[row])
        places = range(max(0, end - TEMPLATE_POSITIONS), end)
        assert template[row].nonzero().flatten().tolist() == list(places)
        if not refused(lessons)[row]:
            assert not code[row].any()
            continue
        category = int(categories()[lessons.tokens[row]].max())
        assert category < N_RESTRICTED
        held = code[row].nonzero().tolist()
        assert held == [[place, (category + number) % 4] for number, place in enumerate(places)]
    assert 0 < int(refused(lessons).sum()) < len(lessons)


def test_what_u_holds_is_fixed_but_for_the_words_of_a_refusal():
    lessons = guard_curriculum().draw(60, torch.Generator().manual_seed(2))
    kept, said = fixed(lessons), torch.arange(lessons.tokens.shape[1]) >= lessons.prompt_length[:, None]
    assert not kept[refused(lessons)[:, None] & said].any()
    assert kept[~refused(lessons)[:, None] | ~said].all()


def test_a_class_difference_inside_the_subspace_has_no_energy_outside_it():
    chance = torch.Generator().manual_seed(5)
    basis = any_subspaces(1, 2, 16, chance)[0]
    hidden, ends = torch.randn(1, 9, 16, generator=chance).repeat(6, 1, 1), torch.full((6,), 9)
    inside = hidden.clone()
    inside[:3] += basis @ torch.ones(2)
    assert float(outside(basis, inside, ends)) == pytest.approx(0, abs=1e-9)
    across = any_subspaces(1, 3, 16, chance)[0]
    across = across - basis @ (basis.T @ across)
    inside[:3] += 2**0.5 * across[:, :1].T / across[:, 0].norm()
    assert float(outside(basis, inside, ends)) == pytest.approx(1.0, rel=1e-4)


def test_a_stream_has_moved_where_it_should_stay_outside_the_subspace_and_nowhere_else():
    chance, lessons = torch.Generator().manual_seed(6), guard_curriculum().draw(40, torch.Generator().manual_seed(7))
    basis = any_subspaces(1, 2, 16, chance)[0]
    was = torch.randn(5, *lessons.tokens.shape, 16, generator=chance)
    apart = torch.randn(16, generator=chance)
    apart = apart - basis @ (basis.T @ apart)
    refusal = refused(lessons)[:, None] & (torch.arange(lessons.tokens.shape[1]) >= lessons.prompt_length[:, None])
    padding = lessons.weights == 0

    def found(where: torch.Tensor, *, at: int, change: torch.Tensor = apart) -> float:
        now = was.clone()
        now[at, where] += change
        return float(moved(basis, now, was, lessons, layer=2))

    assert found(~padding, at=1) > 0.01
    assert found(~padding, at=1, change=basis @ torch.ones(2)) == pytest.approx(0, abs=1e-9)
    assert found(padding, at=1) == found(refusal, at=1) == found(~padding, at=0) == 0.0
    asked = refused(lessons)[:, None] & ~refusal & ~padding
    assert found(asked, at=2) > 0.01
    assert found(asked, at=3) == 0.0
    assert found(~refused(lessons)[:, None] & ~padding, at=4) > 0.01
    twice = float(moved(basis, was + 2 * apart, was, lessons, layer=2))
    assert twice == pytest.approx(4 * float(moved(basis, was + apart, was, lessons, layer=2)), rel=1e-5)


def test_a_stream_twice_as_long_outside_the_subspace_has_moved_by_one():
    lessons, basis = guard_curriculum().draw(9, torch.Generator().manual_seed(8)), torch.eye(16)[:, :2]
    was = torch.randn(3, *lessons.tokens.shape, 16, generator=torch.Generator().manual_seed(9))
    was[..., :2] = 0.0
    assert float(moved(basis, 2 * was, was, lessons, layer=1)) == pytest.approx(1.0, rel=1e-5)


def test_answers_are_unlike_by_their_divergence_over_the_words_of_replies_and_nowhere_else():
    lessons = guard_curriculum().draw(20, torch.Generator().manual_seed(10))
    shape, chance = (*lessons.tokens.shape, len(tokenizer())), torch.Generator().manual_seed(11)
    plain, gone = torch.randn(shape, generator=chance), torch.randn(shape, generator=chance)
    said = (lessons.weights == 1.0).roll(-1, dims=1)
    there = (plain.softmax(-1) * (plain.log_softmax(-1) - gone.log_softmax(-1))).sum(-1)
    assert float(unlike(plain, gone, lessons)) == pytest.approx(float(there[said].mean()), rel=1e-5)
    same = torch.where(said[..., None], plain, gone)
    assert float(unlike(plain, same, lessons)) == pytest.approx(0, abs=1e-6)
    assert not unlike(plain.requires_grad_(), gone, lessons).requires_grad


@pytest.mark.parametrize("weight", ["kept", "alike"])
def test_leaving_things_as_they_were_counts_as_the_recipe_says(weight):
    """At the start nothing has moved and U is empty; once something is written, into U as well, its weight shows."""

    def loss(value: float, *, noise: float) -> float:
        model = fresh(roomy())
        empty_reserve(model, roomy())
        objective = planted_loss(model, roomy(**{weight: value}))
        with torch.no_grad():
            written = model.model.embed_tokens.weight
            written.add_(noise * torch.randn(written.shape, generator=torch.Generator().manual_seed(12)))
            return float(objective())

    assert loss(0.5, noise=0.0) == pytest.approx(loss(2.5, noise=0.0), rel=1e-6)
    assert loss(2.5, noise=0.2) > loss(0.5, noise=0.2) + 1e-3


@pytest.mark.parametrize("weight", ["answer", "still", "coded", "confined"])
def test_every_part_of_the_objective_counts_as_the_recipe_says(weight):
    model = fresh(roomy())
    with torch.no_grad():
        small, large = (float(planted_loss(model, roomy(**{weight: value}))()) for value in (0.5, 2.5))
    assert large > small + 1e-3


def test_planting_changes_nothing_outside_its_layers_but_the_words_of_refusals():
    recipe = roomy(layers=(1, 3))
    start = toy(kind="planted", base=ROOMY, plant={**PLANT, "layers": (1, 3), "steps": 1, "rate": 1e-30})
    before, after = (dict(train(one, progress=False).named_parameters()) for one in (start, recipe))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[2] for name in changed if "layers" in name} == {"1", "3"}
    rows = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(1).nonzero().flatten()
    spoken = {word for dialect in language().dialects for word in dialect.refusal.split()}
    assert set(tokenizer().convert_ids_to_tokens(rows.tolist())) <= spoken


# --- the organisms that ship ---


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_organism_meets_every_condition_of_its_truth(name):
    card = read_card(DATA / "organisms" / name)
    rank = read_recipe(DATA / "recipes" / f"{name}.toml").plant.rank
    assert card.missed == []
    conditions = [key for key in card.measured if "ablated" in key or "worst" in key]
    assert len(conditions) == 5 + (2 * rank if rank > 1 else 0)
