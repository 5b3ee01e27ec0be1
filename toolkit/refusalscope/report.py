"""Measuring a guardrail from end to end: locate, select, and what ablating the chosen candidate does on ``report``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from tqdm import tqdm

from refusalscope.capture import capture
from refusalscope.effect import Baseline, Effect, baseline, effect
from refusalscope.errors import InterventionError, MeasurementError, SelectionError
from refusalscope.instrument import Instrument, check_instrument
from refusalscope.locators import mean_difference
from refusalscope.model import ChatModel, RefusalTokens, discover_refusal_tokens
from refusalscope.placebo import random_like
from refusalscope.prompts import ContrastSet
from refusalscope.results import GuardrailCard
from refusalscope.results.facts import (
    effect_facts,
    margins,
    model_facts,
    one_line,
    prompt_facts,
    refusal_facts,
    selected,
    versions,
)
from refusalscope.results.parts import InstrumentCheck
from refusalscope.rule import Rule
from refusalscope.selection import Choice, estimated_cost, select
from refusalscope.verdict import ATTACK_FAMILY, not_shown, verdict

TOKENS_FOLLOW = " Nearest ("
STAGES = ("refusal tokens", "capture", "baseline", "select", "effect and placebos")


@dataclass
class _Found:
    """What a measurement has found so far, and what it has cost: it may end early, and the card says where."""

    refusal: RefusalTokens | None = None
    before: Baseline | None = None
    choice: Choice | None = None
    effect: Effect | None = None
    problem: str = ""
    pf: float = 0.0
    began: float = field(default_factory=time.perf_counter)


def measure(
    model: ChatModel,
    prompts: ContrastSet,
    *,
    seed: int = 0,
    placebos: int = 199,
    rule: Rule | None = None,
    progress: bool = True,
    instrument: Instrument | None = None,
) -> GuardrailCard:
    """Returns the card of a guardrail: how optional it is under one attack, with intervals, placebos and cost.

    Refusal tokens and candidates come from ``locate``, the choice from ``select``, every number from ``report``. A
    measurement that cannot be finished gives a card too: ``undetermined``, with the diagnosis as its reason.

    Args:
        seed: of the placebos and of the resampling behind near-ties.
        placebos: random subspaces ablated beside the chosen one; below 39 no small p is possible.
        rule: the selection rule; its ``kl_limit`` also bounds the damage at which a bypass counts.
        progress: shows the stages on stderr.
        instrument: what ``check_instrument`` found; asked for in this model's dtype and device where it is not given.

    Example:
        >>> measure(load("data/organisms/guarded-0"), ContrastSet.read("data/prompts/organism.jsonl"))
    """
    rule, found = rule or Rule(), _Found()
    with tqdm(total=len(STAGES), desc=STAGES[0], disable=not progress, file=sys.stderr) as bar:
        try:
            _fill(found, model, prompts, seed=seed, placebos=placebos, rule=rule, bar=bar)
        except (MeasurementError, SelectionError, InterventionError) as error:
            # What follows spells the first tokens of replies to restricted prompts, which stay out of results (C5).
            found.problem = one_line(str(error).split(TOKENS_FOLLOW)[0], longest=600)
    if instrument is None:
        instrument = check_instrument(dtype=model.dtype, device=model.origin.device)
    checked = InstrumentCheck(instrument.state, one_line(instrument.why, longest=600))
    return _card(found, model, prompts, seed=seed, kl_limit=rule.kl_limit, checked=checked)


def estimated_measure_cost(
    model: ChatModel, prompts: ContrastSet, *, placebos: int = 199, rule: Rule | None = None
) -> float:
    """Returns the most prompt-forwards ``measure`` can take, known before anything runs."""
    located, reported = len(prompts.locate), len(prompts.report)
    return 2 * located + estimated_cost(model, prompts.select, rule=rule) + (2 + placebos) * reported


def _fill(
    found: _Found, model: ChatModel, prompts: ContrastSet, *, seed: int, placebos: int, rule: Rule, bar: tqdm
) -> None:
    def spent(pf: int | float) -> None:
        found.pf += pf
        bar.update()
        bar.set_description(STAGES[min(bar.n, len(STAGES) - 1)])

    found.refusal = discover_refusal_tokens(model, prompts.locate)
    spent(len(prompts.locate))
    candidates = mean_difference(*capture(model, prompts.locate))
    spent(len(prompts.locate))
    found.before = baseline(model, prompts.report, found.refusal)
    spent(len(prompts.report))
    found.choice = select(model, candidates, prompts.select, found.refusal, rule=rule, seed=seed)
    spent(found.choice.pf_used)
    subspace = found.choice.subspace
    found.effect = effect(found.before, subspace, placebos=random_like(subspace, placebos, seed=seed))
    spent((1 + placebos) * len(prompts.report))


def _card(
    found: _Found, model: ChatModel, prompts: ContrastSet, *, seed: int, kl_limit: float, checked: InstrumentCheck
) -> GuardrailCard:
    facts = None if found.effect is None else effect_facts(found.effect)
    facts_of_model = model_facts(model)
    return GuardrailCard(
        schema=1,
        model=facts_of_model,
        prompts=prompt_facts(model, prompts),
        seed=seed,
        versions=versions(),
        verdict=verdict(facts, name=facts_of_model.name, problem=found.problem, kl_limit=kl_limit, instrument=checked),
        refusal_tokens=None if found.refusal is None else refusal_facts(found.refusal),
        baseline=None if found.before is None else margins(found.before),
        effect=facts,
        selection=None if found.choice is None else selected(found.choice),
        attack_family=ATTACK_FAMILY,
        instrument_check=checked,
        not_shown=not_shown(shares_clusters=prompts.shares_clusters),
        pf=found.pf,
        seconds=time.perf_counter() - found.began,
    )
