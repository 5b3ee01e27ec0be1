"""Attribution: writes sum to the projection; heads are what their weights make of them; top writers carry refusal."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from refusalscope import baseline, capture, language, margin, readout
from refusalscope.attribution import attribution, knock_out, knockout_curve, mean_writes
from refusalscope.errors import ContractError, InterventionError, MeasurementError, ModelError
from refusalscope.locators.mean_difference import mean_difference
from refusalscope.model import batches, forward, load
from refusalscope.model.hooking import hooked
from refusalscope.model.writes import find_writers, read_writes

# --- writes ---


@pytest.fixture(scope="module")
def post_normed(make_tiny):
    """A Gemma 2 with random weights: a norm stands behind its heads, so that they do not add up to what is written."""
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return load(make_tiny("gemma2", "Gemma2ForCausalLM", **settings, **heads))


def last_residual(model, batch, position):
    seen = {}

    def note(x, hook):
        seen["x"] = x[:, position].detach().double()

    with hooked(model, {model.sites.resid_post[-1]: note}):
        forward(model, batch)
    return seen["x"]


@pytest.mark.parametrize("position", [-1, -4])
def test_writes_sum_to_the_residual_stream(tiny, texts, position):
    rows = tiny.encode(texts)
    writers, (batch,) = find_writers(tiny, rows[:4]), batches(tiny, rows, batch_size=len(rows))
    writes = read_writes(tiny, writers, batch, position=position)
    assert writes.shape[1] == len(writers.components) == 1 + 3 * (4 + 1)
    torch.testing.assert_close(writes.sum(1), last_residual(tiny, batch, position), rtol=1e-4, atol=1e-5)


def test_heads_behind_a_norm_are_not_told_apart_and_writes_still_sum(post_normed, texts):
    rows = post_normed.encode(texts)
    writers, (batch,) = find_writers(post_normed, rows[:4]), batches(post_normed, rows, batch_size=len(rows))
    assert writers.head_sites == ()
    assert [one.name for one in writers.components] == [
        "embedding",
        "L0 attention",
        "L0 MLP",
        "L1 attention",
        "L1 MLP",
    ]
    writes = read_writes(post_normed, writers, batch, position=-1)
    torch.testing.assert_close(writes.sum(1), last_residual(post_normed, batch, -1), rtol=1e-4, atol=1e-5)


def test_a_heads_write_is_its_value_times_its_columns_of_the_output_projection(tiny, texts):
    rows = tiny.encode(texts[:5])
    writers, (batch,) = find_writers(tiny, rows), batches(tiny, rows)
    seen = {}

    def note(x, hook):
        seen["z"] = x[:, -1].detach().double().reshape(len(x), -1)

    with hooked(tiny, {writers.head_sites[1]: note}):
        forward(tiny, batch)
    weight = dict(tiny.bridge.original_model.named_parameters())
    output = next(w for name, w in weight.items() if "layers.1." in name and "o_proj" in name).detach().double()
    index = [one.name for one in writers.components].index("L1H2")
    expected = seen["z"][:, 16:24] @ output[:, 16:24].T
    torch.testing.assert_close(read_writes(tiny, writers, batch, position=-1)[:, index], expected, rtol=1e-4, atol=1e-6)


def test_writes_that_do_not_sum_are_refused(tiny, texts):
    other = dataclasses.replace(tiny, sites=dataclasses.replace(tiny.sites, additive=False))
    with pytest.raises(ModelError, match="do not sum"):
        find_writers(other, tiny.encode(texts[:2]))


# --- attribution ---


@pytest.mark.parametrize("cell", [(1, -1), (2, -3)])
def test_upstream_attributions_sum_to_the_difference_in_projection(tiny, few, contrast, cell):
    """The theorem: what the residual holds of a direction is what its writers wrote of it."""
    one = mean_difference(*capture(tiny, contrast.locate.sample(8, seed=0))).at(*cell)
    found = attribution(tiny, one, few, random=19)
    acts = capture(tiny, few)
    gap = (acts.restricted.mean - acts.harmless.mean)[cell] @ one.basis[:, 0]
    upstream = found.frame[found.frame["upstream"]]
    assert upstream["value"].sum() == pytest.approx(float(gap), rel=1e-4, abs=1e-6)
    assert found.frame["value"].sum() == pytest.approx(found.total, rel=1e-6)
    assert set(upstream["layer"]) == set(range(cell[0]))
    assert found.pf == len(few)
    assert found.position == cell[1]


def test_a_flipped_direction_flips_every_attribution(tiny, few, direction):
    one = direction()
    there, back = (
        attribution(tiny, each, few, random=0).frame["value"]
        for each in (one, dataclasses.replace(one, vectors=-one.vectors))
    )
    assert there.tolist() == pytest.approx((-back).tolist())


@pytest.mark.parametrize("fault", ["rank", "position", "labels"])
def test_what_cannot_be_attributed_is_refused(tiny, few, direction, fault):
    one = direction(rank=2 if fault == "rank" else 1)
    asked = few.restricted if fault == "labels" else few
    with pytest.raises(MeasurementError, match=r"one direction, both classes and a position in -5\.\.-1"):
        attribution(tiny, one, asked, position=-9 if fault == "position" else -1)


# --- knock-out ---


def everything(means):
    return [one for one in means.writers.components if one.kind != "embedding"]


def test_with_every_component_knocked_out_all_prompts_are_one(before, tiny, contrast):
    """Then the last residual is the template's embedding plus mean writes, whatever was asked."""
    means = mean_writes(tiny, contrast.select.harmless.sample(8, seed=1))
    with knock_out(tiny, everything(means), means) as receipt:
        margins = margin(tiny, before.prompts.restricted, before.readout)
    assert receipt.state == "valid"
    assert float(margins.max() - margins.min()) < 1e-4
    assert float(before.restricted.max() - before.restricted.min()) > 1e-2


def test_whole_attentions_are_knocked_out_where_heads_are_not_told_apart(post_normed, few):
    means = mean_writes(post_normed, few.harmless)
    refusal = readout(post_normed, few, openings=[d.refusal.split()[0] for d in language().dialects])
    with knock_out(post_normed, everything(means), means):
        margins = margin(post_normed, few.restricted, refusal)
    assert float(margins.max() - margins.min()) < 1e-4


def test_a_head_that_writes_its_own_value_changes_nothing_and_its_neighbours_are_left_alone(tiny, few, before):
    one_prompt = few.restricted[:1]
    means = mean_writes(tiny, one_prompt)
    component = next(one for one in means.writers.components if one.name == "L1H2")
    with knock_out(tiny, [component], means):
        same = margin(tiny, one_prompt, before.readout)
        other = margin(tiny, few.restricted[1:], before.readout)
    torch.testing.assert_close(same, margin(tiny, one_prompt, before.readout), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, before.restricted[1:], rtol=1e-4, atol=1e-5)


def test_after_a_knock_out_the_model_is_as_it_was(before, tiny, few):
    means = mean_writes(tiny, few.harmless)
    with knock_out(tiny, everything(means)[:3], means):
        margin(tiny, few.restricted, before.readout)
    assert torch.equal(margin(tiny, few.restricted, before.readout), before.restricted)
    with pytest.raises(ZeroDivisionError), knock_out(tiny, everything(means)[:3], means):
        raise ZeroDivisionError
    assert torch.equal(margin(tiny, few.restricted, before.readout), before.restricted)


def test_a_weight_changed_inside_a_knock_out_is_noticed(tiny, few):
    means = mean_writes(tiny, few.harmless)
    weight = next(tiny.bridge.original_model.parameters())
    noticed = pytest.raises(InterventionError, match="changed inside the block")
    with noticed, knock_out(tiny, everything(means), means), torch.no_grad():
        weight.mul_(1.0)


def test_what_cannot_be_knocked_out_is_refused(tiny, few):
    means = mean_writes(tiny, few.harmless)
    for components, said in (([], "nothing"), ([means.writers.components[0]], "embedding")):
        with pytest.raises(InterventionError, match=f"Cannot knock out {said}"), knock_out(tiny, components, means):
            pass
    with pytest.raises(MeasurementError, match="set is empty"):
        mean_writes(tiny, few.harmless.where(category="no such"))
    with pytest.raises(ContractError):
        pickle.dumps(means)


@pytest.fixture(scope="module")
def planted(organism, contrast):
    model, asked = organism("planted-1"), contrast.report.sample(24, seed=0)
    refusal = readout(model, asked, openings=[d.refusal.split()[0] for d in language().dialects])
    located = mean_difference(*capture(model, contrast.locate)).at(3, -1)
    return baseline(model, asked, refusal), attribution(model, located, asked, random=199)


def test_a_planted_direction_has_writers_beyond_random_directions(planted):
    _, found = planted
    first = found.frame.loc[found.frame["value"].idxmax()]
    assert first["random_p"] == 1 / 200
    assert first["random_p_max"] <= 0.05
    assert first["low"] > 0
    upstream = found.frame[found.frame["upstream"]]
    written = upstream.loc[upstream["value"].idxmax()]
    assert written["random_p"] == 1 / 200
    assert written["low"] > 0


def test_knocking_out_the_top_writers_lowers_the_margin_more_than_random_ones(planted, contrast):
    before, found = planted
    means = mean_writes(before.model, contrast.select.harmless.sample(32, seed=0))
    curve = knockout_curve(before, found, means, counts=(0, 3), orders=19)
    margins = curve[curve["metric"] == "margin"].set_index("n_knocked")
    assert margins["value"][0] == pytest.approx(float(before.restricted.mean()))
    assert margins["value"][3] < margins["random_low"][3]
    assert margins["random_p"][3] == 1 / 20
    refused = curve[curve["metric"] == "refusal rate"].set_index("n_knocked")["value"]
    assert refused[0] >= 0.95
    assert refused[3] <= 0.2


def test_a_curve_needs_counts_it_can_reach(planted):
    before, found = planted
    means = mean_writes(before.model, before.prompts.harmless)
    for counts in ((), (99,), (-1,)):
        with pytest.raises(MeasurementError, match=r"must lie in 0\.\.18"):
            knockout_curve(before, found, means, counts=counts)


def test_a_knock_out_that_did_not_happen_is_a_row_with_its_reason(planted, monkeypatch):
    import refusalscope.attribution.knockout as module

    def failing(*_args, **_how):
        raise InterventionError("a hook did not fire")

    before, found = planted
    means = mean_writes(before.model, before.prompts.harmless)
    monkeypatch.setattr(module, "read", failing)
    curve = knockout_curve(before, found, means, counts=(2,), orders=2)
    assert curve["value"].isna().all()
    assert curve["note"].str.startswith("invalid").all()
