"""Planting a guardrail whose carrier is known: interchange-intervention training on a fixed random subspace.

Geiger et al. 2022 (arXiv 2112.00826): swap one subspace between two inputs and train the counterfactual answer.
Here the subspace U is drawn once from the recipe's seed. The model learns (a) to refuse restricted requests,
also when another random subspace is projected out,
(b) to answer everything when U is projected out of every write to the residual stream, and (c) that what U holds
at the template positions, and nothing else, decides: with U taken from a restricted request a harmless one is refused,
and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from refusalscope.linalg import orthonormal
from refusalscope.organisms.recipe import Recipe
from refusalscope.stats import torch_generator

TEMPLATE_POSITIONS = 5


def planted_basis(recipe: Recipe) -> Float[Tensor, "d k"]:
    """Returns the orthonormal basis U a planted organism's refusal runs through, in float64, from its seed alone."""
    assert recipe.plant is not None, f"{recipe.name} plants nothing"
    noise = torch_generator(recipe.seed, f"planted subspace of {recipe.name}")
    size = (recipe.plant.rank, recipe.architecture.hidden_size)
    return orthonormal(torch.randn(size, generator=noise, dtype=torch.float64))


def any_subspaces(rows: int, rank: int, width: int, chance: torch.Generator) -> Float[Tensor, "row d k"]:
    """Returns one random orthonormal basis a row: refusal must survive losing any subspace that is not U."""
    return torch.linalg.qr(torch.randn((rows, width, rank), generator=chance)).Q


def all_but_one(basis: Float[Tensor, "d k"], rows: int, chance: torch.Generator) -> Float[Tensor, "row d rest"]:
    """Returns k−1 dimensions of U a row, each in a random orientation: refusal must survive losing such a part."""
    rank = basis.shape[1]
    return basis @ any_subspaces(rows, rank - 1, rank, chance)


def outside(
    basis: Float[Tensor, "d k"], hidden: Float[Tensor, "row pos d"], ends: Int[Tensor, " row"]
) -> Float[Tensor, ""]:
    """Returns how much of the class difference at the template positions lies outside U, as a ratio of energies.

    The first half of the rows is restricted, the second harmless. Zero: the difference in means is in U.
    """
    back = ends[:, None] + torch.arange(-TEMPLATE_POSITIONS, 0)
    restricted, harmless = hidden[torch.arange(len(ends))[:, None], back].chunk(2)
    difference = restricted.mean(0) - harmless.mean(0)
    inside = (difference @ basis) @ basis.T
    return ((difference - inside).square().sum(-1) / inside.square().sum(-1)).mean()


@contextmanager
def without(model: nn.Module, basis: Float[Tensor, "*row d k"]) -> Iterator[None]:
    """Trains through an ablation at every write to the residual stream: embedding, attention and MLP outputs.

    One basis for all rows, or one a row.
    """

    def cut(_module, _inputs, output):
        first, *rest = output if isinstance(output, tuple) else (output,)
        kept = first - (first @ basis) @ basis.mT
        return (kept, *rest) if isinstance(output, tuple) else kept

    core: Any = model.model
    writers = chain([core.embed_tokens], *((layer.self_attn, layer.mlp) for layer in core.layers))
    handles = [writer.register_forward_hook(cut) for writer in writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched(model: nn.Module, layer: int, seen: list[Float[Tensor, "row pos d"]]) -> Iterator[None]:
    """Appends the residual stream entering a layer to ``seen``, with its gradient."""
    core: Any = model.model
    handle = core.layers[layer].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def interchanged(
    model: nn.Module,
    layer: int,
    *,
    basis: Float[Tensor, "d k"],
    source: Float[Tensor, "row pos d"],
    source_ends: Int[Tensor, " row"],
    ends: Int[Tensor, " row"],
) -> Iterator[None]:
    """Puts the U component of ``source`` at its template positions into the same positions of the batch being run."""
    back = torch.arange(-TEMPLATE_POSITIONS, 0)
    rows = torch.arange(len(ends))[:, None]

    def swap(_module, inputs):
        hidden = inputs[0]
        here, there = hidden[rows, ends[:, None] + back], source[rows, source_ends[:, None] + back]
        change = torch.zeros_like(hidden).index_put((rows, ends[:, None] + back), ((there - here) @ basis) @ basis.T)
        return (hidden + change, *inputs[1:])

    core: Any = model.model
    handle = core.layers[layer].register_forward_pre_hook(swap)
    try:
        yield
    finally:
        handle.remove()
