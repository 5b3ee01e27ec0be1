"""The over-refusal trade-off: one dose moves refusals of restricted, borderline and harmless prompts together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.effect import TOGETHER, Baseline
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.interventions import ablate, add
from refusalscope.metrics import refuses
from refusalscope.placebo import random_like
from refusalscope.prompts import Prompts
from refusalscope.subspace import Subspace
from refusalscope.transfer.contrasts import Row, columns, nothing, placebo_columns

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def refusal_by_dose(
    before: Baseline,
    subspace: Subspace,
    borderline: Prompts,
    *,
    by: Literal["ablation", "addition"] = "ablation",
    doses: Sequence[float] = DOSES,
    placebos: int = 39,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns refusal rates (at temperature zero) of restricted, borderline and harmless prompts at every dose.

    Ablation takes refusals away and addition of the same vector brings them on; over-refusal is what either does to
    borderline prompts, which look restricted and are allowed (an organism's what-is questions).

    Columns ``by dose prompts value low high n clusters note random_low random_high random_p``. Placebos: random
    directions of the same norm at the same dose; p is for the size of the change from dose 0. An intervention that
    fails keeps its rows, NaN with the reason. Costs doses × (1 + placebos) × prompts in forwards (``attrs["pf"]``).

    Args:
        before: baseline of the ``report`` split.
        subspace: of rank one and with a layer, for an addition.
        borderline: prompts that are allowed and resemble restricted ones; their labels are not read.
        by: which intervention.
        doses: λ of the ablation, or multiples of the vector that is added.
    """
    if not doses or not len(borderline):
        raise MeasurementError(f"A trade-off needs doses and borderline prompts; got {len(doses)} and {borderline!r}.")
    sets = {"restricted": before.prompts.restricted, "borderline": borderline, "harmless": before.prompts.harmless}
    pool = Prompts(tuple(row for part in sets.values() for row in part))
    drawn = random_like(subspace, placebos, seed=seed)
    base = refuses(before.model, pool, before.readout).double()
    rows: list[Row] = []
    for dose in doses:
        try:
            refused = _refused(before, pool, [subspace], by=by, dose=dose)[0]
            null = _refused(before, pool, drawn, by=by, dose=dose) if dose else base.repeat(len(drawn), 1)
        except InterventionError as error:
            rows += [{"by": by, "dose": dose, "prompts": name, **columns(nothing(str(error)))} for name in sets]
            continue
        for (name, part), span in zip(sets.items(), _spans(sets.values()), strict=True):
            estimate = stats.rate(refused[span], clusters=part.clusters)
            row: Row = {"by": by, "dose": dose, "prompts": name, **columns(estimate)}
            start, rates = float(base[span].mean()), null[:, span].mean(1)
            changes = placebo_columns(abs(estimate.value - start), (rates - start).abs(), name="random")
            row |= placebo_columns(estimate.value, rates, name="random") | {"random_p": changes["random_p"]}
            rows.append(row)
    frame = pd.DataFrame(rows)
    frame.attrs["pf"] = float(len(pool) * (1 + sum(1 + len(drawn) * bool(dose) for dose in doses)))
    return frame


def _spans(parts: Iterable[Prompts]) -> list[slice]:
    spans, start = [], 0
    for part in parts:
        spans.append(slice(start, start + len(part)))
        start += len(part)
    return spans


def _refused(
    before: Baseline, pool: Prompts, subspaces: Sequence[Subspace], *, by: str, dose: float
) -> Float[Tensor, "subspace prompt"]:
    made = []
    step = TOGETHER if by == "ablation" else 1
    for start in range(0, len(subspaces), step):
        together = subspaces[start : start + step]
        block = (
            ablate(before.model, together, dose=dose) if by == "ablation" else add(before.model, together[0], dose=dose)
        )
        with block:
            made.append(refuses(before.model, pool, before.readout, copies=len(together)).reshape(len(together), -1))
    return torch.cat(made).double() if made else torch.empty(0, len(pool), dtype=torch.float64)
