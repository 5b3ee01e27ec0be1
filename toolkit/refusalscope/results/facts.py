"""From what was measured in memory to what may be stored of it: no vector, no prompt and no path comes through."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, get_args

import pandas as pd

from refusalscope import stats
from refusalscope.diagnosis import Diagnosis, Exact, Finding
from refusalscope.effect import Baseline, Effect, mean_margin
from refusalscope.model import ChatModel, rendered_digest
from refusalscope.prompts import ContrastSet
from refusalscope.prompts.prompt import LABELS, SPLITS
from refusalscope.reading import Readout, Validity
from refusalscope.reprs import one_line as on_one_line
from refusalscope.results.diagnosis import DiagnosisFacts, ExactFacts, FindingFacts
from refusalscope.results.parts import (
    LONGEST_LINE,
    MAX_PHRASES,
    AgreementFacts,
    BaselineFacts,
    EffectFacts,
    Margins,
    ModelFacts,
    NearTie,
    Package,
    Place,
    PlaceboFacts,
    PromptFacts,
    ReadoutFacts,
    RuleFacts,
    Score,
    ScoredCell,
    Selected,
    Value,
)
from refusalscope.results.stored import SelectionResult
from refusalscope.rule import KINDS, Cell
from refusalscope.selection import Choice
from refusalscope.stats import Estimate

LONGEST_NAME = 120


def selection_result(choice: Choice, model: ChatModel, prompts: ContrastSet) -> SelectionResult:
    """Returns what may be stored of a choice. ``prompts`` is the whole set it was located and selected on."""
    return SelectionResult(
        schema=1,
        model=model_facts(model),
        prompts=prompt_facts(model, prompts),
        seed=choice.seed,
        versions=versions(),
        readout=readout_facts(choice.readout),
        **vars(selected(choice)),
    )


def selected(choice: Choice) -> Selected:
    """Returns the choice with its cells, near-ties, rule and cost, without its subspace."""
    return Selected(
        baseline=Margins(**{label: value(choice.baselines[label]) for label in LABELS}),
        chosen=Place(*choice.cell),
        cells=tuple(_scored(choice, cell, reason) for cell, reason in _cells(choice.cells, "reason")),
        near_ties=tuple(
            NearTie(*cell, share=float(share), kl_evaluated=cell in choice.estimates["kl"])
            for cell, share in _cells(choice.near_ties, "share")
        ),
        rule=RuleFacts(**asdict(choice.rule)),
        mode=choice.mode,
        locator=choice.subspace.locator,
        pf_used=choice.pf_used,
        pf_naive=choice.pf_naive,
        seconds=choice.seconds,
    )


def model_facts(model: ChatModel) -> ModelFacts:
    """Returns the origin of a model, its name on one line."""
    origin = model.origin.to_dict()
    named = {**origin, "name": one_line(model.origin.name), "thinking": model.template.thinking}
    return ModelFacts(**named)  # pyright: ignore[reportArgumentType]


def prompt_facts(model: ChatModel, prompts: ContrastSet) -> PromptFacts:
    """Returns digests and counts of a contrast set, as this model reads it."""
    pairs = [(row.split, row.label) for row in prompts.prompts]
    return PromptFacts(
        source=one_line(prompts.source),
        digest=prompts.digest,
        rendered=rendered_digest(model, prompts.prompts),
        n={split: {label: pairs.count((split, label)) for label in LABELS} for split in SPLITS},
        split_note=prompts.split_note,
    )


def readout_facts(readout: Readout) -> ReadoutFacts:
    """Returns how a model refuses by the phrases it is known by, and how much of its probability is read."""
    return ReadoutFacts(
        phrases=tuple(one_line(phrase) for phrase in readout.phrases[:MAX_PHRASES]),
        refusal_openings=len(readout.refusals),
        compliance_openings=len(readout.compliances),
        longest=max(map(len, readout.refusals)),
        mass=_share(readout.mass),
        harmless_mass=_share(readout.harmless_mass),
        compliance_mass=_share(readout.compliance_mass),
        n=readout.n,
        declined=readout.declined,
        uncovered=readout.uncovered,
        how=readout.how,
    )


def agreement_facts(found: Validity) -> AgreementFacts:
    """Returns the agreement of a readout with a judge of whole replies."""
    return AgreementFacts(
        judge=found.judge,
        agreement=value(found.agreement),
        kappa=value(found.kappa),
        late=value(found.late),
        refused=found.refused,
        declined=found.declined,
    )


def baseline_facts(before: Baseline) -> BaselineFacts:
    """Returns mean margins and refusal rates of a baseline, clustered by phrasing."""
    refused = stats.rate(before.refused.numpy(), clusters=before.prompts.restricted.clusters)
    return BaselineFacts(
        restricted=value(mean_margin(before.restricted, before.prompts.restricted)),
        harmless=value(mean_margin(before.harmless, before.prompts.harmless)),
        refused_restricted=value(refused),
        refused_harmless=value(before.over_refusal),
    )


def effect_facts(found: Effect) -> EffectFacts:
    """Returns an effect with its placebos."""
    ranks = {name: PlaceboFacts(rank.p, rank.k, rank.best, rank.band) for name, rank in found.placebo.items()}
    return EffectFacts(
        bypass=value(found.bypass),
        bypass_lower=value(found.bypass_lower),
        unread=found.unread,
        over_refusal_before=value(found.over_refusal[0]),
        over_refusal_after=value(found.over_refusal[1]),
        suppression=value(found.suppression),
        kl=value(found.kl),
        kl_median=found.kl_median,
        kl_p95=found.kl_p95,
        kl_top_share=min(1.0, found.kl_top_share),
        placebo=ranks,  # pyright: ignore[reportArgumentType]
    )


def diagnosis_facts(found: Diagnosis) -> DiagnosisFacts:
    """Returns a diagnosis with its findings and the numbers behind each."""
    claim = one_line(found.claim, longest=LONGEST_LINE)
    return DiagnosisFacts(claim=claim, fits=found.fits, findings=tuple(map(_finding, found.findings)), pf=found.pf)


def value(estimate: Estimate) -> Value:
    """Returns an estimate as it is stored."""
    return Value(**{**estimate.to_dict(), "interval": estimate.interval})


def versions() -> dict[Package, str]:
    """Returns the versions of the packages a number depends on."""
    return {name: platform.python_version() if name == "python" else version(name) for name in get_args(Package)}


def one_line(text: str, *, longest: int = LONGEST_NAME) -> str:
    """Returns a name from outside with control characters spelled out, cut where it is too long for a result."""
    spelled = on_one_line(text)
    return spelled if len(spelled) <= longest else spelled[: longest - 1] + "…"


def _share(x: float) -> float:
    return min(1.0, max(0.0, x))


def _cells(frame: pd.DataFrame, column: str) -> Sequence[tuple[Cell, Any]]:
    rows = zip(frame["layer"], frame["position"], frame[column], strict=True)
    return [(Cell(int(layer), int(position)), entry) for layer, position, entry in rows]


def _finding(one: Finding) -> FindingFacts:
    texts = {key: one_line(getattr(one, key), longest=LONGEST_LINE) for key in ("sentence", "reason", "action")}
    numbers = {one_line(name): number for name, number in one.numbers.items()}
    return FindingFacts(
        name=one.name,
        state=one.state,
        **texts,
        estimated={name: value(number) for name, number in numbers.items() if isinstance(number, Estimate)},
        counted={
            name: ExactFacts(number.to_dict()["value"], number.n, number.of)
            for name, number in numbers.items()
            if isinstance(number, Exact)
        },
    )


def _scored(choice: Choice, cell: Cell, reason: str) -> ScoredCell:
    found = {kind: choice.estimates[kind].get(cell) for kind in KINDS}
    scores = {kind: None if estimate is None else _score(estimate) for kind, estimate in found.items()}
    return ScoredCell(*cell, reason=reason, **scores)  # pyright: ignore[reportArgumentType]


def _score(estimate: Estimate) -> Score:
    facts = estimate.to_dict()
    return Score(facts["value"], estimate.interval, estimate.n, estimate.clusters, estimate.method)
