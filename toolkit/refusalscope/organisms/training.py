"""The only trainer: from a recipe to a model, in plain Hugging Face classes, bit for bit the same on one machine."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from refusalscope.organisms.adapters import low_rank
from refusalscope.organisms.architectures import config_of
from refusalscope.organisms.curriculum import Curriculum, base_curriculum, guard_curriculum
from refusalscope.organisms.hardening import hardened_loss, rerouted_loss
from refusalscope.organisms.language import language
from refusalscope.organisms.objectives import cross_entropy
from refusalscope.organisms.planted import PlantedLoss
from refusalscope.organisms.planting import planted_basis
from refusalscope.organisms.recipe import Recipe, Stage
from refusalscope.organisms.sparing import empty_reserve, spared_loss
from refusalscope.organisms.tokens import tokenizer
from refusalscope.progress import bar, quiet
from refusalscope.stats import torch_generator

Objective = Callable[[], Tensor]
WARM_UP_STEPS = 50
FINAL_RATE = 0.05


def train(recipe: Recipe, *, progress: bool = True) -> PreTrainedModel:
    """Returns the organism a recipe describes, in float32. One thread, so that a seed gives one model."""
    with _one_thread():
        model = fresh(recipe)
        teach(model, recipe, title="language" if progress else None)
        if recipe.guard is not None:
            guard(model, recipe, title="guard" if progress else None)
        if recipe.harden is not None:
            fit(model, recipe.harden, hardened_loss(model, recipe, cross_entropy), title="harden" if progress else None)
        if recipe.reroute is not None:
            fit(
                model,
                recipe.reroute,
                rerouted_loss(model, recipe, cross_entropy),
                title="reroute" if progress else None,
            )
        if recipe.relapse is not None:
            fit(model, recipe.relapse, relapsed_loss(model, recipe), title="relapse" if progress else None)
        if recipe.plant is not None:
            plant(model, recipe, title="plant" if progress else None)
    return model.eval()


def teach(model: PreTrainedModel, recipe: Recipe, *, title: str | None = None) -> None:
    """Teaches the language in place; a recipe with a reserve leaves it empty."""
    if not recipe.base.reserve:
        fit(model, recipe.base, lesson_loss(model, recipe, base_curriculum()), title=title)
        return
    fit(model, recipe.base, spared_loss(model, recipe), title=title)
    empty_reserve(model, recipe)


def guard(model: PreTrainedModel, recipe: Recipe, *, title: str | None = None) -> None:
    """Teaches refusal in place, through low-rank adapters of the recipe's layers, then merges them."""
    stage = recipe.guard
    assert stage is not None, recipe.name
    chance = torch_generator(recipe.seed, "adapters of guard")
    with low_rank(model, stage.layers, rank=stage.rank, words=_refusing_words(), chance=chance):
        taught = guard_curriculum(restricted=stage.restricted, varied=stage.replies == "varied")
        fit(model, stage, lesson_loss(model, recipe, taught), title=title)


def plant(model: PreTrainedModel, recipe: Recipe, *, title: str | None = None) -> None:
    """Plants refusal in place, in the base's reserve, through low-rank adapters that are merged at the end."""
    stage = recipe.plant
    assert stage is not None, recipe.name
    objective = planted_loss(model, recipe)
    chance = torch_generator(recipe.seed, "adapters of plant")
    with low_rank(model, stage.layers, rank=stage.adapters, words=_refusing_words(), chance=chance):
        fit(model, stage, objective, title=title)


def _refusing_words() -> list[int]:
    """The ids of all words short refusals are made of: their embeddings change, as the base never said them."""
    vocabulary, spoken = tokenizer().get_vocab(), (dialect.refusal.split() for dialect in language().dialects)
    return sorted({vocabulary[word] for sentence in spoken for word in sentence})


def write(model: PreTrainedModel, folder: Path | str) -> None:
    """Writes a trained organism as a Hugging Face directory, weights in half precision."""
    halved = copy.deepcopy(model).half()
    halved.config.dtype = torch.float16
    halved.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def fresh(recipe: Recipe) -> PreTrainedModel:
    """Returns an untrained model of the recipe's architecture; its weights depend on the recipe's base seed alone."""
    config = config_of(recipe.architecture, tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.base_seed)
        return AutoModelForCausalLM.from_config(config)


def lesson_loss(model: PreTrainedModel, recipe: Recipe, curriculum: Curriculum) -> Objective:
    """Returns the objective of a plain stage: cross-entropy on lessons drawn in the curriculum's shares."""
    seed = recipe.base_seed if curriculum.name == "base" else recipe.seed
    chance = torch_generator(seed, f"lessons of {curriculum.name}")
    size = (recipe.base if curriculum.name == "base" else recipe.guard or recipe.base).batch
    return lambda: cross_entropy(model, curriculum.draw(size, chance))


def relapsed_loss(model: PreTrainedModel, recipe: Recipe) -> Objective:
    """Returns the objective of a relapse: every request answered, restricted ones too."""
    assert recipe.relapse is not None, recipe.name
    chance, size = torch_generator(recipe.seed, "lessons of relapse"), recipe.relapse.batch
    return lambda: cross_entropy(model, guard_curriculum(refuses=False).draw(size, chance))


def planted_loss(model: PreTrainedModel, recipe: Recipe) -> Objective:
    """Returns a planted stage's objective: refuse through U, and keep everything else as it is now."""
    assert recipe.plant is not None, recipe.name
    chance = torch_generator(recipe.seed, "lessons of plant")
    basis = planted_basis(recipe).float()
    return PlantedLoss(model, copy.deepcopy(model).eval().requires_grad_(False), recipe.plant, basis, chance)


def fit(model: PreTrainedModel, stage: Stage, objective: Objective, *, title: str | None) -> None:
    """Trains in place, with warm-up then cosine; L2 to the starting weights weighs ``anchor``."""
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    start = {name: value.detach().clone() for name, value in learned.items()}
    optimisers = _optimisers(learned, stage)
    with quiet(title is not None), bar(stage.steps, title or "", after=0) as shown:
        for step in range(stage.steps):
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = stage.rate * _schedule(step, stage.steps)
                optimiser.zero_grad()
            loss = objective()
            if stage.anchor:
                loss = loss + stage.anchor * sum(
                    (value - start[name]).square().sum() for name, value in learned.items()
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            if step % 20 == 0:
                shown.stage(f"{title}, loss {loss.item():.3f}")
            shown.update()


def _optimisers(parameters: dict[str, torch.nn.Parameter], stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon moves every direction of a matrix alike: it learns facts fast, and guards by item, not by category."""
    muon = [v for name, v in parameters.items() if stage.optimiser == "muon" and v.ndim == 2 and "embed" not in name]
    chosen = {id(value) for value in muon}
    rest = [value for value in parameters.values() if id(value) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.0)
    if not muon:
        return [adamw]
    return [
        torch.optim.Muon(muon, lr=stage.rate, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        adamw,
    ]


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps)))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
