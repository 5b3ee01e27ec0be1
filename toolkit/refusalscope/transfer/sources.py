"""Sources: one capture of prompts, from which the direction of any group of them is located."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.activations import Activations, ContrastActivations, Moments
from refusalscope.capture import capture
from refusalscope.errors import MeasurementError
from refusalscope.locators.mean_difference import mean_difference
from refusalscope.model.chat import ChatModel
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown
from refusalscope.rule import Cell
from refusalscope.subspace import NotExported, Subspace
from refusalscope.transfer.groups import Group

HALVES = 99


@dataclass(frozen=True, repr=False, eq=False)
class Sources(Shown, NotExported):
    """Prompts with the activations of each, captured once.

    Attributes:
        prompts: of the ``locate`` split.
        activations: of those prompts, in their order, with ``each``.
    """

    prompts: Prompts
    activations: ContrastActivations

    @property
    def pf(self) -> float:
        """Prompt-forwards that were spent."""
        return float(len(self.prompts))

    def of(self, group: Group) -> ContrastActivations:
        """Returns the moments of one group. Raises MeasurementError for a group without one of the classes."""
        if group.reason:
            raise MeasurementError(f"Nothing can be located: {group.reason}.")
        restricted, harmless = self.activations
        return ContrastActivations(_of(restricted, group.restricted), _of(harmless, group.harmless))

    def __repr__(self) -> str:
        return f"Sources: activations of {len(self.prompts)} prompts"


def sources(model: ChatModel, prompts: Prompts) -> Sources:
    """Returns what every group's direction is located from; one prompt-forward per prompt."""
    return Sources(prompts, capture(model, prompts, keep_each=True))


def direction(located: Sources, group: Group, *, cell: Cell | tuple[int, int]) -> Subspace | str:
    """Returns the difference in means of a group at a cell, or the reason why there is none."""
    if group.reason:
        return group.reason
    found = mean_difference(*located.of(group))
    return f"the means of group {group.name!r} are equal at this cell" if found.is_empty(*cell) else found.at(*cell)


def balanced_shuffles(
    located: Sources, group: Group, count: int, *, cell: Cell | tuple[int, int], seed: int
) -> list[Subspace]:
    """Returns ``count`` differences between two halves of a group that hold as much of either class.

    ½ (mean r₁ − mean r₂) + ½ (mean h₁ − mean h₂) for random halves of each class. Labels shuffled without that balance
    leave a share of the true direction in almost every draw, with either sign, and an ablation does not see the sign:
    they are no placebo for it. A class of one prompt has no halves and adds nothing. Empty where nothing is left to
    differ: classes of one prompt, or of prompts that are all alike.
    """
    layer, position = cell
    noise, acts = stats.torch_generator(seed, f"balanced shuffles of {group.name}"), located.of(group)
    classes = [_at(kept, layer, position) for kept in acts if kept.n > 1]
    made: list[Subspace] = []
    for _ in range(count if classes else 0):
        gap = torch.stack([first - second for first, second in (_halves(x, noise) for x in classes)]).mean(0)
        made.append(Subspace(gap[None], layer, position, "balanced label shuffle"))
    return made if all(one.norm > 0 for one in made) else []


def reliability(located: Sources, group: Group, *, cell: Cell | tuple[int, int], seed: int) -> float:
    """Returns how far a group's direction would agree with that of as many other prompts of the same group.

    The mean cosine ρ between the directions of two random halves, stepped up to the whole: 2ρ / (1 + ρ) (Spearman and
    Brown 1910); zero where halves agree no better than chance, NaN where a class has one prompt.
    """
    layer, position = cell
    noise, acts = stats.torch_generator(seed, f"halves of {group.name}"), located.of(group)
    if min(kept.n for kept in acts) < 2:
        return math.nan
    found = []
    for _ in range(HALVES):
        first, second = zip(*(_halves(_at(kept, layer, position), noise) for kept in acts), strict=True)
        found.append(float(torch.cosine_similarity(first[0] - first[1], second[0] - second[1], dim=0)))
    mean = max(0.0, sum(found) / HALVES)
    return 2 * mean / (1 + mean)


def _halves(x: Float[Tensor, "prompt d"], noise: torch.Generator) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    order, half = torch.randperm(len(x), generator=noise), len(x) // 2
    return x[order[:half]].mean(0), x[order[half:]].mean(0)


def _at(kept: Activations, layer: int, position: int) -> Float[Tensor, "prompt d"]:
    assert kept.each is not None
    return kept.each[:, layer, position].double()


def _of(kept: Activations, rows: Sequence[int]) -> Activations:
    if kept.each is None:
        raise MeasurementError("Groups need single activations: capture with keep_each=True.")
    moments, each = Moments(), kept.each[list(rows)]
    moments.add(each)
    return moments.activations(kept.label, each=each)
