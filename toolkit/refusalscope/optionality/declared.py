"""A declared family: its attacks in order, fixed on ``locate``, and what it took to locate them; the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

from refusalscope.activations import ContrastActivations
from refusalscope.attack import Attack
from refusalscope.capture import capture
from refusalscope.curves.curve import evenly_spaced
from refusalscope.effect import Baseline, Labels, baseline, behaving
from refusalscope.locators import mean_difference
from refusalscope.model import ChatModel
from refusalscope.optionality.family import FULL, Located, Menu, best_first, early, family, few_cells, spans
from refusalscope.optionality.grounds import KAPPA
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import Readout
from refusalscope.reprs import Shown
from refusalscope.subspace import NotExported

PLAIN = "plain"


@dataclass(frozen=True, repr=False, eq=False)
class Declared(Shown, NotExported, Sequence[Attack]):
    """The attacks of a family, as a sequence to hand to ``respond``.

    Attributes:
        pf: prompt-forwards of locating all of them, what they share counted once.
    """

    attacks: tuple[Attack, ...]
    pf: float

    @overload
    def __getitem__(self, row: int) -> Attack: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[Attack, ...]: ...
    def __getitem__(self, row: int | slice) -> Attack | tuple[Attack, ...]:
        return self.attacks[row]

    def __len__(self) -> int:
        return len(self.attacks)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its parts, in order."""
        return tuple(dict.fromkeys(attack.part for attack in self.attacks))

    def __repr__(self) -> str:
        return f"Declared: {len(self)} attacks in {len(self.parts)} parts ({', '.join(self.parts)})"


@dataclass(frozen=True, repr=False, eq=False)
class Ground(NotExported):
    """What a family is located on: activations and the baseline of the ``locate`` split, and the damage to aim at.

    Attributes:
        dropped: restricted prompts left out because the model does not refuse them, harmless ones because it does.
        pf: prompt-forwards it took.
    """

    before: Baseline
    acts: ContrastActivations
    kappa: float
    dropped: tuple[int, int] = (0, 0)
    pf: float = 0.0


def ground(
    model: ChatModel,
    located: Prompts,
    readout: Readout,
    *,
    kappa: float = KAPPA,
    keep_each: bool = False,
    labels: Labels = "behaviour",
) -> Ground:
    """Returns what a family is located on: the ``locate`` prompts that behave as their labels say (``behaving``).

    Costs two prompt-forwards per prompt. Raises MeasurementError as ``behaving``.
    """
    every = baseline(model, located, readout)
    before = behaving(every, labels=labels)
    dropped = (len(every.restricted) - len(before.restricted), len(every.harmless) - len(before.harmless))
    acts = capture(model, before.prompts, keep_each=keep_each)
    return Ground(before, acts, kappa, dropped, float(len(located) + len(before.prompts)))


def cells_and_spans(on: Ground, menu: Menu = FULL) -> tuple[Located, ...]:
    """Returns the differences in means of the early cells, and the spans of the best of them, each best first."""
    found = early(mean_difference(*on.acts))
    if menu.cells is not None:
        found = few_cells(found, menu.cells, on.before.model.n_layers)
    before = on.before if menu.rank_on is None else _spaced(on.before, menu.rank_on)
    cells = best_first(before, found, kappa=on.kappa)
    return (cells, best_first(before, spans(cells), kappa=on.kappa)) if menu.spans else (cells,)


def _spaced(before: Baseline, count: int) -> Baseline:
    """The baseline of so many prompts of each label, evenly spaced; of all where there are fewer."""
    return before.only(*(evenly_spaced(range(len(margins)), count) for margins in (before.restricted, before.harmless)))


def plain(
    model: ChatModel,
    prompts: ContrastSet,
    readout: Readout,
    *,
    menu: Menu = FULL,
    kappa: float = KAPPA,
    on: Ground | None = None,
) -> Declared:
    """Returns the plain family: differences in means at single cells, and the spans of two or three of the best.

    ``on`` is what it is located on, where that is at hand already (``ground``).

    Raises MeasurementError when the mean margins on ``locate`` are not separated: there is no refusal to attack.
    """
    on = on or ground(model, prompts.locate, readout, kappa=kappa)
    located = cells_and_spans(on, menu)
    return Declared(tuple(members(located, menu, PLAIN)), len(prompts.locate) + located[-1].pf)


def members(located: Sequence[Located], menu: Menu, part: str) -> list[Attack]:
    """Returns the attacks that a menu makes of some lists, under the name of their part."""
    return [replace(attack, part=part) for attack in family(located, menu=menu)] if located else []
