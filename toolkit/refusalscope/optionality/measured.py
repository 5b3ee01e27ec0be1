"""From a model and a contrast set to its optionality: a family located, answered, chosen and reported in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from refusalscope.attack import Attack, Responses, respond
from refusalscope.effect import Labels, baseline
from refusalscope.errors import MeasurementError
from refusalscope.model import ChatModel
from refusalscope.optionality.adaptive import adaptive
from refusalscope.optionality.declared import Ground, ground, plain
from refusalscope.optionality.family import FULL, Menu
from refusalscope.optionality.frontier import Optionality, optionality
from refusalscope.optionality.grounds import KAPPA
from refusalscope.optionality.placebos import COUNT, placebo_family
from refusalscope.progress import quiet
from refusalscope.prompts import ContrastSet
from refusalscope.reading import Readout
from refusalscope.reprs import Shown
from refusalscope.subspace import NotExported

WHOLLY = 0.9  # of the time that is left goes to placebos


@dataclass(frozen=True, repr=False, eq=False)
class Answers(Shown, NotExported):
    """What the prompts of both splits answer to a family, and those of report to its placebos."""

    select: Responses
    report: Responses
    placebos: Responses

    @property
    def splits(self) -> tuple[Responses, Responses]:
        """Select and report, as ``compare`` takes them."""
        return self.select, self.report

    def __repr__(self) -> str:
        return f"Answers of {self.report.before.model.origin.name} to {len(self.report)} attacks"


def answers(
    model: ChatModel,
    prompts: ContrastSet,
    readout: Readout,
    attacks: Sequence[Attack],
    *,
    placebos: int = COUNT,
    seed: int = 0,
    progress: bool = True,
    time_left: Callable[[], float] | None = None,
) -> Answers:
    """Returns responses to a family on ``select`` and ``report``, and to random subspaces matched to it on ``report``.

    Where ``time_left`` says how many seconds there are, only as many placebos run as fit into them.
    Hand them to ``optionality``, ``by_part`` and ``compare``. Costs one prompt-forward per prompt for the baselines,
    every attack and every placebo.
    """
    if placebos < 1:
        raise MeasurementError(f"{placebos} placebos: no effect stands alone. Ask for at least 1.")
    name = model.origin.name
    with quiet(progress):
        select = respond(baseline(model, prompts.select, readout), attacks, progress=f"{name}, attacks on select")
        before, began = baseline(model, prompts.report, readout), time.perf_counter()
        report = respond(before, attacks, progress=f"{name}, attacks on report")
        if time_left is not None:
            each = (time.perf_counter() - began) / len(attacks)
            placebos = max(1, min(placebos, int(WHOLLY * time_left() / each)))
        drawn = placebo_family(attacks, count=placebos, seed=seed)
        return Answers(select, report, respond(report.before, drawn, progress=f"{name}, placebos"))


def measured(
    model: ChatModel,
    prompts: ContrastSet,
    readout: Readout,
    *,
    placebos: int = COUNT,
    menu: Menu | None = None,
    kappa: float = KAPPA,
    labels: Labels = "behaviour",
    on: Ground | None = None,
    seed: int = 0,
    progress: bool = True,
    time_left: Callable[[], float] | None = None,
) -> Optionality:
    """Returns the optionality under the plain family, or under the adaptive one where the menu says so.

    The family is fixed on ``locate``, the worst case chosen on ``select``, every number taken on ``report``, beside
    random families; locating counts into ``pf``. For a family of your own, or to see what each part of one does, call
    ``plain`` or ``adaptive``, ``answers``, and ``optionality`` or ``by_part`` one after the other.

    Args:
        readout: how the model refuses, discovered on ``locate`` or given.
        labels: what to locate on: prompts that behave as their label says, or all as they were asked.
        time_left: seconds there are; then only as many placebos run as fit.
        on: what to locate on, where that is at hand already (``ground``); ``labels`` is then not used.
        placebos: random subspaces measured on ``report``.
        menu: ranks, doses and scopes to try, and which family: ``FULL`` where None; ``ADAPTIVE`` adds to it.

    Raises:
        MeasurementError: when the mean margins on ``locate`` are not separated: there is no refusal to attack.
    """
    if placebos < 1:
        raise MeasurementError(f"{placebos} placebos: no effect stands alone. Ask for at least 1.")
    menu = menu or FULL
    with quiet(progress):
        if on is None:
            on = ground(model, prompts.locate, readout, kappa=kappa, keep_each=menu.adaptive, labels=labels)
        if menu.adaptive:
            attacks = adaptive(model, prompts, readout, menu=menu, kappa=kappa, on=on, seed=seed)
        else:
            attacks = plain(model, prompts, readout, menu=menu, kappa=kappa, on=on)
        made = answers(model, prompts, readout, attacks, placebos=placebos, seed=seed, time_left=time_left)
    result = optionality(*made.splits, placebos=made.placebos, kappa=kappa, seed=seed)
    return replace(result, pf=result.pf + attacks.pf)
