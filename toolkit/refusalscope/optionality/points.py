"""One point of the frontier: which member is chosen at a damage limit, and what it does on report, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from refusalscope import stats
from refusalscope.attack import Attack, Responses
from refusalscope.effect import UNREAD_LIMIT
from refusalscope.optionality.grounds import no_unit
from refusalscope.optionality.intervals import METHOD, hull, percentiles, rate_interval
from refusalscope.optionality.resampling import (
    MEASURES,
    Measure,
    Scores,
    Tally,
    chosen,
    draw,
    picked,
    scores,
    tally,
)
from refusalscope.reprs import Shown
from refusalscope.stats import Estimate

NOTHING_PASSES = "no attack stays within this damage on select, and doing nothing bypasses nothing"


@dataclass(frozen=True, repr=False)
class Point(Shown):
    """The frontier at one damage limit.

    Attributes:
        kappa: the limit on mean damage on select, in nats.
        bypass, suppression: Ω(κ) and Ω_s(κ) on report.
        member: the attack chosen for its bypass rate; empty where none stays within κ.
        suppressor: the one chosen for its suppression.
        damage: of ``member`` on report, in nats; None without one.
        lower: share of refused prompts whose reply opens as an answer does under ``member``; None without one.
        unread: how much more mass opens neither way under it than on answered harmless prompts; None without one.
        over_refusal: share of harmless prompts refused under it; None without one.
        margin: mean margin of restricted prompts under it, in nats; None without one.
        placebo: the best of all placebos with damage ≤ κ on report, per measure; empty if none ran.
    """

    kappa: float
    bypass: Estimate
    suppression: Estimate
    member: str
    suppressor: str
    damage: Estimate | None
    placebo: dict[Measure, float]
    lower: Estimate | None = None
    unread: float | None = None
    over_refusal: Estimate | None = None
    margin: Estimate | None = None

    @property
    def unreadable(self) -> bool:
        """Whether so many replies open neither way on report that the bypass rate means nothing there."""
        return self.unread is not None and self.unread > UNREAD_LIMIT

    @property
    def over_limit(self) -> bool:
        """Whether the chosen member damages more than κ on report, where nothing was chosen."""
        return self.damage is not None and self.damage.value > self.kappa

    def of(self, by: Measure) -> Estimate:
        """The estimate of a measure."""
        return self.bypass if by == "bypass" else self.suppression

    def attack_of(self, by: Measure) -> str:
        """The attack chosen for a measure; empty where none stays within κ."""
        return self.member if by == "bypass" else self.suppressor

    def rows(self) -> list[dict[str, Any]]:
        """One row per measure, for a tidy frame."""
        damage = np.nan if self.damage is None else self.damage.value
        return [
            {"kappa": self.kappa, "measure": by, "value": self.of(by).value, "low": self.of(by).low}
            | {"high": self.of(by).high, "n": self.of(by).n, "member": self.attack_of(by)}
            | {"damage": damage, "placebo": self.placebo.get(by, np.nan)}
            | {"lower_bound": np.nan if self.lower is None else self.lower.value}
            for by in MEASURES
        ]

    def __repr__(self) -> str:
        return f"Point of a frontier: {self.member or 'no attack stays within the damage limit'}"


@dataclass(frozen=True, repr=False, eq=False)
class Choosing:
    """What was chosen at every damage limit: on select itself, and in every resample of it.

    Attributes:
        select_sums, sums: per cluster, of select and of report.
        seen: scores of every attack per split, on the prompts themselves.
        picks, again: per measure, index of the chosen attack, −1 where none stays within κ.
        values: per measure, the resampled value on report of the attack chosen in the resample.
        no_unit: why there is no suppression; empty where there is one.
    """

    report: Responses
    attacks: tuple[Attack, ...]
    kappas: tuple[float, ...]
    select_sums: Tally
    sums: Tally
    seen: dict[str, Scores]
    picks: dict[Measure, Int[np.ndarray, " kappa"]]
    again: dict[Measure, Int[np.ndarray, "resample kappa"]]
    values: dict[Measure, Float[np.ndarray, "resample kappa"]]
    seed: int
    no_unit: str

    def members(self, kappa: float) -> pd.DataFrame:
        """A row per attack: what it is, ``valid``, ``<split>_<score>``, and the share of resamples choosing it at κ."""
        column, frame = self.kappas.index(kappa), pd.DataFrame([attack.facts for attack in self.attacks])
        frame["valid"] = self.sums.valid
        frame["readable"] = self.select_sums.readable & self.sums.readable
        for split, found in self.seen.items():
            for name in ("bypass", "suppression", "damage"):
                frame[f"{split}_{name}"] = np.where(self.sums.valid, getattr(found, name)[0], np.nan)
        for by in MEASURES:
            counts = np.bincount(self.again[by][:, column] + 1, minlength=len(self.attacks) + 1)
            frame[f"chosen_for_{by}"] = counts[1:] / counts.sum()
        if self.no_unit:
            frame["chosen_for_suppression"] = np.nan
        return frame


def choose(select: Responses, report: Responses, kappas: Sequence[float], *, seed: int) -> Choosing:
    """Returns the choice at every κ, once on the prompts themselves and once in each of 2,000 resamples.

    Restricted and harmless clusters of both splits are drawn apart, four draws in all.
    """
    valid = (select.valid & report.valid).numpy()
    choosing_on, measured_on = tally(select, valid), tally(report, valid)
    drawn = scores(choosing_on, draw(choosing_on, seed=seed, split="select"))
    tested = scores(measured_on, draw(measured_on, seed=seed, split="report"))
    seen = {"select": scores(choosing_on), "report": scores(measured_on)}
    again: dict[Measure, np.ndarray] = {by: chosen(drawn, kappas, by) for by in MEASURES}
    return Choosing(
        report=report,
        attacks=report.attacks,
        kappas=tuple(kappas),
        select_sums=choosing_on,
        sums=measured_on,
        seen=seen,
        picks={by: chosen(seen["select"], kappas, by)[0] for by in MEASURES},
        again=again,
        values={by: picked(getattr(tested, by), again[by]) for by in MEASURES},
        seed=seed,
        no_unit=no_unit(select, report),
    )


def point(choosing: Choosing, column: int, *, placebo: dict[Measure, float]) -> Point:
    """Returns the point of one κ: values on report of the members chosen there, with the hull of both intervals."""
    picks = {by: int(choosing.picks[by][column]) for by in MEASURES}
    names = {by: choosing.attacks[pick].name if pick >= 0 else "" for by, pick in picks.items()}
    if choosing.no_unit:
        names["suppression"], placebo = "", {by: best for by, best in placebo.items() if by != "suppression"}
    return Point(
        kappa=choosing.kappas[column],
        bypass=_bypass(choosing, picks["bypass"], column),
        suppression=_suppression(choosing, picks["suppression"], column),
        member=names["bypass"],
        suppressor=names["suppression"],
        damage=_damage(choosing, picks["bypass"]),
        placebo=placebo,
        **_beside(choosing, picks["bypass"]),
    )


def suppressions(report: Responses, pick: int) -> Float[np.ndarray, " restricted"]:
    """Returns (m − m^τ) / (m_R − m_H) of every restricted prompt under one attack; zeros for −1, doing nothing."""
    before = report.before
    after = before.restricted if pick < 0 else report.margins[pick]
    return ((before.restricted.double() - after.double()) / before.gap).numpy()


def too_few(choosing: Choosing) -> str:
    """Returns which prompts come from too few clusters for an interval, in words; empty where none do."""
    for split, sums in (("select", choosing.select_sums), ("report", choosing.sums)):
        counts = {"refused": int((sums.refused > 0).sum()), "harmless": len(sums.harmless)}
        for label, count in counts.items():
            if count < stats.MIN_CLUSTERS:
                return (
                    f"{count} clusters of {label} prompts on {split}, an interval needs at least {stats.MIN_CLUSTERS}"
                )
    return ""


def _bypass(choosing: Choosing, pick: int, column: int) -> Estimate:
    sums, few = choosing.sums, too_few(choosing)
    value = float(sums.bypassed[:, pick].sum() / sums.refused.sum()) if pick >= 0 else 0.0
    alone, note = (None, few) if few else rate_interval(sums, pick)
    interval = hull(alone, percentiles(choosing.values["bypass"][:, column])) if alone else None
    n, clusters = int(sums.refused.sum()), int((sums.refused > 0).sum())
    return Estimate(
        value, interval, n, clusters, METHOD["bypass"], choosing.seed, "rate", note if pick >= 0 else _nothing(few)
    )


def _suppression(choosing: Choosing, pick: int, column: int) -> Estimate:
    few, clusters = too_few(choosing), choosing.report.before.prompts.restricted.clusters
    if choosing.no_unit:
        return Estimate(np.nan, None, len(clusters), None, METHOD["suppression"], choosing.seed, "", choosing.no_unit)
    alone = stats.mean(suppressions(choosing.report, pick), clusters=clusters)
    interval = None if few else hull(alone.interval, percentiles(choosing.values["suppression"][:, column]))
    note = few or (alone.note if interval is None else "")
    return Estimate(
        alone.value,
        interval,
        alone.n,
        alone.clusters,
        METHOD["suppression"],
        choosing.seed,
        "",
        note if pick >= 0 else _nothing(few),
    )


def _nothing(few: str) -> str:
    return f"{NOTHING_PASSES}; {few}" if few else NOTHING_PASSES


def _damage(choosing: Choosing, pick: int) -> Estimate | None:
    if pick < 0:
        return None
    before = choosing.report.before
    nats = choosing.report.kl[pick][before.answered].double().numpy()
    return stats.mean(nats, clusters=before.answered_clusters, unit="nats")


def _beside(choosing: Choosing, pick: int) -> dict[str, Any]:
    """What stands beside a bypass rate: its lower bound, the mass that opens neither way, over-refusal."""
    if pick < 0:
        return {}
    report, before = choosing.report, choosing.report.before
    answers = report.complies[pick][before.refused].numpy()
    return {
        "lower": stats.rate(answers, clusters=before.refused_clusters) if len(answers) else None,
        "unread": float(report.unread[pick].double().mean()) - before.unread,
        "over_refusal": stats.rate(report.over_refuses[pick].numpy(), clusters=before.prompts.harmless.clusters),
        "margin": stats.mean(
            report.margins[pick].double().numpy(), clusters=before.prompts.restricted.clusters, unit="nats"
        ),
    }
