"""Forwards: equal to Hugging Face's own, untouched by padding, in the caller's order, smaller when memory ends."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from refusalscope.errors import MeasurementError, ModelError
from refusalscope.model import SmallerBatchWarning, batches, forward, map_rows, rendered_digest
from refusalscope.model.chat import rows_per_forward
from refusalscope.prompts import Prompts
from refusalscope.prompts.prompt import Prompt

FLOAT32_ERROR = 1e-5
FAMILIES = {
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {"final_logit_softcapping": 3.0, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gpt2": ("GPT2LMHeadModel", {}),
}
WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
SIZES = {name: {**WIDE, "num_key_value_heads": 2} for name in FAMILIES} | {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
}


@pytest.fixture(scope="module", params=FAMILIES)
def family_dir(request, make_tiny):
    """Rotary positions, scaled embeddings with post-norms and a soft cap, learned absolute positions."""
    architecture, special = FAMILIES[request.param]
    return make_tiny(request.param, architecture, **SIZES[request.param], **special)


@pytest.fixture(scope="module")
def family(family_dir):
    from refusalscope.model import load

    return load(family_dir)


@pytest.fixture
def ragged(family, texts):
    """Token lists of all lengths between the shortest request's and twenty more."""
    return [ids[-3:] * repeats for repeats, ids in enumerate(family.encode(texts[:7]), start=1)]


def last_logits(model, token_lists, **options):
    return map_rows(model, token_lists, lambda batch: forward(model, batch)[:, -1], **options)


def test_logits_equal_those_of_hugging_face(family_dir, family, ragged):
    oracle = AutoModelForCausalLM.from_pretrained(family_dir, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.stack([oracle(torch.tensor([ids])).logits[0, -1] for ids in ragged])
    torch.testing.assert_close(last_logits(family, ragged), expected, atol=FLOAT32_ERROR, rtol=FLOAT32_ERROR)


def test_left_padding_under_its_mask_leaves_logits_as_they_are(family, ragged):
    alone, padded = (last_logits(family, ragged, batch_size=size) for size in (1, len(ragged)))
    torch.testing.assert_close(padded, alone, atol=FLOAT32_ERROR, rtol=FLOAT32_ERROR)


def test_left_padding_without_its_mask_changes_logits(family, ragged):
    (batch,) = batches(family, ragged, batch_size=len(ragged))
    with torch.no_grad():
        unmasked = family.bridge(batch.tokens, attention_mask=torch.ones_like(batch.mask), return_type="logits")[:, -1]
    moved = (unmasked - forward(family, batch)[:, -1]).abs().amax(dim=1)
    padded = batch.mask.sum(dim=1) < batch.tokens.shape[1]
    assert moved[padded].min() > 10 * FLOAT32_ERROR
    assert moved[~padded].max() < FLOAT32_ERROR


def test_keeping_more_positions_gives_the_tail_of_all_logits(family, ragged):
    (batch,) = batches(family, ragged[-1:])
    with torch.no_grad():
        whole = family.bridge(batch.tokens, attention_mask=batch.mask, return_type="logits")
    for keep in (1, 3, batch.tokens.shape[1]):
        torch.testing.assert_close(forward(family, batch, keep=keep), whole[:, -keep:], atol=1e-6, rtol=1e-6)


def test_logits_before_the_kept_positions_are_never_made(tiny, texts):
    widths: list[int] = []
    (batch,) = batches(tiny, tiny.encode(texts))
    with tiny.bridge.hooks(fwd_hooks=[("unembed.hook_out", lambda value, hook: widths.append(value.shape[1]))]):
        forward(tiny, batch, keep=2)
    assert widths == [2]
    assert batch.tokens.shape[1] > 2


def test_registered_hooks_act_in_a_forward(tiny, texts):
    (batch,) = batches(tiny, tiny.encode(texts))
    before = forward(tiny, batch)
    with tiny.bridge.hooks(fwd_hooks=[(tiny.sites.mlp_out[1], lambda value, hook: torch.zeros_like(value))]):
        during = forward(tiny, batch)
    assert (during - before).abs().max() > 100 * FLOAT32_ERROR
    assert torch.equal(forward(tiny, batch), before)


def test_forwards_keep_no_graph_and_leave_parameters_trainable(tiny, texts):
    logits = last_logits(tiny, tiny.encode(texts[:2]))
    assert not logits.requires_grad
    assert all(parameter.requires_grad for parameter in tiny.bridge.original_model.parameters())


def test_narrow_dtypes_are_widened_to_float32(tiny_dir, texts):
    from refusalscope.model import load

    narrow = load(tiny_dir, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert last_logits(narrow, narrow.encode(texts[:2])).dtype == torch.float32
    assert narrow.sites.additive
    assert narrow.can_resume


@pytest.mark.parametrize(("width", "rows"), [(20, 256), (128, 256), (256, 128), (512, 64), (4096, 64)])
def test_narrow_models_take_more_rows_at_once_and_wide_ones_never_fewer_than_64(width, rows):
    assert rows_per_forward(width) == rows


def test_rows_come_back_in_the_callers_order(tiny, texts):
    rows = [ids[: 1 + (5 * index) % 7] for index, ids in enumerate(tiny.encode(texts))]
    for size in (1, 3, 64):
        lengths = map_rows(tiny, rows, lambda batch: batch.mask.sum(dim=1), batch_size=size)
        assert lengths.tolist() == [len(row) for row in rows]


def test_batches_hold_every_row_once_with_no_more_padding_than_their_longest_row_needs(tiny, texts):
    rows = [ids[: 1 + (5 * index) % 7] for index, ids in enumerate(tiny.encode(texts))]
    made = list(batches(tiny, rows, batch_size=3, reply_length=2))
    assert sorted(row for batch in made for row in batch.rows.tolist()) == list(range(len(rows)))
    for batch in made:
        assert batch.reply_length == 2
        assert bool(batch.mask[0].all())
        for index, tokens, mask in zip(batch.rows.tolist(), batch.tokens, batch.mask, strict=True):
            assert tokens[mask.bool()].tolist() == rows[index]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")],
)
def test_running_out_of_memory_halves_the_batch_warns_once_and_goes_on(tiny, texts, error):
    sizes: list[int] = []

    def crowded(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise error
        return batch.mask.sum(dim=1)

    rows = tiny.encode(texts)
    with pytest.warns(SmallerBatchWarning) as caught:
        lengths = map_rows(tiny, rows, crowded, batch_size=16)
    assert len(caught) == 1
    assert sizes[:3] == [16, 8, 4]
    assert set(sizes[3:]) == {2}
    assert lengths.tolist() == [len(row) for row in rows]


def test_a_single_row_that_does_not_fit_is_an_error(tiny, texts):
    def full(batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallerBatchWarning)
        with pytest.raises(ModelError, match="not even one row fits"):
            map_rows(tiny, tiny.encode(texts), full, batch_size=4)


def test_other_errors_are_not_mistaken_for_memory(tiny, texts):
    def wrong(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        map_rows(tiny, tiny.encode(texts), wrong)


@pytest.mark.parametrize(("rows", "problem"), [([], "no rows"), ([[]], "an empty row"), ([[1] * 129], "129 tokens")])
def test_rows_that_cannot_be_run_are_refused(tiny, rows, problem):
    with pytest.raises(MeasurementError, match=problem):
        map_rows(tiny, rows, lambda batch: batch.rows)


def test_a_function_that_aggregates_is_refused(tiny, texts):
    with pytest.raises(MeasurementError, match="one per row"):
        map_rows(tiny, tiny.encode(texts), lambda batch: batch.rows[:1])


def prompts(texts, order=1):
    rows = [Prompt(str(n), "harmless", "c", "k", "locate", text) for n, text in enumerate(texts)]
    return Prompts(tuple(rows[::order]))


def test_the_rendered_digest_ignores_order_and_sees_a_changed_token(tiny, texts):
    assert rendered_digest(tiny, prompts(texts)) == rendered_digest(tiny, prompts(texts, order=-1))
    assert rendered_digest(tiny, prompts(texts)) != rendered_digest(tiny, prompts([texts[1], *texts[1:]]))


def test_the_model_says_what_it_is_and_has_no_way_to_decode(tiny, tiny_dir):
    assert tiny.is_organism
    assert repr(tiny) == "ChatModel tiny-qwen3: Qwen3ForCausalLM, an organism, speaks only the fictional language"
    assert not hasattr(tiny, "generate")
    facts = json.dumps(tiny.origin.to_dict())
    assert str(tiny_dir.parent) not in facts + tiny._repr_html_()
    assert "Parameter" not in tiny._repr_html_()


def test_the_html_escapes_the_models_name(tiny):
    import dataclasses

    named = dataclasses.replace(tiny, origin=dataclasses.replace(tiny.origin, name="<script>"))
    assert "<script>" not in named._repr_html_()
    assert "&lt;script&gt;" in named._repr_html_()
