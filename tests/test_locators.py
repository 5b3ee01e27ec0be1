"""Locators and placebos: the difference in means equals an oracle and finds a planted shift; placebos do not."""

from __future__ import annotations

import math

import pytest
import torch

import oracle
from refusalscope import capture, locate, placebo
from refusalscope.activations import Moments
from refusalscope.errors import MeasurementError
from refusalscope.linalg import energy_share, principal_angles
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
