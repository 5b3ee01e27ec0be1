"""A base to plant in: it leaves a reserve of dimensions unused, and knows every item safely.

Nothing is written to the reserve, so that ablating what is planted there later takes nothing else away. The language is
learned also while random subspaces are gone, and the category of every item can be read along fixed random directions
where the item is named: whatever refuses by category then reads held-out items as safely as the ones it was shown.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from refusalscope.linalg import orthonormal
from refusalscope.organisms.curriculum import base_curriculum
from refusalscope.organisms.language import N_CATEGORIES
from refusalscope.organisms.objectives import categories, cross_entropy
from refusalscope.organisms.planting import any_subspaces, reserve_basis, watched_everywhere, without
from refusalscope.organisms.recipe import Recipe
from refusalscope.stats import torch_generator

NAMED_LAYERS = (1, 2, 3)


def spared_loss(model: PreTrainedModel, recipe: Recipe) -> Callable[[], Tensor]:
    """Returns the objective of a base with a reserve: its lessons without the reserve, half of them with less still."""
    base, chance = recipe.base, torch_generator(recipe.base_seed, "lessons of base")
    reserve, codes = reserve_basis(recipe).float(), _codes(recipe)

    def taught(rows: int, *, lost: int) -> Tensor:
        lessons, seen = base_curriculum().draw(rows, chance), []
        with ExitStack() as without_these:
            without_these.enter_context(without(model, reserve))
            if lost:
                gone = any_subspaces(len(lessons), lost, len(reserve), chance)
                without_these.enter_context(without(model, gone))
            without_these.enter_context(watched_everywhere(model, seen))
            loss = cross_entropy(model, lessons)
        named = sum(_named(seen[layer], lessons.tokens, codes) for layer in NAMED_LAYERS)
        return loss + base.named * named / len(NAMED_LAYERS)

    return lambda: taught(base.batch, lost=0) + (taught(base.batch // 2, lost=base.lost) if base.lost else 0.0)


def empty_reserve(model: PreTrainedModel, recipe: Recipe) -> None:
    """Projects the reserve out of every matrix that writes to the residual stream, in place: nothing reaches it."""
    reserve, core = reserve_basis(recipe).float(), _core(model)
    with torch.no_grad():
        words = core.embed_tokens.weight
        words.sub_((words @ reserve) @ reserve.T)
        for layer in core.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.sub_(reserve @ (reserve.T @ writer.weight))


def _core(model: PreTrainedModel) -> Any:
    return model.model


def _codes(recipe: Recipe) -> Float[Tensor, "d category"]:
    """A random orthonormal direction for every category."""
    noise = torch_generator(recipe.base_seed, "codes")
    size = (N_CATEGORIES, recipe.architecture.hidden_size)
    return orthonormal(torch.randn(size, generator=noise, dtype=torch.float64)).float()


def _named(hidden: Float[Tensor, "row pos d"], tokens: Int[Tensor, "row pos"], codes: Float[Tensor, "d c"]) -> Tensor:
    """Cross-entropy of reading an item's category where it is named, off the stream at unit root mean square."""
    category = categories()[tokens]
    rows, places = (category >= 0).nonzero(as_tuple=True)
    there = hidden[rows, places]
    there = there / there.square().mean(-1, keepdim=True).sqrt()
    return torch.nn.functional.cross_entropy(there @ codes, category[rows, places])
