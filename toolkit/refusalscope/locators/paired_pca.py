"""Principal components of paired differences: the reading vector of RepE (Zou et al. 2023, arXiv 2310.01405)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.locators.samples import leading, located
from refusalscope.subspace import Candidates

Pairs = Sequence[tuple[int, int]]


def paired_pca(
    restricted: Activations, harmless: Activations, *, rank: int = 1, pairs: Pairs | None = None
) -> Candidates:
    """Returns the k leading directions of the differences restricted − harmless within pairs, without centring.

    The eigenvectors of Σᵢ dᵢ dᵢᵀ. RepE gives each difference a random sign, so that their mean is zero and centring
    changes nothing; the sum above does not depend on signs, and is what that tends to. Centring differences that all
    point from harmless to restricted would subtract the difference in means: the very signal. Every vector has the norm
    of the difference in means and the sign towards restricted, which later components have only on average.

    Args:
        rank: k, at most the number of pairs.
        pairs: (restricted index, harmless index) in the order of capture; None pairs the i-th with the i-th.

    Raises MeasurementError for unequal counts without ``pairs``, for an index out of range, and as every locator of
    single activations does. Wrong where what varies most within pairs is not the label: a topic that always differs.
    """
    matched = _matched(restricted, harmless, pairs)
    if rank > len(matched):
        raise MeasurementError(f"paired_pca: rank {rank} needs as many pairs; got {len(matched)}.")

    def of_cell(x1: Tensor, x0: Tensor) -> Float[Tensor, "found d"]:
        return leading(x1[matched[:, 0]] - x0[matched[:, 1]], rank)

    return located(restricted, harmless, of_cell, locator="paired_pca", rank=rank)


def _matched(restricted: Activations, harmless: Activations, pairs: Pairs | None) -> Tensor:
    counts = torch.tensor([restricted.n, harmless.n])
    if pairs is None and restricted.n != harmless.n:
        raise MeasurementError(
            f"paired_pca: {restricted.n} restricted and {harmless.n} harmless prompts do not pair up one to one. "
            "Pass pairs of indices."
        )
    matched = torch.arange(restricted.n)[:, None].repeat(1, 2) if pairs is None else torch.tensor(list(pairs))
    if matched.ndim != 2 or not bool(((matched >= 0) & (matched < counts)).all()):
        raise MeasurementError(
            f"paired_pca: pairs must be (restricted index, harmless index) below {restricted.n} and {harmless.n}."
        )
    return matched
