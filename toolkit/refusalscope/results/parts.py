"""The parts of a stored result: closed, bounded, and made of scalars, counts, enums and digests. No vectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from refusalscope.prompts.prompt import Label, Split
from refusalscope.reprs import Shown, among, between, digits, where
from refusalscope.results.files import CLOSED

MAX_CELLS, MAX_PHRASES, MAX_LINES = 5000, 12, 20
LONGEST_LINE = 600

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Short = Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=120)]
Line = Annotated[str, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$", max_length=LONGEST_LINE)]
Lines = Annotated[tuple[Line, ...], Field(max_length=MAX_LINES)]
Count = Annotated[int, Field(ge=0)]
Cost = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Layer = Annotated[int, Field(ge=0, lt=1000)]
Position = Annotated[int, Field(gt=-1000, lt=0)]
Package = Literal["refusalscope", "torch", "transformers", "transformer-lens", "python"]
Versions = Annotated[dict[Package, Short], Field(min_length=5)]
LayerCut = Literal["reference", "printed"]  # as in rule.py, which brings pandas and is not imported here
State = Literal["optional", "partly optional", "resistant", "undetermined"]


@dataclass(frozen=True, repr=False, config=CLOSED)
class Score(Shown):
    """A mean with its interval, and what it is a mean of."""

    value: float | None
    interval: tuple[float, float] | None
    n: Count
    clusters: Count | None
    method: Short

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {where(self.interval)}"

    def __str__(self) -> str:
        number, interval = digits(self.value, self.interval)
        clusters = "" if self.clusters is None else f", {self.clusters} clusters"
        return f"{number} {interval} ({self.method}, n = {self.n}{clusters})"


@dataclass(frozen=True, repr=False, config=CLOSED)
class Value(Score):
    """An ``Estimate`` as it is stored: the same fields, a NaN as None."""

    seed: int | None
    unit: Literal["", "nats", "rate"]
    note: Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=300)]

    def __str__(self) -> str:
        return f"{super().__str__()} {self.unit}{f': {self.note}' if self.note else ''}".strip()


@dataclass(frozen=True, repr=False, config=CLOSED)
class ModelFacts(Shown):
    """Which model: names and digests, never a path.

    ``thinking`` says how a thought before the answer was dealt with: switched off, closed empty, or there is none.
    ``quantisation`` is how the weights are stored where that is not plain numbers, such as ``Q4_K_M``;
    ``code_not_run`` whether the model is published with code of its own, which was not run.
    """

    name: Short
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    weights: Digest
    tokenizer: Digest
    template: Digest
    dtype: Short
    device: Short
    architecture: Short
    thinking: Literal["off", "closed", "absent"]
    quantisation: Short | None = None
    code_not_run: bool = False


@dataclass(frozen=True, repr=False, config=CLOSED)
class PromptFacts(Shown):
    """Which prompts: digests of the rows and of the tokens the model read, and how many; never their text."""

    source: Short
    digest: Digest
    rendered: Digest
    n: Annotated[dict[Split, Annotated[dict[Label, Count], Field(min_length=2)]], Field(min_length=3)]
    split_note: Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=300)]


@dataclass(frozen=True, repr=False, config=CLOSED)
class ReadoutFacts(Shown):
    """How the model opens a refusal: by the shipped phrases it was known by, never in the model's own words.

    ``mass`` and ``harmless_mass`` are mean refusal probabilities, ``compliance_mass`` that of an answer's opening on
    harmless prompts. ``declined`` counts the restricted prompts of ``locate`` that the model's own replies decline, and
    ``uncovered`` those of them that no opening reads.
    """

    phrases: Annotated[tuple[Short, ...], Field(max_length=MAX_PHRASES)]
    refusal_openings: Annotated[int, Field(ge=1)]
    compliance_openings: Count
    longest: Annotated[int, Field(ge=1)]
    mass: Share
    harmless_mass: Share
    compliance_mass: Share
    n: Count
    declined: Count | None
    uncovered: Count | None
    how: Literal["discovered", "given"]


@dataclass(frozen=True, repr=False, config=CLOSED)
class AgreementFacts(Shown):
    """Whether the readout calls the same prompts refused as a judge of whole replies, and how many it reads too early.

    ``refused`` and ``declined`` count the prompts that the readout and the judge call refused.
    """

    judge: Short
    agreement: Value
    kappa: Value
    late: Value
    refused: Count
    declined: Count


@dataclass(frozen=True, repr=False, config=CLOSED)
class ValidityFacts(Shown):
    """How far the readout can be trusted: on ``select`` as the model is; an organism's also under ablation."""

    plain: AgreementFacts
    intervened: AgreementFacts | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class ContrastFacts(Shown):
    """What was located on: prompts that behave as their label says, or all as asked, and how many were dropped."""

    labels: Literal["behaviour", "asked"]
    restricted: Count
    harmless: Count
    restricted_dropped: Count
    harmless_dropped: Count


@dataclass(frozen=True, repr=False, config=CLOSED)
class Margins(Shown):
    """Mean refusal margins before any intervention, in nats."""

    restricted: Value
    harmless: Value


@dataclass(frozen=True, repr=False, config=CLOSED)
class BaselineFacts(Margins):
    """The same, with the shares of restricted and of harmless prompts that are refused at temperature zero."""

    refused_restricted: Value
    refused_harmless: Value


@dataclass(frozen=True, repr=False, config=CLOSED)
class Place(Shown):
    """A cell of the grid: the layer whose entering residual was read, and the position from the end."""

    layer: Layer
    position: Position

    def __repr__(self) -> str:
        return f"{type(self).__name__}: layer {self.layer}, position {self.position}"


@dataclass(frozen=True, repr=False, config=CLOSED)
class ScoredCell(Place):
    """A cell with what the rule said of it; a score is None where it was not needed."""

    reason: Literal["kept", "late layer", "invalid", "does not induce", "damages", "not needed"]
    bypass: Score | None
    induce: Score | None
    kl: Score | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class NearTie(Place):
    """A cell that resampled prompts would also have chosen; ``kl_evaluated`` is False where its KL was not needed."""

    share: Share
    kl_evaluated: bool


@dataclass(frozen=True, repr=False, config=CLOSED)
class RuleFacts(Shown):
    """The limits of the selection rule.

    ``layer_cut`` says how the share of layers was cut. Files from before it was stored were cut as printed.
    """

    kl_limit: float
    induce_floor: float
    layer_share: float
    layer_cut: LayerCut = "printed"


@dataclass(frozen=True, repr=False, config=CLOSED)
class Selected(Shown):
    """What a selection measured and chose, on the ``select`` split."""

    baseline: Margins
    chosen: Place
    cells: Annotated[tuple[ScoredCell, ...], Field(min_length=1, max_length=MAX_CELLS)]
    near_ties: Annotated[tuple[NearTie, ...], Field(max_length=MAX_CELLS)]
    rule: RuleFacts
    mode: Literal["winner", "map"]
    locator: Short
    pf_used: Cost
    pf_naive: Cost
    seconds: Cost

    def __post_init__(self) -> None:
        """Refuses cells that repeat, and a choice or a near-tie that is none of them."""
        places = [(cell.layer, cell.position) for cell in self.cells]
        if len(set(places)) != len(places):
            raise ValueError("cells: the same layer and position occurs twice")
        named = [self.chosen, *self.near_ties]
        if strange := [(one.layer, one.position) for one in named if (one.layer, one.position) not in set(places)]:
            raise ValueError(f"layer {strange[0][0]}, position {strange[0][1]} is not among the cells")

    @property
    def chosen_cell(self) -> ScoredCell:
        """The chosen cell with its scores."""
        return next(c for c in self.cells if (c.layer, c.position) == (self.chosen.layer, self.chosen.position))


@dataclass(frozen=True, repr=False, config=CLOSED)
class Measured(Shown):
    """What was measured, with what, from which seed: the head of every result."""

    schema: Literal[1]
    model: ModelFacts
    prompts: PromptFacts
    seed: int
    versions: Versions


@dataclass(frozen=True, repr=False, config=CLOSED)
class PlaceboFacts(Shown):
    """Where an effect stands among the same effect of ``k`` random subspaces: p = (1 + b) / (1 + k), and their band."""

    p: Share
    k: Count
    best: float
    band: tuple[float, float]

    def __repr__(self) -> str:
        return f"PlaceboFacts: {among(self.p, self.k)}"

    def __str__(self) -> str:
        return f"p = {self.p:.2g} (placebos: k = {self.k}, best {self.best:.3g}, band {between(*self.band)})"


@dataclass(frozen=True, repr=False, config=CLOSED)
class EffectFacts(Shown):
    """What ablating the chosen candidate does on the ``report`` split. Damage is KL(base‖intervened) in nats.

    ``bypass`` counts refusals that are gone, ``bypass_lower`` those whose reply opens as an answer does; ``unread`` is
    how much more of the mass opens neither way. Over-refusal is the share of harmless prompts refused.
    """

    bypass: Value
    bypass_lower: Value
    unread: float
    over_refusal_before: Value
    over_refusal_after: Value
    suppression: Value
    kl: Value
    kl_median: float
    kl_p95: float
    kl_top_share: Share
    placebo: dict[Literal["bypass", "suppression", "kl"], PlaceboFacts]


@dataclass(frozen=True, repr=False, config=CLOSED)
class Verdict(Shown):
    """How optional the guardrail is, in one word and one sentence, with the reasons for it."""

    state: State
    sentence: Line
    reasons: Annotated[Lines, Field(min_length=1)]


@dataclass(frozen=True, repr=False, config=CLOSED)
class KnownValue(Shown):
    """One thing that is known of an organism, with what was measured of it in this environment."""

    organism: Short
    what: Line
    value: float | None
    at_least: float | None
    at_most: float | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class InstrumentCheck(Shown):
    """Whether the measurement was tried on organisms whose answer is known, in this environment, and each answer."""

    state: Literal["not run", "passed", "failed"]
    why: Line
    known: Annotated[tuple[KnownValue, ...], Field(max_length=MAX_LINES * 5)] = ()
