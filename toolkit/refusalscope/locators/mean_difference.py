"""Difference in means: Arditi et al. 2024 (arXiv 2406.11717), section 2.3."""

from __future__ import annotations

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.subspace import Candidates


def mean_difference(restricted: Activations, harmless: Activations) -> Candidates:
    """Returns r(l, p) = mean of restricted − mean of harmless activations, for every layer and position.

    The answer is wrong when the two sets differ in more than being restricted (length, topic, punctuation): the mean
    difference carries every such difference. Raises MeasurementError when the two were captured at different sites.
    """
    if restricted.mean.shape != harmless.mean.shape:
        raise MeasurementError(
            f"Restricted activations have shape {tuple(restricted.mean.shape)}, harmless ones "
            f"{tuple(harmless.mean.shape)}: capture both from the same model."
        )
    difference = restricted.mean - harmless.mean
    return Candidates(difference.unsqueeze(-2), "mean_difference", (restricted.n, harmless.n))
