"""Placebos: each kind is what it says, none is flagged more often than declared, and a true effect is."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from refusalscope import locate, placebo, placebo_effects, stats
from refusalscope.activations import Activations, Moments
from refusalscope.errors import ContractError, MeasurementError
from refusalscope.subspace import Candidates, Subspace

LAYERS, POSITIONS, WIDTH, CELL = 3, 2, 12, (1, -1)


def activations(label: str, n: int, *, seed: int, shift: float = 0.0, stretch: float = 1.0) -> Activations:
    """White noise, stretched along the second axis everywhere and moved along the first at one cell."""
    x = torch.randn(n, LAYERS, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[..., 1] *= stretch
    x[:, CELL[0], CELL[1], 0] += shift
    moments = Moments()
    moments.add(x)
    return moments.activations(label, each=x)


def both(n: int = 40, *, seed: int = 0, shift: float = 0.0, stretch: float = 1.0) -> tuple[Activations, Activations]:
    return (
        activations("restricted", n, seed=2 * seed, shift=shift, stretch=stretch),
        activations("harmless", n, seed=2 * seed + 1, stretch=stretch),
    )


def norms(found) -> torch.Tensor:
    return torch.linalg.vector_norm(found.vectors, dim=-1)


def bare(x: Activations) -> Activations:
    return Activations(x.label, x.n, x.mean, x.variance)


# --- each kind is what it says ---


@pytest.mark.parametrize("rank", [1, 3])
def test_random_and_covariance_placebos_of_a_grid_match_every_norm_and_are_the_seeds(rank):
    acts = both()
    grid = Candidates(torch.randn(LAYERS, POSITIONS, rank, WIDTH, dtype=torch.float64), "a test", (40, 40))
    grid.vectors[0] = 0.0
    covariance = partial(placebo.covariance_like, restricted=acts[0], harmless=acts[1])
    for kind in (placebo.random_like, covariance):
        drawn, again, other = (kind(grid, 3, seed=seed) for seed in (1, 1, 2))
        for one in drawn:
            assert isinstance(one, Candidates)
            torch.testing.assert_close(norms(one), norms(grid))
            assert one.is_empty(0, -1)
        assert all(a.vectors.equal(b.vectors) for a, b in zip(drawn, again, strict=True))
        assert not any(a.vectors.equal(b.vectors) for a, b in zip(drawn, other, strict=True))
        (alone,) = kind(grid.at(*CELL), 1, seed=1)
        assert (alone.rank, alone.layer, alone.position) == (rank, *CELL)
        torch.testing.assert_close(norms(alone), norms(grid.at(*CELL)))


def labelled(acts) -> dict[str, Activations]:
    return {"restricted": acts[0], "harmless": acts[1]}


def test_covariance_placebos_have_the_pooled_covariance_within_classes():
    """Second moments of unit vectors equal those of an oracle that forms the covariance; entries lie in [−1, 1]."""
    acts, count = both(60, stretch=5.0, shift=50.0), 4000
    here = Subspace(torch.eye(WIDTH, dtype=torch.float64)[:1], *CELL, "a test")
    drawn = torch.cat([p.vectors for p in placebo.covariance_like(here, count, **labelled(acts), seed=0)])
    centred = torch.cat([x.each[:, CELL[0], CELL[1]].double() - x.mean[CELL[0], CELL[1]] for x in acts])
    covariance = (centred.T @ centred / (len(centred) - 2)).numpy()
    oracle = np.random.default_rng(3).multivariate_normal(np.zeros(WIDTH), covariance, size=count)
    oracle = torch.tensor(oracle / np.linalg.norm(oracle, axis=1, keepdims=True))
    worst = (drawn.T @ drawn / count - oracle.T @ oracle / count).abs().max()
    assert float(worst) < 5 * math.sqrt(2) * 0.5 / math.sqrt(count)
    assert float(drawn[:, 1].square().mean()) > 3 / WIDTH  # the stretched axis; a uniform draw has 1/12 there
    assert float(drawn[:, 0].square().mean()) < 1 / WIDTH  # the gap between the classes is no part of it


def test_covariance_placebos_refuse_what_they_cannot_be_drawn_from():
    acts, here = both(4), Subspace(torch.eye(WIDTH, dtype=torch.float64)[:1], *CELL, "a test")
    with pytest.raises(MeasurementError, match="keep_each=True"):
        placebo.covariance_like(here, 1, restricted=bare(acts[0]), harmless=acts[1], seed=0)
    seven = Subspace(torch.eye(WIDTH, dtype=torch.float64)[:7], *CELL, "a test")
    nowhere = Subspace(here.vectors, None, None, "a test")
    with pytest.raises(MeasurementError, match="span no 7 dimensions"):
        placebo.covariance_like(seven, 1, **labelled(acts), seed=0)
    with pytest.raises(MeasurementError, match="nowhere in particular"):
        placebo.covariance_like(nowhere, 1, **labelled(acts), seed=0)
    with pytest.raises(MeasurementError, match="count of -1"):
        placebo.random_like(here, -1, seed=0)


def test_located_on_shuffled_with_the_mean_difference_is_label_shuffled():
    acts = both(shift=3.0)
    for balanced in (False, True):
        direct = placebo.label_shuffled(*acts, 5, seed=4, balanced=balanced)
        through = placebo.located_on_shuffled(*acts, 5, locate=locate.mean_difference, seed=4, balanced=balanced)
        for one, other in zip(direct, through, strict=True):
            torch.testing.assert_close(one.vectors, other.vectors)


def test_shuffled_halves_are_disjoint_and_of_the_size_asked_for():
    acts, seen = both(10), []

    def look(first: Activations, second: Activations) -> None:
        seen.append((first.each, second.each))

    for balanced in (False, True):
        placebo.located_on_shuffled(*acts, 4, locate=look, seed=0, pairs=3, balanced=balanced)
    assert [tuple(map(len, halves)) for halves in seen] == [(3, 3)] * 8
    assert all(len(torch.unique(torch.cat(halves), dim=0)) == 6 for halves in seen)
    with pytest.raises(MeasurementError, match="20 prompts cannot be shuffled into 11 and 11"):
        placebo.located_on_shuffled(*acts, 1, locate=look, seed=0, pairs=11)


@pytest.mark.parametrize("sizes", [(10, 10), (7, 12), (3, 3), (1, 1)])
def test_balanced_halves_hold_equal_shares_of_both_classes(sizes):
    """Restricted prompts are ones and harmless ones zeros at the cell, so a mean is a share."""
    ones, zeros = (torch.full((n, 1, 1, 2), value) for n, value in zip(sizes, (1.0, 0.0), strict=True))
    acts = []
    for label, x in (("restricted", ones), ("harmless", zeros)):
        moments = Moments()
        moments.add(x)
        acts.append(moments.activations(label, each=x))
    made = placebo.label_shuffled(*acts, 8, seed=0, balanced=True)
    gaps = [abs(float(one.vectors[0, 0, 0, 0])) for one in made]
    assert max(gaps) <= 1 / min(sizes) + 1e-12
    if sizes == (10, 10):
        assert max(gaps) == 0.0
        plain = [float(c.vectors[0, 0, 0, 0]) for c in placebo.label_shuffled(*acts, 8, seed=0)]
        assert max(map(abs, plain)) > 0.0


def test_plain_shuffling_leaves_some_of_a_large_gap_and_balanced_shuffling_none():
    acts = both(shift=30.0)
    shares = {}
    for balanced in (False, True):
        made = [c.at(*CELL).vectors[0] for c in placebo.label_shuffled(*acts, 39, seed=1, balanced=balanced)]
        shares[balanced] = torch.stack([v[0].abs() / v.norm() for v in made]).median()
    assert shares[False] > 0.7  # most plain shuffles point along the located direction
    assert shares[True] < 0.5


def test_unrelated_contrasts_are_differences_between_clusters():
    acts = both(12)[0]
    clusters = ["a", "b", "c"] * 4
    made = placebo.unrelated_contrast(acts, clusters, seed=0)
    means = {name: acts.each[i::3].double().mean(0) for i, name in enumerate("abc")}
    expected = [means[x] - means[y] for x, y in (("a", "b"), ("a", "c"), ("b", "c"))]
    assert len(made) == 3
    assert {one.n for one in made} == {(4, 4)}
    for gap in expected:
        assert any(torch.allclose(one.vectors[:, :, 0], gap) for one in made)
    (first,) = placebo.unrelated_contrast(acts, clusters, seed=0, count=1)
    assert first.vectors.equal(made[0].vectors)


def test_unrelated_contrasts_need_two_clusters_and_a_name_per_prompt():
    acts = both(12)[0]
    with pytest.raises(MeasurementError, match="1 clusters make 0 contrasts"):
        placebo.unrelated_contrast(acts, ["a"] * 12, seed=0)
    with pytest.raises(MeasurementError, match="2 clusters make 1 contrasts; asked for 2"):
        placebo.unrelated_contrast(acts, ["a", "b"] * 6, seed=0, count=2)
    with pytest.raises(MeasurementError, match="3 cluster names for 12 prompts"):
        placebo.unrelated_contrast(acts, ["a", "b", "c"], seed=0)


def test_wrong_layers_are_the_other_cells_at_the_located_place():
    grid = locate.mean_difference(*both())
    chosen = grid.at(*CELL)
    made = placebo.wrong_layer(grid, chosen)
    assert len(made) == (LAYERS - 1) * POSITIONS
    for one in made:
        assert (one.layer, one.position) == CELL
        torch.testing.assert_close(norms(one), norms(chosen))
        assert float(one.angles(chosen)[0]) > 0.1
    everywhere = placebo.wrong_layer(grid, chosen, apart=0)
    assert len(everywhere) == LAYERS * POSITIONS - 1
    grid.vectors[2] = 0.0
    assert len(placebo.wrong_layer(grid, chosen)) == POSITIONS


def test_wrong_layers_need_a_cell_and_somewhere_else():
    grid = locate.mean_difference(*both())
    with pytest.raises(MeasurementError, match="ask for fewer"):
        placebo.wrong_layer(grid, grid.at(*CELL), apart=5)
    with pytest.raises(MeasurementError, match="nowhere in particular"):
        placebo.wrong_layer(grid, Subspace(grid.vectors[0, 0], None, None, "a test"))
    with pytest.raises(MeasurementError, match="chosen from"):
        placebo.wrong_layer(grid, Subspace(torch.eye(WIDTH).double()[:2], *CELL, "a test"))


def test_matched_norms_are_the_located_ones():
    grid, acts = locate.mean_difference(*both(shift=5.0)), both(seed=3)
    made = placebo.norm_matched(placebo.unrelated_contrast(acts[0], ["a", "b"] * 20, seed=0), grid)
    torch.testing.assert_close(norms(made[0]), norms(grid))
    torch.testing.assert_close(
        norms(placebo.norm_matched([made[0].at(*CELL)], grid.at(*CELL))[0]), norms(grid.at(*CELL))
    )


def test_placebos_are_not_exported(direction):
    import pickle

    with pytest.raises(ContractError, match="not exported"):
        pickle.dumps(placebo.random_like(direction(), 1, seed=0)[0])


# --- null calibration ---

RUNS, K, ALPHA, ALLOWED = 500, 39, 0.05, 0.07


def flagged(ranks) -> float:
    assert all(rank.p > 0 for rank in ranks)
    return sum(rank.p <= ALPHA for rank in ranks) / len(ranks)


def test_a_random_placebo_ablated_on_a_model_is_flagged_as_often_as_declared(before, direction):
    """500 placebos, each ranked among 39 others that went through the same ablation; three scores."""
    table = placebo_effects(before, placebo.random_like(direction(), 400, seed=11))
    chance = stats.generator(0, "null calibration")
    drawn = [chance.choice(len(table), K + 1, replace=False) for _ in range(RUNS)]
    for name in ("bypass", "suppression", "kl"):
        values = table[name].to_numpy()
        assert flagged([stats.placebo_rank(values[one], values[others]) for one, *others in drawn]) <= ALLOWED


def strength(found: Candidates, tested: tuple[Activations, Activations]) -> float:
    """The largest separation over the grid, of other prompts along each cell's direction."""
    gap = tested[0].mean - tested[1].mean
    along = (found.vectors[:, :, 0] * gap).sum(-1) / norms(found)[..., 0]
    return float(along.abs().max())


def ranked(seed: int, *, shift: float):
    located, tested = both(16, seed=seed, shift=shift), both(16, seed=seed + 10_000, shift=shift)
    nulls = [strength(c, tested) for c in placebo.label_shuffled(*located, K, seed=seed)]
    return stats.placebo_rank(strength(locate.mean_difference(*located), tested), nulls)


def test_the_maximum_over_a_grid_of_nothing_is_flagged_as_often_as_declared_among_shuffled_labels():
    assert flagged([ranked(seed, shift=0.0) for seed in range(RUNS)]) <= ALLOWED


def test_a_true_direction_is_flagged_among_shuffled_labels():
    """Plain shuffles keep a part of a true direction, so a few runs may be missed; most must not be."""
    assert flagged([ranked(seed, shift=6.0) for seed in range(40)]) > 0.8


def test_a_covariance_placebo_is_flagged_among_its_kind_as_often_as_declared():
    acts = both(20, stretch=4.0)
    here = locate.mean_difference(*acts).at(*CELL)
    gap = (acts[0].mean - acts[1].mean)[CELL[0], CELL[1]]
    ranks = []
    for seed in range(RUNS):
        drawn = placebo.covariance_like(here, K + 1, **labelled(acts), seed=seed)
        one, *others = [abs(float(p.vectors[0] @ gap)) for p in drawn]
        ranks.append(stats.placebo_rank(one, others))
    assert flagged(ranks) <= ALLOWED


def test_a_planted_truth_is_flagged_among_every_kind_of_random_placebo(organism, prompts):
    from conftest import ORGANISMS
    from refusalscope import baseline, capture, effect, readout
    from refusalscope.curves import thinned
    from refusalscope.organisms.recipe import read_recipe
    from refusalscope.truth import planted_subspace

    model, recipe = organism("planted-2-0"), read_recipe(ORGANISMS.parent / "recipes" / "planted-2-0.toml")
    truth = planted_subspace(recipe)
    truth = Subspace(truth.vectors, 3, -1, truth.locator)
    acts = capture(model, prompts.locate, keep_each=True)
    before = thinned(baseline(model, prompts.report, readout(model, prompts.locate)), 8)
    for kind in (placebo.random_like, partial(placebo.covariance_like, **labelled(acts))):
        found = effect(before, truth, placebos=kind(truth, K, seed=0))
        assert found.placebo["suppression"].p == 1 / (K + 1)
