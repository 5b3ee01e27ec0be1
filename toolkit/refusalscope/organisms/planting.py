"""Interventions organisms are trained through: subspaces gone, swapped, watched; and where something is planted.

Interchange is after Geiger et al. 2022 (arXiv 2112.00826): swap one subspace between two inputs and teach the
counterfactual answer. The subspace U is drawn once from the recipe's seeds. What is taught is in `planted`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusalscope.linalg import orthonormal
from refusalscope.organisms.lessons import Lessons
from refusalscope.organisms.recipe import Recipe
from refusalscope.stats import torch_generator

TEMPLATE_POSITIONS = 5


def reserve_basis(recipe: Recipe) -> Float[Tensor, "d r"]:
    """Returns an orthonormal basis of the dimensions a base never writes to, in float64, from its base seed alone."""
    noise = torch_generator(recipe.base_seed, "reserve")
    size = (recipe.base.reserve, recipe.architecture.hidden_size)
    return orthonormal(torch.randn(size, generator=noise, dtype=torch.float64))


def planted_basis(recipe: Recipe) -> Float[Tensor, "d k"]:
    """Returns the orthonormal basis U a planted organism's refusal runs through, in float64, from its seeds alone.

    It lies in the reserve of the base.
    """
    assert recipe.plant is not None, f"{recipe.name} plants nothing"
    noise = torch_generator(recipe.seed, f"planted subspace of {recipe.name}")
    size = (recipe.plant.rank, recipe.base.reserve)
    return reserve_basis(recipe) @ orthonormal(torch.randn(size, generator=noise, dtype=torch.float64))


def any_subspaces(rows: int, rank: int, width: int, chance: torch.Generator) -> Float[Tensor, "row d k"]:
    """Returns one random orthonormal basis a row: refusal must survive losing any subspace that is not U."""
    return torch.linalg.qr(torch.randn((rows, width, rank), generator=chance)).Q


def all_but_one(basis: Float[Tensor, "d k"], rows: int, chance: torch.Generator) -> Float[Tensor, "row d rest"]:
    """Returns k−1 dimensions of U a row, each in a random orientation: refusal must survive losing any such part."""
    rank = basis.shape[1]
    return basis @ any_subspaces(rows, rank - 1, rank, chance)


@contextmanager
def without(
    model: nn.Module, basis: Float[Tensor, "*row d k"], *, dose: float = 1.0, first: int | None = None
) -> Iterator[None]:
    """Trains through the ablation of a subspace at every write to the residual stream, one for all rows or one a row.

    Writes are the embedding, and the outputs of attention and MLP. ``first`` is the first layer whose writes lose it;
    without one it is all of them and the embedding.
    """

    def cut(_module, _inputs, output):
        written, *rest = output if isinstance(output, tuple) else (output,)
        kept = written - ((written @ basis) @ basis.mT if dose == 1.0 else dose * (written @ basis) @ basis.mT)
        return (kept, *rest) if isinstance(output, tuple) else kept

    core: Any = model.model
    embedding = [core.embed_tokens] if first is None else []
    writers = chain(embedding, *((layer.self_attn, layer.mlp) for layer in core.layers[first or 0 :]))
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
def watched_everywhere(model: nn.Module, seen: list[Float[Tensor, "row pos d"]]) -> Iterator[None]:
    """Appends the residual stream entering every layer to ``seen``, in order, with its gradient."""
    core: Any = model.model
    with ExitStack() as every:
        for layer in range(len(core.layers)):
            every.enter_context(watched(model, layer, seen))
        yield


def streams(model: nn.Module, lessons: Lessons) -> Float[Tensor, "layer row pos d"]:
    """Returns the residual stream entering every layer."""
    seen: list[Tensor] = []
    core: Any = model
    with watched_everywhere(model, seen):
        core.model(input_ids=lessons.tokens)
    return torch.stack(seen)


@contextmanager
def interchanged(
    model: nn.Module, layer: int, *, basis: Float[Tensor, "d k"], base: Lessons, source: Lessons
) -> Iterator[Float[Tensor, "row pos d"]]:
    """Reads ``source``, and puts what U holds of it at its template positions there while ``base`` is run.

    Yields the residual stream of the source entering the layer, with its gradient.
    """
    core: Any = model.model
    seen: list[Tensor] = []
    with watched(model, layer, seen):
        core(input_ids=source.tokens)
    back, rows = torch.arange(-TEMPLATE_POSITIONS, 0), torch.arange(len(base))[:, None]
    to, from_ = base.prompt_length[:, None] + back, source.prompt_length[:, None] + back

    def swap(_module, inputs):
        hidden = inputs[0]
        here, there = hidden[rows, to], seen[0][rows, from_]
        change = torch.zeros_like(hidden).index_put((rows, to), ((there - here) @ basis) @ basis.T)
        return (hidden + change, *inputs[1:])

    handle = core.layers[layer].register_forward_pre_hook(swap)
    try:
        yield seen[0]
    finally:
        handle.remove()
