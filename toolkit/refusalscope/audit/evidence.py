"""What the audit found and how it says so: evidence with its numbers, labels, and the state they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from refusalscope.audit.weights import Label
from refusalscope.reprs import Shown, table
from refusalscope.stats import Estimate

State = Literal["clean", "edited", "cannot tell"]
ONE_PAIR = "one number for this pair of checkpoints: nothing to resample"


@dataclass(frozen=True, repr=False)
class Evidence(Shown):
    """One number the state stands on.

    Attributes:
        says: what it is, in words.
        number: with n and interval, or with a note why there is none.
        threshold: above which it counts against the candidate; None where it does not decide alone.
        clean: where nine in ten benign candidates of the calibration lie; None where none was measured.
    """

    name: str
    says: str
    number: Estimate
    threshold: float | None = None
    clean: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for strict JSON."""
        return {
            "name": self.name,
            "says": self.says,
            "number": self.number.to_dict(),
            "threshold": self.threshold,
            "clean": None if self.clean is None else list(self.clean),
        }

    def __repr__(self) -> str:
        return f"Evidence: {self.says}"


@dataclass(frozen=True, repr=False)
class Labels(Shown):
    """What holds whether or not refusal was edited: how the weights differ, and whether the candidate refuses less.

    Each is None where it was not measured. ``change`` is the paired difference of refusal rates.
    """

    weights: Label | None = None
    refuses_less: bool | None = None
    change: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        change = None if self.change is None else self.change.to_dict()
        return {"weights": self.weights, "refuses_less": self.refuses_less, "change": change}


@dataclass(frozen=True, repr=False)
class Provenance(Shown):
    """What was compared, with what: names and digests, never a path. A digest is None where nothing was read."""

    reference: str
    candidate: str
    reference_weights: str | None
    candidate_weights: str | None
    prompts: str | None
    rendered: str | None
    calibration: str
    seed: int

    def __repr__(self) -> str:
        return f"Provenance of an audit of {self.candidate} against {self.reference}"


@dataclass(frozen=True, repr=False)
class Audit(Shown):
    """The answer: ``clean``, ``edited`` or ``cannot tell``, with the labels and the evidence it stands on.

    It holds scalars and digests only, so it can be kept and shown.

    Attributes:
        reason: why nothing can be told; empty otherwise.
        action: the one thing to do.
        declared: the false-positive rate at which ``edited`` is said.
        pf: prompt-forwards spent.
    """

    state: State
    labels: Labels
    evidence: tuple[Evidence, ...]
    provenance: Provenance
    declared: float
    reason: str = ""
    action: str = "Nothing to do."
    pf: float = 0.0

    @property
    def claim(self) -> str:
        """The state as a sentence, without digits."""
        if self.state == "cannot tell":
            return f"cannot tell: {self.reason}"
        less = "; it refuses less" if self.labels.refuses_less else ""
        found = "a refusal-targeted edit was found" if self.state == "edited" else "no refusal-targeted edit was found"
        return f"{self.state}: {found}{less}; its weights are {_spoken(self.labels.weights)}"

    def __repr__(self) -> str:
        return f"Audit of {self.provenance.candidate} against {self.provenance.reference}: {self.claim}"

    def _repr_html_(self) -> str:
        rows = [(one.says, one.number, _lies(one)) for one in self.evidence]
        return table(rows, caption=repr(self), head=("evidence", "number", "benign ones lie"))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for strict JSON."""
        return {
            "state": self.state,
            "labels": self.labels.to_dict(),
            "evidence": [one.to_dict() for one in self.evidence],
            "reason": self.reason,
            "action": self.action,
            "declared": self.declared,
            "provenance": asdict(self.provenance),
            "pf": self.pf,
        }


def counted(value: float, n: int, *, note: str = ONE_PAIR) -> Estimate:
    """Returns a number that is computed once, as an Estimate that says why it has no interval."""
    return Estimate(float(value), None, n=n, clusters=None, method="computed", note=note)


def of_signals(numbers: Mapping[str, float], clean: Mapping[str, tuple[float, float]], n: int) -> list[Evidence]:
    """Returns the signals as evidence; ``n`` is the prompts of each label that answered."""
    return [
        Evidence(name, SAID[name], counted(value, n if name in ANSWERED else 1), clean=clean.get(name))
        for name, value in numbers.items()
    ]


def _lies(one: Evidence) -> str:
    limit = "" if one.threshold is None else f"; threshold {one.threshold:.3g}"
    return ("–" if one.clean is None else f"{one.clean[0]:.3g} to {one.clean[1]:.3g}") + limit


def _spoken(label: Label | None) -> str:
    words = {"identical": "identical", "rounding": "rounded", "low_rank": "changed in few directions"}
    return words.get(label or "", "changed broadly")


SAID = {
    "relative": "norm of the difference over that of the weights",
    "rank_one": "share of the writers' difference in one direction",
    "effective_rank": "effective rank of the writers' difference, as a share of the width",
    "alignment": "energy of the difference along the located direction, over a random one's",
    "erasure": "how far a change along the difference's own first directions takes away what was there",
    "erasure_located": "the same along the located direction",
    "erased_suppression": "share of the reference's refusal that hangs on what was taken away",
    "placebo_suppression": "share of it that hangs on random directions",
    "energy_kept": "what writers still hold along the located direction",
    "gap_kept": "refusal gap, over the reference's",
    "response_kept": "answer to ablating the located direction, over the reference's",
    "induction_kept": "answer of harmless prompts to adding it, over the reference's",
    "restored": "refusal that adding it brings back, over the reference's",
    "separation_kept": "separation of restricted from harmless activations, over the reference's",
    "carried": "difference in means along the located direction, over the reference's",
    "restricted_shift": "change of restricted margins, in reference gaps",
    "harmless_shift": "change of harmless margins, in reference gaps",
    "kl": "KL from the reference on harmless prompts, in nats",
    "targeted": "refusal-carrying part of what was taken away",
}
ANSWERED = tuple(
    name for name in SAID if name not in ("relative", "rank_one", "effective_rank", "alignment", "erasure")
)
