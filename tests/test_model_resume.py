"""Sites and resuming: writes sum to the residual stream, and later layers alone give the whole forward's logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from einops import repeat

from refusalscope.errors import MeasurementError, ModelError
from refusalscope.model import batches, forward, load, recorded, resume
from refusalscope.model.sites import find_sites

FLOAT32_ERROR = 1e-5
WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "qwen3": ("Qwen3ForCausalLM", {**WIDE, "num_hidden_layers": 3}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**WIDE, "num_hidden_layers": 3, "final_logit_softcapping": 3.0, "sliding_window": 4},
    ),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, make_tiny):
    architecture, sizes = FAMILIES[request.param]
    return load(make_tiny(request.param, architecture, **sizes))


@pytest.fixture
def batch(family, texts):
    rows = [ids[-3:] * repeats for repeats, ids in enumerate(family.encode(texts[:4]), start=1)]
    (made,) = batches(family, rows)
    return made


def test_recording_gives_the_logits_of_a_plain_forward_and_leaves_no_hook(family, batch):
    logits, record = recorded(family, batch)
    assert torch.equal(logits, forward(family, batch)[:, -1])
    assert len(record) == family.n_layers
    assert not any(block._forward_pre_hooks for block in family.bridge.blocks)


def test_resuming_at_every_layer_gives_the_whole_forwards_logits(family, batch):
    assert family.can_resume
    logits, record = recorded(family, batch)
    for layer in range(family.n_layers):
        resumed = resume(family, record, layer, record[layer])
        torch.testing.assert_close(resumed, logits, atol=FLOAT32_ERROR, rtol=FLOAT32_ERROR)


def test_each_of_several_candidates_resumes_as_if_alone(family, batch):
    _, record = recorded(family, batch)
    for layer in range(family.n_layers):
        candidates = torch.stack([record[layer] * scale for scale in (1.0, 0.5, 2.0)])
        together = resume(family, record, layer, candidates.flatten(0, 1)).unflatten(0, (3, len(batch)))
        alone = torch.stack([resume(family, record, layer, candidate) for candidate in candidates])
        torch.testing.assert_close(together, alone, atol=FLOAT32_ERROR, rtol=FLOAT32_ERROR)
        assert (together[1] - together[0]).abs().max() > 100 * FLOAT32_ERROR


def test_a_changed_residual_resumes_to_what_a_hook_gives_in_a_whole_forward(family, batch):
    _, record = recorded(family, batch)
    layer = family.n_layers // 2
    with family.bridge.hooks(fwd_hooks=[(family.sites.resid_pre[layer], lambda value, hook: 0.5 * value)]):
        expected = forward(family, batch)[:, -1]
    torch.testing.assert_close(resume(family, record, layer, 0.5 * record[layer]), expected, atol=1e-5, rtol=1e-5)


def test_only_later_blocks_run(tiny, texts):
    (batch,) = batches(tiny, tiny.encode(texts))
    _, record = recorded(tiny, batch)
    ran: list[str] = []
    hooks = [(name, lambda value, hook: ran.append(hook.name)) for name in tiny.sites.resid_post]
    with tiny.bridge.hooks(fwd_hooks=hooks):
        resume(tiny, record, 2, record[2])
    assert ran == [tiny.sites.resid_post[2]]


def test_rows_that_are_no_multiple_of_the_batch_are_refused(tiny, texts):
    (batch,) = batches(tiny, tiny.encode(texts[:2]))
    _, record = recorded(tiny, batch)
    with pytest.raises(MeasurementError, match="multiple of 2"):
        resume(tiny, record, 0, repeat(record[0][0], "pos d -> row pos d", row=3))


def test_a_model_that_cannot_resume_refuses_to(tiny, texts):
    (batch,) = batches(tiny, tiny.encode(texts[:2]))
    _, record = recorded(tiny, batch)
    with pytest.raises(MeasurementError, match="Use whole forwards"):
        resume(dataclasses.replace(tiny, can_resume=False), record, 0, record[0])


def test_an_architecture_that_scales_its_logits_otherwise_is_found_unable_to_resume(make_tiny):
    sizes = {name: value for name, value in WIDE.items() if name != "head_dim"}
    scaled = load(make_tiny("granite", "GraniteForCausalLM", **sizes, num_hidden_layers=2, logits_scaling=3.0))
    assert not scaled.can_resume


def test_writes_sum_to_the_residual_stream(family, batch):
    sites, seen = family.sites, {}

    def note(value, hook):
        seen[hook.name] = value.double()

    names = {*sites.writes, *sites.residual}
    with family.bridge.hooks(fwd_hooks=[(name, note) for name in sorted(names)]):
        forward(family, batch)
    assert sites.additive
    assert len(sites.writes) == 2 * family.n_layers + 1
    total = sum(seen[name] for name in sites.writes)
    torch.testing.assert_close(total, seen[sites.residual[-1]], atol=FLOAT32_ERROR, rtol=FLOAT32_ERROR)


def test_with_every_write_zeroed_nothing_is_left_of_the_residual_stream(family, batch):
    left = []
    zero = [(name, lambda value, hook: torch.zeros_like(value)) for name in family.sites.everywhere]
    read = (family.sites.resid_post[-1], lambda value, hook: left.append(value))
    with family.bridge.hooks(fwd_hooks=[*zero, read]):
        forward(family, batch)
    assert not left[0].any()


def test_writes_that_do_not_sum_are_found_and_the_residual_sites_used_instead(tiny):
    tokens = torch.tensor([[10, 20, 30, 40]])
    doubled = (tiny.sites.resid_post[1], lambda value, hook: 2 * value)
    with tiny.bridge.hooks(fwd_hooks=[doubled]):
        sites = find_sites(tiny.bridge, tokens, name="model")
    assert not sites.additive
    assert len(sites.everywhere) == 3 * tiny.n_layers
    assert find_sites(tiny.bridge, tokens, name="model").additive


def test_a_site_that_does_not_fire_once_is_an_error(tiny, monkeypatch):
    point = tiny.bridge.hook_dict[tiny.sites.mlp_out[0]]
    monkeypatch.setattr(point, "name", "blocks.0.attn.hook_hidden_states")  # a hook point this architecture never calls
    with pytest.raises(ModelError, match="fired 0 times"):
        find_sites(tiny.bridge, torch.tensor([[10, 20, 30]]), name="model")
