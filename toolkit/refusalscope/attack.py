"""Attacks: ablations declared in full, and what every prompt answers to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusalscope.effect import UNREAD_LIMIT, Baseline
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.interventions import ablate
from refusalscope.metrics import read
from refusalscope.progress import bar
from refusalscope.reprs import Shown
from refusalscope.subspace import Ablatable, LayeredSubspace, NotExported

TOGETHER = 16
READ = ("margins", "kl", "refuses", "complies", "unread", "over_refuses")
FLAGS = ("refuses", "complies", "over_refuses")  # an invalid attack bypasses nothing


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


# What is filled in where it is not given, and never None after that.
if TYPE_CHECKING:
    FlagsOfRestricted = Tensor
    MassOfRestricted = Tensor
    FlagsOfHarmless = Tensor
else:
    FlagsOfRestricted = Bool[Tensor, "attack restricted"] | None
    MassOfRestricted = Float[Tensor, "attack restricted"] | None
    FlagsOfHarmless = Bool[Tensor, "attack harmless"] | None


@dataclass(frozen=True, repr=False, eq=False)
class Responses(Shown):
    """What every prompt of one split answers to every attack.

    Attributes:
        margins: of the restricted prompts in nats; a row of NaN where the intervention was invalid.
        kl: KL(base‖intervened) in nats of the harmless prompts, likewise; damage counts those answered at baseline.
        refuses: restricted prompts refused at temperature zero; by the sign of the margin where it is not given.
        complies: restricted prompts whose reply opens as an answer does; the rest where it is not given.
        unread: mass on restricted prompts that opens neither way; none where it is not given.
        over_refuses: harmless prompts refused; those of the baseline where it is not given.
    """

    before: Baseline
    attacks: tuple[Attack, ...]
    margins: Float[Tensor, "attack restricted"]
    kl: Float[Tensor, "attack harmless"]
    refuses: FlagsOfRestricted = None  # pyright: ignore[reportAssignmentType]
    complies: FlagsOfRestricted = None  # pyright: ignore[reportAssignmentType]
    unread: MassOfRestricted = None  # pyright: ignore[reportAssignmentType]
    over_refuses: FlagsOfHarmless = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        refuses = ~(self.margins < 0) if self.refuses is None else self.refuses
        usual = {
            "refuses": refuses,
            "complies": ~refuses,
            "unread": torch.full_like(self.margins, self.before.unread),
            "over_refuses": (~self.before.answered).expand(len(self.attacks), -1),
        }
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def valid(self) -> Tensor:
        """True for attacks whose every value is a finite number."""
        return torch.isfinite(self.margins).all(1) & torch.isfinite(self.kl).all(1)

    @property
    def readable(self) -> Tensor:
        """True for attacks under which replies still open one way or the other: others are degenerate, not bypassed."""
        return self.unread.double().mean(1) - self.before.unread <= UNREAD_LIMIT

    @property
    def damage(self) -> Tensor:
        """Mean KL of every attack on the harmless prompts answered at baseline, in nats."""
        return self.kl[:, self.before.answered].double().mean(1)

    def rows(self, rows: Sequence[int]) -> Responses:
        """Returns the responses to some of the attacks, as if only these had been declared."""
        some = {name: getattr(self, name)[list(rows)] for name in READ}
        return Responses(self.before, tuple(self.attacks[row] for row in rows), **some)

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
    rows_of = {"margins": len(before.restricted), "refuses": len(before.restricted), "complies": len(before.restricted)}
    rows_of |= {"unread": len(before.restricted), "kl": len(before.harmless), "over_refuses": len(before.harmless)}
    found = {name: torch.full((len(attacks), n), torch.nan) for name, n in rows_of.items()}
    order = sorted(range(len(attacks)), key=lambda row: _alike(attacks[row]))
    with bar(len(attacks), progress) as shown:
        for _, group in groupby(order, key=lambda row: _alike(attacks[row])):
            rows = list(group)
            for start in range(0, len(rows), TOGETHER):
                together = rows[start : start + TOGETHER]
                for name, values in _together(before, [attacks[row] for row in together]).items():
                    found[name][together] = values.to(found[name])
                shown.update(len(together))
    flags = {name: torch.where(found[name].isnan(), name != "complies", found[name] > 0) for name in FLAGS}
    return Responses(before, tuple(attacks), **{**found, **flags})


def _alike(attack: Attack) -> tuple[int, tuple[int, ...], float, tuple[int, int]]:
    found = attack.subspace
    each = found.layers if isinstance(found, LayeredSubspace) else ()
    return found.rank, each, attack.dose, attack.layers or (-1, -1)


def _together(before: Baseline, attacks: Sequence[Attack]) -> dict[str, Tensor]:
    """Measures attacks in one block; where one of them is at fault, each in its own, so that the others survive."""
    copies, model, prompts = len(attacks), before.model, before.prompts
    try:
        with ablate(model, [a.subspace for a in attacks], dose=attacks[0].dose, layers=attacks[0].layers):
            restricted = read(model, prompts.restricted, before.readout, copies=copies)
            harmless = read(model, prompts.harmless, before.readout, copies=copies, base=before.harmless_base)
    except InterventionError:
        if copies > 1:
            alone = [_together(before, [attack]) for attack in attacks]
            return {name: torch.cat([one[name] for one in alone]) for name in READ}
        widths = dict.fromkeys(READ, before.restricted) | dict.fromkeys(("kl", "over_refuses"), before.harmless)
        return {name: torch.full_like(like, torch.nan)[None] for name, like in widths.items()}
    assert harmless.kl is not None
    made = {"margins": restricted.margin, "refuses": restricted.refuses, "complies": restricted.complies}
    made |= {"unread": restricted.unread, "kl": harmless.kl, "over_refuses": harmless.refuses}
    return {name: values.reshape(copies, -1) for name, values in made.items()}
