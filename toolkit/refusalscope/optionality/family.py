"""The declared attack family: locators × cells × ranks × doses × scopes, each member with its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch

from refusalscope.attack import Attack, respond
from refusalscope.effect import Baseline
from refusalscope.errors import MeasurementError
from refusalscope.optionality.grounds import KAPPA
from refusalscope.reprs import Shown
from refusalscope.rule import Cell, Rule, default_rule
from refusalscope.subspace import Ablatable, Candidates, LayeredSubspace, NotExported, Subspace

Scope = tuple[int, int] | None
DEPENDENT = 1e-6
FIRST_LAYER = 0.3  # of all layers: where few cells are ranked, none before it is


@dataclass(frozen=True, repr=False, eq=False)
class Located(Shown, NotExported):
    """Subspaces of one locator, best first, with what it took to locate them.

    Attributes:
        n_prompts: contrast prompts they were located on, both classes together.
        pf: prompt-forwards of locating, ranking included.
    """

    subspaces: tuple[Ablatable, ...]
    n_prompts: int
    pf: float

    def __repr__(self) -> str:
        names = dict.fromkeys(subspace.locator for subspace in self.subspaces)
        return f"Located: {len(self.subspaces)} subspaces by {', '.join(names) or 'nobody'}"


@dataclass(frozen=True, repr=False)
class Menu(Shown):
    """What a family tries of each list of located subspaces.

    Doses above 1 take out more than all of a subspace: they turn its content around. They belong to the family because
    a projection that is only nearly right leaves some refusal at dose 1, and whoever attacks can turn the dose up.

    Attributes:
        best: how many of the first subspaces to take; None takes all.
        doses: λ.
        scopes: first and last layer, inclusive; None means every layer.
        adaptive: whether ``measured`` adds the parts of ``adaptive`` to the plain family, whose menu this is.
        cells: how many cells are ranked, the last position first, layers evenly spaced over the later part of the early
            ones; None ranks every early cell.
        spans: whether spans of two or three cells are tried.
        rank_on: prompts of each label that cells are ranked on; None ranks on all of ``locate``.
    """

    best: int | None = 3
    doses: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    scopes: tuple[Scope, ...] = (None,)
    adaptive: bool = False
    cells: int | None = None
    spans: bool = True
    rank_on: int | None = None


FULL = Menu()
ADAPTIVE = Menu(adaptive=True)
QUICK = Menu(best=2, doses=(0.75, 1.0, 1.5))


def early(candidates: Candidates, *, pf: float | None = None, rule: Rule | None = None) -> Located:
    """Returns the candidates of all cells that the rule calls early that hold a direction, in the order of the grid.

    ``pf`` is one per prompt unless given: capturing is all that locating in closed form takes.
    """
    cells = [Cell(*cell) for cell in candidates.cells() if not candidates.is_empty(*cell)]
    kept = [cell for cell in cells if (rule or default_rule(candidates.n_layers)).is_early(cell, candidates.n_layers)]
    n = sum(candidates.n)
    return Located(tuple(candidates.at(*cell) for cell in kept), n, float(n) if pf is None else pf)


def few_cells(located: Located, count: int, n_layers: int) -> Located:
    """Returns about ``count`` of the cells: the last positions first, layers evenly spaced between 0.3 L and the cut.

    Directions that are read at the last positions of middle layers are those that published runs choose (Arditi et al.
    2024, table 5); the others are left out, and a worst case over fewer cells can only be a milder one.
    """
    cells = [one for one in located.subspaces if isinstance(one, Subspace) and one.layer is not None]
    positions = sorted({one.position for one in cells if one.position is not None}, reverse=True)
    late = sorted({one.layer for one in cells if one.layer is not None and one.layer >= FIRST_LAYER * n_layers})
    rows = max(1, min(len(positions), -(-count // max(1, len(late)))))
    each = max(1, count // rows)
    layers = {late[step * len(late) // each] for step in range(each)} if each < len(late) else set(late)
    kept = tuple(one for one in cells if one.position in positions[:rows] and one.layer in layers)
    return replace(located, subspaces=kept)


def best_first(before: Baseline, located: Candidates | Located, *, kappa: float = KAPPA, dose: float = 1.5) -> Located:
    """Returns the subspaces in the order of the suppression each should reach within damage κ; invalid ones last.

    Each is ablated once, at dose 1. Suppression and damage are taken to grow in proportion to the dose, as they roughly
    do around 1, so s · min(dose, κ / KL) is expected, ``dose`` being the largest a family will try. It takes one
    prompt-forward per subspace and prompt. ``before`` is a baseline on ``locate``, so that the family is fixed before
    ``select`` is seen.
    """
    given = early(located) if isinstance(located, Candidates) else located
    if not given.subspaces:
        return given
    if not before.gap > 0:
        raise MeasurementError(f"The mean margins differ by {before.gap:.2f} nats: there is no refusal to rank by.")
    found = respond(before, [Attack(subspace) for subspace in given.subspaces])
    suppression = (before.restricted - found.margins).double().mean(1) / before.gap
    reach = (kappa / found.damage.clamp(min=1e-12)).clamp(max=dose)
    expected = torch.where(found.valid & found.readable, suppression * reach, -torch.inf)
    order = expected.argsort(descending=True, stable=True).tolist()
    return replace(given, subspaces=tuple(given.subspaces[row] for row in order), pf=given.pf + found.pf)


def spans(located: Located, *, of: int = 4, ranks: Sequence[int] = (2, 3)) -> Located:
    """Returns the spans of the first vectors of every 2 and every 3 of the first few subspaces.

    A refusal that one cell holds only in part may lie in the span of several. Which of them do, ``best_first`` tells;
    it takes 10 more ablations. Sets that are linearly dependent span a lower rank and are left out.
    """
    made = []
    first = [one for one in located.subspaces if not isinstance(one, LayeredSubspace)][:of]
    for rank in ranks:
        for several in combinations(first, rank):
            vectors = torch.cat([one.vectors[:1] for one in several])
            if int(torch.linalg.matrix_rank(vectors, rtol=DEPENDENT)) == rank:
                cells = " and ".join(f"{one.layer}/{one.position}" for one in several)
                made.append(Subspace(vectors, None, None, f"{several[0].locator}, span of {cells}"))
    return replace(located, subspaces=tuple(made))


def family(located: Sequence[Candidates | Located], *, menu: Menu | None = None) -> list[Attack]:
    """Returns the attack family: the best subspaces of every list, at every dose and scope, each with its budget.

    ``Candidates`` stand for all their early cells in grid order; order them with ``best_first``. Subspaces found in any
    other way (by gradients, as cones) come as ``Located`` with what they cost. The list is plain: add attacks to it.
    Without a menu: ``FULL`` for one or two lists (15 members each), ``QUICK`` for more (6 each).

    Example:
        >>> cells = best_first(baseline(model, prompts.locate, readout), locate.mean_difference(*acts))
        >>> family([cells, best_first(before, spans(cells))])
    """
    menu = menu or (FULL if len(located) <= 2 else QUICK)
    made = []
    for one in located:
        given = early(one) if isinstance(one, Candidates) else one
        for subspace in given.subspaces[: menu.best]:
            made += [
                Attack(subspace, dose, scope, given.n_prompts, given.pf) for dose in menu.doses for scope in menu.scopes
            ]
    if not made:
        raise MeasurementError("No subspace was located, so the attack family is empty: give at least one locator.")
    return made
