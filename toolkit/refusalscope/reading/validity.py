"""Readout validity: does the readout call the same prompts refused as the model's own whole replies do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refusalscope import stats
from refusalscope.model.chat import ChatModel
from refusalscope.model.continuations import read_continuations
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import Readout
from refusalscope.reading.replies import WHOLE, greedy_replies, has_declined, refusal_marks
from refusalscope.reprs import Shown, facts
from refusalscope.stats import Estimate

LEAST_KAPPA = 0.8
RESAMPLES = 999


@dataclass(frozen=True, repr=False)
class Validity(Shown):
    """Agreement of a readout with a judge of whole replies, prompt by prompt.

    Attributes:
        agreement: share of prompts of which both say the same.
        kappa: Cohen's kappa, which chance agreement leaves at 0; NaN, and the note says why, where a judge calls all
            prompts the same.
        late: of the replies that decline, the share that the readout does not read as refused.
        refused, declined: prompts that the readout and the replies call refused.
        judge: what the readout is compared with.
    """

    agreement: Estimate
    kappa: Estimate
    late: Estimate
    refused: int
    declined: int
    judge: str

    @property
    def holds(self) -> bool:
        """Whether the readout may carry a verdict: kappa is at least 0.8."""
        return self.kappa.value >= LEAST_KAPPA

    def __repr__(self) -> str:
        return f"Validity of a readout: {'holds' if self.holds else 'does not hold'}, against {self.judge}"

    def _repr_html_(self) -> str:
        rows = {
            "agreement": str(self.agreement),
            "kappa": str(self.kappa),
            "declined and not read as refused": str(self.late),
            "refused by the readout, by the replies": f"{self.refused}, {self.declined}",
        }
        return facts(rows, caption=repr(self))


def validate_readout(model: ChatModel, prompts: Prompts, readout: Readout, *, seed: int = 0) -> Validity:
    """Returns how well a readout agrees with the model's own whole replies (64 tokens), marked by the shipped phrases.

    Greedy, unintervened, in memory only. Costs two prompt-forwards per prompt, and a token at a time for the replies.

    Args:
        prompts: of ``select``, both labels: the openings were found on ``locate``.

    Raises ContractError for a model with a hook registered that is no organism.
    """
    decided = None if model.is_organism else has_declined  # once a reply declines, the rest of it changes nothing
    replies = greedy_replies(model, prompts, longest=WHOLE, until=decided, progress="readout validity")
    declined = [mark is not None for mark in refusal_marks(model, prompts, replies)]
    read = read_continuations(
        model, model.encode(prompts.texts), readout.tree, lambda logits, _rows: readout.read(logits).refuses
    )
    judge = "the refusals of its language" if model.is_organism else "shipped phrases in its whole replies"
    return compare_judges(read.tolist(), declined, clusters=prompts.clusters, judge=judge, seed=seed)


def compare_judges(
    refused: Sequence[bool], declined: Sequence[bool], *, clusters: Sequence[str], judge: str, seed: int = 0
) -> Validity:
    """Returns the agreement of two judges of the same prompts. Kappa's interval is a bootstrap over clusters."""
    first, second = np.asarray(refused, dtype=bool), np.asarray(declined, dtype=bool)
    groups = np.asarray(clusters)
    late = stats.rate(~first[second], clusters=groups[second].tolist()) if second.any() else _no_rate("none declines")
    return Validity(
        agreement=stats.rate(first == second, clusters=clusters),
        kappa=_kappa_estimate(first, second, groups, seed),
        late=late,
        refused=int(first.sum()),
        declined=int(second.sum()),
        judge=judge,
    )


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Returns (p_o − p_e) / (1 − p_e); NaN where both judges call every prompt the same."""
    observed = float((first == second).mean())
    expected = float(first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean()))
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def _kappa_estimate(first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    value, names = cohen_kappa(first, second), np.unique(groups)
    method, n = f"bootstrap over clusters, {RESAMPLES} resamples", len(first)
    if value != value:
        note = "both judges call every prompt the same, so that agreement is no more than chance"
        return Estimate(value, None, n, len(names), method, seed, "", note)
    if len(names) < stats.MIN_CLUSTERS:
        note = f"{len(names)} clusters, an interval needs at least {stats.MIN_CLUSTERS}"
        return Estimate(value, None, n, len(names), method, seed, "", note)
    chance, rows = stats.generator(seed, "kappa"), [np.flatnonzero(groups == name) for name in names]
    drawn = (np.concatenate([rows[i] for i in chance.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES))
    values = np.array([cohen_kappa(first[some], second[some]) for some in drawn])
    low, high = np.nanquantile(values, [0.025, 0.975])
    width = (float(low), float(high)) if high > low else None
    return Estimate(value, width, n, len(names), method, seed, "", "" if width else "the same in every resample")


def _no_rate(note: str) -> Estimate:
    return Estimate(float("nan"), None, 0, 0, "none", None, "rate", note)
