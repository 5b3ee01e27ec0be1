"""Gradient-found directions: the descent finds known minima; objectives equal what is measured and change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

import oracle
from refusalscope import ablate, add, capture, kl, locate, margin
from refusalscope import objective as module
from refusalscope.effect import Baseline, baseline, effect
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.objective import Weights, differentiable_logits, interchange_objective, rdo_objective
from refusalscope.subspace import Subspace

WIDTH = 20


def randomly(rank: int, seed: int = 0) -> Subspace:
    noise = torch.Generator().manual_seed(seed)
    return Subspace(3 * torch.randn(rank, WIDTH, generator=noise, dtype=torch.float64), 1, -1, "a test")


def axes(*numbers: int) -> Subspace:
    return Subspace(torch.eye(WIDTH, dtype=torch.float64)[list(numbers)], None, None, "truth")


def largest(rows: torch.Tensor) -> torch.Tensor:
    """Minus the variance kept where coordinate i has variance 20 − i: minimal on the first axes."""
    return -(rows.square() @ torch.arange(WIDTH, 0, -1, dtype=rows.dtype)).sum()


def outside(count: int):
    """The share of each row's energy outside the first ``count`` axes."""
    return lambda rows: 1 - rows[:, :count].square().sum(1).mean()


# The descent, on objectives whose minimum is known.


@pytest.mark.parametrize("rank", [1, 3])
def test_the_descent_finds_the_minimiser_of_a_quadratic(rank):
    found = locate.gradient(randomly(1), largest, rank=rank, steps=400)
    assert float(found.angles(axes(*range(rank)))[-1]) < 0.02
    assert float(randomly(rank).angles(axes(*range(rank)))[-1]) > 0.5  # it had some way to go
    assert (found.rank, found.layer, found.position, found.locator) == (rank, 1, -1, "gradient")


def test_found_vectors_are_orthogonal_with_the_norm_of_the_start():
    found = locate.gradient(randomly(2), largest, rank=3, steps=5)
    torch.testing.assert_close(
        found.vectors @ found.vectors.T, randomly(2).norm ** 2 * torch.eye(3, dtype=torch.float64)
    )


def test_no_basis_is_privileged():
    """Turning start and objective turns what is found, which coordinate-wise Adam would not promise."""
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(4)).double()).Q
    start = randomly(2)
    turned = Subspace(start.vectors @ turn, 1, -1, "a test")
    plain = locate.gradient(start, largest, steps=30).vectors @ turn
    torch.testing.assert_close(locate.gradient(turned, lambda rows: largest(rows @ turn.T), steps=30).vectors, plain)


def test_zero_steps_return_the_start_and_equal_calls_equal_bits():
    start = randomly(1)
    torch.testing.assert_close(locate.gradient(start, largest, steps=0).vectors, start.vectors)
    again = [locate.gradient(start, largest, rank=3, steps=7, seed=seed).vectors for seed in (1, 1, 2)]
    assert again[0].equal(again[1])
    assert not again[0].equal(again[2])


def test_every_member_of_a_cone_is_good_where_there_is_room_and_some_is_not_where_there_is_none():
    good = locate.cone(randomly(1), outside(3), rank=3, steps=200)
    cramped = locate.cone(randomly(1), outside(3), rank=4, steps=200)
    lost = [[float(outside(3)(one.basis.T)) for one in locate.cone_members(c, 50, seed=0)] for c in (good, cramped)]
    assert max(lost[0]) < 0.01
    assert max(lost[1]) > 0.2
    assert good.rank == 3


def test_a_subspace_good_as_a_whole_is_not_a_cone():
    """Jointly it holds the one axis that counts; most single members do not."""
    whole = locate.gradient(randomly(1), lambda rows: 1 - rows[:, 0].square().sum(), rank=2, steps=200)
    assert float(whole.angles(axes(0))[0]) < 0.02
    assert max(float(outside(1)(one.basis.T)) for one in locate.cone_members(whole, 50, seed=0)) > 0.5


def test_members_are_nonnegative_combinations_of_the_basis_and_the_seeds():
    found = randomly(3)
    members = locate.cone_members(found, 40, seed=2)
    mixes = torch.stack([one.vectors[0] for one in members]) @ found.basis
    assert bool((mixes >= 0).all())
    torch.testing.assert_close(mixes.norm(dim=1), torch.full((40,), found.norm, dtype=torch.float64))
    again, other = locate.cone_members(found, 40, seed=2), locate.cone_members(found, 40, seed=3)
    assert all(a.vectors.equal(b.vectors) for a, b in zip(members, again, strict=True))
    assert not any(a.vectors.equal(b.vectors) for a, b in zip(members, other, strict=True))


def test_the_descent_works_where_gradients_are_switched_off():
    with torch.no_grad():
        found = locate.gradient(randomly(1), largest, steps=20)
    assert found.vectors.equal(locate.gradient(randomly(1), largest, steps=20).vectors)
    assert not found.vectors.requires_grad


@pytest.mark.parametrize(
    "objective",
    [
        lambda rows: rows.square().sum(1),
        lambda rows: torch.tensor(1.0),
        lambda rows: rows.sum() / 0.0,
        lambda rows: rows.sum() * torch.nan,
    ],
)
def test_an_objective_that_is_no_finite_number_of_the_vectors_is_refused(objective):
    with pytest.raises(MeasurementError, match="one finite number"):
        locate.gradient(randomly(1), objective, steps=2)


@pytest.mark.parametrize("rank", [1, 21])
def test_a_rank_out_of_reach_is_refused(rank):
    with pytest.raises(MeasurementError, match="cannot be reached"):
        locate.gradient(randomly(2), largest, rank=rank)


# The objectives, on a live model.


@pytest.fixture
def all_at_once(before):
    """A batch size that takes every prompt."""
    return max(len(before.restricted), len(before.harmless))


def test_the_terms_of_rdo_are_what_interventions_and_metrics_measure(before, direction, all_at_once):
    start, model, prompts = direction(layer=1), before.model, before.prompts
    found = rdo_objective(before, start, batch_size=all_at_once, weights=Weights(2.0, 3.0, 5.0))
    loss = found(start.basis.T)
    with ablate(model, start):
        ablated = margin(model, prompts.restricted, before.readout)
        damage = kl(model, prompts.harmless, before.harmless_base)
    with add(model, start):
        added = margin(model, prompts.harmless, before.readout)
    expected = {
        "ablation": float(softplus(ablated - before.harmless.mean()).mean()),
        "retention": float(damage.mean()),
        "addition": float(softplus(before.restricted.mean() - added).mean()),
    }
    assert found.terms == pytest.approx(expected, rel=1e-3, abs=1e-5)
    total = 2 * found.terms["ablation"] + 3 * found.terms["retention"] + 5 * found.terms["addition"]
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)


def test_rdo_of_several_directions_ablates_their_span_and_adds_the_first(before, direction, all_at_once):
    start = direction(rank=2)
    found = rdo_objective(before, start, batch_size=all_at_once)
    found(start.basis.T)
    with ablate(before.model, start):
        ablated = margin(before.model, before.prompts.restricted, before.readout)
    assert found.terms["ablation"] == pytest.approx(float(softplus(ablated - before.harmless.mean()).mean()), rel=1e-3)


def test_the_slope_of_rdo_is_that_of_finite_differences(before, direction, all_at_once):
    start = direction()
    found = rdo_objective(before, start, batch_size=all_at_once)
    rows = start.basis.T.clone().requires_grad_()
    (slope,) = torch.autograd.grad(found(rows), rows)
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        ahead, behind = (float(found(rows.detach() + sign * step)) for sign in (1, -1))
    assert (ahead - behind) / (2 * 1e-2) == pytest.approx(float(slope.norm()), rel=0.02)


def test_interchange_is_what_the_oracle_swaps(before, direction, tiny_dir, monkeypatch):
    """One restricted and one harmless prompt, each with the other's part of the span; float64 and plain hooks."""
    start, plain = direction(rank=2, layer=1), oracle.float64_model(tiny_dir)
    acts = capture(before.model, before.prompts, keep_each=True)
    found = interchange_objective(before, acts, start)
    monkeypatch.setattr(found, "_prompts", lambda: ([2], [len(before.restricted) + 3]))
    pair = [before.prompts.restricted.texts[2], before.prompts.harmless.texts[3]]
    tokens, places = before.model.encode(pair), before.model.n_positions
    sources = [acts.harmless.each[3, 1].double(), acts.restricted.each[2, 1].double()]
    shares = start.basis @ start.basis.T
    losses = []
    targets = [float(before.harmless[3]), float(before.restricted[2])]
    for ids, source, target, sign in zip(tokens, sources, targets, (1, -1), strict=True):

        def swap(_module, inputs, source=source):
            x = inputs[0].clone()
            x[:, -places:] += (source - x[:, -places:]) @ shares
            return (x, *inputs[1:])

        handle = plain.model.layers[1].register_forward_pre_hook(swap)
        swapped = oracle.margins(oracle.last_logits(plain, [ids]), before.readout.first_tokens)
        handle.remove()
        losses.append(softplus(sign * (swapped - target)))
    assert float(found(start.basis.T).detach()) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


def objectives(before: Baseline, start: Subspace, **options):
    acts = capture(before.model, before.prompts, keep_each=True)
    return [rdo_objective(before, start, **options), interchange_objective(before, acts, start, **options)]


def state(model):
    core = model.bridge.original_model
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.bridge.modules()]
    return [(id(p), p._version, p.grad is None, p.requires_grad) for p in core.parameters()], hooks


def test_a_search_leaves_parameters_gradients_and_hooks_as_they_were(before, direction):
    untouched, values = state(before.model), [p.clone() for p in before.model.bridge.original_model.parameters()]
    for objective in objectives(before, direction(), batch_size=2):
        locate.gradient(direction(), objective, steps=2)
    assert state(before.model) == untouched
    assert all(a.equal(b) for a, b in zip(values, before.model.bridge.original_model.parameters(), strict=True))


def test_a_search_that_breaks_off_leaves_nothing_behind(before, direction, monkeypatch):
    untouched, found = state(before.model), objectives(before, direction(), batch_size=2)

    def broken(_logits):
        raise RuntimeError("broke off")

    monkeypatch.setattr(module, "at_least_float32", broken)
    for objective in found:
        with pytest.raises(RuntimeError, match="broke off"):
            objective(direction().basis.T)
    last = before.model.bridge.hook_dict[before.model.sites.resid_post[-1]]
    monkeypatch.setattr(last, "forward", broken)  # and in the middle of a forward
    for objective in found:
        with pytest.raises(RuntimeError, match="broke off"):
            objective(direction().basis.T)
    assert state(before.model) == untouched


def test_a_parameter_that_changes_in_a_search_is_noticed(before):
    from refusalscope.model.batching import batches

    model = before.model
    (batch,) = batches(model, model.encode(before.prompts.texts[:2]), batch_size=2)
    weight = next(model.bridge.original_model.parameters())

    def meddle(x, hook):
        with torch.no_grad():
            weight.add_(0.0)

    with pytest.raises(InterventionError, match="changed in a search"):
        differentiable_logits(model, batch, [(model.sites.resid_pre[1], meddle)])
    logits = differentiable_logits(model, batch, [])  # the positive control
    assert logits.shape[0] == 2


def test_prompt_forwards_count_a_gradient_as_three(before, direction):
    rdo, interchange = objectives(before, direction(), batch_size=2)
    for objective, each in ((rdo, 3 * 3 * 2), (interchange, 3 * 2 * 2)):
        assert objective.pf == 0
        locate.gradient(direction(), objective, steps=4)
        assert objective.pf == 4 * each


def test_minibatches_take_every_prompt_once_per_epoch_and_are_the_seeds():
    drawn = module._epochs(10, 4, 0, "test")
    first = [row for _ in range(5) for row in next(drawn)]
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10] != first[10:]
    again, other = module._epochs(10, 4, 0, "test"), module._epochs(10, 4, 1, "test")
    assert next(again) == first[:4]
    assert next(other) != first[:4]
    assert len(next(module._epochs(3, 8, 0, "test"))) == 3


def test_a_search_is_the_seeds(before, direction):
    found = [
        [
            locate.gradient(direction(), objective, steps=3).vectors
            for objective in objectives(before, direction(), **how)
        ]
        for how in ({"batch_size": 2}, {"batch_size": 2}, {"batch_size": 2, "seed": 1})
    ]
    assert all(a.equal(b) for a, b in zip(found[0], found[1], strict=True))
    assert not any(a.equal(b) for a, b in zip(found[0], found[2], strict=True))


def test_what_cannot_be_searched_is_refused(before, direction):
    acts = capture(before.model, before.prompts, keep_each=True)
    with pytest.raises(MeasurementError, match="located direction"):
        rdo_objective(before, direction(layer=None))
    with pytest.raises(MeasurementError, match="located direction"):
        interchange_objective(before, acts, direction(width=7))
    with pytest.raises(MeasurementError, match="keep_each=True"):
        interchange_objective(before, capture(before.model, before.prompts), direction())
    turned = Baseline(
        before.model, before.prompts, before.readout, before.harmless, before.restricted, before.harmless_base
    )
    with pytest.raises(MeasurementError, match="no refusal to search for"):
        rdo_objective(turned, direction())


# On organisms whose truth is known.


@pytest.fixture(scope="module")
def searched(organism, prompts, few_refusals):
    """Planted-1: its baselines on locate and report, activations, and the difference in means where it was planted."""
    model = organism("planted-1")
    acts = capture(model, prompts.locate, keep_each=True)
    made = [baseline(model, split, few_refusals(model, prompts)) for split in (prompts.locate, prompts.report)]
    return *made, acts, locate.mean_difference(*acts).at(3, -1)


@pytest.fixture(scope="module")
def few_refusals():
    from refusalscope.organisms.language import language
    from refusalscope.reading import readout

    openings = sorted({dialect.refusal.split()[0] for dialect in language().dialects})
    return lambda model, prompts: readout(model, prompts.locate, openings=openings)


def degrees(found: Subspace, truth: Subspace) -> float:
    return math.degrees(float(found.angles(truth)[0]))


def test_interchange_turns_towards_a_planted_truth_where_the_difference_in_means_points_past_it(
    searched, planted_truth
):
    """A layer early the difference in means does nothing; the direction that carries the answer is nearer the truth."""
    before, report, acts, _ = searched
    start = locate.mean_difference(*acts).at(2, -1)
    found = locate.gradient(start, interchange_objective(before, acts, start), steps=40)
    assert degrees(found, planted_truth) < 36 < 44 < degrees(start, planted_truth)
    assert effect(report, start).bypass.value == 0
    assert effect(report, found).bypass.value > 0.3


def test_where_the_truth_is_written_interchange_bypasses_as_it_does_but_leaves_it_for_what_is_read(
    searched, planted_truth
):
    """The swap follows writer and reader alike, so it lies between them: see the bisector below."""
    before, report, acts, start = searched
    found = locate.gradient(start, interchange_objective(before, acts, start), steps=40)
    assert degrees(start, planted_truth) < degrees(found, planted_truth) < 45
    measured = effect(report, found)
    assert measured.bypass.value > 0.95
    assert measured.kl.value < 0.1
    assert float(found.vectors[0] @ start.vectors[0]) > 0  # towards restricted


def test_the_bisector_of_what_is_written_and_what_is_read_is_what_interchange_finds():
    """For one direction written along r and read along g, swapping v moves the margin by (v·r)(v·g)."""
    r, other = torch.eye(WIDTH, dtype=torch.float64)[:2]
    g = (r + other) / math.sqrt(2)
    found = locate.gradient(randomly(1), lambda rows: -((rows[0] @ r) * (rows[0] @ g)), steps=300)
    bisector = Subspace((r + g)[None], None, None, "truth")
    assert float(found.angles(bisector)[0]) < 0.02


def test_rdo_suppresses_more_than_where_it_started(searched):
    before, report, _, start = searched
    found = locate.gradient(start, rdo_objective(before, start), steps=30)
    measured, began = effect(report, found), effect(report, start)
    assert measured.suppression.value > began.suppression.value
    assert measured.kl.value < 0.1


def test_a_model_without_a_guardrail_offers_nothing_to_search_for(organism, prompts, few_refusals):
    model = organism("unguarded")
    acts, before = capture(model, prompts.locate), baseline(model, prompts.locate, few_refusals(model, prompts))
    with pytest.raises(MeasurementError, match="no refusal to search for"):
        rdo_objective(before, locate.mean_difference(*acts).at(3, -1))


def test_a_cone_of_several_dimensions_is_found_around_a_planted_truth_of_one(searched, planted_truth):
    """A cone is no count of dimensions: its second basis vector does what no random one may, far from the truth."""
    before, report, _, start = searched
    found = locate.cone(start, rdo_objective(before, start), rank=2, members=1, steps=20)
    second = Subspace(found.vectors[1:], 3, -1, "the second basis vector")
    measured = effect(report, second)
    assert measured.bypass.value > 0.05  # the most that the organism's card allows a random subspace, and below too
    assert measured.suppression.value > 0.2
    assert degrees(second, planted_truth) > 50


@pytest.fixture(scope="module")
def planted_truth():
    from pathlib import Path

    from refusalscope.organisms.recipe import read_recipe
    from refusalscope.truth import planted_subspace

    return planted_subspace(read_recipe(Path(__file__).parents[1] / "data" / "recipes" / "planted-1.toml"))
