"""Measuring a guardrail from end to end: one call from a model and its prompts to a card."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

from refusalscope.bounds import selection_bounds
from refusalscope.curves import extrapolated
from refusalscope.diagnosis import estimated_diagnose_cost
from refusalscope.effect import Labels
from refusalscope.errors import MeasurementError
from refusalscope.instrument import Instrument, check_instrument
from refusalscope.model import ChatModel
from refusalscope.optionality.adaptive import FURTHER, most_further
from refusalscope.progress import bar, quiet
from refusalscope.prompts import ContrastSet
from refusalscope.report.deploy import most_watched, reliances
from refusalscope.report.plan import PLANS, Plan
from refusalscope.report.stages import Found, measure_all, most_described
from refusalscope.report.time_budget import TimeBudget, fit_plan, time_budget
from refusalscope.report.verdict import doubts, not_shown, verdict
from refusalscope.results import GuardrailCard
from refusalscope.results.facts import (
    agreement_facts,
    baseline_facts,
    diagnosis_facts,
    effect_facts,
    model_facts,
    one_line,
    prompt_facts,
    readout_facts,
    selected,
    versions,
)
from refusalscope.results.from_curves import cost_facts, curve_facts, transfer_facts
from refusalscope.results.from_optionality import number, optionality_facts
from refusalscope.results.parts import LONGEST_LINE, ContrastFacts, InstrumentCheck, KnownValue, ValidityFacts
from refusalscope.rule import Rule, default_rule

UNCONCLUSIVE = ("diagnosis", "attack family")  # stages that were cut short to fit a budget: no reason for a verdict
COST_NOTE = "counts are exact; seconds are one wall-clock run; larger models are arithmetic, not measurements"


def measure(
    model: ChatModel,
    prompts: ContrastSet,
    *,
    plan: Plan | Literal["full", "quick", "adaptive"] = "full",
    seed: int = 0,
    rule: Rule | None = None,
    labels: Labels = "behaviour",
    budget: str | float | int | TimeBudget | None = None,
    progress: bool = True,
    instrument: Instrument | None = None,
) -> GuardrailCard:
    """Returns the card of a guardrail: how optional it is, with intervals, placebos, curves, transfer and cost.

    Readout, candidates and the attack family come from ``locate``, choices from ``select``, every number from
    ``report``. A measurement that cannot be finished gives a card too: ``undetermined``, with the diagnosis as its
    reason; a part that could not be measured is named among the card's ``missing``.

    Args:
        plan: how much to measure; ``quick`` takes seconds, and says what it leaves out; ``adaptive`` is the full one
            with an attack family that adapts to this model, for guardrails that were hardened.
        seed: of placebos, draws and resampling.
        rule: the selection rule; by default that of Arditi et al. with the plan's damage limit.
        labels: what to locate on: prompts that behave as their label says (refused, answered), or all as asked.
        budget: wall-clock time to spend, such as "15 min": the machine is timed, and prompts (whole clusters), cells
            and placebos are chosen to fit; what is left out is in the card's ``missing``. It takes the place of a plan.
        progress: shows the stages on stderr; False shows no bar at all.
        instrument: what ``check_instrument`` found; asked for in this model's dtype and device where it is not given.

    Example:
        >>> measure(load("data/organisms/guarded-0"), ContrastSet.read("data/prompts/organism.jsonl"), plan="quick")
    """
    plan, began, left_out, pace, judged = named_plan(plan), time.perf_counter(), (), 0.0, None
    limit = budget if budget is None or isinstance(budget, TimeBudget) else time_budget(budget)
    with quiet(progress):
        if limit is not None:
            instrument = instrument or check_instrument(dtype=model.dtype, device=model.origin.device)
            whole = estimated_measure_cost(model, prompts)
            plan, prompts, left_out, pace, judged = fit_plan(model, prompts, limit, whole=whole)
        rule = rule or replace(default_rule(model.n_layers), kl_limit=plan.kappa)
        with bar(plan.stages, model.origin.name, after=0) as shown:
            left = None if limit is None else lambda: limit.left
            how = {"plan": plan, "rule": rule, "seed": seed, "bar": shown, "labels": labels, "judged": judged}
            found = measure_all(model, prompts, **how, time_left=left, pace=pace)
            if instrument is None:
                shown.stage("instrument check")
                instrument = check_instrument(dtype=model.dtype, device=model.origin.device)
    return _card(
        found,
        model,
        prompts,
        plan=plan,
        seed=seed,
        instrument=instrument,
        seconds=time.perf_counter() - began,
        labels=labels,
        left_out=left_out,
    )


def named_plan(plan: Plan | str) -> Plan:
    """Returns a plan by its name, or the plan itself. Raises MeasurementError for a name there is none of."""
    if isinstance(plan, Plan):
        return plan if plan in PLANS.values() else replace(plan, name="own")
    if plan not in PLANS:
        raise MeasurementError(f"There is no plan {plan!r}: take one of {', '.join(PLANS)}, or a Plan of your own.")
    return PLANS[plan]


def estimated_measure_cost(
    model: ChatModel,
    prompts: ContrastSet,
    *,
    plan: Plan | Literal["full", "quick", "adaptive"] = "full",
    rule: Rule | None = None,
) -> float:
    """Returns the most prompt-forwards ``measure`` can take, known before anything runs."""
    plan, located, reported = named_plan(plan), len(prompts.locate), len(prompts.report)
    cells = model.n_layers * model.n_positions
    best = plan.menu.best or cells
    attacks = 2 * best * len(plan.menu.doses) * len(plan.menu.scopes)
    further, subspaces = most_further(model, located) if plan.menu.adaptive else (0.0, 0)
    attacks += subspaces * len(FURTHER.doses) * len(plan.menu.scopes)
    family = (cells + 11) * located + further + attacks * (len(prompts.select) + reported) + plan.placebos * reported
    chosen = selection_bounds(model, prompts.select, mode="winner", rule=rule)[1]
    rule_choice = chosen + (1 + plan.curve_placebos) * reported
    shared = 6 * located + 3 * len(prompts.select) + 4 * reported
    described = most_described(model, prompts, plan=plan) + estimated_diagnose_cost(model, prompts, rule=rule)
    watched = most_watched(prompts, placebos=plan.curve_placebos) if plan.monitor else 0.0
    return shared + family + rule_choice + described + watched


def _card(
    found: Found,
    model: ChatModel,
    prompts: ContrastSet,
    *,
    plan: Plan,
    seed: int,
    instrument: Instrument,
    seconds: float,
    labels: Labels,
    left_out: tuple[str, ...] = (),
) -> GuardrailCard:
    facts_of_model, missing = model_facts(model), [f"{stage}: {why}" for stage, why in found.problems.items()]
    checked = _checked(instrument)
    judged = verdict(
        found.optionality,
        name=facts_of_model.name,
        instrument=checked,
        problems=tuple(why for stage, why in found.problems.items() if stage not in UNCONCLUSIVE),
        diagnosis=found.diagnosis,
        obstacles=doubts(found.validity, found.intervened),
    )
    return GuardrailCard(
        schema=1,
        model=facts_of_model,
        prompts=prompt_facts(model, prompts),
        seed=seed,
        versions=versions(),
        plan=plan.name,  # pyright: ignore[reportArgumentType]
        verdict=judged,
        readout=None if found.readout is None else readout_facts(found.readout),
        validity=_validity(found),
        contrast=_contrast(found, labels),
        baseline=baseline_facts(found.before) if found.before is not None and found.before.is_finite else None,
        optionality=None if found.optionality is None else optionality_facts(found.optionality),
        effect=None if found.effect is None else effect_facts(found.effect),
        selection=None if found.choice is None else selected(found.choice),
        curves=tuple(curve_facts(curve) for curve in found.curves),
        transfer=None if found.transfer is None else transfer_facts(found.transfer),
        cost=None if found.steps is None else cost_facts(found.steps, extrapolated(), note=COST_NOTE),
        attack_family=(plan.family,),
        instrument_check=checked,
        diagnosis=None if found.diagnosis is None else diagnosis_facts(found.diagnosis),
        deploy=reliances(judged, found.optionality, found.survival, why_not=found.problems.get("monitor", "")),
        missing=tuple(
            one_line(line, longest=LONGEST_LINE) for line in (*missing, *left_out, *_fewer(found, plan), *plan.left_out)
        ),
        not_shown=not_shown(plan, shares_clusters=prompts.shares_clusters),
        pf=found.pf,
        seconds=seconds,
    )


def _fewer(found: Found, plan: Plan) -> tuple[str, ...]:
    """Placebos that the time did not suffice for."""
    ranks = [] if found.optionality is None else list(found.optionality.placebo.values())
    ran = min((rank.k for rank in ranks), default=plan.placebos)
    return (f"more than {ran} placebos: the budget ended before them",) * (ran < plan.placebos)


def _validity(found: Found) -> ValidityFacts | None:
    if found.validity is None:
        return None
    intervened = None if found.intervened is None else agreement_facts(found.intervened)
    return ValidityFacts(agreement_facts(found.validity), intervened)


def _contrast(found: Found, labels: Labels) -> ContrastFacts | None:
    if found.on is None:
        return None
    kept = found.on.before.prompts
    return ContrastFacts(labels, len(kept.restricted), len(kept.harmless), *found.on.dropped)


def _checked(instrument: Instrument) -> InstrumentCheck:
    known = (
        KnownValue(c.organism, one_line(c.what), number(c.value), c.at_least, c.at_most) for c in instrument.checks
    )
    return InstrumentCheck(instrument.state, one_line(instrument.why, longest=LONGEST_LINE), tuple(known))
