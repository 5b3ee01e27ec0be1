"""Interventions: the theorems of projection, and an oracle in float64 that shares no code with them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import oracle
from refusalscope import ablate, add
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.linalg import orthonormal, project
from refusalscope.model import batches, forward, load
from refusalscope.subspace import Subspace

WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "qwen3": ("Qwen3ForCausalLM", {**WIDE, "num_hidden_layers": 3}),
    "gemma2": ("Gemma2ForCausalLM", {**WIDE, "num_hidden_layers": 3, "sliding_window": 4}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
}
CLOSE = 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, make_tiny):
    architecture, sizes = FAMILIES[request.param]
    return load(make_tiny(request.param, architecture, **sizes))


@pytest.fixture(scope="module")
def unsummed(tiny):
    """The tiny model as one whose writes are not known to sum: the other way of ablating."""
    return dataclasses.replace(tiny, sites=dataclasses.replace(tiny.sites, additive=False))


def only_batch(model, texts):
    """The requests as one ragged batch, padding and all."""
    (batch,) = batches(model, model.encode(texts), batch_size=len(texts))
    return batch


def streams(model, batch) -> torch.Tensor:
    """The residual stream entering every layer and leaving the last, read by hooks of the test's own, in float64."""
    seen: dict[str, torch.Tensor] = {}
    sites = (*model.sites.resid_pre, model.sites.resid_post[-1])
    hooks = [(site, lambda value, hook: seen.__setitem__(hook.name, value.double().clone())) for site in sites]
    with model.bridge.hooks(fwd_hooks=hooks):
        forward(model, batch)
    return torch.stack([seen[site] for site in sites])


def held(stream: torch.Tensor, subspace: Subspace) -> torch.Tensor:
    """What a stream holds of a subspace, one number per dimension."""
    return stream @ subspace.basis


@pytest.mark.parametrize("rank", [1, 3])
def test_after_ablation_the_projection_is_zero_at_every_residual_site(family, direction, texts, rank):
    batch, subspace = only_batch(family, texts), direction(rank=rank)
    before = streams(family, batch)
    with ablate(family, subspace):
        after = streams(family, batch)
    assert held(after, subspace).abs().max() <= CLOSE * after.norm(dim=-1).max()
    assert held(before, subspace).abs().max() > 1e3 * CLOSE * before.norm(dim=-1).max()


def test_ablation_without_additive_writes_also_clears_every_residual_site(unsummed, direction, texts):
    batch, subspace = only_batch(unsummed, texts), direction(rank=2)
    with ablate(unsummed, subspace):
        after = streams(unsummed, batch)
    assert held(after, subspace).abs().max() <= CLOSE * after.norm(dim=-1).max()


def test_ablating_twice_is_ablating_once(tiny, direction, texts):
    batch, subspace = only_batch(tiny, texts), direction(rank=2)
    with ablate(tiny, subspace):
        once = streams(tiny, batch)
        with ablate(tiny, subspace):
            twice = streams(tiny, batch)
    # Rounding is relative to the largest values of the stream, which the weights of this model make far above one.
    torch.testing.assert_close(twice, once, atol=CLOSE * float(once.abs().max()), rtol=CLOSE)


def test_dose_zero_is_the_baseline_bit_for_bit(family, direction, texts):
    batch = only_batch(family, texts)
    before = forward(family, batch)
    with ablate(family, direction(rank=2), dose=0.0) as receipt:
        assert torch.equal(forward(family, batch), before)
    with add(family, direction(), dose=0.0):
        assert torch.equal(forward(family, batch), before)
    assert receipt.state == "valid"


def test_ablation_leaves_orthogonal_activations_unchanged(tiny, direction, texts):
    """At the entry of the scope: what is outside U passes, and what is inside goes."""
    batch, subspace = only_batch(tiny, texts), direction(rank=2)
    before = streams(tiny, batch)[0]
    with ablate(tiny, subspace):
        after = streams(tiny, batch)[0]
    torch.testing.assert_close(after, before - project(before, subspace.basis), atol=CLOSE, rtol=CLOSE)
    outside = direction(rank=1, seed=9).vectors[0]
    outside = outside - project(outside, subspace.basis)
    torch.testing.assert_close(after @ outside, before @ outside, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_rank_of_the_stream_falls_by_k(tiny, direction, texts, rank):
    batch, whole = only_batch(tiny, texts), torch.linalg.matrix_rank
    before = streams(tiny, batch)[-1].flatten(0, 1)
    with ablate(tiny, direction(rank=rank)):
        after = streams(tiny, batch)[-1].flatten(0, 1)
    assert int(whole(before, rtol=1e-5)) == tiny.d_model
    assert int(whole(after, rtol=1e-5)) == tiny.d_model - rank


@pytest.mark.parametrize("dose", [0.25, 0.5, 0.9])
def test_a_dose_leaves_its_complement_of_every_write(tiny, direction, texts, dose):
    """Each write, as its layer made it, keeps 1 − λ; so the stream holds (1 − λ) times the sum of what was written."""
    batch, subspace, made = only_batch(tiny, texts), direction(rank=2), {}

    def note(value, hook):
        made[hook.name] = value.double().clone()

    with tiny.bridge.hooks(fwd_hooks=[(site, note) for site in tiny.sites.writes]):  # before the edits, so unedited  # noqa: SIM117
        with ablate(tiny, subspace, dose=dose):
            after = streams(tiny, batch)
    written = torch.stack([made[site] for site in tiny.sites.writes])
    sums = written.cumsum(0)[::2]
    torch.testing.assert_close(held(after, subspace), (1 - dose) * held(sums, subspace), atol=CLOSE, rtol=CLOSE)
    assert held(sums, subspace).abs().max() > 100 * CLOSE


def test_an_affine_ablation_moves_the_subspace_to_the_reference(tiny, direction, texts):
    batch, subspace, centre = only_batch(tiny, texts), direction(rank=2), direction(seed=5).vectors[0]
    with ablate(tiny, subspace, reference=centre):
        after = streams(tiny, batch)
    aim = (centre @ subspace.basis).expand_as(held(after, subspace))
    torch.testing.assert_close(held(after, subspace), aim, atol=CLOSE, rtol=CLOSE)
    assert aim.abs().min() > 100 * CLOSE


def test_an_affine_ablation_without_additive_writes_moves_it_too(unsummed, direction, texts):
    batch, subspace, centre = only_batch(unsummed, texts), direction(rank=2), direction(seed=5).vectors[0]
    with ablate(unsummed, subspace, reference=centre):
        after = streams(unsummed, batch)
    aim = (centre @ subspace.basis).expand_as(held(after, subspace))
    torch.testing.assert_close(held(after, subspace), aim, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("layers", [(0, 1), (1, 1), (1, 2), (2, 2)])
def test_a_scope_leaves_earlier_layers_as_they_are_and_is_empty_inside(tiny, direction, texts, layers):
    batch, subspace, (first, last) = only_batch(tiny, texts), direction(rank=2), layers
    before = streams(tiny, batch)
    with ablate(tiny, subspace, layers=layers):
        after = streams(tiny, batch)
    assert torch.equal(after[:first], before[:first])
    inside = after[first : last + 2]
    assert held(inside, subspace).abs().max() <= CLOSE * inside.norm(dim=-1).max()
    if last + 2 < len(after):
        assert held(after[last + 2 :], subspace).abs().max() > 100 * CLOSE


@pytest.mark.parametrize("layers", [(-1, 1), (2, 1), (0, 3)])
def test_a_scope_outside_the_model_is_refused(tiny, direction, layers):
    with pytest.raises(InterventionError, match="outside the layers"), ablate(tiny, direction(), layers=layers):
        pass


@pytest.mark.parametrize("centred", [False, True])
def test_subspaces_row_by_row_equal_one_by_one(tiny, direction, texts, centred):
    batch, several = only_batch(tiny, texts), [direction(rank=2, seed=seed) for seed in range(3)]
    centre = direction(seed=5).vectors[0] if centred else None
    copied = dataclasses.replace(
        batch, tokens=batch.tokens.repeat(3, 1), mask=batch.mask.repeat(3, 1), rows=batch.rows.repeat(3)
    )
    with ablate(tiny, several, reference=centre) as receipt:
        together = forward(tiny, copied).unflatten(0, (3, len(batch)))
    alone = []
    for one in several:
        with ablate(tiny, one, reference=centre):
            alone.append(forward(tiny, batch))
    torch.testing.assert_close(together, torch.stack(alone), atol=CLOSE, rtol=CLOSE)
    assert (alone[0] - alone[1]).abs().max() > 100 * CLOSE
    assert receipt.state == "valid"


def test_rows_that_cannot_be_shared_out_are_refused(tiny, direction, texts):
    with pytest.raises(InterventionError, match="3 equal blocks"):  # noqa: SIM117
        with ablate(tiny, [direction(seed=seed) for seed in range(3)]):
            forward(tiny, only_batch(tiny, texts[:4]))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_addition_moves_its_layer_exactly_and_no_earlier_one(tiny, direction, texts, layer):
    batch, subspace = only_batch(tiny, texts), direction(layer=layer)
    before = streams(tiny, batch)
    with add(tiny, subspace, dose=-0.5):
        after = streams(tiny, batch)
    assert torch.equal(after[:layer], before[:layer])
    moved = before[layer] - 0.5 * subspace.vectors[0]
    torch.testing.assert_close(after[layer], moved, atol=1e-6, rtol=1e-6)


def test_a_fractional_dose_is_refused_where_writes_do_not_sum(unsummed, direction, texts):
    with pytest.raises(InterventionError, match="Use dose 1"), ablate(unsummed, direction(), dose=0.5):
        pass
    with ablate(unsummed, direction(), dose=0.0):
        pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 2}, "one vector"),
        ({"layer": None}, "one vector and its layer"),
        ({"layer": 3}, "outside the layers"),
        ({"layer": -1}, "outside the layers"),
        ({"width": 16}, "width 16"),
    ],
)
def test_an_addition_that_makes_no_sense_is_refused_before_any_forward(tiny, direction, given, said):
    with pytest.raises(InterventionError, match=said), add(tiny, direction(**given)):
        pass


def test_an_ablation_that_makes_no_sense_is_refused_before_any_forward(tiny, direction):
    wrong = [
        ([], {}, "empty"),
        (direction(width=16), {}, "width 16"),
        ([direction(rank=1), direction(rank=2)], {}, "one rank"),
        (direction(), {"dose": float("nan")}, "not a finite"),
    ]
    for subspace, options, said in wrong:
        with pytest.raises(InterventionError, match=said), ablate(tiny, subspace, **options):
            pass


def test_half_precision_is_cleared_to_its_own_rounding_and_double_to_float64s(tiny_dir, direction, texts):
    for dtype in (torch.bfloat16, torch.float64):
        model = load(tiny_dir, dtype=dtype)
        batch, subspace, eps = only_batch(model, texts), direction(rank=2), torch.finfo(dtype).eps
        with ablate(model, subspace) as receipt:
            after = streams(model, batch)
        assert receipt.state == "valid"
        assert held(after, subspace).abs().max() <= 8 * eps * after.norm(dim=-1).max()
        baseline = forward(model, batch)
        with ablate(model, subspace, dose=0.0):
            assert torch.equal(forward(model, batch), baseline)


CASES = {
    "rank 1": {"rank": 1},
    "rank 3": {"rank": 3},
    "half": {"rank": 2, "dose": 0.5},
    "affine": {"rank": 2, "affine": True},
    "affine half": {"rank": 1, "affine": True, "dose": 0.5},
    "scope": {"rank": 2, "layers": (1, 1)},
}


@pytest.mark.parametrize("case", CASES)
def test_ablated_logits_equal_those_of_plain_hooks_in_float64(tiny, tiny_dir, direction, texts, case):
    options = dict(CASES[case])
    subspace = direction(rank=options.pop("rank"))
    if options.pop("affine", False):
        options["reference"] = direction(seed=5).vectors[0]
    plain, rows = oracle.float64_model(tiny_dir), tiny.encode(texts)
    with oracle.ablated(plain, subspace.vectors, **options):
        expected = oracle.last_logits(plain, rows)
    (batch,) = batches(tiny, rows, batch_size=len(rows))
    with ablate(tiny, subspace, **options):
        found = forward(tiny, batch)[:, -1]
    torch.testing.assert_close(found.double(), expected[batch.rows], atol=1e-4, rtol=1e-4)
    assert (expected - oracle.last_logits(plain, rows)).abs().max() > 1e-2


@pytest.mark.parametrize("layer", [0, 2])
def test_added_logits_equal_those_of_plain_hooks_in_float64(tiny, tiny_dir, direction, texts, layer):
    subspace, plain, rows = direction(layer=layer), oracle.float64_model(tiny_dir), tiny.encode(texts)
    with oracle.added(plain, layer, subspace.vectors[0]):
        expected = oracle.last_logits(plain, rows)
    (batch,) = batches(tiny, rows, batch_size=len(rows))
    with add(tiny, subspace):
        found = forward(tiny, batch)[:, -1]
    torch.testing.assert_close(found.double(), expected[batch.rows], atol=1e-4, rtol=1e-4)


def test_orthonormal_bases_are_orthonormal_and_refuse_dependent_vectors(direction):
    basis = orthonormal(direction(rank=4).vectors)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)
    for vectors in (direction().vectors.repeat(2, 1), torch.zeros(1, 8), torch.full((1, 8), float("inf"))):
        with pytest.raises(MeasurementError):
            orthonormal(vectors)
