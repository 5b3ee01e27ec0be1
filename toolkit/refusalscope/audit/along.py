"""What the writers of two checkpoints hold along directions: how much is left, and whether a change took it away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.audit.checkpoint import Checkpoint, stream_first, writer
from refusalscope.stats import torch_generator
from refusalscope.subspace import NotExported


@dataclass(frozen=True, eq=False, repr=False)
class Along(NotExported):
    """What writers hold along some directions, one row per writer, one column per direction. Scalars of dot products.

    Attributes:
        before, after, change: ‖vᵀW‖², ‖vᵀW′‖², ‖vᵀΔ‖², each over ‖W‖².
        product: ⟨vᵀW, vᵀΔ⟩ over ‖W‖².
    """

    before: Float[Tensor, "writer k"]
    after: Float[Tensor, "writer k"]
    change: Float[Tensor, "writer k"]
    product: Float[Tensor, "writer k"]

    @property
    def kept(self) -> Float[Tensor, " k"]:
        """The energy the candidate's writers still hold along each direction, relative to the reference's."""
        return self.after.sum(0) / self.before.sum(0).clamp(min=1e-300)

    @property
    def erasure(self) -> Float[Tensor, " k"]:
        """−Σ⟨vᵀW, vᵀΔ⟩ / Σ‖vᵀW‖‖vᵀΔ‖ over writers: 1 where all that changed along v was taken away, by whatever share.

        Near 0 for changes that do not know what was there; it does not depend on how strong an edit is or on which
        layers it touched.
        """
        scale = (self.before * self.change).sqrt().sum(0)
        return torch.where(scale > 0, -self.product.sum(0) / scale.clamp(min=1e-300), torch.zeros_like(scale))


def along(reference: Checkpoint, candidate: Checkpoint, directions: Float[Tensor, "d k"]) -> Along:
    """Returns what every writer of both checkpoints holds along directions, read a piece of a tensor at a time."""
    unit, rows = directions.float(), []
    for name in sorted(reference.tensors):
        found = writer(reference, name)
        if found is None:
            continue
        sums, norm = torch.zeros(4, unit.shape[1], dtype=torch.float64), 0.0
        for first, second in stream_first(reference, candidate, name, found[1]):
            before, after = unit.T @ first, unit.T @ second
            change = after - before
            parts = (before.square(), after.square(), change.square(), before * change)
            sums += torch.stack([part.double().sum(1) for part in parts])
            norm += float(first.double().square().sum())
        if norm > 0:
            rows.append(sums / norm)
    return Along(*torch.stack(rows, dim=1)) if rows else Along(*torch.zeros(4, 0, unit.shape[1], dtype=torch.float64))


def random_directions(width: int, count: int, *, seed: int) -> Float[Tensor, "d k"]:
    """Returns placebo directions, unit and drawn uniformly."""
    drawn = torch.randn(width, count, generator=torch_generator(seed, "placebo directions"), dtype=torch.float64)
    return drawn / drawn.norm(dim=0)
