"""The oracle: Hugging Face's own model in float64 under plain torch hooks. It shares no code with refusalscope."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM


def float64_model(folder):
    """The model of a directory, in float64."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


@contextmanager
def ablated(model, vectors, *, dose=1.0, reference=None, layers=None):
    """h ← h − λ U Uᵀ(h − c) where the stream enters the scope, w ← w − λ U Uᵀ w for every write inside it."""
    basis = torch.linalg.qr(vectors.double().T).Q
    first, last = layers or (0, len(model.model.layers) - 1)
    shift = torch.zeros(len(vectors.T), dtype=torch.float64) if reference is None else reference.double()

    def entering(_module, inputs):
        return (inputs[0] - dose * ((inputs[0] - shift) @ basis) @ basis.T, *inputs[1:])

    def written(_module, _inputs, output):
        made = output[0] if isinstance(output, tuple) else output
        kept = made - dose * (made @ basis) @ basis.T
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    inside = model.model.layers[first : last + 1]
    handles = [inside[0].register_forward_pre_hook(entering)]
    handles += [part.register_forward_hook(written) for layer in inside for part in (layer.self_attn, layer.mlp)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def added(model, layer, vector):
    """h ← h + r where the stream enters one layer."""
    handle = model.model.layers[layer].register_forward_pre_hook(
        lambda _module, inputs: (inputs[0] + vector.double(), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def last_logits(model, token_lists):
    """Logits at the last position of every row, in order; rows of one length at a time, so nothing is padded."""
    by_length = defaultdict(list)
    for row, tokens in enumerate(token_lists):
        by_length[len(tokens)].append(row)
    found = {}
    for rows in by_length.values():
        logits = model(torch.tensor([list(token_lists[row]) for row in rows])).logits[:, -1]
        found.update(zip(rows, logits, strict=True))
    return torch.stack([found[row] for row in range(len(token_lists))])


def refused(logits, ids):
    """Whether the most likely token is one of R."""
    return torch.isin(logits.argmax(-1), torch.tensor(list(ids)))


def margins(logits, ids):
    """log P(R) − log P(not R), in two lines and float64."""
    p = logits.double().log_softmax(-1)
    others = [token for token in range(p.shape[-1]) if token not in set(ids)]
    return p[:, list(ids)].logsumexp(-1) - p[:, others].logsumexp(-1)
