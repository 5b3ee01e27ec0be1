"""What locators that see single activations share: the checks, the loop over cells, and one convention for norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.subspace import Candidates

NOTHING = 1e-6  # relative to the largest: below it a direction is rounding, as in ``Candidates.is_empty``

OfCell = Callable[[Float[Tensor, "restricted d"], Float[Tensor, "harmless d"]], Float[Tensor, "found d"]]


def located(restricted: Activations, harmless: Activations, of_cell: OfCell, *, locator: str, rank: int) -> Candidates:
    """Returns what ``of_cell`` finds at every layer and position, as candidates of one rank.

    Every vector gets the norm of the cell's difference in means, so that a dose of addition means the same for every
    locator, and the sign for which restricted prompts lie further along it than harmless ones. A cell where the two
    means are equal up to rounding, or where fewer than ``rank`` directions were found, holds zeros: an empty candidate.

    Args:
        of_cell: from the single activations of one cell, in float64, to its directions, strongest first.
        rank: k, at most the number of coordinates and of prompts in the smaller class.

    Raises:
        MeasurementError: without single activations, for different sites, fewer than two prompts, numbers that are not
            finite, or a rank out of reach.
    """
    first, second = singles(restricted, harmless, locator=locator)
    difference = restricted.mean - harmless.mean
    layers, positions, width = difference.shape
    most = min(restricted.n, harmless.n, width)
    if not 1 <= rank <= most:
        raise MeasurementError(
            f"{locator}: rank {rank} is out of reach; these activations hold 1 to {most} directions."
        )
    vectors = torch.zeros(layers, positions, rank, width, dtype=torch.float64)
    for layer, position in with_signal(difference).nonzero().tolist():
        found = of_cell(first[:, layer, position].double(), second[:, layer, position].double())
        vectors[layer, position] = _as_doses(found, difference[layer, position], rank)
    return Candidates(vectors, locator, (restricted.n, harmless.n))


def singles(restricted: Activations, harmless: Activations, *, locator: str) -> tuple[Tensor, Tensor]:
    """Returns the single activations of both classes, checked. Raises MeasurementError naming what is wrong."""
    if restricted.mean.shape != harmless.mean.shape:
        raise MeasurementError(
            f"Restricted activations have shape {tuple(restricted.mean.shape)}, harmless ones "
            f"{tuple(harmless.mean.shape)}: capture both from the same model."
        )
    if restricted.each is None or harmless.each is None:
        raise MeasurementError(f"{locator} needs single activations: capture with keep_each=True.")
    if min(restricted.n, harmless.n) < 2:
        raise MeasurementError(
            f"{locator} needs two prompts of each class; got {restricted.n} restricted and {harmless.n} harmless."
        )
    if not all(bool(torch.isfinite(each).all()) for each in (restricted.each, harmless.each)):
        raise MeasurementError(
            f"{locator}: activations hold values that are not finite numbers. Capture in a wider dtype."
        )
    return restricted.each, harmless.each


def with_signal(difference: Float[Tensor, "layer pos d"]) -> Bool[Tensor, "layer pos"]:
    """Returns True where the two means differ by more than rounding, relative to where they differ most."""
    norms = torch.linalg.vector_norm(difference, dim=-1)
    return norms > NOTHING * norms.max()


def leading(rows: Float[Tensor, "n d"], rank: int) -> Float[Tensor, "found d"]:
    """Returns the right singular vectors of the largest singular values, strongest first, without null ones."""
    _, strengths, directions = torch.linalg.svd(rows, full_matrices=False)
    kept = int((strengths > NOTHING * strengths[0]).sum())
    return directions[: min(rank, kept)]


def group_gaps(
    x1: Float[Tensor, "restricted d"],
    x0: Float[Tensor, "harmless d"],
    groups: Sequence[str] | None,
    against: Sequence[str] | None = None,
) -> Float[Tensor, "group d"]:
    """Returns mean of each group of restricted prompts − mean of harmless ones, weighted by √(share of the group).

    Harmless ones of the same group where ``against`` names theirs, else all. One group where ``groups`` is None.
    """
    if groups is None:
        return (x1.mean(0) - x0.mean(0))[None]
    gaps = []
    for name in sorted(set(groups)):
        members = torch.tensor([group == name for group in groups])
        others = torch.tensor([against is None or group == name for group in against or [name] * len(x0)])
        gaps.append((x1[members].mean(0) - x0[others].mean(0)) * members.double().mean().sqrt())
    return torch.stack(gaps)


def check_groups(
    restricted: Activations,
    harmless: Activations,
    groups: Sequence[str] | None,
    *,
    against: Sequence[str] | None = None,
    locator: str,
    rank: int,
) -> None:
    """Raises MeasurementError unless every prompt has a group, every direction one, and each group both classes."""
    for names, acts in ((groups, restricted), (against, harmless)):
        if names is not None and (isinstance(names, str) or len(names) != acts.n):
            raise MeasurementError(
                f"{locator}: {len(names)} group names for {acts.n} {acts.label} prompts; pass one name per prompt, in "
                "the order of capture, such as prompts.restricted.clusters."
            )
    most = 1 if groups is None else len(set(groups))
    if rank > most:
        raise MeasurementError(
            f"{locator}: rank {rank} needs as many groups of restricted prompts; got {most}. Pass groups."
        )
    missing = sorted(set(groups or ()) - set(against)) if against is not None else []
    if missing:
        raise MeasurementError(f"{locator}: no harmless prompt is in group {missing[0]!r}. Leave against out.")


def _as_doses(found: Tensor, difference: Float[Tensor, " d"], rank: int) -> Float[Tensor, "k d"]:
    if len(found) < rank:
        return torch.zeros(rank, len(difference), dtype=torch.float64)
    units = found[:rank] / torch.linalg.vector_norm(found[:rank], dim=1, keepdim=True)
    towards = torch.where(units @ difference < 0, -1.0, 1.0).to(units)
    return units * towards[:, None] * torch.linalg.vector_norm(difference)
