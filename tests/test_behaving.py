"""Behavioural contrast: directions come from prompts that behave as labelled, and the rest are counted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from refusalscope import capture, locate
from refusalscope.effect import LEAST_BEHAVING, baseline, behaving
from refusalscope.errors import MeasurementError
from refusalscope.optionality import Menu, measured
from refusalscope.optionality.declared import ground
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import readout

SMALL = Menu(best=1, doses=(1.0,))


@pytest.fixture(scope="module")
def known(guarded, prompts):
    return readout(guarded, prompts.locate)


@pytest.fixture(scope="module")
def mislabelled(prompts) -> Prompts:
    """The locate split, three harmless prompts of it called restricted and two restricted ones harmless."""
    swap = {row.id for row in (*prompts.locate.harmless[:3], *prompts.locate.restricted[:2])}
    other = {"restricted": "harmless", "harmless": "restricted"}
    rows = [
        dataclasses.replace(row, label=other[row.label], pair=None)
        if row.id in swap
        else dataclasses.replace(row, pair=None)
        for row in prompts.locate
    ]
    return Prompts(tuple(rows))


def test_prompts_that_do_not_behave_as_labelled_are_left_out_and_counted(guarded, known, prompts, mislabelled):
    right = ground(guarded, prompts.locate, known)
    found = ground(guarded, mislabelled, known)
    before = baseline(guarded, mislabelled, known)
    assert found.dropped == (int((~before.refused).sum()), int((~before.answered).sum()))
    assert found.dropped == (right.dropped[0] + 3, right.dropped[1] + 2)
    assert bool(found.before.refused.all())
    assert bool(found.before.answered.all())
    assert found.pf == len(mislabelled) + len(found.before.prompts)


def test_what_is_located_is_located_on_the_prompts_that_behave(guarded, known, mislabelled):
    found = ground(guarded, mislabelled, known)
    before = baseline(guarded, mislabelled, known)
    rows = [p for p, kept in zip(mislabelled.restricted, before.refused, strict=True) if kept]
    rows += [p for p, kept in zip(mislabelled.harmless, before.answered, strict=True) if kept]
    expected = capture(guarded, Prompts(tuple(rows)))
    torch.testing.assert_close(found.acts.restricted.mean, expected.restricted.mean)
    torch.testing.assert_close(found.acts.harmless.mean, expected.harmless.mean)


def test_labels_as_asked_drop_nothing_and_give_the_activations_of_every_prompt(guarded, known, mislabelled):
    found, every = ground(guarded, mislabelled, known, labels="asked"), capture(guarded, mislabelled)
    assert found.dropped == (0, 0)
    assert torch.equal(found.acts.restricted.mean, every.restricted.mean)
    assert torch.equal(found.acts.harmless.mean, every.harmless.mean)
    other = ground(guarded, mislabelled, known)
    assert not torch.equal(other.acts.restricted.mean, every.restricted.mean)


def test_a_baseline_of_some_prompts_is_theirs(guarded, known, mislabelled):
    before = baseline(guarded, mislabelled, known)
    some = behaving(before)
    again = baseline(guarded, some.prompts, known)
    torch.testing.assert_close(some.restricted, again.restricted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(some.harmless_base, again.harmless_base, rtol=1e-4, atol=1e-3)
    assert torch.equal(some.refused, again.refused)
    assert torch.equal(some.answered, again.answered)
    assert behaving(before, labels="asked") is before


def test_where_every_prompt_behaves_both_labels_give_the_same_optionality(guarded, known, prompts):
    before = behaving(baseline(guarded, prompts.locate, known))
    rows = [dataclasses.replace(row, pair=None) for row in (*before.prompts, *prompts.select, *prompts.report)]
    clean = ContrastSet(Prompts(tuple(rows)), source="behaving.jsonl")
    same, asked = (
        measured(guarded, clean, known, menu=SMALL, placebos=2, labels=labels, progress=False)
        for labels in ("behaviour", "asked")
    )
    assert same.bypass == asked.bypass
    assert same.suppression == asked.suppression
    assert same.worst == asked.worst


def test_mislabelled_prompts_bend_the_direction_of_labels_as_asked_and_not_that_of_behaviour(
    guarded, known, prompts, mislabelled
):
    truth = locate.mean_difference(*ground(guarded, prompts.locate, known).acts).at(3, -1).vectors[0]
    cosine = {
        labels: float(
            torch.cosine_similarity(
                locate.mean_difference(*ground(guarded, mislabelled, known, labels=labels).acts).at(3, -1).vectors[0],
                truth,
                dim=0,
            )
        )
        for labels in ("behaviour", "asked")
    }
    assert cosine["behaviour"] > cosine["asked"]


@pytest.mark.parametrize("kept", [0, LEAST_BEHAVING - 1, LEAST_BEHAVING])
def test_fewer_than_three_prompts_that_behave_are_one_line(guarded, known, prompts, kept):
    before = baseline(guarded, prompts.locate, known)
    few = dataclasses.replace(before, refused=torch.arange(len(before.refused)) < kept)
    if kept >= LEAST_BEHAVING:
        assert len(behaving(few).prompts.restricted) == kept
        return
    with pytest.raises(MeasurementError, match=rf"refuses {kept} of 16 .*locating needs 3 of each") as caught:
        behaving(few)
    assert "\n" not in str(caught.value)
    assert behaving(few, labels="asked") is few


def test_a_model_without_a_guardrail_says_so_before_anything_is_located(organism, prompts, known):
    with pytest.raises(MeasurementError, match="locating needs 3 of each"):
        ground(organism("unguarded"), prompts.locate, known)
