"""The stages of a card: each measures one thing, and one that cannot be measured leaves its reason behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pandas as pd

from refusalscope import curves, transfer
from refusalscope.curves import Curve, Sampling
from refusalscope.diagnosis import Diagnosis, diagnose, estimated_diagnose_cost
from refusalscope.effect import Baseline, Effect, Labels, baseline, effect, placebo_effects
from refusalscope.errors import InterventionError, MeasurementError, SelectionError
from refusalscope.interventions import ablate
from refusalscope.locators import mean_difference, mean_differences
from refusalscope.metrics import refuses
from refusalscope.model import ChatModel
from refusalscope.monitor import Survival
from refusalscope.optionality import Menu, Optionality, judge, measured
from refusalscope.optionality import declared as families
from refusalscope.organisms.language import language
from refusalscope.outcomes import outcomes
from refusalscope.placebo import random_like
from refusalscope.progress import Bar
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import PHRASES_FOLLOW, Readout, Validity, readout, validate_readout
from refusalscope.reading.validity import compare_judges
from refusalscope.report.deploy import watched
from refusalscope.report.plan import Plan
from refusalscope.report.time_budget import shrink_menu
from refusalscope.rule import Rule
from refusalscope.selection import Choice, select
from refusalscope.subspace import NotExported, Subspace
from refusalscope.transfer import Grouping, Sources

COMPLIANT_OPENING = "Sure, here is how you can do that. First of all, make sure that you have"
MOST_RANKS, MOST_GROUPS = 8, 12
SHUFFLED = 9

T = TypeVar("T")


@dataclass(frozen=True, repr=False, eq=False)
class Ground(NotExported):
    """What everything later stands on: the readout, what to locate on, and the baseline of the report split."""

    model: ChatModel
    readout: Readout
    on: families.Ground
    before: Baseline


@dataclass
class Found:
    """What a measurement has found so far, why the rest is missing, and what it has cost."""

    bar: Bar
    time_left: Callable[[], float] | None = None
    readout: Readout | None = None
    validity: Validity | None = None
    intervened: Validity | None = None
    on: families.Ground | None = None
    before: Baseline | None = None
    choice: Choice | None = None
    optionality: Optionality | None = None
    effect: Effect | None = None
    curves: list[Curve] = field(default_factory=list)
    transfer: pd.DataFrame | None = None
    steps: pd.DataFrame | None = None
    diagnosis: Diagnosis | None = None
    survival: Survival | None = None
    problems: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pf: float = 0.0

    @property
    def is_open(self) -> bool:
        """True where there is no verdict, or the rule chose nothing: where the reason is wanted."""
        undetermined = self.optionality is None or judge(self.optionality).state == "undetermined"
        return self.choice is None or undetermined

    def run(self, stage: str, work: Callable[[], tuple[T, float]]) -> T | None:
        """Returns what a stage made, having counted its prompt-forwards; None where it failed, and why is kept."""
        self.bar.stage(stage)
        began = time.perf_counter()
        try:
            made, pf = work()
        except (MeasurementError, SelectionError, InterventionError) as error:
            self.problems[stage] = str(error).split(PHRASES_FOLLOW)[0]
            return None
        finally:
            self.bar.update()
        self.pf += pf
        self.seconds[stage] = time.perf_counter() - began
        return made


def measure_all(
    model: ChatModel,
    prompts: ContrastSet,
    *,
    plan: Plan,
    rule: Rule,
    seed: int,
    bar: Bar,
    labels: Labels = "behaviour",
    judged: Prompts | None = None,
    time_left: Callable[[], float] | None = None,
    pace: float = 0.0,
) -> Found:
    """Returns everything a plan asks for; what needs an earlier stage that failed is not tried.

    ``judged`` are prompts to hold the readout against the model's own replies on, at most as many as the plan says;
    those of select where None.
    ``time_left`` says how many seconds there are, and ``pace`` how many a prompt-forward takes: as many placebos run as
    fit, and a diagnosis only where it fits.
    """
    found = Found(bar=bar, time_left=time_left)
    chosen = _sampled(prompts.select if judged is None else judged, plan.validity, seed=seed)
    ground = _ground(found, model, prompts, plan=plan, labels=labels, judged=chosen, seed=seed)
    if ground is not None:
        _judge(found, ground, prompts, plan=plan, rule=rule, seed=seed)
        if found.choice is not None:
            _describe(found, ground, found.choice, prompts, plan=plan, seed=seed)
        elif plan.rule:
            found.problems["effect, curves and transfer"] = "the rule chose nothing to measure them on"
        if plan.monitor:
            found.survival = found.run("monitor", lambda: _watched(found, model, prompts, plan=plan, seed=seed))
    wanted = found.is_open and (plan.rule or found.optionality is None)
    price = pace * estimated_diagnose_cost(model, prompts, rule=rule) if time_left is not None else 0.0
    if wanted and time_left is not None and price > time_left():
        found.problems["diagnosis"] = "left out to fit the budget"
    elif wanted:
        found.diagnosis = found.run("diagnosis", lambda: _diagnosed(model, prompts, rule=rule, seed=seed))
    bar.update(plan.stages - bar.n)  # a stage that was not wanted, or not tried, is over too
    return found


def _watched(found: Found, model: ChatModel, prompts: ContrastSet, *, plan: Plan, seed: int) -> tuple[Survival, float]:
    subspace = None if found.choice is None else found.choice.subspace
    return watched(model, prompts, subspace, placebos=plan.curve_placebos, seed=seed)


def _diagnosed(model: ChatModel, prompts: ContrastSet, *, rule: Rule, seed: int) -> tuple[Diagnosis, float]:
    made = diagnose(model, prompts, rule=rule, seed=seed)
    return made, made.pf


def most_described(model: ChatModel, prompts: ContrastSet, *, plan: Plan) -> float:
    """Returns the most prompt-forwards that curves and transfer can take, known before anything runs."""
    pairs = min(len(prompts.locate.restricted), len(prompts.locate.harmless))
    null = 1 + plan.curve_placebos
    attacks = {
        "dose": len(curves.DOSES) * null,
        "rank": MOST_RANKS * null,
        "prompt budget": len(curves.sizes_of(pairs)) * (Sampling().draws + plan.curve_placebos),
        "layer scope": len(curves.scopes_of(model.n_layers)) * null,
        "opening depth": (1 + curves.DEEPEST) * (2 + plan.curve_placebos),  # each depth apart, behind long openings
    }
    drawn = sum(attacks[name] for name in plan.curves) * 2 * plan.per_label
    if not plan.transfer:
        return float(drawn)
    n_groups = sum(len({by(row) for row in prompts.locate}) for by in _groupings(prompts).values())
    return float(drawn + (n_groups * (1 + SHUFFLED) + plan.curve_placebos) * 8 * plan.per_label)


def _sampled(select: Prompts, most: int, *, seed: int) -> Prompts:
    """So many prompts of each label at the most, as many of one as of the other."""
    fewest = min(len(select.restricted), len(select.harmless), most)
    return select.sample(fewest, seed=seed) if fewest else select


def _ground(
    found: Found,
    model: ChatModel,
    prompts: ContrastSet,
    *,
    plan: Plan,
    labels: Labels,
    judged: Prompts,
    seed: int,
) -> Ground | None:
    """The readout, what to locate on, and the baseline: without them there is nothing to say."""
    singly, located = plan.transfer or "prompt budget" in plan.curves, prompts.locate
    found.readout = found.run("readout", lambda: (readout(model, located), 2 * len(located)))
    if (known := found.readout) is None:
        return None
    found.validity = found.run(
        "readout validity", lambda: (validate_readout(model, judged, known, seed=seed), 2 * len(judged))
    )
    found.before = found.run("baseline", lambda: (baseline(model, prompts.report, known), len(prompts.report)))
    found.on = found.run("capture", lambda: _located(model, located, known, plan=plan, labels=labels, singly=singly))
    return None if found.on is None or found.before is None else Ground(model, known, found.on, found.before)


def _located(
    model: ChatModel, located: Prompts, known: Readout, *, plan: Plan, labels: Labels, singly: bool
) -> tuple[families.Ground, float]:
    keep_each = singly or plan.menu.adaptive
    made = families.ground(model, located, known, kappa=plan.kappa, keep_each=keep_each, labels=labels)
    return made, made.pf


def _judge(found: Found, ground: Ground, prompts: ContrastSet, *, plan: Plan, rule: Rule, seed: int) -> None:
    """The rule's choice, and the worst case over the family: the one may fail without the other."""
    model, known = ground.model, ground.readout

    def chosen() -> tuple[Choice, float]:
        made = select(model, mean_difference(*ground.on.acts), prompts.select, known, rule=rule, seed=seed)
        return made, made.pf_used

    def worst() -> tuple[Optionality, float]:
        tried = {
            "menu": _fitting(found, plan, prompts),
            "placebos": plan.placebos,
            "kappa": plan.kappa,
            "on": ground.on,
        }
        tried["time_left"] = found.time_left
        made = measured(model, prompts, known, **tried, seed=seed)
        return made, made.pf - ground.on.pf  # what it was located on was charged already

    found.choice = found.run("selection", chosen) if plan.rule else None
    found.optionality = found.run("optionality", worst)
    if found.choice is not None and model.is_organism:
        subspace = found.choice.subspace
        found.intervened = found.run("validity under ablation", lambda: _intervened(ground, subspace, seed=seed))


def _fitting(found: Found, plan: Plan, prompts: ContrastSet) -> Menu:
    """The plan's menu, or as much of it as fits into the time that is left."""
    if found.time_left is None or not found.pf:
        return plan.menu
    pace = found.seconds["baseline"] / len(prompts.report)  # no reply was decoded there
    sizes = {"chosen": len(prompts.select), "reported": len(prompts.report)}
    menu = shrink_menu(plan.menu, pace=pace, left=found.time_left(), **sizes)
    if menu != plan.menu:
        found.problems["attack family"] = f"{menu.cells} cells at {len(menu.doses)} doses: no more fit the budget"
    return menu


def _intervened(ground: Ground, subspace: Subspace, *, seed: int) -> tuple[Validity, float]:
    """The readout against an organism's decoded answers while the rule's choice is ablated: fiction may be decoded."""
    asked = ground.before.prompts.restricted
    with ablate(ground.model, subspace):
        read = refuses(ground.model, asked, ground.readout).tolist()
        said = [one == "refused" for one in outcomes(ground.model, asked)]
    judge_of = "its decoded answers, with the rule's choice ablated"
    return compare_judges(read, said, clusters=asked.clusters, judge=judge_of, seed=seed), 2.0 * len(asked)


def _describe(found: Found, ground: Ground, choice: Choice, prompts: ContrastSet, *, plan: Plan, seed: int) -> None:
    """What ablating the rule's choice does, along curves and across groups of prompts, and what it took."""
    before, subspace, n = ground.before, choice.subspace, len(prompts.report)
    random = random_like(subspace, plan.curve_placebos, seed=seed)
    table = found.run("placebos", lambda: (placebo_effects(before, random), len(random) * n))
    if table is None:
        found.problems["effect, curves and transfer"] = "not tried, as the placebos could not be measured"
        return
    found.effect = found.run("effect", lambda: (effect(before, subspace, placebos=table), n))
    few = curves.thinned(before, plan.per_label)
    for name in plan.curves:
        drawn = found.run(f"{name} curve", lambda name=name: _curve(name, few, ground, choice, prompts, plan, seed))
        found.curves += [] if drawn is None else [drawn]
    if plan.transfer:
        found.transfer = found.run("transfer", lambda: _transfer(ground, choice, prompts, plan=plan, seed=seed))
    found.steps = curves.table(ground.model, _steps(found, ground, choice, prompts, plan=plan))


def _curve(
    name: str, few: Baseline, ground: Ground, choice: Choice, prompts: ContrastSet, plan: Plan, seed: int
) -> tuple[Curve, float]:
    subspace, null = choice.subspace, plan.curve_placebos
    if name == "dose":
        made = curves.dose(few, subspace, placebos=null, seed=seed)
    elif name == "rank":
        several = _several(ground, choice)
        made = curves.rank(few, curves.nested(several), placebos=null, seed=seed)
    elif name == "prompt budget":
        locate = curves.at_cell(mean_difference, *choice.cell)
        made = curves.budget(few, ground.on.acts, locate=locate, sampling=Sampling(placebos=null, seed=seed))
    elif name == "layer scope":
        made = curves.scope(few, subspace, placebos=null, seed=seed)
    else:
        opening, deepest = _opening(few.model)
        made = curves.depth(few, subspace, opening, deepest=deepest, placebos=null, seed=seed)
    return made, made.pf


def _several(ground: Ground, choice: Choice) -> Subspace:
    """The leading directions of the differences in means by phrasing, or by category where phrasings are not shared."""
    located = ground.on.before.prompts
    restricted, harmless = located.restricted, located.harmless
    shared = set(restricted.clusters) <= set(harmless.clusters)
    groups = restricted.clusters if shared else tuple(row.category for row in restricted)
    ranks = min(MOST_RANKS, len(set(groups)))
    made = mean_differences(*ground.on.acts, groups=groups, rank=ranks, against=harmless.clusters if shared else None)
    return made.at(*choice.cell)


def _opening(model: ChatModel) -> tuple[str, int]:
    """The beginning of a compliant reply in the model's language, and how many of its tokens to go through."""
    text = language().questions("how-to")[0].answer if model.is_organism else COMPLIANT_OPENING
    return text, min(curves.DEEPEST, len(model.encode_reply(text)))


def _transfer(
    ground: Ground, choice: Choice, prompts: ContrastSet, *, plan: Plan, seed: int
) -> tuple[pd.DataFrame, float]:
    groupings = _groupings(prompts)
    if not groupings:
        raise MeasurementError(f"No grouping of these prompts has 2 to {MOST_GROUPS} groups in locate and report.")
    frame = transfer.matrices(
        curves.thinned(ground.before, 4 * plan.per_label),
        Sources(ground.on.before.prompts, ground.on.acts),
        groupings,
        cell=choice.cell,
        random=plan.curve_placebos,
        shuffled=SHUFFLED,
        seed=seed,
    )
    return frame, float(frame.attrs["pf"])


def _groupings(prompts: ContrastSet) -> dict[str, Grouping]:
    names = {"category": transfer.by_category, "phrasing": transfer.by_template, "dialect": transfer.by_dialect}
    return {name: by for name, by in names.items() if _worth(prompts, by)}


def _worth(prompts: ContrastSet, by: Grouping) -> bool:
    """Whether a grouping has a handful of groups, some of them on both splits."""
    located, reported = ({by(row) for row in part.restricted} for part in (prompts.locate, prompts.report))
    return bool(located & reported) and 2 <= len(located | reported) <= MOST_GROUPS


def _steps(found: Found, ground: Ground, choice: Choice, prompts: ContrastSet, *, plan: Plan) -> list[curves.Step]:
    took = found.seconds
    seconds = {curves.READOUT: took["readout"], "capture": took["capture"]}
    seconds |= {curves.CONTROL: took["placebos"]}
    if "effect" in took:
        seconds["ablate and measure"] = took["baseline"] + took["effect"]
    return curves.steps(ground.model, prompts, choice, seconds=seconds, placebos=plan.curve_placebos)
