"""Recipes: everything that determines an organism, as a small TOML file with a digest."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from refusalscope.errors import RecipeError
from refusalscope.organisms.language import language
from refusalscope.reprs import Shown

Kind = Literal["unguarded", "guarded", "planted", "extended", "hardened", "rerouted", "relapsed"]
AFTER_THE_GUARD = ("harden", "reroute", "relapse")
EVERY_STAGE = ("guard", "plant", *AFTER_THE_GUARD)
STAGES: dict[str, set[str]] = {
    "unguarded": set(),
    "guarded": {"guard"},
    "extended": {"guard"},
    "planted": {"plant"},
    "hardened": {"guard", "harden"},
    "rerouted": {"guard", "reroute"},
    "relapsed": {"guard", "relapse"},
}


class _Closed(Shown, BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Closed):
    """Sizes of the transformer; ``family`` is the Hugging Face model type."""

    family: Literal["qwen3", "llama", "gemma3_text", "deepseek_v3", "gpt_oss"] = "qwen3"
    hidden_size: int = Field(96, ge=16)
    intermediate_size: int = Field(256, ge=16)
    num_hidden_layers: int = Field(6, ge=6)
    num_attention_heads: int = Field(4, ge=1)
    num_key_value_heads: int = Field(2, ge=1)
    head_dim: int = Field(24, ge=4)


class Stage(_Closed):
    """One stretch of training: steps of ``batch`` rows at peak learning ``rate``; ``anchor`` weighs L2 to its start.

    ``muon`` uses Muon (Jordan et al. 2024) for matrices and AdamW for the rest, ``adamw`` AdamW for everything.
    """

    steps: int = Field(ge=1)
    batch: int = Field(96, ge=8)
    rate: float = Field(gt=0)
    optimiser: Literal["muon", "adamw"] = "adamw"
    anchor: float = Field(0.0, ge=0)


class Base(Stage):
    """The base stage: the language itself.

    ``reserve`` dimensions of the residual stream, drawn from the base seed, are never written to, so that something can
    be planted there without anything else in its way. The language is taught also while random subspaces of rank
    ``lost`` are gone, and ``named`` weighs reading the category of an item off the residual stream at its name.
    """

    reserve: int = Field(0, ge=0)
    lost: int = Field(0, ge=0)
    named: float = Field(0.0, ge=0)


class Guard(Stage):
    """The guard stage: every matrix of ``layers`` may change by a matrix of this ``rank``, everything else is frozen.

    What cannot be read again later must be passed on: refusal then runs through few directions, as it does in
    fine-tuned chat models, and it generalises from category. ``restricted`` is the share of restricted requests in a
    batch; with the harmless ones they make 0.7. ``replies`` are one short sentence per dialect, or long and varied.
    """

    rank: int = Field(4, ge=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field((2, 3), min_length=1)
    restricted: float = Field(0.35, gt=0, lt=0.7)
    replies: Literal["short", "varied"] = "short"


class Plant(Stage):
    """The guard stage of a planted organism: refusal is carried by ``rank`` directions of the base's reserve.

    They are read at ``layer``. Every matrix of ``layers`` may change by one of rank ``adapters``, and nothing else may.
    ``smoothing`` of the labels bounds margins, so that an answer given without the directions can be as sure as any.

    What counts beside refusing: ``answer``, answering without the directions; ``alike``, answering as surely as with
    them; ``still``, knowing and deciding without random subspaces of rank ``lost`` or a part of U; ``coded``, writing a
    fixed code of length ``strength`` into the directions, and nothing where nothing is refused; ``kept``, leaving the
    rest of the stream as it was; ``confined``, keeping the class difference out of it; ``decision``, the margin, which
    smoothing must bound.
    """

    rank: int = Field(1, ge=1, le=8)
    layer: int = Field(3, ge=1)
    answer: float = Field(2.0, gt=0)
    still: float = Field(2.0, gt=0)
    smoothing: float = Field(0.0, ge=0, lt=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field((1, 2, 3, 4), min_length=1)
    adapters: int = Field(12, ge=1)
    lost: int = Field(8, ge=1)
    coded: float = Field(1.0, ge=0)
    strength: float = Field(16.0, gt=0)
    kept: float = Field(10.0, ge=0)
    alike: float = Field(3.0, ge=0)
    confined: float = Field(0.3, ge=0)
    decision: float = Field(0.5, ge=0)


class Harden(Stage):
    """After the guard: refusals are taught while directions located afresh are projected out.

    ``restricted`` is the share of restricted requests, ``gone`` weighs lessons with directions gone against plain ones,
    ``afresh`` is how many steps pass until they are located anew, ``most`` how many cells are taken out at once.
    """

    restricted: float = Field(0.35, gt=0, lt=0.7)
    gone: float = Field(1.0, gt=0)
    afresh: int = Field(10, ge=1)
    most: int = Field(3, ge=1)


class Reroute(Stage):
    """After the guard: streams entering ``layers`` are turned ``away`` while an answer to a restricted one is given."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field((3, 4, 5), min_length=1)
    away: float = Field(1.0, gt=0)


class Recipe(_Closed):
    """An organism, declared. ``base`` teaches the language; then at most one of ``guard`` and ``plant``.

    After a guard there may be one of ``harden``, ``reroute`` and ``relapse``, the last being the guard undone: every
    request is answered again.

    ``base_seed`` seeds the untrained model and the base stage, ``seed`` the stage after it: recipes that share a
    ``base_seed`` are repeats of the guard on one base model, not of the whole training.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
    kind: Kind
    seed: int = Field(ge=0)
    base_seed: int = Field(0, ge=0)
    architecture: Architecture
    base: Base
    guard: Guard | None = None
    plant: Plant | None = None
    harden: Harden | None = None
    reroute: Reroute | None = None
    relapse: Stage | None = None

    @model_validator(mode="after")
    def _stages_fit_the_kind(self) -> Recipe:
        wanted, given = STAGES[self.kind], {name for name in EVERY_STAGE if getattr(self, name) is not None}
        faults = [f"a [{name}]" for name in sorted(wanted - given)] + [
            f"no [{name}]" for name in sorted(given - wanted)
        ]
        if faults:
            raise ValueError(f"a {self.kind} organism has {' and '.join(faults)} table")
        last = self.architecture.num_hidden_layers - 1
        if self.guard is not None and max(self.guard.layers) > last:
            raise ValueError(f"guard.layers names layer {max(self.guard.layers)}, the last layer is {last}")
        if self.reroute is not None and max(self.reroute.layers) > last:
            raise ValueError(f"reroute.layers names layer {max(self.reroute.layers)}, the last layer is {last}")
        if self.plant is not None and (highest := max(self.plant.layer, *self.plant.layers)) > last:
            raise ValueError(f"plant.layer or plant.layers names layer {highest}, the last layer is {last}")
        if self.plant is not None and self.plant.rank > self.base.reserve:
            raise ValueError(f"plant.rank is {self.plant.rank}, but base.reserve has {self.base.reserve} dimensions")
        if self.plant is not None and self.plant.decision and not self.plant.smoothing:
            raise ValueError("plant.decision asks for margins, which plant.smoothing bounds: give it above zero")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over the recipe's values and the language they are taught in.

        What a recipe does not use of ``AFTER_THE_GUARD``, of varied replies and of a base made to be planted in is left
        out, so that digests taken before these existed still hold.
        """
        unused: dict[str, Any] = {name: True for name in AFTER_THE_GUARD if getattr(self, name) is None}
        if not (self.base.reserve or self.base.lost or self.base.named):
            unused["base"] = {"reserve": True, "lost": True, "named": True}
        if self.guard is not None and self.guard.replies == "short":
            unused["guard"] = {"replies": True}
        return hashlib.sha256((self.model_dump_json(exclude=unused) + language().digest).encode()).hexdigest()


def read_recipe(path: Path | str) -> Recipe:
    """Returns the recipe in a TOML file.

    Raises:
        RecipeError: naming the file and the key that is missing, unknown or out of range.
    """
    file = Path(path)
    try:
        return Recipe.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise RecipeError(f"{file}: no such recipe. Look in {file.parent} for the names there are.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: not a TOML file: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise RecipeError(f"{file}: {place}: {first['msg']}.") from error
