"""Optionality by parts of one family: which attack won, and what each part would have reached alone."""

from __future__ import annotations

import math

import pandas as pd

from refusalscope.attack import Responses
from refusalscope.errors import MeasurementError
from refusalscope.optionality.declared import PLAIN
from refusalscope.optionality.frontier import Optionality, optionality
from refusalscope.optionality.grounds import KAPPA
from refusalscope.optionality.resampling import MEASURES

EVERY, BEYOND = "every part", "all but plain"


def by_part(
    select: Responses, report: Responses, *, placebos: Responses | None = None, kappa: float = KAPPA, seed: int = 0
) -> pd.DataFrame:
    """Returns what each part of a family reaches alone, and all of it together, two rows each: bypass and suppression.

    Every part is a family of its own: its worst case is chosen on ``select`` among its own members, reported on
    ``report``, and compared with the placebos that were matched to it. A defence that only defeats the plain attack
    shows as a plain row that is low beside another that is not. Rows of parts are looks at one family: the largest of
    them is no better than the row of every part, whose interval knows about the choosing.

    Columns ``part measure value low high n clusters member damage placebo p k attacks invalid note``; ``placebo`` is
    the best of the k placebos at damage ≤ κ, ``note`` says why there is no number or interval.

    Raises MeasurementError for a family without parts, and as ``optionality``.
    """
    parts = tuple(dict.fromkeys(attack.part for attack in report.attacks))
    if parts == ("",) or not parts:
        raise MeasurementError("This family has no parts: declare it with optionality.adaptive, or name them.")
    groups = {part: (part,) for part in parts}
    groups |= {BEYOND: tuple(part for part in parts if part != PLAIN)} if len(parts) > 1 and PLAIN in parts else {}
    groups |= {EVERY: parts} if len(parts) > 1 else {}
    rows = []
    for name, names in groups.items():
        null = None if placebos is None else only(placebos, *names)
        found = optionality(only(select, *names), only(report, *names), placebos=null, kappa=kappa, seed=seed)
        rows += _rows(name, found)
    return pd.DataFrame(rows)


def only(responses: Responses, *parts: str) -> Responses:
    """Returns the responses to the attacks of some parts, as if only these had been declared.

    With it ``compare`` tells what the other parts add on one model: compare (select, report) of all with that of one.
    """
    rows = [row for row, attack in enumerate(responses.attacks) if attack.part in parts]
    return responses.rows(rows)


def _rows(name: str, found: Optionality) -> list[dict[str, object]]:
    here = next((one for one in found.frontier if one.kappa == found.kappa), None)
    damage = math.nan if here is None or here.damage is None else here.damage.value
    made = []
    for by in MEASURES:
        one, rank = found.bypass if by == "bypass" else found.suppression, found.placebo.get(by)
        member = "" if here is None else here.attack_of(by)
        null = (math.nan, math.nan, 0) if rank is None else (rank.best, rank.p, rank.k)
        made.append(
            {"part": name, "measure": by, "value": one.value, "low": one.low, "high": one.high, "n": one.n}
            | {"clusters": one.clusters, "member": member, "damage": damage}
            | dict(zip(("placebo", "p", "k"), null, strict=True))
            | {"attacks": found.n_attacks, "invalid": found.n_invalid, "note": one.note}
        )
    return made
