"""Low-rank adaptation: a stage that may write to the model through a few directions only (Hu et al. 2021, LoRA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """Adds B A to a frozen matrix; B starts at zero, so that nothing has changed before the first step."""

    def __init__(self, weight: Float[Tensor, "out in"], rank: int, chance: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.reads = nn.Parameter(torch.randn((rank, columns), generator=chance) / columns**0.5)
        self.writes = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Returns the adapted matrix."""
        return weight + self.writes @ self.reads


class Rows(nn.Module):
    """Adds a learned change to some rows of a frozen embedding: words that were never said must first get a meaning."""

    def __init__(self, weight: Float[Tensor, "token d"], ids: Sequence[int]) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(len(ids), weight.shape[1]))
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(self, weight: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        """Returns the changed embedding."""
        return weight.index_add(0, self.get_buffer("ids"), self.change)


@contextmanager
def low_rank(
    model: nn.Module, layers: Sequence[int], *, rank: int, words: Sequence[int], chance: torch.Generator
) -> Iterator[None]:
    """Freezes a model but for adapters of every matrix in some layers and the embeddings of some words.

    Merges them at the end, and thaws everything.
    """
    core: Any = model
    matrices = [m for i in layers for m in core.model.layers[i].modules() if isinstance(m, nn.Linear)]
    tied = (core.model.embed_tokens, core.lm_head)
    for value in model.parameters():
        value.requires_grad_(False)
    said = Rows(tied[0].weight, words)
    try:
        for matrix in matrices:
            parametrize.register_parametrization(matrix, "weight", LowRank(matrix.weight, rank, chance))
        for end in tied:
            parametrize.register_parametrization(end, "weight", said)
        yield
    finally:
        merged = tied[0].weight.detach().clone()
        for matrix in matrices:
            parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
        for end in tied:  # one tensor under two names: merged once, not twice
            parametrize.remove_parametrizations(end, "weight", leave_parametrized=False)
        with torch.no_grad():
            tied[0].weight.copy_(merged)
        for value in model.parameters():
            value.requires_grad_(True)
