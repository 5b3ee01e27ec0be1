"""Defences that are taught after the guard: refusing although located directions are gone, and losing the way there.

``hardened`` follows training under refusal-direction ablation (Yu et al. 2024, arXiv 2409.20089; Xie et al. 2025,
arXiv 2509.15202): directions located afresh are projected out, at random, while refusals are taught. ``rerouted``
follows circuit breakers (Zou et al. 2024, arXiv 2406.04313): while a restricted answer is being written, the residual
stream is turned away from what it was, so that a model which no longer refuses has nothing to say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusalscope.linalg import orthonormal
from refusalscope.organisms.curriculum import guard_curriculum, paired_lessons
from refusalscope.organisms.lessons import Lessons, join
from refusalscope.organisms.planting import TEMPLATE_POSITIONS, streams, without
from refusalscope.organisms.recipe import Recipe
from refusalscope.stats import torch_generator

LATER = 0.25
Loss = Callable[[PreTrainedModel, Lessons], Tensor]


def hardened_loss(model: PreTrainedModel, recipe: Recipe, loss: Loss) -> Callable[[], Tensor]:
    """Returns the objective of hardening: the guard's lessons, and the same with located directions projected out.

    Every ``afresh`` steps the differences in means are located anew at every layer and template position. Each step
    takes out the span of one to ``most`` of them, at random cells, at a dose of 1 to 2 (what turns a direction around
    is taught as well), mostly in every layer and sometimes from a random one on.
    """
    harden = recipe.harden
    assert harden is not None, recipe.name
    chance = torch_generator(recipe.seed, "lessons of harden")
    lessons, pairs = guard_curriculum(restricted=harden.restricted), paired_lessons()
    state: dict[str, Tensor] = {}
    steps = iter(range(harden.steps))

    def objective() -> Tensor:
        if next(steps) % harden.afresh == 0:
            state["found"] = located(model, pairs.restricted, pairs.harmless, harden.batch, chance)
        plain = loss(model, lessons.draw(harden.batch, chance))
        layers, places = state["found"].shape[:2]
        several = 1 + int(torch.randint(harden.most, (), generator=chance))
        cells = torch.randint(places * (layers - 1), (several,), generator=chance) + places
        vectors = state["found"].flatten(0, 1)[cells.unique()]
        first = int(torch.randint(layers, (), generator=chance)) if torch.rand((), generator=chance) < LATER else None
        dose = 1.0 + float(torch.rand((), generator=chance))
        with without(model, orthonormal(vectors.double()).float(), dose=dose, first=first):
            gone = loss(model, lessons.draw(harden.batch, chance))
        return plain + harden.gone * gone

    return objective


def rerouted_loss(model: PreTrainedModel, recipe: Recipe, loss: Loss) -> Callable[[], Tensor]:
    """Returns the objective of rerouting: streams turned away while restricted answers are written, kept elsewhere.

    The residual streams entering the recipe's layers are compared with those of the guarded model as it was: at words
    of an answer to a restricted request their cosine, above zero, is penalised; at words of answers to harmless ones
    and of refusals their squared distance, relative to the squared norm. The guard's lessons go on.
    """
    reroute = recipe.reroute
    assert reroute is not None, recipe.name
    chance, layers = torch_generator(recipe.seed, "lessons of reroute"), list(reroute.layers)
    lessons, pairs = guard_curriculum(restricted=0.35), paired_lessons()
    before = copy.deepcopy(model).eval().requires_grad_(False)

    def both(some: Lessons) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            was = streams(before, some)[layers]
        written = some.weights == 1.0
        return was[:, written], streams(model, some)[layers][:, written]

    def objective() -> Tensor:
        taught = loss(model, lessons.draw(reroute.batch, chance))
        was, now = both(pairs.restricted_answered.some(reroute.batch, chance))
        away = torch.cosine_similarity(now, was, dim=-1).clamp(min=0.0).mean()
        half = reroute.batch // 2
        was, now = both(join(pairs.harmless.some(half, chance), pairs.restricted.some(half, chance)))
        moved = ((now - was).square().sum(-1) / was.square().sum(-1)).mean()
        return taught + reroute.away * (away + moved)

    return objective


def located(
    model: nn.Module, restricted: Lessons, harmless: Lessons, size: int, chance: torch.Generator
) -> Float[Tensor, "layer place d"]:
    """Returns differences in means at every layer and template position, over ``size`` random prompts of each class."""
    means = []
    for lessons in (restricted, harmless):
        some = lessons.some(size, chance)
        with torch.no_grad():
            stream = streams(model, some)
        places = some.prompt_length[:, None] + torch.arange(-TEMPLATE_POSITIONS, 0)
        means.append(stream[:, torch.arange(size)[:, None], places].mean(1))
    return means[0] - means[1]
