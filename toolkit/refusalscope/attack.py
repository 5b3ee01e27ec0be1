"""Attacks: ablations declared in full, and what every prompt answers to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.effect import Baseline
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.interventions import ablate
from refusalscope.metrics import kl, margin
from refusalscope.progress import bar
from refusalscope.reprs import Shown
from refusalscope.subspace import Ablatable, LayeredSubspace, NotExported

TOGETHER = 16


@dataclass(frozen=True, repr=False, eq=False)
class Attack(Shown, NotExported):
    """One member of an attack family: which subspace is ablated, how much of it, and in which layers.

    Attributes:
        dose: λ of the ablation.
        layers: first and last layer of the scope, inclusive; None means all.
        n_prompts: contrast prompts it was located on, both classes together.
        pf: prompt-forwards it took to locate, with those of its gradients where there were any.
        part: which part of the family it belongs to; empty where the family has no parts.
    """

    subspace: Ablatable
    dose: float = 1.0
    layers: tuple[int, int] | None = None
    n_prompts: int = 0
    pf: float = 0.0
    part: str = ""

    @property
    def name(self) -> str:
        """The locator, cell, rank, dose and scope, in words."""
        return f"{self.located}, rank {self.subspace.rank}, dose {self.dose:g}, {self.scope}"

    @property
    def located(self) -> str:
        """The locator and the cell it looked at, in words."""
        found = self.subspace
        if isinstance(found, LayeredSubspace) or found.layer is None:
            return found.locator
        return f"{found.locator} at {found.layer}" + ("" if found.position is None else f"/{found.position}")

    @property
    def scope(self) -> str:
        """The layers it acts in, in words."""
        return "every layer" if self.layers is None else f"layers {self.layers[0]}–{self.layers[1]}"

    @property
    def facts(self) -> dict[str, object]:
        """What it is and what it took to locate, as columns of a tidy frame."""
        return {"attack": self.name, "located": self.located, "rank": self.subspace.rank, "dose": self.dose} | {
            "scope": self.scope,
            "n_prompts": self.n_prompts,
            "pf": self.pf,
            "part": self.part,
        }

    def __repr__(self) -> str:
        return f"Attack: {self.name}"


@dataclass(frozen=True, repr=False, eq=False)
class Responses(Shown):
    """What every prompt of one split answers to every attack.

    Attributes:
        margins: of the restricted prompts in nats; a row of NaN where the intervention was invalid.
        kl: KL(base‖intervened) in nats of the harmless prompts, likewise.
    """

    before: Baseline
    attacks: tuple[Attack, ...]
    margins: Float[Tensor, "attack restricted"]
    kl: Float[Tensor, "attack harmless"]

    @property
    def valid(self) -> Tensor:
        """True for attacks whose every value is a finite number."""
        return torch.isfinite(self.margins).all(1) & torch.isfinite(self.kl).all(1)

    @property
    def pf(self) -> float:
        """Prompt-forwards that were spent."""
        return float(len(self.attacks) * len(self.before.prompts))

    def __len__(self) -> int:
        return len(self.attacks)

    def __repr__(self) -> str:
        return f"Responses of {self.before.model.origin.name} to {len(self)} attacks"


def respond(before: Baseline, attacks: Sequence[Attack], *, progress: str = "attacks") -> Responses:
    """Returns margins and damage of every prompt under every attack, in the order given.

    Attacks that share rank, dose and scope run several per batch, each in its own rows, so that hundreds cost seconds.
    An ablation that did not happen as declared gives NaN: counted, never dropped, never "robust".
    Costs one prompt-forward per attack and prompt.
    """
    if not attacks:
        raise MeasurementError("There is no attack to measure: the family is empty.")
    margins = torch.full((len(attacks), len(before.restricted)), float("nan"))
    damage = torch.full((len(attacks), len(before.harmless)), float("nan"))
    order = sorted(range(len(attacks)), key=lambda row: _alike(attacks[row]))
    with bar(len(attacks), progress) as shown:
        for _, group in groupby(order, key=lambda row: _alike(attacks[row])):
            rows = list(group)
            for start in range(0, len(rows), TOGETHER):
                together = rows[start : start + TOGETHER]
                margins[together], damage[together] = _together(before, [attacks[row] for row in together])
                shown.update(len(together))
    return Responses(before, tuple(attacks), margins, damage)


def _alike(attack: Attack) -> tuple[int, tuple[int, ...], float, tuple[int, int]]:
    found = attack.subspace
    each = found.layers if isinstance(found, LayeredSubspace) else ()
    return found.rank, each, attack.dose, attack.layers or (-1, -1)


def _together(before: Baseline, attacks: Sequence[Attack]) -> tuple[Tensor, Tensor]:
    """Measures attacks in one block; where one of them is at fault, each in its own, so that the others survive."""
    copies = len(attacks)
    try:
        with ablate(before.model, [a.subspace for a in attacks], dose=attacks[0].dose, layers=attacks[0].layers):
            margins = margin(before.model, before.prompts.restricted, before.refusal, copies=copies)
            damage = kl(before.model, before.prompts.harmless, before.harmless_base, copies=copies)
    except InterventionError:
        if copies > 1:
            alone = [_together(before, [attack]) for attack in attacks]
            return torch.cat([m for m, _ in alone]), torch.cat([k for _, k in alone])
        return torch.full_like(before.restricted, torch.nan)[None], torch.full_like(before.harmless, torch.nan)[None]
    return margins.reshape(copies, -1), damage.reshape(copies, -1)
