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


@contextmanager
def low_rank(
    model: nn.Module, layers: Sequence[int], *, rank: int, chance: torch.Generator
) -> Iterator[dict[str, nn.Parameter]]:
    """Freezes a model but for adapters of every matrix in some layers; yields these, and merges them at the end."""
    frozen = [value for value in model.parameters() if value.requires_grad]
    core: Any = model
    matrices = [m for i in layers for m in core.model.layers[i].modules() if isinstance(m, nn.Linear)]
    for value in frozen:
        value.requires_grad_(False)
    try:
        for matrix in matrices:
            parametrize.register_parametrization(matrix, "weight", LowRank(matrix.weight, rank, chance))
        yield {name: value for name, value in model.named_parameters() if value.requires_grad}
    finally:
        for matrix in matrices:
            if parametrize.is_parametrized(matrix, "weight"):
                parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
        for value in model.parameters():
            value.requires_grad_(True)
