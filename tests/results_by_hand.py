"""Results written down by hand: what the tests of schema, page and verdict start from, without any model."""

from __future__ import annotations

from refusalscope.results import GuardrailCard, SelectionResult
from refusalscope.results.curves import (
    Band,
    CostFacts,
    CurveFacts,
    CurvePoint,
    LargerModel,
    StepCost,
    TransferCell,
    TransferFacts,
)
from refusalscope.results.deploy import Rate, Reliance
from refusalscope.results.diagnosis import DiagnosisFacts, ExactFacts, FindingFacts
from refusalscope.results.family import AttackFacts, AttackScores, FrontierPoint, OptionalityFacts
from refusalscope.results.parts import (
    AgreementFacts,
    BaselineFacts,
    ContrastFacts,
    EffectFacts,
    InstrumentCheck,
    Margins,
    ModelFacts,
    NearTie,
    Place,
    PlaceboFacts,
    PromptFacts,
    ReadoutFacts,
    RuleFacts,
    Score,
    ScoredCell,
    Selected,
    ValidityFacts,
    Value,
    Verdict,
)

COUNTS = {split: {"restricted": 16, "harmless": 16} for split in ("locate", "select", "report")}
VERSIONS = dict.fromkeys(("refusalscope", "torch", "transformers", "transformer-lens", "python"), "1.0")
READOUT = ReadoutFacts(("rili",), 2, 5, 3, 0.97, 0.01, 0.9, 16, 15, 1, "discovered")


def head(*, name: str = "organism", source: str = "few.jsonl") -> dict:
    """The fields every result begins with."""
    model = ModelFacts(name, None, "a" * 64, "b" * 64, "c" * 64, "float32", "cpu", "Qwen3ForCausalLM", "off")
    prompts = PromptFacts(source, "d" * 64, "e" * 64, COUNTS, "given")
    return {"schema": 1, "model": model, "prompts": prompts, "seed": 0, "versions": VERSIONS}


def value(x: float, interval: tuple[float, float] | None, *, unit: str = "nats", note: str = "") -> Value:
    return Value(x, interval, 16, 8, "cluster-t 95%", None, unit, note)


def agreement(*, judge: str, kappa: float = 0.95) -> AgreementFacts:
    """A readout beside a judge of whole replies, its kappa given."""
    late = value(0.06, (0.01, 0.2), unit="rate")
    return AgreementFacts(judge, value(0.97, (0.9, 0.99), unit="rate"), value(kappa, (0.8, 1.0), unit=""), late, 15, 16)


def validity(*, judge: str, kappa: float = 0.95) -> ValidityFacts:
    """What two judges say of a readout: the model's own replies, and those under ablation."""
    return ValidityFacts(agreement(judge=judge, kappa=kappa), agreement(judge=judge))


def selected() -> Selected:
    """A choice among two cells."""
    score = Score(-2.0, (-2.5, -1.5), 16, 8, "cluster-t 95%")
    cells = (ScoredCell(2, -1, "kept", score, score, score), ScoredCell(5, -1, "late layer", None, None, None))
    ties = (NearTie(2, -1, 1.0, True),)
    margins = Margins(value(3.0, (2.0, 4.0)), value(-9.0, (-10.0, -8.0)))
    rule = RuleFacts(0.1, 0.0, 0.8, "reference")
    return Selected(margins, Place(2, -1), cells, ties, rule, "winner", "mean_difference", 90.0, 400.0, 1.5)


def selection() -> SelectionResult:
    """A whole selection result."""
    return SelectionResult(**head(), readout=READOUT, **vars(selected()))


def baseline() -> BaselineFacts:
    """Margins and shares refused before any intervention."""
    rates = value(0.95, (0.8, 1.0), unit="rate"), value(0.1, (0.05, 0.2), unit="rate")
    return BaselineFacts(*vars(selected().baseline).values(), *rates)


def effect(*, bypass: tuple[float, float] | None = (0.85, 0.99), kl: float = 0.02, p: float = 0.005) -> EffectFacts:
    """An effect whose bypass interval, mean KL and rank among placebos are given."""
    rank = PlaceboFacts(p, 199, 0.1, (-0.05, 0.05))
    return EffectFacts(
        bypass=value(0.95, bypass, unit="rate", note="" if bypass else "4 clusters, an interval needs at least 5"),
        bypass_lower=value(0.9, (0.8, 0.95), unit="rate"),
        unread=0.03,
        over_refusal_before=value(0.1, (0.05, 0.2), unit="rate"),
        over_refusal_after=value(0.0, (0.0, 0.1), unit="rate"),
        suppression=value(0.7, (0.6, 0.8), unit=""),
        kl=value(kl, (kl / 2, kl * 1.5)),
        kl_median=kl,
        kl_p95=kl,
        kl_top_share=0.2,
        placebo={"bypass": rank, "suppression": rank, "kl": rank},
    )


def optionality(
    *, name: str = "mean_difference", bypass: tuple[float, float] | None = (0.85, 0.99), x: float = 0.95
) -> OptionalityFacts:
    """An optionality with two attacks and a frontier of two points, its bypass interval given."""
    low, high = (
        FrontierPoint(
            kappa,
            value(y, (0.0, y + 0.01), unit="rate"),
            value(y, None, unit=""),
            name,
            name,
            value(0.01, None),
            0.1,
            0.1,
        )
        for kappa, y in ((0.01, 0.2), (0.1, x))
    )
    scores = AttackScores(0.9, 0.6, 0.01)
    first = AttackFacts(name, 1, 1.0, "every layer", 32, 90.0, valid=True, select=scores, report=scores, chosen=1.0)
    none = AttackScores(None, None, None)
    second = AttackFacts(name, 2, 1.5, "layers 2–4", 32, 90.0, valid=False, select=none, report=none, chosen=0.0)
    rank = PlaceboFacts(0.01, 199, 0.2, (0.0, 0.2))
    return OptionalityFacts(
        kappa=0.1,
        bypass=value(x, bypass, unit="rate", note="" if bypass else "4 clusters, an interval needs at least 5"),
        bypass_lower=value(min(x, 0.9), (0.0, 0.95), unit="rate"),
        margin_after=value(-4.0, (-5.0, -3.0)),
        placebo_margins=(2.5, 3.5),
        unread=0.03,
        over_refusal_before=value(0.1, (0.05, 0.2), unit="rate"),
        over_refusal_after=value(0.0, (0.0, 0.1), unit="rate"),
        suppression=value(0.7, (0.6, 0.8), unit=""),
        index=value(0.6, (0.5, 0.7), unit="rate"),
        suppression_index=value(0.5, (0.4, 0.6), unit=""),
        worst=name,
        over_limit=False,
        frontier=(low, high),
        attacks=(first, second),
        n_attacks=2,
        n_invalid=1,
        n_invalid_placebos=0,
        placebo={"bypass": rank, "suppression": rank},
        placebo_note="",
        problems=(),
        pf=500.0,
    )


def curves(*, source: str = "few") -> dict:
    """Curves, transfer and cost of a card, one point each or two."""
    band, rate = Band(0.0, 0.1, 0.05, 19), value(0.9, (0.8, 0.95), unit="rate")
    points = tuple(CurvePoint({"dose": dose}, "bypass", rate, band if dose else None) for dose in (0.0, 1.0))
    scope = CurvePoint({"first": 0.0, "last": 5.0, "scope": "all"}, "bypass", rate, band)
    cell = TransferCell("category", source, "other", "bypass", rate, band, None)
    return {
        "curves": (
            CurveFacts("dose", {"λ50": value(0.5, (0.4, 0.6), unit="")}, points, 100.0, 0.1),
            CurveFacts("layer scope", {}, (scope,), 50.0, 0.1),
        ),
        "transfer": TransferFacts((cell,), 100.0),
        "cost": CostFacts(
            (StepCost("capture", 32.0, 400.0, 1e6, 1e4, None),),
            (LargerModel("8B", 8e9, 8e9, 32, 5000.0, 1e15, 10.0),),
            ("40 tokens per prompt",),
            "counts are exact",
        ),
    }


def diagnosis(*, name: str) -> DiagnosisFacts:
    """One finding that fired, with a number of each kind; ``name`` stands wherever text from outside may."""
    rate = Value(0.1, (0.05, 0.2), 128, 8, "Wilson", None, "rate", "")
    finding = FindingFacts(
        name="baseline margin",
        state="fired",
        sentence=f"{name} does not refuse.",
        reason="",
        action="Take a model that refuses.",
        estimated={"refusal rate, restricted": rate},
        counted={"share in the loudest channel": ExactFacts(0.12, 96, "channels")},
    )
    return DiagnosisFacts(f"does not fit the picture: {name} does not refuse.", False, (finding,), 288.0)


def card(
    *,
    name: str = "organism",
    source: str = "few.jsonl",
    bypass: tuple[float, float] | None = (0.85, 0.99),
    x: float = 0.95,
) -> GuardrailCard:
    """A whole card; everything that comes from outside is called ``name`` or ``source``."""
    return GuardrailCard(
        **head(name=name, source=source),
        plan="full",
        verdict=Verdict("optional", f"The guardrail of {name} is optional.", ("one attack is enough",)),
        readout=READOUT,
        validity=validity(judge=name),
        contrast=ContrastFacts("behaviour", 15, 16, 1, 0),
        baseline=baseline(),
        optionality=optionality(name=name, bypass=bypass, x=x),
        effect=effect(),
        selection=selected(),
        **curves(source=source),
        attack_family=("differences in means at the best 3 cells",),
        instrument_check=InstrumentCheck("not run", "not part of this measurement"),
        diagnosis=diagnosis(name=name),
        deploy=(
            Reliance("guardrail", "Put other safeguards beside it.", (Rate("bypassed", value(0.9, (0.8, 1.0)), None),)),
            Reliance("audit", "Not tried on this model.", ()),
            Reliance("monitor", "It holds.", (Rate("caught", value(1.0, (0.9, 1.0)), Band(0.4, 0.6, 0.05, 19)),)),
        ),
        missing=("opening depth curve: the opening is too short",),
        not_shown=("Margins see the first response token.",),
        pf=1000.0,
        seconds=2.0,
    )
