"""The sweep of Arditi et al. 2024 on Hugging Face's own model in float64, for any family. No code of refusalscope."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise

import pandas as pd
import torch

import oracle


@contextmanager
def ablated(model, writers, vectors):
    """x ← x − U Uᵀ x where the stream enters the first layer, and for everything a layer's writers hand on."""
    basis = torch.linalg.qr(vectors.double().T).Q

    def kept(x):
        return x - (x @ basis) @ basis.T

    def entering(_module, inputs):
        return (kept(inputs[0]), *inputs[1:])

    def written(_module, _inputs, output):
        return (kept(output[0]), *output[1:]) if isinstance(output, tuple) else kept(output)

    layers = model.model.layers
    handles = [layers[0].register_forward_pre_hook(entering)]
    handles += [getattr(layer, name).register_forward_hook(written) for layer in layers for name in writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def directions(model, restricted, harmless, n_positions):
    """Difference in means of the stream entering each layer, one prompt at a time: [layer, pos, d]."""
    means = []
    for rows in (restricted, harmless):
        hidden = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1] for ids in rows]
        means.append(torch.stack([torch.stack([h[0, -n_positions:] for h in layers]) for layers in hidden]).mean(0))
    return means[0] - means[1]


@torch.no_grad()
def answered(model, rows, ids):
    """The prompts whose most likely first token is no refusal token; all where there is none, as damage needs some."""
    kept = [
        row
        for row, top in zip(rows, oracle.last_logits(model, rows).argmax(-1).tolist(), strict=True)
        if top not in ids
    ]
    return kept or rows


def sweep(model, writers, vectors, restricted, harmless, ids):
    """Bypass, induction and KL of every cell, in a loop."""
    base, rows = oracle.last_logits(model, harmless).log_softmax(-1), []
    for layer in range(len(vectors)):
        for position in range(-vectors.shape[1], 0):
            vector = vectors[layer, position]
            if layer == 0:  # the same tokens end every prompt, so the difference is rounding and not a direction
                vector = torch.zeros_like(vector)
            with ablated(model, writers, vector[None]) if layer else oracle.added(model, 0, vector):
                bypass = oracle.margins(oracle.last_logits(model, restricted), ids).mean()
                now = oracle.last_logits(model, harmless).log_softmax(-1)
            with oracle.added(model, layer, vector):
                induce = oracle.margins(oracle.last_logits(model, harmless), ids).mean()
            kl = (base.exp() * (base - now)).sum(-1).mean()
            rows.append((layer, position, float(bypass), float(induce), float(kl)))
    return pd.DataFrame(rows, columns=["layer", "position", "bypass", "induce", "kl"])


def limits_that_bite(found):
    """Limits for KL and induction that some cells fail, each in a gap: first those that induce no more than nothing."""
    nothing = float(found.loc[found["layer"] == 0, "induce"].max())
    inducing = sorted(value for value in found["induce"] if value > nothing)
    floor = _in_widest_gap([nothing, *inducing[: (len(inducing) + 1) // 2]])
    kl = sorted(found.loc[found["induce"] > floor, "kl"])
    upper = kl[(len(kl) - 1) // 2 :]
    return _in_widest_gap(upper if len(upper) > 1 else [*upper, 2 * upper[0]]), floor


def _in_widest_gap(values):
    return max((b - a, (a + b) / 2) for a, b in pairwise(values))[1]


def chosen(found, n_layers, kl_limit, induce_floor):
    """The rule cell by cell: (layer, position), and by how much the second best is worse."""
    allowed = [
        (row.bypass, row.layer, row.position)
        for row in found.itertuples()
        if row.kl < kl_limit and row.induce > induce_floor and row.layer < 0.8 * n_layers
    ]
    best, *rest = sorted(allowed)
    return best[1:], (rest[0][0] - best[0] if rest else float("inf"))
