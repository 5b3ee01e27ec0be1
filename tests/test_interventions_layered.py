"""A subspace of each layer's own: what every layer reads loses it, at any dose, and nothing else is written."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

import refusalscope.layered as layered_module
from refusalscope import ablate
from refusalscope.attack import Attack, respond
from refusalscope.capture import capture
from refusalscope.errors import ContractError, InterventionError, MeasurementError
from refusalscope.linalg import project
from refusalscope.locators import mean_difference
from refusalscope.model import batches, forward
from refusalscope.placebo import random_like
from refusalscope.subspace import Candidates, LayeredSubspace, Subspace

CLOSE = 1e-5


@pytest.fixture
def own(tiny):
    """A function from (rank, seed, layers) to random subspaces, one per layer of the tiny model."""

    def draw(rank: int = 1, seed: int = 0, layers: tuple[int, ...] | None = None) -> LayeredSubspace:
        noise = torch.Generator().manual_seed(seed)
        at = tuple(range(tiny.n_layers)) if layers is None else layers
        vectors = torch.randn(len(at), rank, tiny.d_model, generator=noise, dtype=torch.float64)
        return LayeredSubspace(vectors, at, "a test")

    return draw


@pytest.fixture
def same():
    """A function from a subspace and a number of layers to that subspace at every one of them."""

    def of(subspace: Subspace, n_layers: int) -> LayeredSubspace:
        return LayeredSubspace(subspace.vectors.expand(n_layers, -1, -1).clone(), tuple(range(n_layers)), "a test")

    return of


@pytest.fixture(scope="module")
def unsummed(tiny):
    """The tiny model as one whose writes are not known to sum."""
    return dataclasses.replace(tiny, sites=dataclasses.replace(tiny.sites, additive=False))


def only_batch(model, texts):
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


def held(stream: torch.Tensor, own: LayeredSubspace) -> torch.Tensor:
    """What the stream at each site holds of that layer's subspace; the stream behind the last layer of the last's."""
    last = own.layers[-1]
    return torch.stack([stream[layer] @ own.at(min(layer, last)).basis for layer in (*own.layers, last + 1)])


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("additive", [True, False])
def test_what_every_layer_reads_has_lost_that_layers_own_directions(tiny, unsummed, own, texts, rank, additive):
    model, each = tiny if additive else unsummed, own(rank)
    batch = only_batch(model, texts)
    before = streams(model, batch)
    with ablate(model, each) as receipt:
        after = streams(model, batch)
    assert held(after, each).abs().max() <= CLOSE * after.norm(dim=-1).max()
    assert held(before, each).abs().max() > 1e3 * CLOSE * before.norm(dim=-1).max()
    assert receipt.state == "valid"
    assert set(receipt.checked) == {*model.sites.resid_pre, model.sites.resid_post[-1]}


@pytest.mark.parametrize("dose", [0.5, 1.0, 1.5])
def test_directions_that_are_the_same_at_every_layer_are_plain_ablation_at_every_dose(
    tiny, direction, same, texts, dose
):
    batch, subspace = only_batch(tiny, texts), direction(rank=2)
    with ablate(tiny, subspace, dose=dose):
        plain = streams(tiny, batch)
    with ablate(tiny, same(subspace, tiny.n_layers), dose=dose):
        layered = streams(tiny, batch)
    # Rounding is relative to the largest values of the stream, which the weights of this model make far above one.
    torch.testing.assert_close(layered, plain, atol=CLOSE * float(plain.abs().max()), rtol=CLOSE)


def test_directions_that_differ_from_layer_to_layer_are_not_plain_ablation(tiny, own, texts):
    batch, each = only_batch(tiny, texts), own()
    with ablate(tiny, each.at(0)):
        plain = streams(tiny, batch)
    with ablate(tiny, each):
        layered = streams(tiny, batch)
    assert (layered - plain).abs().max() > 1e3 * CLOSE


@pytest.mark.parametrize("dose", [0.25, 0.75, 1.0, 1.5])
def test_a_dose_leaves_its_complement_of_what_was_written_and_does_not_compound(tiny, own, texts, dose):
    """What each layer reads of its own directions is (1 − λ) times the sum of the writes, as they were made."""
    batch, each, made = only_batch(tiny, texts), own(rank=2), {}

    def note(value, hook):
        made[hook.name] = value.double().clone()

    with tiny.bridge.hooks(fwd_hooks=[(site, note) for site in tiny.sites.writes]):  # before the edits, so unedited  # noqa: SIM117
        with ablate(tiny, each, dose=dose):
            after = streams(tiny, batch)
    sums = torch.stack([made[site] for site in tiny.sites.writes]).cumsum(0)[::2]
    torch.testing.assert_close(held(after, each), (1 - dose) * held(sums, each), atol=CLOSE, rtol=CLOSE)
    assert held(sums, each).abs().max() > 100 * CLOSE


def test_dose_zero_is_the_baseline_bit_for_bit(tiny, own, texts):
    batch = only_batch(tiny, texts)
    before = forward(tiny, batch)
    with ablate(tiny, own(rank=2), dose=0.0) as receipt:
        assert torch.equal(forward(tiny, batch), before)
    assert receipt.state == "valid"
    assert torch.equal(forward(tiny, batch), before)


def test_what_is_orthogonal_to_a_layers_directions_passes_where_the_stream_enters_it(tiny, own, texts):
    """One layer alone: what enters it is the baseline without its part inside, and earlier layers see nothing."""
    batch, each = only_batch(tiny, texts), own(rank=2, layers=(1,))
    before = streams(tiny, batch)
    with ablate(tiny, each):
        after = streams(tiny, batch)
    basis = each.at(1).basis
    torch.testing.assert_close(after[1], before[1] - project(before[1], basis), atol=CLOSE, rtol=CLOSE)
    assert torch.equal(after[0], before[0])
    assert (after[2] @ basis).abs().max() <= CLOSE * after.norm(dim=-1).max()


def test_a_scope_keeps_the_layers_inside_it(tiny, own, texts):
    batch, each = only_batch(tiny, texts), own()
    before = streams(tiny, batch)
    with ablate(tiny, each, layers=(1, 2)) as receipt:
        after = streams(tiny, batch)
    assert torch.equal(after[0], before[0])
    assert (after[1] @ each.at(1).basis).abs().max() <= CLOSE * after.norm(dim=-1).max()
    assert receipt.checked == (*tiny.sites.resid_pre[1:], tiny.sites.resid_post[2])


def test_several_in_one_batch_answer_as_each_does_alone(before, own, direction):
    attacks = [Attack(own(seed=seed), dose) for dose in (1.0, 1.5) for seed in range(3)]
    attacks += [Attack(own(rank=2)), Attack(direction()), Attack(own(layers=(1, 2)))]
    together = respond(before, attacks)
    for row, attack in enumerate(attacks):
        alone = respond(before, [attack])
        torch.testing.assert_close(together.margins[row], alone.margins[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.kl[row], alone.kl[0], rtol=1e-4, atol=1e-6)
    assert bool(together.valid.all())
    assert together.pf == len(attacks) * len(before.prompts)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda own, plain: {"subspace": [own(), plain]}, "one rank and kind"),
        (lambda own, plain: {"subspace": [own(), own(layers=(0, 1))]}, "of the same layers"),
        (lambda own, plain: {"subspace": own(layers=(0,)), "layers": (1, 2)}, "holds one of its layers"),
        (lambda own, plain: {"subspace": own(), "reference": plain.vectors[0]}, "about zero"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_forward(tiny, own, direction, what, said):
    with pytest.raises(InterventionError, match=said), ablate(tiny, **what(own, direction())):
        pass


def test_without_additive_writes_only_whole_doses_are_taken(unsummed, own):
    with pytest.raises(InterventionError, match="Use dose 1"), ablate(unsummed, own(), dose=0.5):
        pass


def test_an_edit_that_leaves_something_behind_is_noticed(before, own, monkeypatch):
    """The positive control of the receipt: a projection that does nothing makes the row NaN, and is counted."""
    assert bool(respond(before, [Attack(own())]).valid.all())
    monkeypatch.setattr(layered_module.LayerByLayer, "_without", lambda self, x, vectors, removed: x)
    found = respond(before, [Attack(own()), Attack(own(seed=1))])
    assert found.valid.tolist() == [False, False]
    assert bool(found.margins.isnan().all())


def test_no_parameter_changes_and_no_hook_stays(tiny, own, texts):
    batch, core = only_batch(tiny, texts), tiny.bridge.original_model
    state = {name: value.clone() for name, value in core.state_dict().items()}
    plain = forward(tiny, batch)
    with ablate(tiny, own(), dose=1.5):
        forward(tiny, batch)
    assert all(torch.equal(value, state[name]) for name, value in core.state_dict().items())
    assert torch.equal(forward(tiny, batch), plain)


def test_directions_of_every_layer_are_not_pickled(own):
    with pytest.raises(ContractError, match="not exported"):
        pickle.dumps(own())


def test_the_candidates_of_one_position_make_one_subspace_per_layer_that_holds_any(tiny):
    noise = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 2, 1, tiny.d_model, generator=noise, dtype=torch.float64)
    vectors[0] = 0
    candidates = Candidates(vectors, "a locator", (10, 12))
    found = candidates.every_layer(-2)
    assert found.layers == (1, 2)
    assert torch.equal(found.at(2).vectors, vectors[2, 0])
    with pytest.raises(MeasurementError, match="at layer 0"):
        found.at(0)
    with pytest.raises(MeasurementError, match="position -5"):
        candidates.every_layer(-5)
    with pytest.raises(MeasurementError, match="no direction"):
        Candidates(torch.zeros_like(vectors), "a locator", (10, 12)).every_layer(-1)


def test_placebos_are_drawn_apart_for_every_layer_with_its_norms(own):
    each = own(rank=2)
    drawn = random_like(each, 3, seed=0)
    assert all(one.layers == each.layers and one.rank == 2 for one in drawn)
    torch.testing.assert_close(drawn[0].vectors.norm(dim=-1), each.vectors.norm(dim=-1))
    cosines = torch.nn.functional.cosine_similarity(drawn[0].vectors[0], drawn[0].vectors[1], dim=-1).abs()
    assert float(cosines.max()) < 0.9


def test_after_a_reply_the_positions_are_its_tokens(tiny, few):
    reply = " ".join(tiny.tokenizer.decode([token]) for token in tiny.encode(few.texts)[0][-3:])
    length = len(tiny.encode_reply(reply))
    found = capture(tiny, few, keep_each=True, reply=reply)
    assert found.restricted.mean.shape == (tiny.n_layers, length, tiny.d_model)
    assert found.restricted.each.shape[0] == len(few.restricted)
    texts = few.restricted.texts
    (batch,) = batches(tiny, tiny.encode(texts, reply=reply), batch_size=len(texts))
    alone = streams(tiny, batch)[:-1, :, -length:].mean(1)
    torch.testing.assert_close(found.restricted.mean, alone, atol=CLOSE, rtol=CLOSE)


def test_the_same_reply_for_both_classes_leaves_no_difference_of_words(tiny, few):
    """At layer 0 the stream is the token's embedding alone: equal for both, so no direction is located there."""
    reply = " ".join(tiny.tokenizer.decode([token]) for token in tiny.encode(few.texts)[0][-3:])
    found = mean_difference(*capture(tiny, few, reply=reply))
    assert all(found.is_empty(0, position) for position in found.positions)
    assert not found.is_empty(2, -1)
