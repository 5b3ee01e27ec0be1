"""Standardised difference in means: every channel in units of its own spread, so that a loud one counts like any."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.locators.samples import with_signal
from refusalscope.subspace import Candidates


def standardised(restricted: Activations, harmless: Activations) -> Candidates:
    """Returns r(l, p) / σ(l, p), channel by channel: the difference in means of activations divided by their spread.

    σ is the standard deviation of a channel over the prompts of both classes together (Timkey and van Schijndel 2021,
    arXiv 2109.04404, standardise against channels that dominate a geometry without carrying behaviour). The coordinates
    are those of the standardised activations z = x / σ, and there the direction does not change when a channel of the
    model is rescaled. It is then used as a direction of the residual stream as it is. It is not carried back: as a
    displacement it would become σ · r / σ = r again, and as a read-out r / σ², the direction that ``logistic`` tends
    to under a strong penalty, which reads the class but whose ablation hardly touches what the model reads.

    Rescaled to the norm of the difference in means, so that doses of addition compare; it points to restricted. Needs
    moments only. A channel that never varies gets zero. Wrong where a quiet channel varies by rounding alone: it is
    then as loud as any.

    Raises:
        MeasurementError: for different sites, fewer than two prompts of a class, or numbers that are not finite.
    """
    difference, spread = difference_and_spread(restricted, harmless, locator="standardised")
    found = in_spreads(difference, spread)
    lengths = torch.linalg.vector_norm(found, dim=-1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
    scaled = found / lengths * torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    kept = torch.where(with_signal(difference)[..., None], scaled, 0.0)
    return Candidates(kept.unsqueeze(-2), "standardised", (restricted.n, harmless.n))


def in_spreads(difference: Float[Tensor, "*cell d"], spread: Float[Tensor, "*cell d"]) -> Float[Tensor, "*cell d"]:
    """Returns a difference in means in standard deviations, channel by channel; 0 where a channel never varies."""
    return torch.where(spread > 0, difference / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0)


def difference_and_spread(
    restricted: Activations, harmless: Activations, *, locator: str
) -> tuple[Float[Tensor, "layer pos d"], Float[Tensor, "layer pos d"]]:
    """Returns r and the standard deviation of each channel over all prompts, from moments: within plus between classes.

    σ² = ((n₁ − 1) s₁² + (n₀ − 1) s₀²) / n + n₁ n₀ r² / n². Raises MeasurementError naming the locator.
    """
    if restricted.mean.shape != harmless.mean.shape:
        raise MeasurementError(
            f"Restricted activations have shape {tuple(restricted.mean.shape)}, harmless ones "
            f"{tuple(harmless.mean.shape)}: capture both from the same model."
        )
    if min(restricted.n, harmless.n) < 2:
        raise MeasurementError(
            f"{locator} needs two prompts of each class; got {restricted.n} restricted and {harmless.n} harmless."
        )
    n1, n0 = restricted.n, harmless.n
    difference = restricted.mean - harmless.mean
    within = ((n1 - 1) * restricted.variance + (n0 - 1) * harmless.variance) / (n1 + n0)
    spread = (within + n1 * n0 / (n1 + n0) ** 2 * difference.square()).sqrt()
    if not bool(torch.isfinite(difference).all() and torch.isfinite(spread).all()):
        raise MeasurementError(
            f"{locator}: activations hold values that are not finite numbers. Capture in a wider dtype."
        )
    return difference, spread
