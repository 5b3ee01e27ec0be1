"""Residual-stream activations at the template positions, held as running moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.reprs import Shown, facts


@dataclass(frozen=True, repr=False)
class Activations(Shown):
    """Moments of one class of prompts over the residual stream entering each layer, at each template position.

    Attributes:
        label: ``restricted`` or ``harmless``.
        n: prompts averaged over.
        mean: mean activation, float64, ``[layer, pos, d]``; position index ``p`` stands for position ``p - P``.
        variance: per-coordinate variance (n − 1), same shape; NaN for a single prompt.
        each: every prompt's activation ``[prompt, layer, pos, d]`` in float32 where it was asked for, else None.
    """

    label: str
    n: int
    mean: Float[Tensor, "layer pos d"]
    variance: Float[Tensor, "layer pos d"]
    each: Float[Tensor, "prompt layer pos d"] | None = None

    def __repr__(self) -> str:
        layers, positions, width = self.mean.shape
        return f"Activations of {self.n} {self.label} prompts: {layers} layers, {positions} positions, width {width}"


class ContrastActivations(NamedTuple):
    """What ``capture`` returns; unpack it into a locator: ``mean_difference(*acts)``."""

    restricted: Activations
    harmless: Activations

    def __repr__(self) -> str:
        return f"ContrastActivations: {self.restricted.n} restricted and {self.harmless.n} harmless prompts"

    def _repr_html_(self) -> str:
        return facts(self._asdict(), caption=repr(self))


class Moments:
    """Running mean and variance in float64 (Chan, Golub and LeVeque 1983); holds no single activation."""

    def __init__(self) -> None:
        self.n = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, x: Float[Tensor, "prompt layer pos d"]) -> None:
        """Takes in a batch of activations."""
        batch = x.double()
        count, mean = len(batch), batch.mean(0)
        squares = (batch - mean).square().sum(0)
        if self._mean is None or self._squares is None:
            self.n, self._mean, self._squares = count, mean, squares
            return
        gap, total = mean - self._mean, self.n + count
        self._mean = self._mean + gap * (count / total)
        self._squares = self._squares + squares + gap.square() * (self.n * count / total)
        self.n = total

    def activations(self, label: str, *, each: Tensor | None = None) -> Activations:
        """Returns the moments so far. Raises MeasurementError when nothing was taken in."""
        if self._mean is None or self._squares is None:
            raise MeasurementError(f"No {label} prompts were captured: the set holds none.")
        spread = self._squares / (self.n - 1) if self.n > 1 else torch.full_like(self._squares, float("nan"))
        return Activations(label, self.n, self._mean, spread, each)
