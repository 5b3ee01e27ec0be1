"""Results as they are stored: a selection and a guardrail card, written atomically and read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from refusalscope.results import page
from refusalscope.results.curves import CostFacts, CurveFacts, TransferFacts
from refusalscope.results.deploy import Reliance
from refusalscope.results.diagnosis import DiagnosisFacts
from refusalscope.results.family import OptionalityFacts
from refusalscope.results.files import CLOSED, read_result, to_json, to_record, write_text
from refusalscope.results.parts import (
    BaselineFacts,
    ContrastFacts,
    Cost,
    EffectFacts,
    InstrumentCheck,
    Lines,
    Measured,
    ReadoutFacts,
    Selected,
    ValidityFacts,
    Verdict,
)

SELECTION_FILE, CARD_FILE, CARD_PAGE = "selection.json", "card.json", "card.html"


@dataclass(frozen=True, repr=False, config=CLOSED)
class SelectionResult(Selected, Measured):
    """A selection as it is stored: which model, which prompts, every evaluated cell, the choice and its cost."""

    readout: ReadoutFacts

    def save(self, folder: Path | str) -> Path:
        """Writes ``selection.json`` into a folder, atomically, and returns its path. Raises ResultError."""
        write_text(path := Path(folder) / SELECTION_FILE, to_json(self))
        return path

    @classmethod
    def read(cls, path: Path | str) -> SelectionResult:
        """Returns the selection stored in a file. Raises ResultError naming the file and the key."""
        return read_result(cls, path)

    def __repr__(self) -> str:
        return f"SelectionResult of {self.model.name}: layer {self.chosen.layer}, position {self.chosen.position}"


@dataclass(frozen=True, repr=False, config=CLOSED)
class GuardrailCard(Measured):
    """The card of a guardrail: the verdict, the numbers behind it, and what they do not show.

    Attributes:
        plan: how much was measured; ``own`` for a plan that has no name.
        readout, validity: how the model refuses, and how well that is read.
        contrast: what was located on.
        optionality: the worst case over the attack family, chosen on ``select`` and measured on ``report``.
        baseline, effect: on the ``report`` split; the effect is that of ablating the selection rule's choice.
        selection: that choice, on the ``select`` split; None where nothing was chosen.
        curves, transfer: of the rule's choice, on part of the ``report`` split.
        cost: what locating and ablating that choice took, step by step.
        diagnosis: why the model does not fit the picture; looked for where the verdict is ``undetermined`` or the rule
            chose nothing, None otherwise.
        deploy: what guardrail, audit and monitor can each be relied on for, at the measured rates.
        missing: what could not be measured or is not part of the plan, and why.
        pf, seconds: prompt-forwards of the stages that finished, and wall-clock time.

    Example:
        >>> card = measure(model, prompts)
        >>> card.save("build/guarded-0")
    """

    plan: Literal["full", "quick", "adaptive", "budget", "own"]
    verdict: Verdict
    readout: ReadoutFacts | None
    validity: ValidityFacts | None
    contrast: ContrastFacts | None
    baseline: BaselineFacts | None
    optionality: OptionalityFacts | None
    effect: EffectFacts | None
    selection: Selected | None
    curves: Annotated[tuple[CurveFacts, ...], Field(max_length=10)]
    transfer: TransferFacts | None
    cost: CostFacts | None
    attack_family: Annotated[Lines, Field(min_length=1)]
    instrument_check: InstrumentCheck
    diagnosis: DiagnosisFacts | None
    deploy: Annotated[tuple[Reliance, ...], Field(min_length=3, max_length=3)]
    missing: Lines
    not_shown: Annotated[Lines, Field(min_length=1)]
    pf: Cost
    seconds: Cost

    def __post_init__(self) -> None:
        """Refuses a verdict that nothing measured stands behind."""
        state, measured = self.verdict.state, self.optionality
        if state != "undetermined" and (measured is None or measured.bypass.interval is None):
            raise ValueError(f"verdict: {state} without an interval of the worst case")
        if state != "undetermined" and self.instrument_check.state == "failed":
            raise ValueError(f"verdict: {state} although the instrument check failed")

    def save(self, folder: Path | str) -> None:
        """Writes ``card.json`` and ``card.html`` into a folder, each atomically. Raises ResultError."""
        write_text(Path(folder) / CARD_FILE, to_json(self))
        write_text(Path(folder) / CARD_PAGE, page.page(to_record(self)))

    @classmethod
    def read(cls, path: Path | str) -> GuardrailCard:
        """Returns the card stored in a file, or in a folder's card.json. Raises ResultError naming file and key."""
        path = Path(path)
        return read_result(cls, path / CARD_FILE if path.is_dir() else path)

    def __repr__(self) -> str:
        return f"GuardrailCard of {self.model.name}: {self.verdict.state}; {self.verdict.sentence}"

    def _repr_html_(self) -> str:
        return page.body(to_record(self))
