"""Results written down by hand: what the tests of schema, page and verdict start from, without any model."""

from __future__ import annotations

from refusalscope.results import GuardrailCard, SelectionResult
from refusalscope.results.parts import (
    EffectFacts,
    InstrumentCheck,
    Margins,
    ModelFacts,
    NearTie,
    Place,
    PlaceboFacts,
    PromptFacts,
    RefusalFacts,
    RuleFacts,
    Score,
    ScoredCell,
    Selected,
    Value,
    Verdict,
)

COUNTS = {split: {"restricted": 16, "harmless": 16} for split in ("locate", "select", "report")}
VERSIONS = dict.fromkeys(("refusalscope", "torch", "transformers", "transformer-lens", "python"), "1.0")
REFUSAL = RefusalFacts(("rili",), (88,), 0.97, 0.01, 16, "discovered")


def head(*, name: str = "organism", source: str = "few.jsonl") -> dict:
    """The fields every result begins with."""
    model = ModelFacts(name, None, "a" * 64, "b" * 64, "c" * 64, "float32", "cpu", "Qwen3ForCausalLM")
    prompts = PromptFacts(source, "d" * 64, "e" * 64, COUNTS, "given")
    return {"schema": 1, "model": model, "prompts": prompts, "seed": 0, "versions": VERSIONS}


def value(x: float, interval: tuple[float, float] | None, *, unit: str = "nats", note: str = "") -> Value:
    return Value(x, interval, 16, 8, "cluster-t 95%", None, unit, note)


def selected() -> Selected:
    """A choice among two cells."""
    score = Score(-2.0, (-2.5, -1.5), 16, 8, "cluster-t 95%")
    cells = (ScoredCell(2, -1, "kept", score, score, score), ScoredCell(5, -1, "late layer", None, None, None))
    ties = (NearTie(2, -1, 1.0, True),)
    margins = Margins(value(3.0, (2.0, 4.0)), value(-9.0, (-10.0, -8.0)))
    rule = RuleFacts(0.1, 0.0, 0.8)
    return Selected(margins, Place(2, -1), cells, ties, rule, "winner", "mean_difference", 90.0, 400.0, 1.5)


def selection() -> SelectionResult:
    """A whole selection result."""
    return SelectionResult(**head(), refusal_tokens=REFUSAL, **vars(selected()))


def effect(*, bypass: tuple[float, float] | None = (0.85, 0.99), kl: float = 0.02, p: float = 0.005) -> EffectFacts:
    """An effect whose bypass interval, mean KL and rank among placebos are given."""
    rank = PlaceboFacts(p, 199, 0.1, (-0.05, 0.05))
    return EffectFacts(
        bypass=value(0.95, bypass, unit="rate", note="" if bypass else "4 clusters, an interval needs at least 5"),
        suppression=value(0.7, (0.6, 0.8), unit=""),
        kl=value(kl, (kl / 2, kl * 1.5)),
        kl_median=kl,
        kl_p95=kl,
        kl_top_share=0.2,
        placebo={"bypass": rank, "suppression": rank, "kl": rank},
    )


def card(*, name: str = "organism", source: str = "few.jsonl") -> GuardrailCard:
    """A whole card."""
    return GuardrailCard(
        **head(name=name, source=source),
        verdict=Verdict("optional", f"The guardrail of {name} is optional.", ("one attack is enough",)),
        refusal_tokens=REFUSAL,
        baseline=selected().baseline,
        effect=effect(),
        selection=selected(),
        attack_family=("mean_difference, rank 1, dose 1, every layer",),
        instrument_check=InstrumentCheck("not run", "not part of this measurement"),
        not_shown=("Margins see the first response token.",),
        pf=1000.0,
        seconds=2.0,
    )
