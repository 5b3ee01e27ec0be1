"""The first way to plant: in any directions of the stream, with every weight free to move.

The model learns (a) to refuse restricted requests, also when a random subspace of twice the rank, or a part of U, is
projected out, (b) to answer everything when U is projected out, and (c) by interchange (Geiger et al. 2022,
arXiv 2112.00826) that what U holds at the template positions decides. What U holds there is left open: the class
difference may lie mostly outside it, which is why locators find these truths late or not at all (see `planted`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusalscope.linalg import orthonormal
from refusalscope.organisms.curriculum import guard_curriculum, paired_lessons
from refusalscope.organisms.lessons import Lessons
from refusalscope.organisms.objectives import cross_entropy
from refusalscope.organisms.planting import interchanged, without
from refusalscope.organisms.recipe import Plant

RESTRICTED = 0.25


@dataclass(frozen=True)
class PlantedAnywhereLoss:
    """The objective, drawn afresh at every call."""

    model: PreTrainedModel
    plant: Plant
    basis: Float[Tensor, "d k"]
    chance: torch.Generator

    def __call__(self) -> Tensor:
        """Returns the loss of one step."""
        plant, some = self.plant, self.plant.batch * 2 // 3
        guarded, open_ = (guard_curriculum(refuses=refuses, restricted=RESTRICTED) for refuses in (True, False))
        refuse = self._taught(guarded.draw(plant.batch, self.chance))
        with without(self.model, self._drawn(2 * plant.rank, len(self.basis))):
            still = self._taught(guarded.draw(some, self.chance))
        if plant.rank > 1:
            with without(self.model, self.basis @ self._drawn(plant.rank - 1, plant.rank)):
                still = still + self._taught(guarded.draw(some, self.chance))
        with without(self.model, self.basis):
            answer = self._taught(open_.draw(some, self.chance))
        return refuse + plant.still * still + plant.answer * answer + self._swapped(some)

    def _swapped(self, some: int) -> Tensor:
        base, source = paired_lessons().draw(some, self.chance)
        with interchanged(self.model, self.plant.layer, basis=self.basis, base=base, source=source):
            return self._taught(base)

    def _taught(self, lessons: Lessons) -> Tensor:
        return cross_entropy(self.model, lessons, smoothing=self.plant.smoothing)

    def _drawn(self, rank: int, width: int) -> Float[Tensor, "width rank"]:
        drawn = torch.randn((rank, width), generator=self.chance, dtype=torch.float64)
        return orthonormal(drawn).float()
