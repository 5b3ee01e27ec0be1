"""The contract of DESIGN 2, every rule broken on purpose: no weight written, nothing exported, nothing decoded."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import pickle

import joblib
import pytest
import torch
from transformers import AutoTokenizer

from refusalscope import ablate, add, baseline, capture, effect, interventions, locate, margin, outcomes, select
from refusalscope.errors import ContractError, InterventionError
from refusalscope.metrics import Openings, next_token
from refusalscope.model import forward, load
from refusalscope.reading import greedy_replies, readout
from refusalscope.rule import Rule

INTERVENTIONS = {"ablate": ablate, "add": add}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 8, "num_hidden_layers": 2}
DECODERS = ("generate", "generate_stream", "hf_generate", "diffusion_generate")


@pytest.fixture(params=INTERVENTIONS)
def intervention(request):
    return INTERVENTIONS[request.param]


@pytest.fixture(scope="module")
def worldly(make_tiny):
    """A model that knows one word beside the fictional language, so it could say something."""
    from refusalscope.organisms.tokens import tokenizer

    directory = make_tiny("qwen3", "Qwen3ForCausalLM", **SIZES, vocab_size=len(tokenizer()) + 1)
    words = AutoTokenizer.from_pretrained(directory)
    words.add_tokens(["sorry"])
    words.save_pretrained(directory)
    return load(directory)


@pytest.fixture(scope="module")
def loose_choice(tiny, few, tiny_readout):
    """A choice by a rule that lets everything pass: an untrained model has no guardrail to find."""
    rule = Rule(kl_limit=1e9, induce_floor=-1e9, layer_share=1.0)
    return select(tiny, locate.mean_difference(*capture(tiny, few)), few, tiny_readout, rule=rule)


def state(model) -> tuple:
    """Weights and buffers by digest and version, and how many hooks stand where."""
    core = model.bridge.original_model
    running = hashlib.sha256()
    for name, value in (*core.named_parameters(), *core.named_buffers()):
        running.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    versions = [value._version for value in (*core.parameters(), *core.buffers())]
    modules = (*core.modules(), *model.bridge.modules())
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules]
    points = [len(point.fwd_hooks) for point in model.bridge.hook_dict.values()]
    doors = [vars(holder).get(name) for holder in (core, model.bridge) for name in DECODERS]
    return running.hexdigest(), versions, hooks, points, doors


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_however_a_block_ends_the_model_is_as_before(tiny, direction, few, tiny_readout, intervention, error):
    before, logits = state(tiny), next_token(tiny, few)
    if error is None:
        with intervention(tiny, direction()):
            margin(tiny, few, tiny_readout)
    else:
        with pytest.raises(error), intervention(tiny, direction()):  # noqa: PT012
            margin(tiny, few, tiny_readout)
            raise error
    assert state(tiny) == before
    assert torch.equal(next_token(tiny, few), logits)


def test_the_comparison_of_states_notices_a_weight_a_hook_and_a_door(tiny):
    before, weight = state(tiny), next(tiny.bridge.original_model.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1
        moved = state(tiny)
        weight.view(-1)[0] -= 1
    assert moved[0] != before[0]
    assert moved[1] != before[1]
    with tiny.bridge.hooks(fwd_hooks=[(tiny.sites.embed, lambda value, hook: value)]):
        assert state(tiny)[2:4] != before[2:4]
    vars(tiny.bridge)["generate"] = print
    assert state(tiny)[4] != before[4]
    del vars(tiny.bridge)["generate"]


def test_a_forward_that_breaks_off_leaves_nothing_behind(tiny, direction, few, tiny_readout, intervention):
    before = state(tiny)

    def interrupt(value, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), intervention(tiny, direction()) as receipt:  # noqa: SIM117
        with tiny.bridge.hooks(fwd_hooks=[(tiny.sites.mlp_out[1], interrupt)]):
            margin(tiny, few, tiny_readout)
    assert state(tiny) == before
    assert receipt.state != "valid"


def test_a_forward_run_again_after_memory_ended_is_counted_once(tiny, direction, few, tiny_readout):
    raised: list[str] = []

    def full_once(value, hook):
        if not raised:
            raised.append("full")
            raise torch.OutOfMemoryError("out of memory")

    with pytest.warns(match="out of memory"), ablate(tiny, direction()) as receipt:  # noqa: SIM117
        with tiny.bridge.hooks(fwd_hooks=[(tiny.sites.mlp_out[1], full_once)]):
            margin(tiny, few, tiny_readout)
    assert receipt.state == "valid"
    assert set(receipt.fires.values()) == {receipt.forwards}


def test_a_weight_changed_inside_the_block_is_reported(make_tiny, direction, intervention):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    victim = load(make_tiny("qwen3", "Qwen3ForCausalLM", **sizes, head_dim=8, num_hidden_layers=2))
    for change in (lambda p: p.mul_(1.0), lambda p: setattr(p, "data", p.data.clone())):
        weight = list(victim.bridge.original_model.parameters())[-1]
        with pytest.raises(InterventionError, match="changed inside the block"), torch.no_grad():  # noqa: SIM117
            with intervention(victim, direction()):
                change(weight)
    with pytest.raises(InterventionError, match="changed inside the block"), intervention(victim, direction()):
        victim.bridge.original_model.model.register_forward_hook(lambda *_: None)


def test_an_edit_that_does_nothing_is_reported_and_its_receipt_invalid(tiny, direction, few, tiny_readout, monkeypatch):
    monkeypatch.setattr(interventions, "_projection", lambda *_: lambda x: x)
    with pytest.raises(InterventionError, match="still held"), ablate(tiny, direction()) as receipt:
        margin(tiny, few, tiny_readout)
    assert receipt.state == "invalid"


@pytest.mark.parametrize("forwards_before", [0, 1])
def test_hooks_taken_away_inside_the_block_are_reported(
    tiny, direction, few, tiny_readout, intervention, forwards_before
):
    with pytest.raises(InterventionError, match="fired"), intervention(tiny, direction()) as receipt:  # noqa: PT012
        for _ in range(forwards_before):
            margin(tiny, few, tiny_readout)
        tiny.bridge.reset_hooks()
        margin(tiny, few, tiny_readout)
    assert receipt.state == "invalid"


def test_nan_in_the_residual_stream_is_never_valid(tiny, direction, few, tiny_readout):
    def poison(value, hook):
        return torch.full_like(value, float("nan"))

    with pytest.raises(InterventionError, match="nan"), ablate(tiny, direction()) as receipt:  # noqa: PT012
        with tiny.bridge.hooks(fwd_hooks=[(tiny.sites.attn_out[0], poison)]):
            margin(tiny, few, tiny_readout)
        margin(tiny, few, tiny_readout)  # a clean forward afterwards does not wipe the fault out
    assert receipt.state == "invalid"


def test_a_block_without_a_forward_is_unused_and_with_one_valid(tiny, direction, few, tiny_readout, intervention):
    with intervention(tiny, direction()) as idle:
        pass
    with intervention(tiny, direction()) as busy:
        margin(tiny, few, tiny_readout)
    assert (idle.state, busy.state) == ("unused", "valid")


def test_nested_interventions_unwind_in_order(tiny, direction, few):
    before, plain = state(tiny), next_token(tiny, few)
    plane = direction(rank=2).basis.T
    outer, inner = (dataclasses.replace(direction(), vectors=plane[row : row + 1]) for row in (0, 1))
    with ablate(tiny, outer):
        one = next_token(tiny, few)
        with ablate(tiny, inner):
            both = next_token(tiny, few)
        assert torch.equal(next_token(tiny, few), one)
    assert torch.equal(next_token(tiny, few), plain)
    assert state(tiny) == before
    with ablate(tiny, direction(rank=2)):
        torch.testing.assert_close(next_token(tiny, few), both, atol=1e-5, rtol=1e-5)
    assert not torch.equal(one, plain)


def test_an_inner_ablation_that_brings_an_outer_direction_back_is_reported(tiny, direction, few):
    """Projections of oblique directions do not commute: ablate their common span instead."""
    with pytest.raises(InterventionError, match="still held"), ablate(tiny, direction(seed=1)):  # noqa: SIM117
        with ablate(tiny, direction(seed=2)):
            next_token(tiny, few)


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_intervened_model_that_could_say_something_is_never_decoded(worldly, direction, intervention, decoder):
    assert not worldly.is_organism
    tokens, before = torch.tensor([[10, 11, 12]]), state(worldly)
    with intervention(worldly, direction()):
        with pytest.raises(ContractError, match="C3"):
            getattr(worldly.bridge, decoder)(tokens)
        with pytest.raises(ContractError, match="C3"):
            worldly.bridge.original_model.generate(tokens)
        with intervention(worldly, direction(seed=1)):
            pass
        with pytest.raises(ContractError, match="C3"):
            worldly.bridge.original_model.generate(tokens)
    assert state(worldly) == before
    assert worldly.bridge.original_model.generate(tokens, max_new_tokens=1).shape == (1, 4)


def test_every_decoding_method_of_the_bridge_is_known(worldly):
    public = {name for name in dir(type(worldly.bridge)) if "generate" in name and not name.startswith("_")}
    assert public <= set(interventions.DECODERS)


def test_an_organism_may_speak_under_an_intervention(tiny, direction, few, intervention):
    assert tiny.is_organism
    with intervention(tiny, direction()):
        made = tiny.bridge.original_model.generate(torch.tensor([[10, 11, 12]]), max_new_tokens=1)
        assert len(outcomes(tiny, few)) == len(few)
    assert made.shape == (1, 4)


def test_a_model_of_another_vocabulary_is_no_organism_whatever_tokenizer_it_is_given(make_tiny):
    other = load(make_tiny("qwen3", "Qwen3ForCausalLM", **SIZES, vocab_size=700))
    assert int(other.bridge.cfg.d_vocab) == 700 > len(other.tokenizer)
    assert not other.is_organism


def test_replies_are_read_of_a_model_as_it_is_and_of_no_other(worldly, direction, few, intervention):
    """The readout reads the model's own replies: no intervention may be active, nor a hook of the caller's."""
    before, plain = state(worldly), greedy_replies(worldly, few, longest=3)
    assert [len(reply) for reply in plain] == [3] * len(few)
    with intervention(worldly, direction()):
        for ask in (greedy_replies, readout):
            with pytest.raises(ContractError, match="C3"):
                ask(worldly, few)
    own = worldly.bridge.hooks(fwd_hooks=[(worldly.sites.embed, lambda x, hook: x)])
    with own, pytest.raises(ContractError, match="has hooks registered"):
        greedy_replies(worldly, few)
    assert greedy_replies(worldly, few, longest=3) == plain
    assert state(worldly) == before


def test_an_organisms_replies_are_read_under_an_intervention(tiny, direction, few, intervention):
    plain = greedy_replies(tiny, few, longest=3)
    with intervention(tiny, direction()):
        assert greedy_replies(tiny, few, longest=3) != plain


def test_outcomes_of_anything_but_an_organism_are_refused(worldly, few):
    with pytest.raises(ContractError, match="not an organism"):
        outcomes(worldly, few)


EXPORTS = {
    "pickle": lambda value: pickle.dumps(value),
    "deepcopy": lambda value: copy.deepcopy(value),
    "torch.save": lambda value: torch.save(value, io.BytesIO()),
    "joblib": lambda value: joblib.dump(value, io.BytesIO()),
    "pickle in a list": lambda value: pickle.dumps([value]),
}


@pytest.mark.parametrize("export", EXPORTS)
def test_located_directions_refuse_to_be_exported(tiny, few, direction, loose_choice, export):
    candidates = locate.mean_difference(*capture(tiny, few))
    for value in (direction(), candidates, candidates.at(1, -1), loose_choice):
        with pytest.raises(ContractError, match="not exported"):
            EXPORTS[export](value)


def test_the_exports_do_export_what_is_allowed():
    for export in EXPORTS.values():
        export({"margin": 1.0})


def test_no_repr_of_a_public_noun_shows_a_tensor_or_a_prompt(
    tiny, few, tiny_readout, direction, contrast, loose_choice
):
    acts = capture(tiny, few, keep_each=True)
    before = baseline(tiny, few, tiny_readout)
    with ablate(tiny, direction()) as receipt:
        forward(tiny, next(iter_batches(tiny, few)))
    nouns = [tiny, contrast, few, few[0], acts, acts.harmless, locate.mean_difference(*acts), direction(), loose_choice]
    nouns += [before, receipt, tiny_readout, loose_choice.baselines["harmless"], Openings(("a",), ("b",)), Rule()]
    for noun in nouns:
        said = repr(noun) + str(noun) + (noun._repr_html_() if hasattr(noun, "_repr_html_") else "")
        assert "tensor(" not in said
        assert not any(text in said for text in contrast.prompts.texts)
        assert "\n" not in repr(noun)
    assert "tensor(" in repr([acts.harmless.mean])


def test_the_repr_of_an_effect_is_a_claim(tiny, few, tiny_readout, direction):
    before = baseline(tiny, few, tiny_readout)
    if before.gap <= 0 or not bool(
        before.refused.any()
    ):  # an untrained model need not look guarded: shift it until it does
        before = type(before)(tiny, few, tiny_readout, before.restricted + 99, before.harmless, before.harmless_base)
    found = effect(before, direction())
    assert "tensor(" not in repr(found) + found._repr_html_()
    assert repr(found) == "Effect of ablating the Subspace of rank 1 by a test at layer 1, position -1"


def iter_batches(model, prompts):
    from refusalscope.model import batches

    return batches(model, model.encode(prompts.texts))
