"""The verb: a candidate checkpoint audited against the one it is said to come from, one model in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from refusalscope import stats
from refusalscope.audit.behaviour import Answers, Known, Unusable, answers, answers_cost, known
from refusalscope.audit.calibration import RULE
from refusalscope.audit.checkpoint import Checkpoint, opened
from refusalscope.audit.comparable import Obstacle, same_settings, shared, strangers, unrelated
from refusalscope.audit.evidence import Audit, Evidence, Labels, Provenance, counted, of_signals
from refusalscope.audit.signals import Static, signals, static
from refusalscope.audit.weights import Differences, compared
from refusalscope.errors import MeasurementError, ModelError
from refusalscope.model import load
from refusalscope.prompts import ContrastSet
from refusalscope.reprs import Shown

NO_PROMPTS = Obstacle("the weights differ, and without prompts no refusal was measured", "Give prompts.")
OTHER_TOKENS = Obstacle(
    "the candidate reads the same prompts as other tokens", "Give both checkpoints the same tokenizer and template."
)
GIVE_GUARDED = "Give the original checkpoint, one that refuses these prompts."


@dataclass(frozen=True, repr=False)
class Loading(Shown):
    """How the two models are loaded, one after the other."""

    device: str | None = None
    dtype: torch.dtype = torch.float32


def audit(
    reference: str | Path,
    candidate: str | Path,
    *,
    prompts: ContrastSet | None = None,
    reference_digest: str | None = None,
    seed: int = 0,
    loading: Loading | None = None,
) -> Audit:
    """Returns whether refusal was edited out of a candidate: ``clean``, ``edited`` or ``cannot tell``.

    Weights are compared a piece of a tensor at a time. Then each model is loaded in turn and asked: how far restricted
    and harmless prompts are apart, what ablating the reference's located direction takes away, and whether adding it
    brings refusal back. A benign edit is ``clean`` however much the weights differ, also where it refuses less.

    Wrong for an edit whose mark the calibration has not seen: ``rates`` says which were tried, and which were missed.

    Args:
        reference, candidate: directories in Hugging Face format, of one architecture.
        prompts: what restricted and harmless mean; without them only equal weights can be called clean.
        reference_digest: SHA-256 of the reference's weight files as its maker published it; another is a spoof.
        loading: where and in which format the models run; float32 on the CPU unless given.

    Raises:
        ModelError: for a candidate that cannot be read: missing, damaged, or unsafe to load. A reference like that is
            ``cannot tell``.

    Example:
        >>> audit("data/organisms/guarded-0", "downloads/guarded-0", prompts=prompts)
    """
    second = opened(candidate)
    asked = _Asked(second.name, Path(reference).name, None if prompts is None else prompts.digest, seed)
    try:
        first = opened(reference)
    except ModelError as error:
        return asked.cannot_tell(Obstacle(_sentence(error), "Give the checkpoint the candidate was made from."))
    asked = replace(asked, reference=first.name, digests=(first.digest(), second.digest()))
    if reference_digest is not None and reference_digest.lower() != asked.digests[0]:
        reason = "the reference is not the checkpoint whose digest was given"
        return asked.cannot_tell(Obstacle(reason, "Get the reference from its maker again."))
    if (why := strangers(first, second)) is not None:
        return asked.cannot_tell(why)
    first, second = shared(first, second), shared(second, first)
    differences = compared(first, second, seed=seed)
    asked = replace(asked, differences=differences)
    if (why := unrelated(differences)) is not None:
        return asked.cannot_tell(why)
    if differences.label == "identical" and not differences.left_out and same_settings(first, second):
        return asked.identical()
    if prompts is None:
        return asked.cannot_tell(NO_PROMPTS)
    return _behaved(asked, first, second, prompts, loading or Loading())


@dataclass(frozen=True, eq=False)
class _Asked:
    """What was asked, and what is known so far: enough to answer at any point."""

    candidate: str
    reference: str
    prompts: str | None
    seed: int
    digests: tuple[str | None, str | None] = (None, None)
    rendered: str | None = None
    differences: Differences | None = None
    pf: float = 0.0

    def answer(self, state, evidence: list[Evidence], labels: Labels, why: Obstacle | None = None) -> Audit:
        """Returns the audit with where it came from."""
        names = {"reference": self.reference, "candidate": self.candidate, "prompts": self.prompts, "seed": self.seed}
        weights = dict(zip(("reference_weights", "candidate_weights"), self.digests, strict=True))
        origin = Provenance(**names, **weights, rendered=self.rendered, calibration=RULE.cases)  # pyright: ignore
        said = {} if why is None else {"reason": why.reason, "action": why.action}
        return Audit(state, labels, tuple(evidence), origin, RULE.false_positives, **said, pf=self.pf)

    def cannot_tell(self, why: Obstacle) -> Audit:
        """Returns the state that nothing is said, with what the weights showed."""
        label = None if self.differences is None or not self.differences.finite else self.differences.label
        return self.answer("cannot tell", self.of_weights(), Labels(weights=label), why)

    def identical(self) -> Audit:
        """Returns the state of a copy."""
        assert self.differences is not None
        return self.answer("clean", self.of_weights(), Labels(weights="identical", refuses_less=False))

    def of_weights(self) -> list[Evidence]:
        """Returns what the weights alone show."""
        found = self.differences
        if found is None or not found.finite:
            return []
        n, note = len(found.tensors), "every weight was read"
        numbers = {"relative": found.relative, "cosine": found.cosine}
        said = ("norm of the difference over that of the weights", "cosine between all weights")
        return [
            Evidence(name, words, counted(value, n, note=note), clean=RULE.clean.get(name))
            for words, (name, value) in zip(said, numbers.items(), strict=True)
        ]


def _behaved(asked: _Asked, first: Checkpoint, second: Checkpoint, prompts: ContrastSet, loading: Loading) -> Audit:
    """Asks both models, one after the other, and says what their answers make of the candidate."""
    assert asked.differences is not None
    try:
        before, weights = _reference(asked, first, second, prompts, loading)
    except (Unusable, ModelError) as error:
        return asked.cannot_tell(Obstacle(_sentence(error), GIVE_GUARDED))
    gc.collect()  # a model's modules refer to each other: without this two would be held at once
    asked = replace(asked, rendered=before.answers.rendered, pf=before.pf)
    model = load(second.directory, dtype=loading.dtype, device=loading.device)
    try:
        after = answers(model, before.question)
    except MeasurementError as error:
        return asked.cannot_tell(Obstacle(_sentence(error), "Copy or download the candidate again."))
    if after.rendered != before.answers.rendered:
        return asked.cannot_tell(OTHER_TOKENS)
    asked = replace(asked, pf=asked.pf + answers_cost(before.question.prompts))
    return judged(asked, before, weights, after)


def _reference(
    asked: _Asked, first: Checkpoint, second: Checkpoint, prompts: ContrastSet, loading: Loading
) -> tuple[Known, Static]:
    """Returns the reference's answers and the static signals; its model is let go before the next is loaded."""
    assert asked.differences is not None
    model = load(first.directory, dtype=loading.dtype, device=loading.device)
    before = known(model, prompts, seed=asked.seed)
    return before, static(model, before, (first, second), asked.differences, seed=asked.seed)


def judged(asked: _Asked, before: Known, weights: Static, after: Answers) -> Audit:
    """Returns the audit of a candidate from its signals, by the calibrated rule."""
    assert asked.differences is not None
    numbers = signals(before, weights, after).to_dict()
    score = RULE.score(numbers)
    state = "edited" if score > RULE.threshold else "clean"
    n = len(before.question.prompts.restricted)
    evidence = [
        Evidence(
            "score",
            "audit score, in logits",
            counted(score, n),
            threshold=RULE.threshold,
            clean=RULE.clean.get("score"),
        ),
        *_compared_answers(before, after),
        *of_signals(numbers, RULE.clean, n),
    ]
    return asked.answer(state, evidence, _labels(asked.differences, before, after))


def _labels(differences: Differences, before: Known, after: Answers) -> Labels:
    then, now = (x > 0 for x in (before.answers.restricted, after.restricted))
    clusters = before.question.prompts.restricted.clusters
    change = stats.paired_difference(now.double(), then.double(), clusters=clusters, unit="rate")
    # No interval where every prompt changed alike: nothing was lost, or everything was.
    less = change.high < 0 if change.interval else change.value < 0
    return Labels(weights=differences.label, refuses_less=bool(less), change=change)


def _compared_answers(before: Known, after: Answers) -> list[Evidence]:
    """Returns the paired differences of margins, untouched and under both interventions, with intervals."""
    then, clusters = before.answers, before.question.prompts.restricted.clusters
    pairs: Mapping[str, tuple] = {
        "margin": ("change of restricted margins, in nats", after.restricted, then.restricted),
        "response": (
            "change of what ablating the located direction takes from them",
            after.restricted - after.ablated,
            then.restricted - then.ablated,
        ),
        "return": ("change of restricted margins with the direction added", after.added[0], then.added[0]),
    }
    made = {
        name: Evidence(name, words, stats.paired_difference(now, base, clusters=clusters, unit="nats"))
        for name, (words, now, base) in pairs.items()
    }
    return list(made.values())


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
