"""Locators and placebos: each locator obeys its theorem, finds what is planted and nothing where nothing is."""

from __future__ import annotations

import math

import pytest
import torch

import oracle
from refusalscope import capture, locate, placebo
from refusalscope.activations import Activations, Moments
from refusalscope.effect import baseline, placebo_effects
from refusalscope.errors import MeasurementError
from refusalscope.linalg import energy_share, principal_angles
from refusalscope.organisms.language import language
from refusalscope.reading import readout
from refusalscope.subspace import Subspace

LAYERS, POSITIONS, WIDTH, PLANTED_AT = 4, 3, 24, (2, -2)


def fictional(label: str, n: int, *, shift: float, seed: int):
    """Activations of white noise, moved along the first axis at one cell."""
    x = torch.randn(n, LAYERS, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[:, PLANTED_AT[0], PLANTED_AT[1], 0] += shift
    moments = Moments()
    moments.add(x)
    return moments.activations(label, each=x)


@pytest.fixture
def planted():
    return fictional("restricted", 64, shift=4.0, seed=1), fictional("harmless", 64, shift=0.0, seed=2)


def cosine(subspace: Subspace) -> float:
    return abs(float(subspace.basis[0, 0]))


def test_the_mean_difference_equals_hugging_faces_own_in_float64(tiny, tiny_dir, few):
    plain, places = oracle.float64_model(tiny_dir), tiny.n_positions
    means = []
    for prompts in (few.restricted, few.harmless):
        rows = tiny.encode(prompts.texts)
        with torch.no_grad():
            runs = [plain(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1] for ids in rows]
        means.append(torch.stack([torch.stack([h[0, -places:] for h in layers]) for layers in runs]).mean(0))
    found = locate.mean_difference(*capture(tiny, few))
    torch.testing.assert_close(found.vectors[:, :, 0], means[0] - means[1], atol=1e-5, rtol=1e-5)
    assert found.n == (len(few.restricted), len(few.harmless))
    assert all(found.is_empty(0, position) for position in found.positions)
    assert not any(found.is_empty(layer, -1) for layer in range(1, tiny.n_layers))


def test_the_mean_difference_finds_a_planted_shift_and_nothing_where_there_is_none(planted):
    found = locate.mean_difference(*planted)
    assert cosine(found.at(*PLANTED_AT)) > 0.9
    assert all(cosine(found.at(*cell)) < 0.7 for cell in found.cells() if cell != PLANTED_AT)
    assert found.at(*PLANTED_AT).norm == pytest.approx(4.0, rel=0.5)


def test_a_restricted_prompt_lies_further_along_the_direction_than_a_harmless_one(planted):
    """The sign: restricted minus harmless."""
    restricted, harmless = planted
    vector = locate.mean_difference(*planted).at(*PLANTED_AT).vectors[0].float()
    along = [x.each[:, PLANTED_AT[0], PLANTED_AT[1]] @ vector for x in (restricted, harmless)]
    assert along[0].mean() > along[1].mean()
    assert locate.mean_difference(harmless, restricted).vectors.equal(-locate.mean_difference(*planted).vectors)


def test_activations_of_different_sites_are_refused(planted):
    other = fictional("harmless", 8, shift=0.0, seed=3)
    fewer = type(other)(other.label, other.n, other.mean[:-1], other.variance[:-1])
    with pytest.raises(MeasurementError, match="same model"):
        locate.mean_difference(planted[0], fewer)


@pytest.mark.parametrize("cell", [(LAYERS, -1), (-1, -1), (0, 0), (0, -POSITIONS - 1)])
def test_a_cell_outside_the_grid_is_refused(planted, cell):
    with pytest.raises(MeasurementError, match="No candidate at layer"):
        locate.mean_difference(*planted).at(*cell)


def test_cells_are_all_cells_in_order(planted):
    found = locate.mean_difference(*planted)
    assert list(found.cells()) == [(layer, position) for layer in range(LAYERS) for position in (-3, -2, -1)]


def test_random_placebos_match_rank_and_norms_and_are_the_seeds(direction):
    subspace = direction(rank=3)
    drawn = placebo.random_like(subspace, 50, seed=7)
    for one in drawn:
        assert (one.rank, one.layer, one.position) == (3, subspace.layer, subspace.position)
        torch.testing.assert_close(one.vectors.norm(dim=1), subspace.vectors.norm(dim=1))
    again, other = placebo.random_like(subspace, 50, seed=7), placebo.random_like(subspace, 50, seed=8)
    assert all(a.vectors.equal(b.vectors) for a, b in zip(drawn, again, strict=True))
    assert not any(a.vectors.equal(b.vectors) for a, b in zip(drawn, other, strict=True))


def test_random_placebos_are_uniform_on_the_sphere(direction):
    """The squared cosine to any fixed direction has mean 1/d: here within five standard errors."""
    subspace, count = direction(), 2000
    squares = torch.stack(
        [one.basis[:, 0] @ subspace.basis[:, 0] for one in placebo.random_like(subspace, count, seed=0)]
    )
    width = subspace.vectors.shape[1]
    error = math.sqrt(2) / width / math.sqrt(count)
    assert float(squares.square().mean()) == pytest.approx(1 / width, abs=5 * error)


def test_label_shuffled_placebos_lose_the_planted_shift(planted):
    shuffled = placebo.label_shuffled(*planted, 20, seed=0)
    norms = torch.tensor([one.at(*PLANTED_AT).norm for one in shuffled])
    assert locate.mean_difference(*planted).at(*PLANTED_AT).norm > 2 * norms.max()
    assert all(one.vectors.shape == (LAYERS, POSITIONS, 1, WIDTH) for one in shuffled)
    again = placebo.label_shuffled(*planted, 20, seed=0)
    assert all(a.vectors.equal(b.vectors) for a, b in zip(shuffled, again, strict=True))


def test_label_shuffling_with_labels_in_place_is_the_mean_difference(planted, monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    (made,) = placebo.label_shuffled(*planted, 1, seed=0)
    torch.testing.assert_close(made.vectors, locate.mean_difference(*planted).vectors, atol=1e-6, rtol=1e-6)


def test_label_shuffling_needs_single_activations(planted):
    bare = [type(x)(x.label, x.n, x.mean, x.variance) for x in planted]
    with pytest.raises(MeasurementError, match="keep_each=True"):
        placebo.label_shuffled(*bare, 3, seed=0)


def test_principal_angles_are_zero_inside_and_right_outside():
    eye = torch.eye(6, dtype=torch.float64)
    turned = eye[:, :1] * math.cos(0.3) + eye[:, 3:4] * math.sin(0.3)
    torch.testing.assert_close(principal_angles(eye[:, :3], eye[:, :2]), torch.zeros(2).double(), atol=1e-12, rtol=0)
    found = principal_angles(torch.cat([turned, eye[:, 4:5]], dim=1), eye[:, :2])
    torch.testing.assert_close(found, torch.tensor([0.3, math.pi / 2], dtype=torch.float64), atol=1e-12, rtol=0)
    first = Subspace(eye[:2], None, None, "a test")
    torch.testing.assert_close(first.angles(Subspace(turned.T, None, None, "b")), torch.tensor([0.3]).double())


def test_energy_share_is_one_for_one_channel_and_its_inverse_width_when_even():
    assert energy_share(torch.eye(5)[0]) == 1.0
    assert energy_share(torch.ones(8)) == pytest.approx(1 / 8)


# Locators of single activations: one cell of synthetic activations unless said otherwise.

GROUPS = tuple("abcdefgh" * 8)
LOCATORS = {
    "whitened": locate.whitened,
    "logistic": locate.logistic,
    "paired_pca": locate.paired_pca,
    "leace": locate.leace,
    "mean_differences": lambda *acts, **options: locate.mean_differences(*acts, **{"groups": GROUPS, **options}),
}
RANKED = {
    **{name: LOCATORS[name] for name in ("logistic", "paired_pca", "mean_differences")},
    "whitened": lambda *acts, rank: locate.whitened(*acts, groups=GROUPS, rank=rank),
    "leace": lambda *acts, rank: locate.leace(*acts, groups=GROUPS, rank=rank),
}


def cell(x: torch.Tensor, label: str) -> Activations:
    """Activations with one layer and one position."""
    moments = Moments()
    moments.add(x[:, None, None])
    return moments.activations(label, each=x[:, None, None].float())


def gaussian(n: int, *, mean: torch.Tensor, root: torch.Tensor, seed: int) -> torch.Tensor:
    """n draws of N(mean, root rootᵀ)."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(n, len(mean), generator=noise, dtype=torch.float64) @ root.T + mean


def cosine_to(vector: torch.Tensor, found: torch.Tensor) -> float:
    return float(vector.double() @ found.double() / vector.norm() / found.norm())


@pytest.fixture
def skewed():
    """Two classes of one correlated covariance: what separates them best is far from the line between the means."""
    noise = torch.Generator().manual_seed(5)
    root = torch.randn(8, 8, generator=noise, dtype=torch.float64) + torch.eye(8)
    shift = torch.randn(8, generator=noise, dtype=torch.float64)
    bayes = torch.linalg.solve(root @ root.T, shift)
    draws = [gaussian(5_000, mean=k * shift, root=root, seed=k) for k in (1, 0)]
    return cell(draws[0], "restricted"), cell(draws[1], "harmless"), bayes


def test_the_whitened_direction_is_that_of_bayes(skewed):
    """Gaussian classes of one covariance: the optimal boundary is normal to Σ⁻¹ (μ₁ − μ₀)."""
    *acts, bayes = skewed
    assert cosine_to(bayes, locate.whitened(*acts).at(0, -1).vectors[0]) > 0.99
    assert abs(cosine_to(bayes, locate.mean_difference(*acts).at(0, -1).vectors[0])) < 0.8  # the positive control


def test_the_logistic_direction_is_that_of_bayes(skewed):
    *acts, bayes = skewed
    assert cosine_to(bayes, locate.logistic(*acts, strength=100.0).at(0, -1).vectors[0]) > 0.99


def test_the_whitened_direction_equals_a_solve_with_the_shrunk_covariance(planted):
    from sklearn.covariance import LedoitWolf

    x1, x0 = (acts.each[:, 1, 1].double() for acts in planted)
    fit = LedoitWolf(assume_centered=True).fit(torch.cat([x1 - x1.mean(0), x0 - x0.mean(0)]).numpy())
    oracles = torch.linalg.solve(torch.from_numpy(fit.covariance_), x1.mean(0) - x0.mean(0))
    assert cosine_to(oracles, locate.whitened(*planted).at(1, -2).vectors[0]) == pytest.approx(1.0, abs=1e-9)


def test_whitening_with_the_identity_is_the_mean_difference(planted):
    found, plain = locate.whitened(*planted, shrinkage=1.0), locate.mean_difference(*planted)
    torch.testing.assert_close(found.vectors, plain.vectors, atol=1e-9, rtol=1e-9)


def test_whitening_more_coordinates_than_prompts_equals_a_dense_solve():
    noise = torch.Generator().manual_seed(0)
    x1, x0 = (torch.randn(6, 30, generator=noise, dtype=torch.float64) for _ in range(2))
    residuals = torch.cat([x1 - x1.mean(0), x0 - x0.mean(0)])
    sample = residuals.T @ residuals / 12
    shrunk = 0.7 * sample + 0.3 * sample.trace() / 30 * torch.eye(30)
    found = locate.whitened(cell(x1, "restricted"), cell(x0, "harmless"), shrinkage=0.3).at(0, -1).vectors[0]
    assert cosine_to(torch.linalg.solve(shrunk, x1.mean(0) - x0.mean(0)), found) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(MeasurementError, match="without an inverse"):
        locate.whitened(cell(x1, "restricted"), cell(x0, "harmless"), shrinkage=0.0)


def test_a_strongly_penalised_logistic_probe_is_the_standardised_mean_difference(planted):
    x1, x0 = (acts.each[:, 2, 1].double() for acts in planted)
    expected = (x1.mean(0) - x0.mean(0)) / torch.cat([x1, x0]).var(0, correction=0)
    found = locate.logistic(*planted, strength=1e-6).at(2, -2).vectors[0]
    assert cosine_to(expected, found) == pytest.approx(1.0, abs=1e-4)


def test_later_logistic_probes_are_orthogonal_to_earlier_ones(planted):
    rows = locate.logistic(*planted, rank=4).at(2, -2).vectors
    units = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(units @ units.T, torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(rows[:1], locate.logistic(*planted).at(2, -2).vectors)


def test_components_of_exact_rank_k_differences_span_what_they_span():
    noise = torch.Generator().manual_seed(3)
    spanning = torch.randn(3, 12, generator=noise, dtype=torch.float64)
    x0 = torch.randn(40, 12, generator=noise, dtype=torch.float64)
    x1 = x0 + (torch.randn(40, 3, generator=noise, dtype=torch.float64) + 1) @ spanning
    acts = cell(x1, "restricted"), cell(x0, "harmless")
    found = locate.paired_pca(*acts, rank=3).at(0, -1)
    assert float(found.angles(Subspace(spanning, None, None, "truth")).max()) < 1e-5
    assert locate.paired_pca(*acts, rank=4).is_empty(0, -1)  # a fourth direction there is rounding


def test_components_of_constant_differences_are_the_mean_difference_which_centring_would_remove():
    x0 = torch.randn(30, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift = torch.arange(10, dtype=torch.float64)
    acts = cell(x0 + shift, "restricted"), cell(x0, "harmless")
    torch.testing.assert_close(
        locate.paired_pca(*acts).vectors, locate.mean_difference(*acts).vectors, atol=1e-5, rtol=1e-5
    )


def test_components_do_not_depend_on_the_signs_of_the_differences(planted):
    """RepE's random signs change nothing: swapping both members of some pairs leaves the span as it was."""
    swapped = torch.arange(64) % 3 == 0
    parts = [acts.each.clone() for acts in planted]
    parts[0][swapped], parts[1][swapped] = planted[1].each[swapped], planted[0].each[swapped]
    moments = [Moments(), Moments()]
    for part, moment in zip(parts, moments, strict=True):
        moment.add(part)
    mixed = [
        moment.activations(acts.label, each=part) for moment, acts, part in zip(moments, planted, parts, strict=True)
    ]
    first, second = (locate.paired_pca(*acts, rank=2).at(*PLANTED_AT) for acts in (planted, mixed))
    assert float(first.angles(second).max()) < 1e-4


def test_pairs_can_be_given_and_the_default_is_in_order(planted):
    plain = locate.paired_pca(*planted)
    assert locate.paired_pca(*planted, pairs=[(i, i) for i in range(64)]).vectors.equal(plain.vectors)
    turned = locate.paired_pca(*planted, pairs=[(i, (i + 1) % 64) for i in range(64)])
    assert not turned.vectors.equal(plain.vectors)


def test_the_range_of_leace_is_the_difference_in_means_whatever_the_covariance(skewed):
    *acts, bayes = skewed
    found, plain = (method(*acts).at(0, -1).vectors[0] for method in (locate.leace, locate.mean_difference))
    assert cosine_to(plain, found) == pytest.approx(1.0, abs=1e-6)
    assert abs(cosine_to(bayes, found)) < 0.8  # not what LEACE measures along


def test_ablation_and_leace_both_make_the_class_means_equal_and_leace_edits_less(skewed):
    """What the two share, and what not: belongs to the docstring of ``leace``."""
    from refusalscope.linalg import project
    from refusalscope.locators.leace import fitted

    *acts, _ = skewed
    x1, x0 = (part.each[:, 0, 0].double() for part in acts)
    x = torch.cat([x1, x0])
    erased = fitted(x1, x0, None).eraser(x)
    ablated = x - project(x - x.mean(0), locate.leace(*acts).at(0, -1).basis)
    gap = float((x1.mean(0) - x0.mean(0)).norm())
    for after in (erased, ablated):
        assert float((after[: len(x1)].mean(0) - after[len(x1) :].mean(0)).norm()) < 1e-4 * gap
    assert float((erased - x).square().sum()) < 0.8 * float((ablated - x).square().sum())


def test_differences_per_group_span_every_group_and_the_first_is_the_shared_one():
    noise = torch.Generator().manual_seed(7)
    x0 = torch.randn(64, WIDTH, generator=noise, dtype=torch.float64)
    x1 = torch.randn(64, WIDTH, generator=noise, dtype=torch.float64)
    own = torch.eye(WIDTH, dtype=torch.float64)[1:9] * 8
    x1 += torch.stack([own["abcdefgh".index(group)] for group in GROUPS])
    x1[:, 0] += 20
    found = locate.mean_differences(cell(x1, "restricted"), cell(x0, "harmless"), groups=GROUPS, rank=8).at(0, -1)
    shared = torch.eye(WIDTH, dtype=torch.float64)[0]
    assert cosine_to(shared, found.vectors[0]) > 0.95
    assert float(found.angles(torch.eye(WIDTH, dtype=torch.float64)[:, :9])[-1]) < math.radians(30)


def test_matched_groups_leave_out_what_only_tells_the_groups_apart():
    """Groups far apart in both classes: unmatched, that is the first direction; matched, the label is."""
    noise = torch.Generator().manual_seed(8)
    apart = torch.tensor([{"a": 30.0, "b": -30.0}[group] for group in "ab" * 32], dtype=torch.float64)
    parts = []
    for shift in (4.0, 0.0):
        x = torch.randn(64, WIDTH, generator=noise, dtype=torch.float64)
        x[:, 0] += shift
        x[:, 1] += apart
        parts.append(x)
    acts, groups = (cell(parts[0], "restricted"), cell(parts[1], "harmless")), tuple("ab" * 32)
    plain = locate.mean_differences(*acts, groups=groups).at(0, -1).vectors[0]
    matched = locate.mean_differences(*acts, groups=groups, against=groups).at(0, -1).vectors[0]
    axes = torch.eye(WIDTH, dtype=torch.float64)
    assert abs(cosine_to(axes[1], plain)) > 0.95
    assert cosine_to(axes[0], matched) > 0.95


@pytest.mark.parametrize("name", LOCATORS)
def test_every_locator_finds_a_planted_shift_and_noise_elsewhere(planted, name):
    found = LOCATORS[name](*planted)
    assert found.locator == name
    assert cosine(found.at(*PLANTED_AT)) > 0.8
    assert all(cosine(found.at(*cell)) < 0.7 for cell in found.cells() if cell != PLANTED_AT)


@pytest.mark.parametrize("name", LOCATORS)
def test_every_locator_points_to_restricted_with_the_norm_of_the_difference_in_means(planted, name):
    found, plain = LOCATORS[name](*planted), locate.mean_difference(*planted)
    torch.testing.assert_close(found.vectors.norm(dim=-1), plain.vectors.norm(dim=-1))
    assert bool(((found.vectors * plain.vectors).sum(-1) > 0).all())
    options = {"against": GROUPS} if name == "mean_differences" else {}  # else only one class is grouped
    turned, found = (LOCATORS[name](*acts, **options) for acts in (reversed(planted), planted))
    torch.testing.assert_close(turned.vectors, -found.vectors, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LOCATORS)
def test_every_locator_is_deterministic_and_steady_between_halves(name):
    halves = []
    for part in (slice(0, 256), slice(256, 512)):
        labels = (("restricted", 4.0, 1), ("harmless", 0.0, 2))
        acts = [fictional(label, 512, shift=shift, seed=seed).each[part] for label, shift, seed in labels]
        moments = [Moments(), Moments()]
        for x, moment in zip(acts, moments, strict=True):
            moment.add(x)
        made = [moment.activations(label, each=x) for moment, (label, *_), x in zip(moments, labels, acts, strict=True)]
        options = {"groups": GROUPS * 4} if name == "mean_differences" else {}
        found = LOCATORS[name](*made, **options)
        assert LOCATORS[name](*made, **options).vectors.equal(found.vectors)
        halves.append(found)
    angles = {at: float(halves[0].at(*at).angles(halves[1].at(*at))[0]) for at in halves[0].cells()}
    assert angles.pop(PLANTED_AT) < math.radians(25)
    assert min(angles.values()) > math.radians(40)  # the positive control: where nothing is, halves disagree


@pytest.mark.parametrize("name", RANKED)
def test_every_locator_of_several_directions_reaches_rank_eight(planted, name):
    found = RANKED[name](*planted, rank=8)
    assert found.vectors.shape == (LAYERS, POSITIONS, 8, WIDTH)
    assert found.at(*PLANTED_AT).basis.shape == (WIDTH, 8)
    assert float(found.at(*PLANTED_AT).angles(torch.eye(WIDTH, dtype=torch.float64)[:, :1])[0]) < 0.6


@pytest.mark.parametrize("name", LOCATORS)
def test_a_cell_where_the_classes_do_not_differ_is_empty(tiny, contrast, name):
    prompts = contrast.select.sample(16, seed=0)
    acts = capture(tiny, prompts, keep_each=True)
    found = LOCATORS[name](*acts, **({"groups": ["a", "b"] * 8} if name == "mean_differences" else {}))
    assert [found.is_empty(*at) for at in found.cells()] == [at[0] == 0 for at in found.cells()]
    assert not bool(found.vectors[0].any())


@pytest.mark.parametrize("name", LOCATORS)
def test_what_a_locator_of_single_activations_cannot_use_is_refused(planted, name):
    method, (restricted, harmless) = LOCATORS[name], planted
    bare = [Activations(x.label, x.n, x.mean, x.variance) for x in planted]
    with pytest.raises(MeasurementError, match="keep_each=True"):
        method(*bare)
    fewer = Activations("harmless", 64, harmless.mean[:-1], harmless.variance[:-1], harmless.each[:, :-1])
    with pytest.raises(MeasurementError, match="same model"):
        method(restricted, fewer)
    with pytest.raises(MeasurementError, match="rank 0"):
        method(restricted, harmless, rank=0)
    broken = harmless.each.clone()
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(MeasurementError, match="finite"):
        method(restricted, Activations("harmless", 64, harmless.mean, harmless.variance, broken))


@pytest.mark.parametrize("name", ["whitened", "logistic", "leace"])
def test_a_single_prompt_is_refused(name):
    one = fictional("restricted", 1, shift=0.0, seed=0), fictional("harmless", 1, shift=0.0, seed=1)
    with pytest.raises(MeasurementError, match="two prompts"):
        LOCATORS[name](*one)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda acts: locate.whitened(*acts, shrinkage=1.5), "outside 0 to 1"),
        (lambda acts: locate.logistic(*acts, strength=0.0), "above zero"),
        (lambda acts: locate.logistic(*acts, rank=25), "rank 25"),
        (lambda acts: locate.paired_pca(acts[0], fictional("harmless", 9, shift=0.0, seed=0)), "pair up"),
        (lambda acts: locate.paired_pca(*acts, pairs=[(0, 64)]), "below 64 and 64"),
        (lambda acts: locate.paired_pca(*acts, pairs=[(0, 0)], rank=2), "as many pairs"),
        (lambda acts: locate.leace(*acts, rank=2), "Pass groups"),
        (lambda acts: locate.whitened(*acts, rank=2), "Pass groups"),
        (lambda acts: locate.mean_differences(*acts, groups=["a"] * 63), "63 group names for 64"),
        (lambda acts: locate.mean_differences(*acts, groups="a" * 64), "one name per prompt"),
        (lambda acts: locate.mean_differences(*acts, groups=GROUPS, against=["a"] * 64), "group 'b'"),
    ],
)
def test_an_option_that_does_not_fit_is_named(planted, call, said):
    with pytest.raises(MeasurementError, match=said):
        call(planted)


# On organisms whose truth is known.


@pytest.fixture(scope="module")
def planted_truth():
    from pathlib import Path

    from refusalscope.organisms.recipe import read_recipe
    from refusalscope.truth import planted_subspace

    return planted_subspace(read_recipe(Path(__file__).parents[1] / "data" / "recipes" / "planted-1.toml"))


@pytest.fixture(scope="module")
def planted_acts(organism, prompts):
    return capture(organism("planted-1"), prompts.locate, keep_each=True)


@pytest.fixture(scope="module")
def unguarded_acts(organism, contrast):
    return capture(organism("unguarded"), contrast.locate, keep_each=True)


@pytest.fixture(scope="module")
def guarded_before(organism, contrast):
    openings = sorted({dialect.refusal.split()[0] for dialect in language().dialects})
    model = organism("guarded-0")
    return baseline(model, contrast.report, readout(model, contrast.report, openings=openings))


TOPIC_BYPASS = 0.25
CHANCE = 60  # degrees: in 96 dimensions a random direction lies closer to a given one less than once in a million


@pytest.mark.parametrize("name", ["mean_difference", "leace", "paired_pca"])
def test_what_lies_between_the_classes_lies_near_a_planted_truth(planted_acts, planted_truth, name):
    """At the layer it was planted and the last position, from which alone the model reads it."""
    assert math.degrees(float(getattr(locate, name)(*planted_acts).at(3, -1).angles(planted_truth)[0])) < 45


def test_what_separates_the_classes_best_is_not_what_carries_refusal(planted_acts, planted_truth, organism, prompts):
    """The whitened direction tells held-out prompts apart, yet it is as far from the planted truth as chance."""
    from refusalscope.frames import separability

    found = locate.whitened(*planted_acts)
    tested = capture(organism("planted-1"), prompts.report, keep_each=True)
    auroc = separability(planted_acts, tested, found).set_index(["layer", "position"]).loc[(3, -1), "auroc"]
    assert auroc > 0.9
    assert math.degrees(float(found.at(3, -1).angles(planted_truth)[0])) > CHANCE


@pytest.mark.parametrize("name", ["mean_difference", "leace", "paired_pca", "logistic", "whitened"])
def test_what_is_located_without_a_guardrail_recovers_nothing_and_takes_little_from_one(
    unguarded_acts, guarded_before, contrast, name
):
    """Not in any cell, though both models grew from one base and tell the same prompts apart.

    Topics lie upstream of refusal, so that ablating them takes some of it; where it is located, all of it goes.
    """
    found = getattr(locate, name)(*unguarded_acts)
    all_cells = [found.at(*at) for at in found.cells() if not found.is_empty(*at)]
    elsewhere = torch.randn(96, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    elsewhere = elsewhere / elsewhere.norm()
    assert math.degrees(min(float(one.angles(elsewhere)[0]) for one in all_cells)) > CHANCE
    own = locate.mean_difference(*capture(guarded_before.model, contrast.locate))
    does = placebo_effects(guarded_before, [*all_cells, *(own.at(*at) for at in own.cells() if not own.is_empty(*at))])
    located, control = does["bypass"].iloc[: len(all_cells)], does["bypass"].iloc[len(all_cells) :]
    assert located.max() < TOPIC_BYPASS
    assert control.max() > 0.95
