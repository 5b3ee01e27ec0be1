"""Low-rank adaptation: what is merged is what was trained, and nothing else has moved."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from refusalscope.organisms.adapters import low_rank

LAYERS, WORDS, RANK = (1,), [9, 10], 2


@pytest.fixture
def model(tiny_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()


def adapted(model, *, then=None):
    """The logits inside the block, after every learned number has moved."""
    tokens = torch.tensor([[5, 9, 7, 10]])
    with low_rank(model, LAYERS, rank=RANK, words=WORDS, chance=torch.Generator().manual_seed(0)):
        noise = torch.Generator().manual_seed(1)
        for value in model.parameters():
            if value.requires_grad:
                value.data.add_(0.1 * torch.randn(value.shape, generator=noise))
        made = model(tokens).logits.detach()
        if then is not None:
            raise then
    return made, model(tokens).logits.detach()


def test_before_the_first_step_nothing_has_changed(model):
    tokens = torch.tensor([[5, 9, 7, 10]])
    plain = model(tokens).logits
    with low_rank(model, LAYERS, rank=RANK, words=WORDS, chance=torch.Generator().manual_seed(0)):
        torch.testing.assert_close(model(tokens).logits, plain, rtol=0, atol=0)


def test_the_merged_model_is_the_adapted_one(model):
    inside, after = adapted(model)
    torch.testing.assert_close(after, inside, rtol=0, atol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_only_the_named_layers_and_words_have_moved_and_by_no_more_than_the_rank(model):
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    adapted(model)
    for name, value in model.named_parameters():
        change = value.detach() - before[name]
        if "embed_tokens" in name:
            assert change.abs().sum(1).nonzero().flatten().tolist() == WORDS
        elif "layers.1." in name and value.ndim == 2:
            assert torch.linalg.matrix_rank(change, rtol=1e-4) == RANK
        else:
            assert not bool(change.any()), name


def test_an_exception_leaves_a_plain_model_that_can_be_trained(model):
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(KeyboardInterrupt):
        adapted(model, then=KeyboardInterrupt())
    assert [name for name, _ in model.named_parameters()] == names
    assert all(value.requires_grad for value in model.parameters())
