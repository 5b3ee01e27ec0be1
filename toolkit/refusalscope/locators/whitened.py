"""Whitened difference in means: Fisher's discriminant, the mass-mean probe of Marks and Tegmark 2023 (2310.06824)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.locators.samples import NOTHING, check_groups, group_gaps, leading, located
from refusalscope.subspace import Candidates


def whitened(
    restricted: Activations,
    harmless: Activations,
    *,
    rank: int = 1,
    groups: Sequence[str] | None = None,
    shrinkage: float | None = None,
) -> Candidates:
    """Returns the direction Σ⁻¹ (μ₁ − μ₀), Σ the pooled within-class covariance shrunk towards a multiple of identity.

    Σ = (1 − a) S + a (tr S / d) I. This is the direction that tells the classes apart best, not the one along which
    they differ: a projection on it reads the class; ablating it need not remove what the model reads. It is rescaled to
    the norm of the difference in means, so that doses of addition compare; it points to restricted.

    Args:
        rank: k > 1 needs ``groups``: Σ^(−1/2) times the k leading directions of the whitened group differences.
        groups: one name per restricted prompt, in the order of capture.
        shrinkage: a, from 0 to 1. None takes Ledoit and Wolf's (2004), per cell; 1 gives the difference in means.

    Raises MeasurementError for a shrinkage outside 0 to 1, or of 0 with fewer prompts than coordinates (Σ then has no
    inverse), and as every locator of single activations does.
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise MeasurementError(f"whitened: a shrinkage of {shrinkage} is outside 0 to 1.")
    check_groups(restricted, harmless, groups, locator="whitened", rank=rank)

    def of_cell(x1: Tensor, x0: Tensor) -> Float[Tensor, "found d"]:
        whiten = whitening(torch.cat([x1 - x1.mean(0), x0 - x0.mean(0)]), shrinkage)
        return whiten(leading(whiten(group_gaps(x1, x0, groups)), rank))

    return located(restricted, harmless, of_cell, locator="whitened", rank=rank)


def whitening(residuals: Float[Tensor, "n d"], shrinkage: float | None) -> Callable[[Tensor], Tensor]:
    """Returns the map x ↦ Σ^(−1/2) x on rows, from residuals about the class means, without forming Σ.

    Costs n² d rather than d³: the n right singular vectors of the residuals are all that Σ knows beside the identity.
    """
    n, width = residuals.shape
    share = float(ledoit_wolf_shrinkage(residuals.numpy(), assume_centered=True)) if shrinkage is None else shrinkage
    _, strengths, axes = torch.linalg.svd(residuals, full_matrices=False)
    spread = strengths.square() / n
    floor = share * spread.sum() / width
    inside = (1 - share) * spread + floor
    if (len(axes) < width and float(floor) == 0) or float(inside.min()) <= NOTHING**2 * float(inside.max()):
        raise MeasurementError(
            f"whitened: {n} prompts leave the covariance of {width} coordinates without an inverse at a shrinkage of "
            f"{share:g}. Leave the shrinkage to Ledoit and Wolf (None), or capture more prompts."
        )

    def whiten(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        along = rows @ axes.T
        outside = (rows - along @ axes) / floor.sqrt() if len(axes) < width else torch.zeros_like(rows)
        return outside + (along / inside.sqrt()) @ axes

    return whiten
