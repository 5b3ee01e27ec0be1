"""Points of a curve: attacks with their placebos, measured together, and the rows of a tidy frame they become."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusalscope import stats
from refusalscope.attack import Attack, Responses, respond
from refusalscope.effect import Baseline, refuse_unguarded
from refusalscope.reprs import Shown
from refusalscope.stats import Estimate
from refusalscope.subspace import NotExported

PLACEBOS = 39
INVALID = "the intervention did not happen as declared"
NO_PLACEBO: dict[str, object] = {"placebo_low": math.nan, "placebo_high": math.nan, "placebo_n": 0, "p": math.nan}


@dataclass(frozen=True, repr=False, eq=False)
class Point(Shown, NotExported):
    """One point of a curve before it is measured.

    Attributes:
        x: its coordinates, by column.
        attacks: one, or one per draw where a point is a mean over draws.
        placebos: what goes the same way beside them.
        failed: draws (by number) in which nothing was located: no effect, no damage, and counted.
        failed_placebos: how many placebos located nothing, likewise.
        inert: placebos not run because nothing is ablated here: each would answer as the attack does.
        drawn: whether the point is a mean over draws.
    """

    x: Mapping[str, object]
    attacks: tuple[Attack, ...]
    placebos: tuple[Attack, ...]
    failed: tuple[int, ...] = ()
    failed_placebos: int = 0
    inert: int = 0
    drawn: bool = False


class Read(NamedTuple):
    """Margins and KL per attack (or draw) and prompt in nats, and which restricted prompts are refused still."""

    margins: Float[Tensor, "draw restricted"]
    kl: Float[Tensor, "draw harmless"]
    refuses: Bool[Tensor, "draw restricted"]


@dataclass(frozen=True, repr=False, eq=False)
class Answer(Shown):
    """What the prompts answered at one point.

    Attributes:
        placebos: mean bypass, suppression and KL of every placebo.
        pf: prompt-forwards spent on the point, placebos included.
    """

    point: Point
    read: Read
    placebos: Mapping[str, Float[Tensor, " placebo"]]
    pf: float


def guarded(before: Baseline) -> Baseline:
    """Returns the baseline. Raises MeasurementError where nothing is refused or the mean margins are not separated."""
    refuse_unguarded(before, "draw a curve of")
    return before


def answered(before: Baseline, points: Sequence[Point], *, what: str) -> list[Answer]:
    """Returns the answers at every point, all attacks of all points measured together."""
    attacks = [attack for point in points for attack in (*point.attacks, *point.placebos)]
    found, answers, start = respond(before, attacks, progress=what), [], 0
    for point in points:
        middle = start + len(point.attacks)
        end = middle + len(point.placebos)
        read = _with_failed(before, found.rows(range(start, middle)), point.failed)
        nulls = _with_failed(before, found.rows(range(middle, end)), range(point.failed_placebos))
        nulls = Read(*(values.expand(point.inert, -1) for values in read)) if point.inert else nulls
        placebos = {name: values.mean(1) for name, values in per_prompt(before, nulls).items()}
        answers.append(Answer(point, read, placebos, float((end - start) * len(before.prompts))))
        start = end
    return answers


def per_prompt(before: Baseline, read: Read) -> dict[str, Float[Tensor, "draw prompt"]]:
    """Returns what bypass (over the refused), suppression (restricted) and KL (answered harmless) are means of."""
    margins, kl = read.margins, read.kl[:, before.answered].double()
    refused = torch.where(margins.isnan(), torch.nan, read.refuses.double())[:, before.refused]
    return {"bypass": 1 - refused, "suppression": ((before.restricted - margins) / before.gap).double(), "kl": kl}


def clusters(before: Baseline) -> dict[str, tuple[str, ...]]:
    """Returns the clusters of the prompts behind each score."""
    restricted = before.prompts.restricted.clusters
    return {"bypass": before.refused_clusters, "suppression": restricted, "kl": before.answered_clusters}


def rows(before: Baseline, answers: Sequence[Answer]) -> pd.DataFrame:
    """Returns three rows per point, one for each ``measure``: bypass, suppression and kl.

    Columns: the coordinates, ``measure value low high n clusters method unit note``, ``placebo_low placebo_high`` (the
    central 95% of the placebos), ``placebo_n``, ``p`` (one-sided rank among them) and ``pf`` (of the point, all three
    measures and the placebos together). Where a point is a mean over draws, n counts prompts, not draws, and
    ``draws draw_low draw_high`` say how many there were and the least and the most of them.
    """
    groups = clusters(before)
    made = [
        {**answer.point.x, "measure": name, **_estimated(answer, name, values, groups[name]), "pf": answer.pf}
        for answer in answers
        for name, values in per_prompt(before, answer.read).items()
    ]
    return pd.DataFrame(made)


def columns(estimate: Estimate) -> dict[str, object]:
    """Returns an estimate as columns of a tidy frame."""
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "clusters": estimate.clusters,
        "method": estimate.method,
        "unit": estimate.unit,
        "note": estimate.note,
    }


def estimated(values: Float[Tensor, " prompt"], groups: Sequence[str], *, unit: str) -> Estimate:
    """Returns the mean over prompts: a clustered rate where it is one, invalid where a value is missing."""
    if not bool(torch.isfinite(values).all()):
        return Estimate(math.nan, None, n=len(values), clusters=None, method="none", unit=unit, note=INVALID)
    if unit == "rate" and bool(((values == 0) | (values == 1)).all()):
        return stats.rate(values.numpy(), clusters=groups)
    return stats.mean(values.double().numpy(), clusters=groups, unit=unit)


def placebo_columns(value: float, placebos: Float[Tensor, " placebo"], *, larger: bool = True) -> dict[str, object]:
    """Returns the placebo columns of a row. Invalid placebos are counted as at least as strong, and out of the band."""
    valid = placebos[torch.isfinite(placebos)]
    if not len(valid) or math.isnan(value):
        return NO_PLACEBO | {"placebo_n": len(placebos)}
    rank = stats.placebo_rank(value, valid.numpy(), larger_is_stronger=larger)
    p = (rank.p * (1 + len(valid)) + len(placebos) - len(valid)) / (1 + len(placebos))
    low, high = rank.band
    return NO_PLACEBO | {"placebo_low": low, "placebo_high": high, "placebo_n": len(placebos), "p": p}


def _estimated(answer: Answer, name: str, values: Tensor, groups: Sequence[str]) -> dict[str, object]:
    each, unit = values.mean(1), {"bypass": "rate", "suppression": "", "kl": "nats"}[name]
    estimate = estimated(values.mean(0), groups, unit=unit)
    row = columns(estimate) | placebo_columns(estimate.value, answer.placebos[name])
    if not answer.point.drawn:
        return row
    failed = len(answer.point.failed)
    lost = f"{failed} of {len(values)} draws located nothing: no effect" if failed else ""
    row["note"] = "; ".join(filter(None, (estimate.note, lost)))
    return row | {"draws": len(values), "draw_low": float(each.min()), "draw_high": float(each.max())}


def _with_failed(before: Baseline, found: Responses, failed: Collection[int]) -> Read:
    """Returns the answers with untouched ones put in at the places of failed draws."""
    count = len(found) + len(failed)
    ran = [i for i in range(count) if i not in failed]
    every = Read(
        before.restricted.repeat(count, 1),
        torch.zeros(count, found.kl.shape[1]),
        before.refused.repeat(count, 1),
    )
    for values, made in zip(every, (found.margins, found.kl, found.refuses), strict=True):
        values[ran] = made
    return every
