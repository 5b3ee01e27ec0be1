"""Directions found by gradient descent: RDO and concept cones (Wollschläger et al. 2025, arXiv 2502.17420).

What is minimised is passed in. A locator never sees a model: it hands spanning vectors over and gets a number back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.linalg import orthonormal
from refusalscope.progress import bar
from refusalscope.stats import torch_generator
from refusalscope.subspace import Subspace

Objective = Callable[[Float[Tensor, "k d"]], Tensor]
MEMORY, SPREAD = 0.9, 0.98


def gradient(
    start: Subspace, objective: Objective, *, rank: int | None = None, steps: int = 60, rate: float = 0.1, seed: int = 0
) -> Subspace:
    """Returns the subspace that descends from ``start`` on an objective of k orthonormal vectors.

    Adam (Kingma and Ba 2015) on the sphere: slopes are kept tangent, divided by the running norm of each vector's
    slope rather than coordinate by coordinate (so that no basis is privileged), and the vectors made orthonormal after
    every step. The rate falls linearly to zero. All vectors get the norm of the start's first, for doses of addition.

    Args:
        start: where to begin, such as the difference in means at the chosen cell; its layer and position are kept.
        objective: from orthonormal rows ``[k, d]``, float64, to a scalar that gradients flow through. What it costs,
            it counts itself.
        rank: k, at least that of the start; missing directions are drawn from ``seed``.
        rate: the first step's angle, in radians.
        seed: of the directions that fill up the rank; without effect where none do.

    Raises MeasurementError where the objective is not a finite scalar that depends on the vectors. Wrong where the
    objective has several minima: compare starts.
    """
    rows = _filled(start, start.rank if rank is None else rank, seed)
    found = _descended(rows, objective, steps=steps, rate=rate)
    return Subspace(found * start.norm, start.layer, start.position, "gradient")


def cone(
    start: Subspace,
    objective: Objective,
    *,
    rank: int,
    members: int = 4,
    steps: int = 60,
    rate: float = 0.1,
    seed: int = 0,
) -> Subspace:
    """Returns an orthonormal basis whose nonnegative combinations all minimise the objective, each on its own.

    Every step takes the mean of the objective over the k basis vectors and ``members`` fresh unit combinations, each
    handed over as one row ``[1, d]``. The rest is as in ``gradient``. A rank-k subspace that bypasses refusal when all
    of it is ablated need not be a cone: here every single member must do it alone.
    """
    chance = torch_generator(seed, "members of a cone while it is sought")

    def mean_over_members(rows: Float[Tensor, "k d"]) -> Tensor:
        drawn = _nonnegative(members, len(rows), chance).to(rows) @ rows
        return torch.stack([objective(one[None]) for one in (*rows, *drawn)]).mean()

    rows = _filled(start, rank, seed)
    found = _descended(rows, mean_over_members, steps=steps, rate=rate)
    return Subspace(found * start.norm, start.layer, start.position, "cone")


def cone_members(found: Subspace, count: int, *, seed: int) -> list[Subspace]:
    """Returns ``count`` single directions drawn uniformly from the nonnegative combinations of a cone's basis."""
    mixes = _nonnegative(count, found.rank, torch_generator(seed, "members of a cone"))
    rows = mixes @ found.basis.T * found.norm
    return [Subspace(row[None], found.layer, found.position, f"member of the {found.locator}") for row in rows]


def _nonnegative(count: int, rank: int, chance: torch.Generator) -> Float[Tensor, "count k"]:
    drawn = torch.randn((count, rank), generator=chance, dtype=torch.float64).abs()
    return drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)


def _filled(start: Subspace, rank: int, seed: int) -> Float[Tensor, "k d"]:
    if not start.rank <= rank <= start.vectors.shape[1]:
        raise MeasurementError(
            f"Rank {rank} cannot be reached from a start of rank {start.rank} in {start.vectors.shape[1]} dimensions."
        )
    shape = (rank - start.rank, start.vectors.shape[1])
    drawn = torch.randn(shape, generator=torch_generator(seed, "directions that fill up a start"), dtype=torch.float64)
    return orthonormal(torch.cat([start.vectors.double() / start.norm, drawn])).T


def _descended(rows: Float[Tensor, "k d"], objective: Objective, *, steps: int, rate: float) -> Float[Tensor, "k d"]:
    drift, scale = torch.zeros_like(rows), torch.zeros(len(rows), 1, dtype=rows.dtype)
    with bar(steps, "gradient") as shown:
        for step in range(1, steps + 1):
            slope = _slope(rows, objective)
            drift = MEMORY * drift + (1 - MEMORY) * slope
            scale = SPREAD * scale + (1 - SPREAD) * slope.square().sum(1, keepdim=True)
            heading = (drift / (1 - MEMORY**step)) / (scale / (1 - SPREAD**step)).sqrt().clamp(min=1e-30)
            rows = orthonormal(rows - rate * (1 - (step - 1) / steps) * heading).T
            shown.update()
    return rows


def _slope(rows: Float[Tensor, "k d"], objective: Objective) -> Float[Tensor, "k d"]:
    """Returns the gradient with respect to the rows alone, tangent where they are orthonormal."""
    with torch.enable_grad():
        moved = rows.detach().requires_grad_()
        loss = objective(moved)
        if loss.ndim or not loss.requires_grad or not bool(torch.isfinite(loss.detach())):
            raise MeasurementError("The objective must be one finite number that depends on the vectors it is given.")
        (slope,) = torch.autograd.grad(loss, moved)
    along = slope @ rows.T
    return slope - (along + along.T) / 2 @ rows
