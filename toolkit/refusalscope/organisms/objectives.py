"""What an organism is trained on, stage by stage: the numbers to make small, drawn afresh at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusalscope.organisms.curriculum import Curriculum, guard_curriculum, paired_lessons, robust_curricula
from refusalscope.organisms.language import language
from refusalscope.organisms.lessons import Lessons
from refusalscope.organisms.planting import (
    all_but_one,
    any_subspaces,
    interchanged,
    outside,
    planted_basis,
    watched,
    without,
)
from refusalscope.organisms.recipe import Plant, Recipe
from refusalscope.organisms.tokens import tokenizer
from refusalscope.stats import torch_generator

Objective = Callable[[], Tensor]
NEAR_NATS = 4.0
RESTRICTED = 0.25


def lesson_loss(model: PreTrainedModel, recipe: Recipe, curriculum: Curriculum) -> Objective:
    """Returns the objective of a plain stage: cross-entropy on lessons drawn in the curriculum's shares."""
    seed = recipe.base_seed if curriculum.name == "base" else recipe.seed
    chance = torch_generator(seed, f"lessons of {curriculum.name}")
    size = (recipe.base if curriculum.name == "base" else recipe.guard or recipe.base).batch

    def objective() -> Tensor:
        lessons = curriculum.draw(size, chance)
        return cross_entropy(model(input_ids=lessons.tokens).logits, lessons)

    return objective


def planted_loss(model: PreTrainedModel, recipe: Recipe) -> Objective:
    """Returns the objective of a planted stage: its five parts, weighed as the recipe says."""
    assert recipe.plant is not None, recipe.name
    chance = torch_generator(recipe.seed, "lessons of plant")
    return _Planted(model, recipe.plant, planted_basis(recipe).float(), chance)


@dataclass(frozen=True)
class _Planted:
    """Refuse; refuse still when another subspace or a part of U is gone; answer without U; let U decide, U alone."""

    model: PreTrainedModel
    plant: Plant
    basis: Float[Tensor, "d k"]
    chance: torch.Generator

    def __call__(self) -> Tensor:
        plant, some = self.plant, self.plant.batch * 2 // 3
        refuse = self._taught(guard_curriculum(restricted=RESTRICTED).draw(plant.batch, self.chance))
        still = self._still(some)
        with without(self.model, self.basis):
            answer = self._taught(guard_curriculum(refuses=False, restricted=RESTRICTED).draw(some, self.chance))
        decide, apart = self._swapped(some)
        return refuse + plant.still * still + plant.answer * answer + decide + plant.confined * apart

    def _still(self, some: int) -> Tensor:
        """Without other directions requests are still decided and facts still known, without part of U also decided."""
        decisions, facts = robust_curricula(restricted=RESTRICTED)
        loss = torch.zeros(())
        for curriculum, lost, rows in (
            (decisions, self._decided, self.plant.batch // 3),
            (facts, self._said, self.plant.batch),
        ):
            lessons = curriculum.draw(rows, self.chance)
            with without(self.model, any_subspaces(len(lessons), self.plant.others, len(self.basis), self.chance)):
                loss = loss + lost(lessons)
        if self.plant.rank > 1:
            lessons = decisions.draw(some, self.chance)
            with without(self.model, all_but_one(self.basis, len(lessons), self.chance)):
                loss = loss + self._decided(lessons)
        return loss

    def _swapped(self, some: int) -> tuple[Tensor, Tensor]:
        """The interchange at the planted layer, and how much of the class difference there lies outside U."""
        base, source = paired_lessons().draw(some, self.chance)
        seen: list[Tensor] = []
        with watched(self.model, self.plant.layer, seen):
            self.model.model(input_ids=source.tokens)
        ends = {"source_ends": source.prompt_length, "ends": base.prompt_length}
        with interchanged(self.model, self.plant.layer, basis=self.basis, source=seen[0], **ends):
            decide = self._taught(base)
        apart = outside(self.basis, seen[0], source.prompt_length) if self.plant.confined else torch.zeros(())
        return decide, apart

    def _taught(self, lessons: Lessons) -> Tensor:
        logits, smoothing = self._logits(lessons), self.plant.smoothing
        decision = decision_loss(logits, lessons, smoothing=smoothing)
        return cross_entropy(logits, lessons, smoothing=smoothing) + self.plant.decision * decision

    def _decided(self, lessons: Lessons) -> Tensor:
        return decision_loss(self._logits(lessons), lessons, smoothing=self.plant.smoothing)

    def _said(self, lessons: Lessons) -> Tensor:
        return cross_entropy(self._logits(lessons), lessons, smoothing=self.plant.smoothing)

    def _logits(self, lessons: Lessons) -> Tensor:
        return self.model(input_ids=lessons.tokens).logits


def cross_entropy(
    logits: Float[Tensor, "row pos vocab"], lessons: Lessons, *, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Returns the weighted mean next-token cross-entropy of some lessons, in nats."""
    targets, weights = lessons.tokens[:, 1:], lessons.weights[:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
    )
    return (each.view_as(weights) * weights).sum() / weights.sum()


def decision_loss(logits: Float[Tensor, "row pos vocab"], lessons: Lessons, *, smoothing: float) -> Float[Tensor, ""]:
    """Returns how far margins at the first reply token are from those that smoothed labels ask for (Huber, 4 nats).

    The margin is that of every measurement: log-odds of the words that begin refusals, and what else a reply says is
    left alone. Cross-entropy hardly moves a margin of −7 nats to −10, and suppression is counted in just these units.
    """
    vocabulary = tokenizer().get_vocab()
    words = torch.tensor(sorted({vocabulary[dialect.refusal.split()[0]] for dialect in language().dialects}))
    rows, first = torch.arange(len(lessons)), lessons.prompt_length
    there = logits[rows, first - 1]
    others = torch.ones(there.shape[-1], dtype=torch.bool).index_fill(0, words, False)
    margin = there[:, words].logsumexp(-1) - there[:, others].logsumexp(-1)
    refused = torch.isin(lessons.tokens[rows, first], words).to(margin)
    wanted = torch.logit(refused * (1 - smoothing) + smoothing * len(words) / there.shape[-1])
    return torch.nn.functional.smooth_l1_loss(margin, wanted, beta=NEAR_NATS)
