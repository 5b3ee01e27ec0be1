"""The selection rule of Arditi et al. 2024 (arXiv 2406.11717, appendix C.1), and the search that applies it cheaply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import pandas as pd

from refusalscope.errors import MeasurementError, SelectionError
from refusalscope.reprs import Shown, facts

Kind = Literal["bypass", "induce", "kl"]
Mode = Literal["winner", "map"]
LayerCut = Literal["reference", "printed"]
KINDS: tuple[Kind, ...] = ("bypass", "induce", "kl")
ROUNDING = 1e-9  # of a product of floats: 0.29 · 100 is 28.999…
SHORT = 10  # layers: below, rounding down discards more than a tenth of the model on top of the share


class Cell(NamedTuple):
    """One candidate: the layer whose entering residual it was located in, and the position from the end."""

    layer: int
    position: int

    def _repr_html_(self) -> str:
        return facts(self._asdict(), caption="Cell")


@dataclass(frozen=True, repr=False)
class Rule(Shown):
    """Minimise the margin under ablation, subject to KL below a limit, induction above a floor, and an early layer.

    Attributes:
        kl_limit: nats; a candidate at or above it is discarded.
        induce_floor: nats; a candidate at or below it is discarded.
        layer_share: the share of the L layers that is considered; later layers are too close to the unembedding.
        layer_cut: how the share becomes a layer. ``reference`` discards ``l ≥ int(layer_share · L)``, as the authors'
            code does; ``printed`` discards ``l ≥ layer_share · L``, as the paper prints it. They differ by one layer
            where the product is no whole number, and then in what they choose: of Yi-6B-chat (32 layers) the
            published choice is found with ``reference`` only.
    """

    kl_limit: float = 0.1
    induce_floor: float = 0.0
    layer_share: float = 0.8
    layer_cut: LayerCut = "reference"

    def __post_init__(self) -> None:
        """Refuses a way to cut that there is not."""
        if self.layer_cut not in ("reference", "printed"):
            raise MeasurementError(f"layer_cut {self.layer_cut!r} is unknown: use 'reference' or 'printed'.")

    def first_late(self, n_layers: int) -> int:
        """Returns the first layer that the rule discards in a model of ``n_layers``; ``n_layers`` for none."""
        depth = self.layer_share * n_layers
        return math.floor(depth + ROUNDING) if self.layer_cut == "reference" else math.ceil(depth - ROUNDING)

    def is_early(self, cell: Cell, n_layers: int) -> bool:
        """True where the rule considers the cell's layer at all."""
        return cell.layer < self.first_late(n_layers)

    def spelled(self) -> str:
        """Returns the three conditions, as an error states them."""
        depth = f"{self.layer_share:g} L"
        cut = f"int({depth})" if self.layer_cut == "reference" else depth
        return f"KL < {self.kl_limit:g} nats, induction > {self.induce_floor:g}, layer < {cut}"


def default_rule(n_layers: int) -> Rule:
    """Returns the rule for a model of ``n_layers`` where none is given: the reference one, but for short models.

    Below ten layers the share is cut as printed. Rounded down, 0.8 L would take two of six layers instead of one, and
    of a guarded organism, whose guard is read from its fifth layer on, no cell would be left to choose.
    """
    return Rule() if n_layers >= SHORT else Rule(layer_cut="printed")


@runtime_checkable
class Scorer(Protocol):
    """Where scores come from: a model, or a published grid. Means over the prompts, in nats."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_prompts(self) -> int: ...

    def score(self, kind: Kind, cells: Sequence[Cell]) -> list[float]:
        """Returns one score per cell."""
        ...

    def cost(self, kind: Kind, cell: Cell) -> float:
        """Returns the prompt-forwards that scoring a cell takes."""
        ...


@dataclass(frozen=True, repr=False)
class Search(Shown):
    """What a search found: a row per cell with its scores (NaN: not needed) and reason, and what it cost."""

    cells: pd.DataFrame
    chosen: Cell
    pf_used: float
    pf_naive: float

    def __repr__(self) -> str:
        return f"Search: layer {self.chosen.layer}, position {self.chosen.position} of {len(self.cells)} cells"


def search(scorer: Scorer, cells: Sequence[Cell], *, rule: Rule, mode: Mode) -> Search:
    """Returns the cell the rule chooses among ``cells``.

    ``map`` scores every cell on everything. ``winner`` finds the same cell with fewer prompt-forwards: it never scores
    late layers, asks for induction first, for the margin of what is left, and for KL best first until one passes.

    Raises:
        SelectionError: when no cell survives, saying which filter removed how many and the best one rejected.
    """
    if mode not in ("winner", "map"):
        raise MeasurementError(f"Mode {mode!r} is unknown: use 'winner' or 'map'.")
    ledger = _Ledger(scorer)
    (_search_all if mode == "map" else _search_winner)(ledger, cells, rule)
    frame = ledger.frame(cells, rule)
    kept = frame.query("reason == 'kept'")
    if kept.empty:
        raise SelectionError(diagnosis(frame, rule), cells=frame)
    best = kept.sort_values("bypass", kind="stable").to_dict("records")[0]
    chosen = Cell(best["layer"], best["position"])
    frame["chosen"] = [Cell(*pair) == chosen for pair in zip(frame["layer"], frame["position"], strict=True)]
    return Search(frame, chosen, ledger.spent + 2 * scorer.n_prompts, naive_cost(scorer.n_prompts, len(cells)))


def naive_cost(n_prompts: int, n_cells: int) -> float:
    """Returns 3N(1 + PL): three baselines and three scores per cell of N prompts, as the reference implementation."""
    return 3.0 * n_prompts * (1 + n_cells)


def diagnosis(frame: pd.DataFrame, rule: Rule) -> str:
    """Returns why no cell survived: how many each filter removed, and the best rejected cell with its scores."""
    counts = ", ".join(f"{reason} {count}" for reason, count in frame["reason"].value_counts().items())
    scored = frame.dropna(subset=["bypass"])
    if scored.empty:
        inducing = frame.dropna(subset=["induce"])
        best = inducing.sort_values("induce", ascending=False, kind="stable").to_dict("records")
        nearest = f" Highest induction: {_spelled(best[0])}." if best else ""
    else:
        nearest = f" Best rejected cell: {_spelled(scored.sort_values('bypass', kind='stable').to_dict('records')[0])}."
    return (
        f"No cell of {len(frame)} survives the selection rule ({rule.spelled()}). Removed: {counts}.{nearest} "
        "Check that the model refuses the restricted prompts."
    )


def _spelled(row: dict) -> str:
    scores = ", ".join(f"{kind} {row[kind]:.3f}" for kind in KINDS if row[kind] == row[kind])
    return f"layer {row['layer']}, position {row['position']} ({scores}; {row['reason']})"


class _Ledger:
    """Scores asked for so far, with what they cost."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.spent = scorer, 0.0
        self.scores: dict[Kind, dict[Cell, float]] = {kind: {} for kind in KINDS}

    def ask(self, kind: Kind, cells: Sequence[Cell]) -> dict[Cell, float]:
        if cells:
            self.scores[kind] |= dict(zip(cells, self.scorer.score(kind, cells), strict=True))
            self.spent += sum(self.scorer.cost(kind, cell) for cell in cells)
        return self.scores[kind]

    def frame(self, cells: Sequence[Cell], rule: Rule) -> pd.DataFrame:
        rows = [
            {"layer": cell.layer, "position": cell.position}
            | {kind: self.scores[kind].get(cell, float("nan")) for kind in KINDS}
            | {"reason": self._reason(cell, rule), "chosen": False}
            for cell in cells
        ]
        return pd.DataFrame(rows)

    def _reason(self, cell: Cell, rule: Rule) -> str:
        """Names the first filter, in the rule's order, that removes a cell."""
        scores = {kind: self.scores[kind].get(cell) for kind in KINDS}
        if not rule.is_early(cell, self.scorer.n_layers):
            return "late layer"
        if any(score is not None and score != score for score in scores.values()):
            return "invalid"
        if scores["induce"] is not None and not scores["induce"] > rule.induce_floor:
            return "does not induce"
        if scores["kl"] is not None and not scores["kl"] < rule.kl_limit:
            return "damages"
        return "kept" if None not in scores.values() else "not needed"


def _search_all(ledger: _Ledger, cells: Sequence[Cell], rule: Rule) -> None:
    for kind in KINDS:
        ledger.ask(kind, cells)


def _search_winner(ledger: _Ledger, cells: Sequence[Cell], rule: Rule) -> None:
    early = [cell for cell in cells if rule.is_early(cell, ledger.scorer.n_layers)]
    induce = ledger.ask("induce", early)
    inducing = [cell for cell in early if induce[cell] > rule.induce_floor]
    bypass = ledger.ask("bypass", inducing)
    ranked = sorted((cell for cell in inducing if bypass[cell] == bypass[cell]), key=lambda cell: bypass[cell])
    for cell in ranked:
        if ledger.ask("kl", [cell])[cell] < rule.kl_limit:
            return
