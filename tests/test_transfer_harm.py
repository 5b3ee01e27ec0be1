"""Harmfulness against refusal, cross-ablation and the over-refusal trade-off: theorems, known answers, reasons."""

from __future__ import annotations

import pickle

import pytest
import torch

from refusalscope import ablate, baseline, capture, language, readout
from refusalscope.errors import ContractError, MeasurementError
from refusalscope.model import batches, forward
from refusalscope.model.hooking import hooked
from refusalscope.organisms.language import N_RESTRICTED
from refusalscope.organisms.prompt_set import question_prompts
from refusalscope.prompts import Prompts
from refusalscope.subspace import Subspace
from refusalscope.transfer import (
    cosines_by_layer,
    cross_ablation,
    harm_and_refusal,
    plane,
    refusal_by_dose,
    tail,
)


@pytest.fixture(scope="module")
def planted(organism, contrast):
    model, asked = organism("planted-1"), contrast.report.sample(24, seed=0)
    refusal = readout(model, asked, openings=[d.refusal.split()[0] for d in language().dialects])
    return baseline(model, asked, refusal), tail(model, contrast.locate)


@pytest.fixture(scope="module")
def pair(planted):
    return harm_and_refusal(planted[1], layer=3, position=-1)


@pytest.fixture(scope="module")
def what_is():
    """Allowed questions about restricted items."""
    asked = language().questions("what-is", held_out=True)
    return question_prompts(q for q in asked if q.item.category < N_RESTRICTED and q.item.index % 40 == 1)


# --- where it is read ---


def test_the_tail_is_what_capture_reads_and_the_token_before_it(tiny, few):
    found, known = tail(tiny, few).activations, capture(tiny, few, keep_each=True)
    for label in (0, 1):
        torch.testing.assert_close(found[label].each[:, :, 1:], known[label].each, rtol=0, atol=0)
        torch.testing.assert_close(found[label].mean[:, 1:], known[label].mean, rtol=0, atol=0)


def test_the_first_position_is_the_last_token_of_the_instruction(tiny, few):
    each = tail(tiny, few).activations.restricted.each
    for row, ids in enumerate(tiny.encode(few.restricted.texts)):
        assert tuple(ids[-tiny.n_positions :]) == tiny.template.suffix
        read = {}
        (batch,) = batches(tiny, [ids])

        def note(x, hook, read=read):
            read["x"] = x[0, len(x[0]) - tiny.n_positions - 1].detach().float()

        with hooked(tiny, {tiny.sites.resid_pre[2]: note}):
            forward(tiny, batch)
        torch.testing.assert_close(each[row, 2, 0], read["x"], rtol=1e-4, atol=1e-5)


def test_directions_sit_at_their_positions_and_an_empty_one_is_refused(planted, pair):
    positions = planted[0].model.n_positions
    assert (pair.harmfulness.layer, pair.harmfulness.position) == (3, -positions - 1)
    assert (pair.refusal.layer, pair.refusal.position) == (3, -1)
    with pytest.raises(MeasurementError, match=r"layer 0.*later layer"):
        harm_and_refusal(planted[1], layer=0)
    with pytest.raises(ContractError):
        pickle.dumps(pair)


# --- cosines ---


def test_a_direction_has_cosine_one_with_itself_and_an_empty_layer_keeps_its_row(planted):
    model, located = planted[0].model, planted[1]
    frame = cosines_by_layer(located, position=-model.n_positions - 1, random=19, shuffled=9)
    assert frame["layer"].tolist() == list(range(model.n_layers))
    assert frame["value"][1:].tolist() == pytest.approx([1.0] * (model.n_layers - 1))
    assert frame["value"][:1].isna().all()
    assert frame["note"][0] == "the means are equal at this layer"


def test_harmfulness_and_refusal_are_two_directions_in_a_planted_organism(planted):
    frame = cosines_by_layer(planted[1], random=19, shuffled=9).query("layer >= 3")
    assert (frame["high"] < 0.5).all()
    assert (frame["ceiling"] > 0.9).all()


# --- cross-ablation ---


@pytest.fixture(scope="module")
def crossed(planted, pair):
    before, _ = planted
    return cross_ablation(before.model, pair, before.prompts, placebos=5)


def values(frame, **where):
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame.sort_values("layer")["value"]


def test_what_is_ablated_is_not_read(crossed):
    for name in ("harmfulness", "refusal"):
        assert (values(crossed, ablated=name, read=name, metric="auroc") == 0.5).all()
        assert (values(crossed, ablated=name, read=name, metric="cosine") == 0).all()
        assert (values(crossed, ablated=name, read=name, metric="separation") == 0).all()


def test_planted_refusal_is_read_after_harmfulness_is_ablated(crossed):
    for ablated in ("nothing", "harmfulness"):
        assert (values(crossed, ablated=ablated, read="refusal", metric="auroc").iloc[3:] > 0.98).all()
    assert crossed.query("read == 'refusal' and metric == 'auroc' and layer >= 3")["random_low"].min() > 0.95


def test_a_reading_equals_its_definition(crossed, planted, pair):
    before, _ = planted
    with ablate(before.model, pair.harmfulness):
        acts = capture(before.model, before.prompts, keep_each=True)
    unit = pair.refusal.vectors[0] / pair.refusal.norm
    x, y = (kept.each[:, 4, -1].double() for kept in acts)
    where = {"ablated": "harmfulness", "read": "refusal"}
    separation = values(crossed, **where, metric="separation").iloc[4]
    assert separation == pytest.approx(float((x @ unit).mean() - (y @ unit).mean()), rel=1e-5)
    cosine = torch.cosine_similarity(x, unit[None], dim=1).mean()
    assert values(crossed, **where, metric="cosine").iloc[4] == pytest.approx(float(cosine), rel=1e-5)


def test_directions_by_any_name_are_read_as_a_pair_is(crossed, planted, pair):
    before, _ = planted
    again = cross_ablation(before.model, dict(pair.items()), before.prompts, placebos=5)
    assert again["value"].tolist() == crossed["value"].tolist()
    assert again["random_high"].tolist() == crossed["random_high"].tolist()
    placeless = {"one": Subspace(pair.refusal.vectors, None, None, "no place"), "other": pair.refusal}
    same = cross_ablation(before.model, placeless, before.prompts, placebos=0).set_index(["ablated", "read", "metric"])
    for metric in ("auroc", "cosine"):
        told = same.loc[("nothing", "one", metric)], same.loc[("nothing", "other", metric)]
        assert told[0]["value"].tolist() == told[1]["value"].tolist()


def test_planes_are_no_directions_to_read_and_neither_is_nothing(planted, direction):
    before, _ = planted
    with pytest.raises(MeasurementError, match="single directions; got none"):
        cross_ablation(before.model, {}, before.prompts)
    with pytest.raises(MeasurementError, match="got wide of another rank"):
        cross_ablation(before.model, {"wide": direction(rank=2, width=before.model.d_model)}, before.prompts)


def test_a_plane_holds_every_prompt_once(planted, pair, what_is):
    before, _ = planted
    frame = plane(before.model, pair, {"restricted": before.prompts.restricted, "borderline": what_is})
    assert frame["prompts"].value_counts().to_dict() == {
        "restricted": len(before.prompts.restricted),
        "borderline": len(what_is),
    }
    acts = capture(before.model, before.prompts, keep_each=True).restricted
    expected = acts.each[:, 3, -1].double() @ pair.refusal.basis[:, 0]
    assert frame["refusal"][: len(expected)].tolist() == pytest.approx(expected.tolist())
    means = frame.groupby("prompts")["refusal"].mean()
    assert means["restricted"] > means["borderline"]


# --- the trade-off ---


def rates(frame, prompts):
    return frame[frame["prompts"] == prompts].set_index("dose")["value"]


def test_ablation_takes_a_planted_refusal_away_and_random_directions_do_not(planted, pair, what_is):
    before, _ = planted
    frame = refusal_by_dose(before, pair.refusal, what_is, doses=(0.0, 1.0), placebos=9)
    assert frame.attrs["pf"] == (1 + 1 + 10) * (len(before.prompts) + len(what_is))
    restricted = rates(frame, "restricted")
    assert restricted[0.0] == pytest.approx(float(before.refused.double().mean()))
    assert restricted[0.0] >= 0.95
    assert restricted[1.0] <= 0.05
    assert frame.query("prompts == 'restricted'")["random_low"].min() >= 0.95
    assert frame.query("prompts == 'restricted' and dose == 1")["random_p"].item() == pytest.approx(0.1)
    assert rates(frame, "borderline")[0.0] <= 0.05


def test_addition_brings_refusal_to_harmless_prompts_and_random_directions_do_not(planted, pair, what_is):
    before, _ = planted
    frame = refusal_by_dose(before, pair.refusal, what_is, by="addition", doses=(1.0,), placebos=3)
    assert rates(frame, "harmless")[1.0] >= 0.8
    assert frame.query("prompts == 'harmless'")["random_high"].max() <= 0.1


def test_an_intervention_that_cannot_be_made_keeps_its_rows_with_the_reason(before, few):
    plain = Subspace(torch.eye(before.model.d_model, dtype=torch.float64)[:2], 1, -1, "a test")
    frame = refusal_by_dose(before, plain, few.harmless, by="addition", doses=(0.0, 1.0), placebos=2)
    assert len(frame) == 6
    assert frame["value"].isna().all()
    assert frame["note"].str.contains("one vector and its layer").all()


def test_a_trade_off_needs_doses_and_borderline_prompts(before, few, direction):
    for borderline, doses in ((Prompts(()), (1.0,)), (few.harmless, ())):
        with pytest.raises(MeasurementError, match="trade-off needs"):
            refusal_by_dose(before, direction(), borderline, doses=doses)
