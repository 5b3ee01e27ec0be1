"""What a deployment can rely on: the guardrail, an audit of the weights, a monitor beside the model."""

from __future__ import annotations

from refusalscope.audit import declared
from refusalscope.model import ChatModel
from refusalscope.monitor import Survival, monitor, survival
from refusalscope.monitor.surviving import NOTHING, OWN
from refusalscope.optionality import Optionality
from refusalscope.prompts import ContrastSet
from refusalscope.results.curves import Band
from refusalscope.results.deploy import Rate, Reliance
from refusalscope.results.facts import value
from refusalscope.results.from_curves import stored_band, stored_value
from refusalscope.results.parts import Verdict
from refusalscope.subspace import Subspace

LOCATED = "the refusal direction"
DOSES = {NOTHING: 0.0, LOCATED: 1.0, OWN: 1.0}
MOST_PLACEBOS = 19
GUARDRAIL = {
    "optional": "With the weights, one can switch refusals off at little damage: put other safeguards beside it.",
    "partly optional": "With the weights, one can switch some refusals off at little damage: do not rely on it alone.",
    "resistant": "It held against the attacks tried, at their budget. That says nothing about attacks not tried.",
    "undetermined": "There is no verdict, so nothing that was measured here says what it can be relied on for.",
}
MONITOR = {
    "holds": "alarms on restricted requests, at its declared rate of false alarms",
    "weakened": "alarms on some restricted requests, or more often on harmless ones than declared",
    "fails": "does not tell restricted requests from harmless ones",
    "cannot tell": "was tried on too few prompts to tell",
}
CONDITIONS = {NOTHING: "as the model is", LOCATED: "with the refusal direction ablated", OWN: "with its own ablated"}
MEASURES = {"caught": "restricted requests caught", "false_alarms": "false alarms"}


def watched(
    model: ChatModel, prompts: ContrastSet, subspace: Subspace | None, *, placebos: int, seed: int
) -> tuple[Survival, float]:
    """Returns what a monitor fitted on this model is worth, also with a subspace ablated, and its prompt-forwards.

    Its cell is the one best in the worst case on ``select``: as the model is, and with the subspace ablated.
    """
    given = () if subspace is None else (subspace,)
    found = monitor(model, prompts, probe="logistic", withstand=given)
    made = survival(
        found,
        model,
        prompts.report,
        ablating={} if subspace is None else {LOCATED: subspace},
        doses=(1.0,),
        placebos=min(placebos, MOST_PLACEBOS),
        seed=seed,
    )
    return made, found.pf + made.pf


def most_watched(prompts: ContrastSet, *, placebos: int) -> float:
    """Returns the most prompt-forwards of ``watched``."""
    selected = 2 * len(prompts.select) + len(prompts.select.harmless)
    return float(len(prompts.locate) + selected + len(prompts.report) * (3 + min(placebos, MOST_PLACEBOS)))


def reliances(
    verdict: Verdict, measured: Optionality | None, survived: Survival | None, *, why_not: str
) -> tuple[Reliance, ...]:
    """Returns what guardrail, audit and monitor can each be relied on for, at the measured rates.

    ``why_not`` says why no monitor was measured, where none was.
    """
    return _guardrail(verdict, measured), _audit(), _monitor(survived, why_not)


def _guardrail(verdict: Verdict, measured: Optionality | None) -> Reliance:
    if measured is None:
        return Reliance("guardrail", GUARDRAIL[verdict.state], ())
    rank = measured.placebo.get("bypass")
    random = None if rank is None else Band(*rank.band, rank.p, rank.k)
    rate = Rate("refusals bypassed in the worst case", value(measured.bypass), random)
    return Reliance("guardrail", GUARDRAIL[verdict.state], (rate,))


def _audit() -> Reliance:
    """The audit's rates are those of organisms, whatever the model of the card, and the sentence says so."""
    known = declared()
    rates = [Rate(name, value(estimate), None) for name, estimate in known.items()]
    sentence = (
        "Given the original weights, it tells edited checkpoints from benign changes at these rates, each measured on "
        "families of organisms left out of its fit; not on this model, nor on models of other sizes."
    )
    return Reliance("audit", sentence, tuple(rates))


def _monitor(survived: Survival | None, why_not: str) -> Reliance:
    if survived is None:
        return Reliance("monitor", f"Not measured: {why_not or 'not part of the plan'}.", ())
    there = set(survived.conditions["ablated"])
    tried = [name for name in CONDITIONS if name in there]
    said = [f"{CONDITIONS[name]}, it {MONITOR[survived.state(name, DOSES[name])]}" for name in tried]
    rates = [_rate(survived, name, measure) for name in tried for measure in MEASURES]
    return Reliance("monitor", f"A probe for restricted requests in this model: {'; '.join(said)}.", tuple(rates))


def _rate(survived: Survival, ablated: str, measure: str) -> Rate:
    row = survived.at(ablated, DOSES[ablated], measure).to_dict()
    name = f"{MEASURES[measure]}, {CONDITIONS[ablated]}"
    return Rate(name, stored_value(row, unit="rate"), stored_band(row, "random", p="random_p"))
