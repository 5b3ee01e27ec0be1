"""From an optionality in memory to what may be stored of it: names and numbers, no subspace."""

from __future__ import annotations

import math
from typing import Any

from refusalscope.optionality import Optionality, Point
from refusalscope.results.facts import one_line, value
from refusalscope.results.family import AttackFacts, AttackScores, FrontierPoint, OptionalityFacts
from refusalscope.results.parts import LONGEST_LINE, PlaceboFacts

SPLITS = ("select", "report")


def optionality_facts(found: Optionality) -> OptionalityFacts:
    """Returns an optionality as it is stored."""
    ranks = {by: PlaceboFacts(rank.p, rank.k, rank.best, rank.band) for by, rank in found.placebo.items()}
    return OptionalityFacts(
        kappa=found.kappa,
        bypass=value(found.bypass),
        bypass_lower=None if found.bypass_lower is None else value(found.bypass_lower),
        unread=found.unread,
        over_refusal_before=None if found.over_refusal is None else value(found.over_refusal[0]),
        over_refusal_after=None
        if not found.over_refusal or not found.over_refusal[1]
        else value(found.over_refusal[1]),
        margin_after=None if found.margin is None else value(found.margin),
        placebo_margins=found.placebo_margins,
        suppression=value(found.suppression),
        index=value(found.index),
        suppression_index=value(found.suppression_index),
        worst=_line(found.worst),
        over_limit=found.over_limit,
        frontier=tuple(_point(one) for one in found.frontier),
        attacks=tuple(_attack(row) for row in found.members.to_dict("records")),
        n_attacks=found.n_attacks,
        n_invalid=found.n_invalid,
        n_invalid_placebos=found.n_invalid_placebos,
        placebo=ranks,  # pyright: ignore[reportArgumentType]
        placebo_note=found.placebo_note,
        problems=tuple(one_line(problem, longest=LONGEST_LINE) for problem in found.problems),
        pf=found.pf,
    )


def number(x: float) -> float | None:
    """Returns a number as it is stored: one that is not finite is None."""
    return float(x) if math.isfinite(x) else None


def _point(one: Point) -> FrontierPoint:
    return FrontierPoint(
        kappa=one.kappa,
        bypass=value(one.bypass),
        suppression=value(one.suppression),
        member=_line(one.member),
        suppressor=_line(one.suppressor),
        damage=None if one.damage is None else value(one.damage),
        placebo_bypass=one.placebo.get("bypass"),
        placebo_suppression=one.placebo.get("suppression"),
    )


def _attack(row: dict[Any, Any]) -> AttackFacts:
    scores = {
        split: AttackScores(*(number(row[f"{split}_{name}"]) for name in ("bypass", "suppression", "damage")))
        for split in SPLITS
    }
    return AttackFacts(
        locator=one_line(row["located"], longest=LONGEST_LINE),
        rank=int(row["rank"]),
        dose=float(row["dose"]),
        scope=row["scope"],
        n_prompts=int(row["n_prompts"]),
        pf=float(row["pf"]),
        valid=bool(row["valid"]),
        chosen=float(row["chosen_for_bypass"]),
        **scores,
    )


def _line(text: str) -> str | None:
    return one_line(text, longest=LONGEST_LINE) if text else None
