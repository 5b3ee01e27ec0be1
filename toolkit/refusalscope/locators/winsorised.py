"""Winsorised difference in means: the largest values are clipped before they are averaged."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.locators.samples import located
from refusalscope.subspace import Candidates

Over = Literal["channels", "prompts"]


def winsorised(
    restricted: Activations, harmless: Activations, *, share: float = 0.05, over: Over = "channels"
) -> Candidates:
    """Returns the difference in means of activations whose extreme values were clipped first; ``share`` 0 clips none.

    Over ``channels``, the ⌊share · d⌋ largest magnitudes of every single activation come down to the next one: what
    tames a channel that is loud on every prompt (used for Gemma 3, whose outlier channels otherwise own the direction).
    Over ``prompts``, the ⌊share · n⌋ lowest and highest values of every channel, over both classes together, come in to
    the next one, as ``scipy.stats.mstats.winsorize``: what tames a channel that is loud on a few prompts only, and
    leaves one that is loud throughout as it is.

    Rescaled to the norm of the difference in means, so that doses of addition compare. The direction lives in the
    coordinates of the residual stream.

    Args:
        share: of the channels, or of the prompts at either end, from 0 to below one half.

    Raises MeasurementError for a share outside that range, and as every locator of single activations does. Wrong where
    refusal itself is carried by the loudest channel: it is clipped like any other.
    """
    if not 0 <= share < 0.5:
        raise MeasurementError(f"winsorised: a share of {share:g} is outside 0 to below one half.")
    clip = clipped_channels if over == "channels" else clipped_prompts

    def of_cell(x1: Tensor, x0: Tensor) -> Float[Tensor, "found d"]:
        kept = clip(torch.cat([x1, x0]), share)
        found = kept[: len(x1)].mean(0) - kept[len(x1) :].mean(0)
        return found[None] if bool(found.any()) else x1[:0]

    return located(restricted, harmless, of_cell, locator="winsorised", rank=1)


def clipped_channels(x: Float[Tensor, "n d"], share: float) -> Float[Tensor, "n d"]:
    """Returns rows whose ⌊share · d⌋ largest magnitudes are brought down to the next one, signs kept."""
    width = x.shape[1]
    ceiling = x.abs().sort(dim=1).values[:, width - 1 - int(share * width)].unsqueeze(1)
    return x.clamp(-ceiling, ceiling)


def clipped_prompts(x: Float[Tensor, "n d"], share: float) -> Float[Tensor, "n d"]:
    """Returns columns whose ⌊share · n⌋ lowest and highest values are brought in to the next one."""
    count, ordered = int(share * len(x)), x.sort(dim=0).values
    return x.clamp(ordered[count], ordered[len(x) - 1 - count])
