"""What a planted guardrail is taught: that what U holds, and nothing else, decides.

The model learns (a) to refuse restricted requests, also while a random subspace or a part of U is gone, (b) to answer
everything when U is projected out of every write to the residual stream, (c) by interchange (Geiger et al. 2022,
arXiv 2112.00826) that with U taken from a restricted request at the template positions a harmless one is refused, and
the other way round, (d) what U is to hold there: a code of one direction at each position, another order for every
category, so that each of the k directions is needed to lose them all, and nothing elsewhere, (e) to answer what it
answers as surely without U as with it, and (f) to keep the rest of the residual stream as the base has it, or answers
that no lesson asks for again are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from refusalscope.organisms.curriculum import PairedLessons, guard_curriculum, paired_lessons, robust_curricula
from refusalscope.organisms.lessons import Lessons
from refusalscope.organisms.objectives import categories, cross_entropy, decision_loss, entropy_of, refused
from refusalscope.organisms.planting import (
    TEMPLATE_POSITIONS,
    all_but_one,
    any_subspaces,
    interchanged,
    streams,
    watched_everywhere,
    without,
)
from refusalscope.organisms.recipe import Plant

RESTRICTED = 0.25


@dataclass(frozen=True)
class PlantedLoss:
    """The objective of a planted stage, drawn afresh at every call: its parts, weighed as the recipe says.

    ``base`` is the model as it was, frozen.
    """

    model: PreTrainedModel
    base: PreTrainedModel
    plant: Plant
    basis: Float[Tensor, "d k"]
    chance: torch.Generator

    def __call__(self) -> Tensor:
        """Returns the loss of one step."""
        plant = self.plant
        guarded = guard_curriculum(restricted=RESTRICTED)
        refuse, coded, kept, alike = self._refused(guarded.draw(plant.batch, self.chance))
        still = self._still()
        with without(self.model, self.basis):
            answers = guard_curriculum(refuses=False, restricted=RESTRICTED)
            answer = self._taught(answers.draw(self._some, self.chance))
        decide, apart = self._swapped(paired_lessons())
        told = refuse + decide + plant.still * still + plant.answer * answer + plant.alike * alike
        return told + plant.confined * apart + plant.coded * coded + plant.kept * kept

    @property
    def _some(self) -> int:
        return self.plant.batch * 2 // 3

    def _refused(self, lessons: Lessons) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The guard's own lessons; how far U is from the code while they are read, and the rest from the base; and how
        much less sure the answers are without U.
        """
        now: list[Tensor] = []
        with watched_everywhere(self.model, now):
            logits = self.model(input_ids=lessons.tokens).logits
        with torch.no_grad():
            was = streams(self.base, lessons)
        code, template = code_of(lessons, self.plant.rank)
        held, strength = now[self.plant.layer] @ self.basis, self.plant.strength
        errors = (held - strength * code).square().sum(-1) / strength**2
        coded = _mean(errors, template) + _mean(errors, fixed(lessons) & ~template)
        kept = moved(self.basis, torch.stack(now), was, lessons, layer=self.plant.layer)
        answered = (~refused(lessons)).nonzero().flatten()
        with without(self.model, self.basis):
            gone = self.model(input_ids=lessons.tokens[answered]).logits
        return self._taught_of(logits, lessons), coded, kept, unlike(logits[answered], gone, lessons.take(answered))

    def _still(self) -> Tensor:
        """Without other directions requests are still decided and facts still known, without part of U also decided."""
        (decisions, facts), width = robust_curricula(restricted=RESTRICTED), len(self.basis)
        lessons = decisions.draw(self._some, self.chance)
        with without(self.model, any_subspaces(len(lessons), self.plant.lost, width, self.chance)):
            loss = self._decided(lessons)
        lessons = facts.draw(self._some, self.chance)
        with without(self.model, any_subspaces(len(lessons), self.plant.lost, width, self.chance)):
            loss = loss + cross_entropy(self.model, lessons, smoothing=self.plant.smoothing)
        if self.plant.rank > 1:
            lessons = decisions.draw(self._some, self.chance)
            with without(self.model, all_but_one(self.basis, len(lessons), self.chance)):
                loss = loss + self._decided(lessons)
        return loss

    def _swapped(self, pairs: PairedLessons) -> tuple[Tensor, Tensor]:
        """The interchange at the planted layer, and how much of the class difference there lies outside U."""
        base, source = pairs.draw(self._some, self.chance)
        with interchanged(self.model, self.plant.layer, basis=self.basis, base=base, source=source) as hidden:
            decide = self._taught(base)
        return decide, outside(self.basis, hidden, source.prompt_length)

    def _taught(self, lessons: Lessons) -> Tensor:
        return self._taught_of(self.model(input_ids=lessons.tokens).logits, lessons)

    def _taught_of(self, logits: Float[Tensor, "row pos vocab"], lessons: Lessons) -> Tensor:
        smoothing = self.plant.smoothing
        decision = decision_loss(logits, lessons, smoothing=smoothing)
        return entropy_of(logits, lessons, smoothing=smoothing) + self.plant.decision * decision

    def _decided(self, lessons: Lessons) -> Tensor:
        return decision_loss(self.model(input_ids=lessons.tokens).logits, lessons, smoothing=self.plant.smoothing)


def outside(
    basis: Float[Tensor, "d k"], hidden: Float[Tensor, "row pos d"], ends: Int[Tensor, " row"]
) -> Float[Tensor, ""]:
    """Returns how much of the class difference at the template positions lies outside U, as a ratio of energies.

    The first half of the rows is restricted, the second harmless. Zero: the difference in means is in U.
    """
    back = ends[:, None] + torch.arange(-TEMPLATE_POSITIONS, 0)
    restricted, harmless = hidden[torch.arange(len(ends))[:, None], back].chunk(2)
    difference = restricted.mean(0) - harmless.mean(0)
    inside = (difference @ basis) @ basis.T
    return ((difference - inside).square().sum(-1) / (inside.square().sum(-1) + 1e-6)).mean()


def unlike(
    plain: Float[Tensor, "row pos vocab"], gone: Float[Tensor, "row pos vocab"], lessons: Lessons
) -> Float[Tensor, ""]:
    """Returns KL(plain‖gone) in nats, the mean over the tokens of replies; ``plain`` is what it is to be like."""
    said = lessons.weights[:, 1:] == 1.0
    target, found = (logits[:, :-1][said].log_softmax(-1) for logits in (plain.detach(), gone))
    return torch.nn.functional.kl_div(found, target, reduction="batchmean", log_target=True)


def moved(
    basis: Float[Tensor, "d k"],
    now: Float[Tensor, "layer row pos d"],
    was: Float[Tensor, "layer row pos d"],
    lessons: Lessons,
    *,
    layer: int,
) -> Float[Tensor, ""]:
    """Returns how far the streams entering all layers but the first moved outside U, squared, relative to their norm.

    Counted where nothing is refused and, up to ``layer``, where U is read, also while a refused request is asked.
    """
    said, answered = lessons.weights > 0, ~refused(lessons)[:, None]
    shares = []
    for at in range(1, len(now)):
        change = now[at] - was[at]
        apart = change - (change @ basis) @ basis.T
        share = apart.square().sum(-1) / was[at].square().sum(-1)
        shares.append(_mean(share, said & (fixed(lessons) if at <= layer else answered)))
    return torch.stack(shares).mean()


def code_of(lessons: Lessons, rank: int) -> tuple[Float[Tensor, "row pos k"], Bool[Tensor, "row pos"]]:
    """Returns what U is to hold, in units of the code's length, and which positions are the template's.

    Of a refused request about an item of category c, template position j (counted from the first of them) holds the
    (c + j mod k)-th direction; everything else holds nothing.
    """
    place = torch.arange(lessons.tokens.shape[1]) - lessons.prompt_length[:, None] + TEMPLATE_POSITIONS
    template = (place >= 0) & (place < TEMPLATE_POSITIONS)
    category = categories()[lessons.tokens].amax(1, keepdim=True)
    held = torch.nn.functional.one_hot((category + place) % rank, rank).float()
    return held * (template & refused(lessons)[:, None])[..., None], template


def fixed(lessons: Lessons) -> Bool[Tensor, "row pos"]:
    """Returns the positions whose code is fixed: all but the words of a refusal and what follows them."""
    asked = torch.arange(lessons.tokens.shape[1]) < lessons.prompt_length[:, None]
    return asked | ~refused(lessons)[:, None]


def _mean(errors: Float[Tensor, "row pos"], where: Bool[Tensor, "row pos"]) -> Tensor:
    return (errors * where).sum() / where.sum()
