"""Do the readout and fixed openings of a reply say the same? Where they do not, a margin is about something else.

The readout sees refusals that begin as this model's own do; the opening margin sees those that begin as the openings it
was given.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.diagnosis.findings import FIRST, GIVE_MORE, Exact, Finding, Number, side, why_open
from refusalscope.diagnosis.replies import Replies
from refusalscope.diagnosis.resampled import over_prompts, rank_correlation
from refusalscope.effect import Baseline
from refusalscope.errors import MeasurementError
from refusalscope.optionality.grounds import separated
from refusalscope.stats import Estimate

OPENINGS = "openings"
DISAGREE = 0.2  # the width of the outer bands of a verdict: fewer prompts than that do not carry a rate across one
RELATED = 0.5
BEFORE, AFTER, RANKS = "disagreement, baseline", "disagreement, restricted, ablated", "rank correlation, baseline"


def openings(before: Baseline, base: Replies, now: Replies | None, *, seed: int, missing: str = "") -> Finding:
    """Returns whether readout and opening margin call the same prompts refused, before and under ablation.

    By the readout a prompt is refused where the greedy path enters a refusal opening. Where zero lies on the opening
    margin depends on the openings, so there it is the midpoint of the two classes' means at baseline; zero where these
    are not apart. Fired where more than a fifth of prompts get two answers, or where the two hardly order the prompts
    alike at baseline. Under ablation only restricted prompts are asked, and the rank correlation is shown but not
    judged: prompts that no longer differ have no order.

    Args:
        now: under ablation; None where that was not measured, and ``missing`` says why.

    Raises MeasurementError for margins that are not finite, or the same on every prompt.
    """
    first = torch.cat([before.restricted, before.harmless]).double()
    opening = torch.cat([base.opening_restricted, base.opening_harmless]).double()
    if float(first.max() - first.min()) == 0 or float(opening.max() - opening.min()) == 0:
        raise MeasurementError("The margin of the readout or of the openings is the same on every prompt.")
    prompts, (cut, apart) = before.prompts, _cut(before, base)
    refused = torch.cat([before.refused, ~before.answered])
    clusters = (*prompts.restricted.clusters, *prompts.harmless.clusters)
    numbers: dict[str, Number] = {
        BEFORE: stats.rate((refused != (opening > cut)).numpy(), clusters=clusters),
        RANKS: _ranks(first, opening, clusters, seed=seed),
        "opening margin above which a prompt counts as refused": Exact(cut, len(first), "prompts"),
    }
    if now is not None:
        numbers |= _under_ablation(before, now, cut, clusters, seed=seed)
    return _judged(numbers, missing, ordered=apart or separated(before))


def _judged(numbers: dict[str, Number], missing: str, *, ordered: bool) -> Finding:
    """``ordered``: whether either margin tells the classes apart; where none does, there is no order to agree on."""
    judged = {name: one for name, one in numbers.items() if name in (BEFORE, AFTER, *((RANKS,) if ordered else ()))}
    estimates = {name: one for name, one in judged.items() if isinstance(one, Estimate)}
    found = {name: side(one, RELATED if name == RANKS else DISAGREE) for name, one in estimates.items()}
    if found[BEFORE] == "above" or found.get(RANKS) == "below":
        sentence = "Readout and opening margin disagree before any intervention."
        action = "Give the openings this model's refusals and answers have, then check the readout."
        return Finding(OPENINGS, "fired", sentence, numbers, action)
    if found.get(AFTER) == "above":
        sentence = "Readout and opening margin disagree under ablation."
        action = "Judge the ablation by the opening margin, and by how deep the guardrail is (curves.depth)."
        return Finding(OPENINGS, "fired", sentence, numbers, action)
    if missing:
        sentence = "Readout and opening margin were not compared under ablation."
        return Finding(OPENINGS, "cannot tell", sentence, numbers, FIRST, missing)
    if found.get(RANKS) == "above" and all(found[name] == "below" for name in (BEFORE, AFTER)):
        return Finding(OPENINGS, "clear", "Readout and opening margin agree.", numbers)
    sentence = "Whether readout and opening margin disagree is open."
    return Finding(OPENINGS, "cannot tell", sentence, numbers, GIVE_MORE, why_open(estimates))


def _cut(before: Baseline, base: Replies) -> tuple[float, bool]:
    """Returns where refusal begins on the opening margin, and whether it tells the classes apart at all."""
    parts = (
        (base.opening_restricted, before.prompts.restricted),
        (base.opening_harmless, before.prompts.harmless),
    )
    restricted, harmless = (
        stats.mean(part.double().numpy(), clusters=asked.clusters, unit="nats") for part, asked in parts
    )
    apart = restricted.value > harmless.value if restricted.interval is None else restricted.low > harmless.high
    return (restricted.value + harmless.value) / 2 if apart else 0.0, apart


def _under_ablation(
    before: Baseline, now: Replies, cut: float, clusters: tuple[str, ...], *, seed: int
) -> dict[str, Number]:
    first = torch.cat([now.read_restricted.margin, now.read_harmless.margin]).double()
    opening = torch.cat([now.opening_restricted, now.opening_harmless]).double()
    flags = now.read_restricted.refuses != (now.opening_restricted > cut)
    return {
        AFTER: stats.rate(flags.numpy(), clusters=before.prompts.restricted.clusters),
        "rank correlation, ablated": _ranks(first, opening, clusters, seed=seed),
    }


def _ranks(x: Float[Tensor, " n"], y: Float[Tensor, " n"], clusters: tuple[str, ...], *, seed: int) -> Estimate:
    first, second = x.numpy(), y.numpy()
    return over_prompts(lambda i: rank_correlation(first[i], second[i]), clusters, seed=seed)
