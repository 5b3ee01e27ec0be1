"""A plan that fits a time budget: this machine is timed first, then prompts, cells and placebos are chosen to fit.

Prompts are taken in whole clusters, because intervals count clusters; where not even five whole ones fit, a few prompts
of each. Of ``locate`` there are twice as many, and 40 of each label in all but the smallest plan: finding how a model
refuses takes more examples than locating does. The rungs of ``LADDER`` are tried from the smallest; the last one that
fits is the plan, and what it leaves out is said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from refusalscope import stats
from refusalscope.curves.curve import evenly_spaced
from refusalscope.errors import MeasurementError
from refusalscope.interventions import ablate
from refusalscope.metrics import read
from refusalscope.model.chat import ChatModel
from refusalscope.optionality import Menu
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.prompts.prompt import LABELS, Prompt
from refusalscope.reading.discover import MOST_NODES
from refusalscope.reading.readout import Readout
from refusalscope.reading.replies import SHORT, WHOLE
from refusalscope.report.plan import FULL_PLAN, Plan
from refusalscope.reprs import Shown
from refusalscope.rule import default_rule
from refusalscope.subspace import Subspace

SPARE = 0.85  # of a budget is planned for: machines are shared, and a stage can take longer than the trial said
UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
SPELLED = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*?)s?\s*", re.IGNORECASE)
FOR_READOUT = 2  # times as many prompts to locate: openings must cover how the model refuses elsewhere
FOUND_ON = 40  # prompts of each label to find openings on: from 20 or 24, kappa of one model was .70, .79 and 1.00
STEP = 1.5  # a reply is made a token at a time: what such a token costs, in tokens of a prompt
TRIAL_PROMPTS, TRIAL_COPIES = 8, 3
WHOLE_CLUSTER = 4  # prompts to rank on, of each label, for every cluster that is taken whole
LEAST_CELLS, LEAST_RANKED = 2, 6
JUDGED = 20  # prompts of each label at the least that a readout's validity is taken on
MOST_PLACEBOS = 199  # time that is left goes to placebos, up to so many


class Rung(NamedTuple):
    """Clusters per split, cells to rank, doses, the placebos to count on, and whether spans and the rule are measured.

    ``each`` prompts of a cluster and label are taken; None takes the whole cluster. At least ``found_on`` prompts of a
    label are there to find openings on.
    """

    clusters: int
    cells: int
    doses: tuple[float, ...]
    placebos: int
    further: bool = False
    each: int | None = None
    found_on: int = FOUND_ON


TWO, MORE, MOST = (0.5, 1.0), (0.5, 1.0, 1.5), (0.5, 0.75, 1.0, 1.5)  # a whole dose is often above the damage limit
LADDER = (
    Rung(5, 3, TWO, 2, each=2, found_on=0),
    Rung(5, 3, TWO, 2, each=2),
    Rung(6, 3, TWO, 4, each=2),
    Rung(8, 4, TWO, 9, each=2),
    Rung(5, 3, TWO, 4),
    Rung(5, 4, TWO, 9),
    Rung(6, 4, TWO, 9),
    Rung(6, 6, MORE, 9),
    Rung(8, 6, MORE, 9),
    Rung(8, 8, MORE, 19),
    Rung(10, 8, MORE, 19),
    Rung(14, 8, MORE, 19),
    Rung(14, 12, MOST, 19, True),
    Rung(20, 16, MOST, 39, True),
    Rung(28, 24, MOST, 39, True),
    Rung(28, 48, MOST, 99, True),
)


@dataclass
class TimeBudget(Shown):
    """Wall-clock seconds to spend, from when it was made."""

    seconds: float
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.perf_counter() - self.began)

    def __repr__(self) -> str:
        return "TimeBudget: wall-clock time to spend"


def time_budget(text: str | float | int) -> TimeBudget:
    """Returns a budget that starts to run now, from "15 min", "20m", "90 s" or seconds. Raises MeasurementError."""
    return TimeBudget(parse_duration(text))


class Fitted(NamedTuple):
    """A plan and the prompts it measures, what was left out in sentences, and seconds per prompt-forward.

    ``judged`` are the prompts of ``select`` on which the readout is held against the model's own replies: more than are
    measured where these are few, for a kappa of a dozen prompts says nothing.
    """

    plan: Plan
    prompts: ContrastSet
    left_out: tuple[str, ...]
    pace: float
    judged: Prompts


def parse_duration(text: str | float | int) -> float:
    """Returns seconds from "15 min", "20m", "90 s", "1.5h", or from a number of seconds.

    Raises MeasurementError for anything else, and for less than a second.
    """
    found = SPELLED.fullmatch(str(text))
    unit = None if found is None else UNITS.get(found[2].lower() or "s")
    seconds = 0.0 if found is None or unit is None else float(found[1]) * unit
    if seconds < 1:
        raise MeasurementError(f"A budget of {text!r} is no time to measure in. Give one such as '15 min' or '90s'.")
    return seconds


def fit_plan(model: ChatModel, prompts: ContrastSet, budget: TimeBudget, *, whole: float) -> Fitted:
    """Returns the largest plan that should end within a budget on this machine, after a trial of a few prompts.

    ``whole`` is the price of the full plan in prompt-forwards; it is taken where it fits.

    Raises MeasurementError where not even the smallest plan fits, saying how long it would take.
    """
    pace = time_prompt_forward(model, prompts.report)
    counts = {split: _clusters(part) for split, part in _splits(prompts).items()}
    most = max(min(each) for each in counts.values())
    rungs = [rung for rung in LADDER if rung.clusters <= most] or [LADDER[0]._replace(clusters=most)]
    rungs += [LADDER[-1]._replace(clusters=count) for count in _doubled(LADDER[-1].clusters, most)]
    taken = ((rung, _taken(prompts, rung)) for rung in rungs)
    priced = [
        (rung, pace * _price(model, some, rung, judged=len(_judged(prompts, some))), some) for rung, some in taken
    ]
    fits = [one for one in priced if one[1] <= SPARE * budget.left]
    if not fits:
        need = priced[0][1] / SPARE
        raise MeasurementError(
            f"{model.origin.name}: the smallest plan takes about {need / 60:.2g} minutes on this machine, and "
            f"{max(0.0, budget.left) / 60:.2g} are left. Give a larger budget, fewer prompts or a smaller model."
        )
    rung, _, some = fits[-1]
    if rung == rungs[-1] and pace * whole <= SPARE * budget.left:
        return Fitted(FULL_PLAN, prompts, (), pace, _judged(prompts, prompts))
    return Fitted(_plan(rung), some, tuple(_left_out(prompts, some, rung, model)), pace, _judged(prompts, some))


def _judged(prompts: ContrastSet, some: ContrastSet) -> Prompts:
    """What is measured of ``select``, and as many more prompts of it as make 20 of each label, as far as there are."""
    return _with_more(prompts.select, some.select, JUDGED)


def _with_more(every: Prompts, some: Sequence[Prompt], least: int) -> Prompts:
    """Some prompts, and as many more of all as make the least of each label, evenly spaced, as far as there are."""
    kept = {row.id for row in some}
    for label in LABELS:
        own = [row.id for row in every if row.label == label]
        more = [name for name in own if name not in kept]
        missing = least - (len(own) - len(more))
        kept |= {more[place] for place in evenly_spaced(range(len(more)), missing)} if missing > 0 and more else set()
    return Prompts(tuple(row for row in every if row.id in kept))


def _doubled(count: int, most: int) -> list[int]:
    """Twice, four times ... a count, and the most there are: sets whose every prompt is a cluster have hundreds."""
    found = []
    while 2 * count < most:
        count *= 2
        found.append(count)
    return [*found, most] if most > count else found


def time_prompt_forward(model: ChatModel, prompts: Prompts) -> float:
    """Returns the seconds that a prompt takes under an ablation, from a trial of eight prompts with three subspaces."""
    some = Prompts(tuple(prompts.rows[:TRIAL_PROMPTS]))
    chance = stats.torch_generator(0, "trial directions")
    drawn = torch.randn(TRIAL_COPIES, 1, model.d_model, generator=chance, dtype=torch.float64)
    directions = [Subspace(vectors, None, None, "random (trial)") for vectors in drawn]
    places = 1 if model.is_organism else MOST_NODES  # at which a readout may read; an organism's openings are one token
    anything = Readout(tuple((0,) * depth + (1,) for depth in range(places)))
    with ablate(model, directions):
        read(model, Prompts(some.rows[:1]), anything, copies=TRIAL_COPIES)  # the first forward makes buffers
        began = time.perf_counter()
        read(model, some, anything, copies=TRIAL_COPIES)
    return (time.perf_counter() - began) / (TRIAL_COPIES * len(some))


def shrink_menu(menu: Menu, *, pace: float, left: float, chosen: int, reported: int) -> Menu:
    """Returns a menu that fits into the seconds that are left, at the pace the measurement has had so far.

    Fewer cells first, then two doses, then fewer prompts to rank on; a machine that others slow down takes less of the
    attack family, and not more time.

    Args:
        chosen, reported: prompts of ``select`` and ``report``, both labels.
    """
    while _menu_price(menu, chosen, reported) * pace > SPARE * left:
        if menu.cells is None or menu.rank_on is None:
            return menu
        if menu.spans:
            menu = replace(menu, spans=False, best=1)
        elif menu.cells > LEAST_CELLS:
            menu = replace(menu, cells=menu.cells - 1)
        elif len(menu.doses) > len(TWO):
            menu = replace(menu, doses=TWO)
        elif menu.rank_on > LEAST_RANKED:
            menu = replace(menu, rank_on=menu.rank_on - 1)
        else:
            return menu
    return menu


def _menu_price(menu: Menu, chosen: int, reported: int) -> float:
    """Prompt-forwards of ranking, of the family on both splits, and of the fewest placebos."""
    ranked = ((menu.cells or 0) + 10 * menu.spans) * 2 * (menu.rank_on or 0)
    attacks = (1 + menu.spans) * (menu.best or 1) * len(menu.doses) * (chosen + reported)
    return float(ranked + attacks + LADDER[0].placebos * reported + chosen + reported)


def _plan(rung: Rung) -> Plan:
    menu = Menu(
        best=2 if rung.further else 1,
        doses=rung.doses,
        cells=rung.cells,
        spans=rung.further,
        rank_on=rung.clusters * (rung.each or WHOLE_CLUSTER),
    )
    return Plan(
        "budget",
        menu=menu,
        placebos=MOST_PLACEBOS,
        curves=("dose",) if rung.further else (),
        per_label=8,
        curve_placebos=9,
        transfer=False,
        monitor=False,
        rule=rung.further,
    )


def _price(model: ChatModel, some: ContrastSet, rung: Rung, *, judged: int) -> float:
    """Prompt-forwards of a rung, replies counted by their tokens."""
    located, chosen, reported = len(some.locate), len(some.select), len(some.report)
    lengths = [len(tokens) for tokens in model.encode(some.locate.texts)]
    length = sum(lengths) / len(lengths)
    replies = located * (1 + SHORT * STEP / length) + judged * (1 + WHOLE * STEP / length)
    ground = 3 * located + chosen + judged + reported
    spans, lists = (10, 2) if rung.further else (0, 1)
    ranked = (rung.cells + spans) * min(located, 2 * rung.clusters * (rung.each or WHOLE_CLUSTER))
    attacks = lists * (2 if rung.further else 1) * len(rung.doses) * (chosen + reported)
    rule = rung.further * (1.6 * rung.cells * chosen / 2 + 20 * 16 + 12 * reported)
    return replies + ground + ranked + attacks + rung.placebos * reported + rule


def _splits(prompts: ContrastSet) -> dict[str, Prompts]:
    return {"locate": prompts.locate, "select": prompts.select, "report": prompts.report}


def _clusters(part: Prompts) -> tuple[int, int]:
    return len(set(part.restricted.clusters)), len(set(part.harmless.clusters))


def _taken(prompts: ContrastSet, rung: Rung) -> ContrastSet:
    """Whole clusters of every split and label, evenly spaced in their order, so that categories are all met.

    Where the time does not suffice for whole ones, the first few prompts of each.
    """
    rows = []
    for split, part in _splits(prompts).items():
        some, count = [], rung.clusters * (FOR_READOUT if split == "locate" else 1)
        for labelled in (part.restricted, part.harmless):
            names = list(dict.fromkeys(labelled.clusters))
            for name in evenly_spaced(names, count):
                some += [row for row in labelled if row.cluster == name][: rung.each]
        rows += _with_more(part, some, rung.found_on) if split == "locate" else some
    order = {row.id: place for place, row in enumerate(prompts.prompts)}
    kept_ids = {row.id for row in rows}
    several = [row if row.pair in kept_ids else replace(row, pair=None) for row in rows]
    part = "" if rung.each is None else f" {rung.each} prompts of"
    more = f", and at least {rung.found_on} prompts" if rung.found_on else ""
    note = (
        f"{prompts.split_note};{part} {rung.clusters} clusters of each label and split, of locate twice as many{more}"
    )
    return ContrastSet(Prompts(tuple(sorted(several, key=lambda row: order[row.id]))), prompts.source, note)


def _left_out(prompts: ContrastSet, some: ContrastSet, rung: Rung, model: ChatModel) -> list[str]:
    early = default_rule(model.n_layers).first_late(model.n_layers)
    every, n = model.n_positions * early, len(prompts.prompts)
    counted = [(n - len(some.prompts), n, "prompts"), (every - rung.cells, every, "early cells")]
    said = [f"{out} of {of} {what}: left out to fit the budget" for out, of, what in counted if out > 0]
    if not rung.further:
        said += ["the selection rule, its effect and spans of cells: left out to fit the budget"]
    return [*said, "curves, transfer and monitor: left out to fit the budget, but for a dose curve where there is one"]
