"""The adaptive family: attacks that a defence against the plain one would not have seen.

Whoever attacks a hardened model may locate afresh on it, in other ways and places, and search. So everything here is
located on the very model that is measured, and the plain family is a part of it. Five parts come on top:

- ``other locators``: whitened, logistic, paired PCA, standardised and winsorised, at every early cell. LEACE for two
  classes has the range of the difference in means, so it is in the plain part already.
- ``rank k``: two, four or eight dimensions at one cell, from differences in means by category and by phrasing, probes
  in turn, and LEACE of categories.
- ``per layer``: what every layer reads loses that layer's own directions.
- ``response positions``: differences in means at the first tokens of a fixed refusal, and of a fixed compliant opening,
  put behind the prompts. Both classes get the same words. Were refusals put behind restricted prompts and compliance
  behind harmless ones, as in a dialogue, the difference would be one of words; here it is what the request left behind.
- ``gradient``: RDO of rank one, two and four, concept cones of two to four dimensions, and interchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from refusalscope.capture import capture
from refusalscope.locators import (
    cone,
    gradient,
    leace,
    logistic,
    mean_difference,
    mean_differences,
    paired_pca,
    standardised,
    whitened,
    winsorised,
)
from refusalscope.model import ChatModel
from refusalscope.objective import InterchangeObjective, RdoObjective, interchange_objective, rdo_objective
from refusalscope.openings import default_openings
from refusalscope.optionality.declared import PLAIN, Declared, Ground, cells_and_spans, ground, members
from refusalscope.optionality.family import FULL, Located, Menu, best_first, early
from refusalscope.optionality.grounds import KAPPA
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import Readout
from refusalscope.subspace import Ablatable, Candidates, Subspace

FURTHER = Menu(best=None, doses=(0.75, 1.0, 1.5))
RANKS, PROBES, LAYERED = (2, 4, 8), 4, (2, 4)
SINGLE = (whitened, logistic, paired_pca, standardised, winsorised)
OPENINGS, DEPTH = 2, 4  # how many openings of each kind, and how many tokens into each
SEARCHED, STEPS = (1, 2, 4), 60
CONES, CONE_STEPS, CONE_BATCH, CONE_MEMBERS = (2, 3, 4), 40, 8, 2
SWAPPED = (1, 2)

Objective = RdoObjective | InterchangeObjective
Searched = Callable[[Subspace, Objective], Subspace]


def adaptive(
    model: ChatModel,
    prompts: ContrastSet,
    readout: Readout,
    *,
    menu: Menu = FULL,
    kappa: float = KAPPA,
    on: Ground | None = None,
    seed: int = 0,
) -> Declared:
    """Returns the adaptive family, located on this model's ``locate`` prompts before any other split is seen.

    The plain part is that of ``plain``, member by member. Every other list is ranked by ``best_first`` and gives its
    best at three doses (the three best, of other locators). A gradient counts as three prompt-forwards.

    Args:
        menu: of the plain part; its scopes are those of all parts.
        seed: of minibatches and of directions that fill up a search.

    Raises:
        MeasurementError: when the mean margins on ``locate`` are not separated: there is no refusal to attack.
    """
    on = on or ground(model, prompts.locate, readout, kappa=kappa, keep_each=True)
    cells, *spanned = cells_and_spans(on, menu)
    further = replace(FURTHER, scopes=menu.scopes)
    ranked = {rank: made for rank, made in _of_ranks(on).items() if made}
    parts = {
        "other locators": [_best(on, _cells(on, [locator(*on.acts) for locator in SINGLE]), best=3)],
        "rank k": [_best(on, _cells(on, made)) for made in ranked.values()],
        "per layer": [_best(on, _layered(on, made)) for made in _per_layer(on, ranked)],
        "response positions": [_best(on, made) for made in _response(on)],
        "gradient": list(_searched(on, cells, seed=seed)),
    }
    attacks = members((cells, *spanned), menu, PLAIN)
    for part, lists in parts.items():
        attacks += members([made for made in lists if made.subspaces], further, part)
    shared, n = on.acts.restricted.n + on.acts.harmless.n, len(prompts.locate)
    own = sum(made.pf - (cells.pf if part == "gradient" else shared) for part, lists in parts.items() for made in lists)
    return Declared(tuple(attacks), n + (spanned or [cells])[-1].pf + own)


def _best(on: Ground, given: Located, *, best: int = 1) -> Located:
    """The best of some subspaces, by what each does on ``locate``."""
    ranked = best_first(on.before, given, kappa=on.kappa)
    return replace(ranked, subspaces=ranked.subspaces[:best])


def _cells(on: Ground, found: Sequence[Candidates]) -> Located:
    return _together(on, [early(candidates) for candidates in found])


def _together(on: Ground, lists: Sequence[Located], *, pf: float = 0.0) -> Located:
    """One list of several that were made from the same activations, which are paid for once."""
    n = on.acts.restricted.n + on.acts.harmless.n
    return Located(tuple(one for made in lists for one in made.subspaces), n, n + pf)


def _of_ranks(on: Ground) -> dict[int, list[Candidates]]:
    """For each k, the k-dimensional candidates of every method that has that many groups to find them in."""
    restricted, harmless = on.before.prompts.restricted, on.before.prompts.harmless
    categories, clusters = [row.category for row in restricted], restricted.clusters
    against = harmless.clusters if set(clusters) <= set(harmless.clusters) else None
    many, phrasings = _most(len(set(categories))), _most(len(set(clusters)))
    found = [logistic(*on.acts, rank=min(PROBES, on.acts.restricted.n))]
    found += [mean_differences(*on.acts, groups=categories, rank=many)] if many else []
    found += [leace(*on.acts, groups=categories, rank=many)] if many else []
    found += [mean_differences(*on.acts, groups=clusters, rank=phrasings, against=against)] if phrasings else []
    return {rank: [_first(one, rank) for one in found if one.vectors.shape[2] >= rank] for rank in RANKS}


def _most(groups: int) -> int:
    """The largest rank to ask for that so many groups can give; 0 where they give none."""
    return max((rank for rank in RANKS if rank <= groups), default=0)


def _first(found: Candidates, rank: int) -> Candidates:
    """The first k directions of each cell: every method here puts its strongest first, whatever the rank."""
    return replace(found, vectors=found.vectors[:, :, :rank])


def _per_layer(on: Ground, ranked: Mapping[int, Sequence[Candidates]]) -> Iterator[list[Candidates]]:
    """What is asked for one direction per layer, and for several of them."""
    yield [locator(*on.acts) for locator in (mean_difference, whitened)]
    several = [one for rank, made in ranked.items() if rank in LAYERED for one in made]
    yield from [several] if several else []


def _layered(on: Ground, found: Sequence[Candidates]) -> Located:
    """A candidate for every position, all layers of it together."""
    made: list[Ablatable] = [one.every_layer(position) for one in found for position in one.positions]
    n = on.acts.restricted.n + on.acts.harmless.n
    return Located(tuple(made), n, float(n))


def _response(on: Ground) -> Iterator[Located]:
    """Cells of the first tokens of a refusal, and of a compliant opening: one list for each kind."""
    openings, n = default_openings(on.before.model), len(on.before.prompts)
    for kind, texts in (("a refusal", openings.refusals), ("a compliant opening", openings.compliances)):
        lists = [_inside(on.before.model, on.before.prompts, text, kind) for text in texts[:OPENINGS]]
        yield _together(on, lists, pf=float(n * len(lists)))


def _inside(model: ChatModel, located: Prompts, opening: str, kind: str) -> Located:
    found = mean_difference(*capture(model, located, reply=opening))
    first = [position for position in found.positions if position - found.positions.start < DEPTH]
    given = early(found)
    kept = [
        replace(one, position=None, locator=f"{one.locator} {_nth(one, found)} tokens into {kind}")
        for one in given.subspaces
        if isinstance(one, Subspace) and one.position in first
    ]
    return replace(given, subspaces=tuple(kept))


def _nth(one: Subspace, found: Candidates) -> int:
    assert one.position is not None
    return 1 + one.position - found.positions.start


def _searched(on: Ground, cells: Located, *, seed: int) -> Iterator[Located]:
    """What descends from the best cell on RDO's objective or on interchange, each with the price of its gradients."""
    start, before = cells.subspaces[0], on.before
    assert isinstance(start, Subspace)
    for rank in SEARCHED:
        yield _descended(cells, rdo_objective(before, start, seed=seed), _search(rank, "RDO", seed=seed))
    for rank in CONES:
        objective = rdo_objective(before, start, batch_size=CONE_BATCH, seed=seed)
        yield _descended(cells, objective, _cone(rank, seed=seed))
    for rank in SWAPPED:
        objective = interchange_objective(before, on.acts, start, seed=seed)
        yield _descended(cells, objective, _search(rank, "interchange", seed=seed))


def _search(rank: int, name: str, *, seed: int) -> Searched:
    def work(start: Subspace, objective: Objective) -> Subspace:
        found = gradient(start, objective, rank=rank, steps=STEPS, seed=seed)
        return replace(found, locator=f"{found.locator} of {name}")

    return work


def _cone(rank: int, *, seed: int) -> Searched:
    def work(start: Subspace, objective: Objective) -> Subspace:
        return cone(start, objective, rank=rank, members=CONE_MEMBERS, steps=CONE_STEPS, seed=seed)

    return work


def _descended(cells: Located, objective: Objective, search: Searched) -> Located:
    """Where a search ended. Its price holds that of the start, which the best of all cells had to be known for."""
    start = cells.subspaces[0]
    assert isinstance(start, Subspace)
    found = search(start, objective)
    return Located((found,), cells.n_prompts, cells.pf + objective.pf)


def most_further(model: ChatModel, located: int) -> tuple[float, int]:
    """Returns the most that these parts add to the plain family: prompt-forwards of locating, and subspaces.

    Args:
        located: prompts of the ``locate`` split.
    """
    cells, opened = model.n_layers * model.n_positions, 2 * OPENINGS
    ranked = len(SINGLE) * cells + 4 * len(RANKS) * cells + opened * DEPTH * model.n_layers
    layered = (2 + 4 * len(LAYERED)) * model.n_positions
    rdo, swap = 9 * 16, 6 * 16  # prompt-forwards of one call on minibatches of 16 of each class
    drawn = sum((rank + CONE_MEMBERS) * CONE_STEPS * 9 * CONE_BATCH for rank in CONES)
    searched = len(SEARCHED) * STEPS * rdo + drawn + len(SWAPPED) * STEPS * swap
    subspaces = 3 + len(RANKS) + 2 + 2 + len(SEARCHED) + len(CONES) + len(SWAPPED)
    return float((ranked + layered + opened) * located + searched), subspaces
