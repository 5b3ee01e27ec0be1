"""Contenders: every locator of the package at its chosen cell, as calls that each may fail on their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

from refusalscope import curves, locators
from refusalscope.activations import ContrastActivations
from refusalscope.capture import capture
from refusalscope.cosmic import cosmic
from refusalscope.effect import Baseline, baseline
from refusalscope.errors import MeasurementError, SelectionError
from refusalscope.model import ChatModel
from refusalscope.objective import Objective, interchange_objective, rdo_objective
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import readout
from refusalscope.selection import select
from refusalscope.subspace import Candidates, NotExported, Subspace

NONE_LEFT = "COSMIC, as the rule left none"
BATCH = 8  # half the default: angles differ by less than a degree
MEMBERS, CONE_STEPS = 2, 20  # fewer than the defaults: a step of a cone costs one call per vector and member

Closed = Callable[[ContrastActivations, Prompts, int], Candidates]
Aim = Callable[["Bench", Subspace], Objective]
Descent = Callable[..., Subspace]


@dataclass(frozen=True, repr=False, eq=False)
class Bench(NotExported):
    """What locators are given: activations and the baseline on ``locate``; prompts that choose a cell; the report."""

    acts: ContrastActivations
    located: Baseline
    choosing: Prompts
    report: Baseline
    seed: int


@dataclass(frozen=True, repr=False, eq=False)
class Found(NotExported):
    """What one locator found, or why it found nothing.

    Attributes:
        by: who chose the cell, of a gradient the start's: `rule`, `COSMIC`, or COSMIC where the rule left none.
        candidates: of the whole grid, where there is one.
    """

    subspace: Subspace | None
    by: str = ""
    why: str = ""
    candidates: Candidates | None = None


def bench_of(model: ChatModel, prompts: ContrastSet, *, per_label: int, seed: int) -> Bench:
    """Returns what all locators of a model share. Raises MeasurementError where nothing is refused."""
    found = readout(model, prompts.locate)
    splits = (prompts.locate, prompts.select, prompts.report)
    located, choosing, report = (baseline(model, split, found) for split in splits)
    acts = capture(model, prompts.locate, keep_each=True)
    return Bench(acts, located, curves.thinned(choosing, per_label).prompts, curves.thinned(report, per_label), seed)


def contenders(bench: Bench, rank: int) -> Mapping[tuple[str, int], Callable[[], Found]]:
    """Returns what there is to find, by name and rank (1 and ``rank``), each as a call of its own.

    A call raises MeasurementError where its locator cannot be fitted or finds nothing; the others are not touched.
    """
    first = cache(lambda: _closed(bench, CLOSED["mean_difference"], 1))
    tried: dict[tuple[str, int], Callable[[], Found]] = {}
    for k in sorted({1, rank}):
        tried |= {(name, k): partial(_closed, bench, locate, k) for name, locate in CLOSED.items()}
        if k == 1:
            tried |= {("mean_difference", 1): first, ("cosmic", 1): lambda: _by_cosmic(bench, first())}
        names = [name for name in DESCENTS if k > 1 or name != "cone"]
        tried |= {(name, k): partial(_descended, bench, first, *DESCENTS[name], k) for name in names}
    return tried


def _closed(bench: Bench, locate: Closed, rank: int) -> Found:
    before = bench.located
    candidates = locate(bench.acts, before.prompts, rank)
    try:
        choice = select(before.model, candidates, bench.choosing, before.readout, seed=bench.seed)
    except SelectionError as none:
        return replace(_by_cosmic(bench, Found(None, candidates=candidates)), by=NONE_LEFT, why=str(none))
    return Found(choice.subspace, "rule", candidates=candidates)


def _by_cosmic(bench: Bench, found: Found) -> Found:
    """The candidate of the cell COSMIC chooses; of several vectors it looks at the first, as it adds only one."""
    candidates = found.candidates
    assert candidates is not None
    firsts = replace(candidates, vectors=candidates.vectors[:, :, :1])
    try:
        cell = cosmic(bench.located.model, firsts, bench.choosing).cell
    except SelectionError as none:
        raise MeasurementError(str(none)) from none
    return Found(candidates.at(*cell), "COSMIC", candidates=candidates)


def _descended(bench: Bench, first: Callable[[], Found], aim: Aim, descend: Descent, rank: int) -> Found:
    start = first()
    assert start.subspace is not None
    found = descend(start.subspace, aim(bench, start.subspace), rank=rank, seed=bench.seed)
    return Found(found, start.by, start.why)


def _rdo(bench: Bench, start: Subspace) -> Objective:
    return rdo_objective(bench.located, start, batch_size=BATCH, seed=bench.seed)


def _interchange(bench: Bench, start: Subspace) -> Objective:
    return interchange_objective(bench.located, bench.acts, start, batch_size=BATCH, seed=bench.seed)


def _means(acts: ContrastActivations, prompts: Prompts, rank: int) -> Candidates:
    if rank == 1:
        return locators.mean_difference(*acts)
    phrasings = prompts.restricted.clusters, prompts.harmless.clusters
    return locators.mean_differences(*acts, groups=phrasings[0], against=phrasings[1], rank=rank)


def _categories(prompts: Prompts, rank: int) -> list[str] | None:
    return None if rank == 1 else [row.category for row in prompts.restricted]


CLOSED: Mapping[str, Closed] = {
    "mean_difference": _means,
    "paired_pca": lambda acts, prompts, rank: locators.paired_pca(*acts, rank=rank),
    "leace": lambda acts, prompts, rank: locators.leace(*acts, rank=rank, groups=_categories(prompts, rank)),
    "logistic": lambda acts, prompts, rank: locators.logistic(*acts, rank=rank),
    "whitened": lambda acts, prompts, rank: locators.whitened(*acts, rank=rank, groups=_categories(prompts, rank)),
}
DESCENTS: Mapping[str, tuple[Aim, Descent]] = {
    "rdo": (_rdo, locators.gradient),
    "interchange": (_interchange, locators.gradient),
    "cone": (_rdo, partial(locators.cone, members=MEMBERS, steps=CONE_STEPS)),
}
