"""An audit as it is stored: state, labels, every number behind them, and where all came from. Scalars and digests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from refusalscope.audit.evidence import Audit, Evidence, Labels
from refusalscope.reprs import Shown
from refusalscope.results.facts import one_line, value, versions
from refusalscope.results.files import CLOSED, read_result, to_json, write_text
from refusalscope.results.parts import LONGEST_LINE, Cost, Digest, Line, Share, Short, Value, Versions

AUDIT_FILE = "audit.json"
MOST_EVIDENCE = 60
Free = Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=LONGEST_LINE)]


@dataclass(frozen=True, repr=False, config=CLOSED)
class EvidenceFacts(Shown):
    """One number, the threshold it is held against, and where nine in ten benign candidates lie."""

    name: Short
    says: Line
    number: Value
    threshold: float | None
    clean: tuple[float, float] | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class LabelFacts(Shown):
    """How the weights differ and whether the candidate refuses less, with the change of its refusal rate."""

    weights: Literal["identical", "rounding", "low_rank", "broad"] | None
    refuses_less: bool | None
    change: Value | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class ProvenanceFacts(Shown):
    """Names and digests; a digest is None where nothing was read."""

    reference: Short
    candidate: Short
    reference_weights: Digest | None
    candidate_weights: Digest | None
    prompts: Digest | None
    rendered: Digest | None
    calibration: Digest


@dataclass(frozen=True, repr=False, config=CLOSED)
class AuditResult(Shown):
    """An audit as it is stored in ``audit.json``.

    Attributes:
        declared: the false-positive rate at which ``edited`` is said.
        pf: prompt-forwards spent.
    """

    schema: Literal[1]
    state: Literal["clean", "edited", "cannot tell"]
    labels: LabelFacts
    evidence: Annotated[tuple[EvidenceFacts, ...], Field(max_length=MOST_EVIDENCE)]
    reason: Free
    action: Line
    declared: Share
    provenance: ProvenanceFacts
    seed: int
    pf: Cost
    versions: Versions

    def __post_init__(self) -> None:
        """Refuses a state that nothing stands behind."""
        if (self.state == "cannot tell") != bool(self.reason):
            raise ValueError(f"state {self.state!r} with reason {self.reason!r}")
        if self.state != "cannot tell" and not self.evidence:
            raise ValueError(f"state {self.state!r} without evidence")

    def save(self, folder: Path | str) -> Path:
        """Writes ``audit.json`` into a folder, atomically, and returns its path. Raises ResultError."""
        write_text(path := Path(folder) / AUDIT_FILE, to_json(self))
        return path

    @classmethod
    def read(cls, path: Path | str) -> AuditResult:
        """Returns the audit stored in a file. Raises ResultError naming the file and the key."""
        return read_result(cls, path)

    def __repr__(self) -> str:
        return f"AuditResult of {self.provenance.candidate} against {self.provenance.reference}: {self.state}"


def audit_result(found: Audit) -> AuditResult:
    """Returns what may be stored of an audit."""
    origin = vars(found.provenance).copy()
    seed = origin.pop("seed")
    names = {name: one_line(origin.pop(name)) for name in ("reference", "candidate")}
    return AuditResult(
        schema=1,
        state=found.state,
        labels=_labels(found.labels),
        evidence=tuple(_evidence(one) for one in found.evidence),
        reason=one_line(found.reason, longest=LONGEST_LINE),
        action=one_line(found.action, longest=LONGEST_LINE),
        declared=found.declared,
        provenance=ProvenanceFacts(**names, **origin),
        seed=seed,
        pf=found.pf,
        versions=versions(),
    )


def _labels(found: Labels) -> LabelFacts:
    return LabelFacts(found.weights, found.refuses_less, None if found.change is None else value(found.change))


def _evidence(one: Evidence) -> EvidenceFacts:
    return EvidenceFacts(one.name, one.says, value(one.number), one.threshold, one.clean)
