"""Capture: streamed moments equal two passes in float64, at the places where Hugging Face has its hidden states."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

import oracle
from refusalscope import ablate, capture
from refusalscope.activations import Moments
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.model.hooking import hooked


@pytest.fixture(scope="module")
def hidden(tiny_dir, tiny, few):
    """Hugging Face's own residual stream entering every layer, one prompt at a time: [prompt, layer, pos, d]."""
    plain, places = oracle.float64_model(tiny_dir), tiny.n_positions

    @torch.no_grad()
    def of(prompts):
        runs = [plain(torch.tensor([ids]), output_hidden_states=True) for ids in tiny.encode(prompts.texts)]
        return torch.stack([torch.stack([layer[0, -places:] for layer in run.hidden_states[:-1]]) for run in runs])

    return {"restricted": of(few.restricted), "harmless": of(few.harmless)}


@pytest.mark.parametrize("sizes", [(1,), (7,), (1, 1, 1), (5, 3, 9), (2, 30)])
def test_streamed_moments_equal_two_passes(sizes):
    noise = torch.Generator().manual_seed(0)
    parts = [torch.randn(size, 2, 3, 4, generator=noise) + 1e3 for size in sizes]
    moments = Moments()
    for part in parts:
        moments.add(part)
    found, every = moments.activations("harmless"), torch.cat(parts).double()
    assert found.n == len(every)
    torch.testing.assert_close(found.mean, every.mean(0), atol=1e-10, rtol=0)
    if len(every) > 1:
        torch.testing.assert_close(found.variance, every.var(0), atol=1e-9, rtol=0)
    else:
        assert found.variance.isnan().all()


def test_moments_of_nothing_are_refused():
    with pytest.raises(MeasurementError, match="No restricted prompts"):
        Moments().activations("restricted")


def test_captured_moments_equal_those_of_hugging_face_at_every_layer_and_position(tiny, few, hidden):
    acts = capture(tiny, few)
    for label, found in zip(("restricted", "harmless"), acts, strict=True):
        assert (found.label, found.n) == (label, len(hidden[label]))
        torch.testing.assert_close(found.mean, hidden[label].mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.variance, hidden[label].var(0), atol=1e-5, rtol=1e-5)
        assert found.each is None


def test_single_activations_are_kept_in_the_prompts_order(tiny, few, hidden):
    found = capture(tiny, few, keep_each=True).restricted
    torch.testing.assert_close(found.each.double(), hidden["restricted"], atol=1e-5, rtol=1e-5)


def test_batches_of_any_size_give_the_same_moments(tiny, few):
    whole, single = capture(tiny, few), capture(dataclasses.replace(tiny, batch_size=1), few)
    for one, other in zip(whole, single, strict=True):
        torch.testing.assert_close(one.mean, other.mean, atol=1e-6, rtol=1e-6)


def test_capture_sees_an_intervention_and_leaves_no_hook(tiny, few, direction):
    subspace, hooks = direction(rank=1), sum(len(point.fwd_hooks) for point in tiny.bridge.hook_dict.values())
    with ablate(tiny, subspace) as receipt:
        found = capture(tiny, few).restricted.mean @ subspace.basis
    assert found.abs().max() < 1e-5
    assert (capture(tiny, few).restricted.mean @ subspace.basis).abs().max() > 1e-3
    assert receipt.state == "valid"
    assert sum(len(point.fwd_hooks) for point in tiny.bridge.hook_dict.values()) == hooks


def test_a_hook_that_does_not_fire_is_an_error_naming_the_first_such_site(tiny, few):
    fired: dict[str, int] = dict.fromkeys(tiny.bridge.hook_dict, 0)

    def count(_x, hook) -> None:
        fired[hook.name] += 1

    with hooked(tiny, dict.fromkeys(fired, count)):
        capture(tiny, few)
    one, other, *_ = (site for site, times in fired.items() if not times)
    sites = tiny.sites.resid_pre
    assert all(fired[site] for site in sites), "what fires is counted"
    for read, first in (((*sites[:2], one), one), ((sites[0], one, other), one), ((other, one, sites[2]), other)):
        deaf = dataclasses.replace(tiny, sites=dataclasses.replace(tiny.sites, resid_pre=read))
        with pytest.raises(InterventionError, match=re.escape(f"the hook at {first} did not fire")):
            capture(deaf, few)
    assert capture(tiny, few).restricted.n == len(few.restricted)


def test_a_class_without_prompts_is_refused(tiny, few):
    with pytest.raises(MeasurementError, match="No restricted prompts"):
        capture(tiny, few.harmless)
    with pytest.raises(MeasurementError, match="No harmless prompts"):
        capture(tiny, few.restricted)
