"""Transfer matrices: a guardrail located on one group of prompts, its ablation measured on every other.

Every source is located by difference in means at one fixed cell, so that sources differ in their prompts alone. Take
the cell chosen on ``select`` with every prompt: one chosen anew per source would mix transfer with selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.attack import Attack, Responses, respond
from refusalscope.effect import Baseline
from refusalscope.placebo import random_like
from refusalscope.prompts import Prompts
from refusalscope.rule import Cell
from refusalscope.stats import Estimate
from refusalscope.subspace import Subspace
from refusalscope.transfer.contrasts import Row, columns, nothing, placebo_columns
from refusalscope.transfer.groups import Group, Grouping, groups
from refusalscope.transfer.sources import Sources, balanced_shuffles, direction

METRICS = ("bypass", "suppression", "kl")
UNITS = {"bypass": "rate", "suppression": "", "kl": "nats"}


@dataclass(frozen=True, eq=False)
class _Source:
    """A source group: its direction or why there is none, and the rows of its attack and of its shuffled placebos."""

    grouping: str
    group: Group
    direction: Subspace | str
    row: int
    shuffled: slice


def matrices(
    before: Baseline,
    located: Sources,
    groupings: Mapping[str, Grouping],
    *,
    cell: Cell | tuple[int, int],
    random: int = 199,
    shuffled: int = 39,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns bypass rate, suppression and damage of every target group under the ablation of every source's direction.

    Columns ``grouping source target metric value low high n clusters method note n_source``, then ``low high p n`` of
    two placebos: ``random`` directions, the same for all sources, and ``shuffled``, balanced label shuffles of the
    source's own prompts. ``n_source`` counts restricted prompts; suppression is in units of the target's own gap; KL is
    on the target's harmless prompts. A group of one class, or one that nothing refuses, keeps its rows: NaN and the
    reason.

    Costs (sources + random + sources × shuffled) × prompts of the baseline in prompt-forwards (``attrs["pf"]``). The
    answer is wrong when sources and baseline share prompts: locate on one split and measure on another.

    Args:
        before: baseline of the ``report`` split, whose prompts are the targets.
        located: activations of the ``locate`` split, whose prompts are the sources.
        groupings: from a name such as "category" to a function from a prompt to its group.
        cell: layer and position at which every source is located.
        random, shuffled: placebos in all, and placebos per source.
    """
    plan, attacks = _planned(located, groupings, cell=cell, shuffled=shuffled, seed=seed)
    drawn = slice(len(attacks), len(attacks) + random)
    attacks += [Attack(one) for one in random_like(attacks[0].subspace, random, seed=seed)] if attacks else []
    found = respond(before, attacks, progress="transfer") if attacks else None
    rows: list[Row] = []
    for name, grouping in groupings.items():
        targets = [_Target.of(before, found, group) for group in groups(before.prompts, grouping)]
        for source in (source for source in plan if source.grouping == name):
            rows += [row for target in targets for row in _rows(source, target, drawn)]
    frame = pd.DataFrame(rows)
    frame.attrs["pf"] = found.pf if found else 0.0
    return frame


def _planned(
    located: Sources, groupings: Mapping[str, Grouping], *, cell: Cell | tuple[int, int], shuffled: int, seed: int
) -> tuple[list[_Source], list[Attack]]:
    plan: list[_Source] = []
    attacks: list[Attack] = []
    for name, grouping in groupings.items():
        for group in groups(located.prompts, grouping):
            made = direction(located, group, cell=cell)
            own = len(attacks)
            if isinstance(made, Subspace):
                placebos = balanced_shuffles(located, group, shuffled, cell=cell, seed=seed)
                attacks += [Attack(one, n_prompts=len(group.restricted + group.harmless)) for one in (made, *placebos)]
            plan.append(_Source(name, group, made, own, slice(own + 1, len(attacks))))
    return plan, attacks


@dataclass(frozen=True, eq=False)
class _Target:
    """A target group with what its prompts answer to every attack.

    Attributes:
        values: per metric and attack, one number per prompt that counts.
        clusters: per metric, those prompts' clusters.
        reasons: per metric, why there are none; empty when there are.
    """

    group: Group
    values: dict[str, Float[Tensor, "attack prompt"]]
    clusters: dict[str, tuple[str, ...]]
    reasons: dict[str, str]

    @classmethod
    def of(cls, before: Baseline, found: Responses | None, group: Group) -> _Target:
        if group.reason or found is None:
            return cls(group, {}, {}, dict.fromkeys(METRICS, group.reason or "no source has a direction"))
        asked, harmless = list(group.restricted), list(group.harmless)
        answered = [row for row in harmless if bool(before.answered[row])]
        kept = [row for row in asked if bool(before.refused[row])]
        gap = float(before.restricted[asked].mean() - before.harmless[harmless].mean())
        values = {
            "bypass": (~found.refuses[:, kept]).double().where(found.valid[:, None], torch.nan),
            "suppression": (before.restricted[asked] - found.margins[:, asked]).double() / gap,
            "kl": found.kl[:, answered].double(),
        }
        clusters = {"bypass": _clusters(before.prompts.restricted, kept)}
        clusters["suppression"] = _clusters(before.prompts.restricted, asked)
        clusters["kl"] = _clusters(before.prompts.harmless, answered)
        reasons = {
            "bypass": "" if kept else f"no prompt of group {group.name!r} is refused at baseline",
            "suppression": "" if gap > 0 else f"mean margins of group {group.name!r} are not separated at baseline",
        }
        reasons["kl"] = "" if answered else f"no harmless prompt of group {group.name!r} is answered at baseline"
        return cls(group, values, clusters, reasons)

    def estimate(self, metric: str, row: int) -> Estimate:
        values, clusters = self.values[metric][row], self.clusters[metric]
        if not bool(torch.isfinite(values).all()):
            return nothing("invalid: the ablation did not happen as declared")
        if metric == "bypass":
            return stats.rate(values, clusters=clusters)
        return stats.mean(values, clusters=clusters, unit=UNITS[metric])


def _rows(source: _Source, target: _Target, drawn: slice) -> list[Row]:
    head = {"grouping": source.grouping, "source": source.group.name, "target": target.group.name}
    made: list[Row] = []
    for metric in METRICS:
        reason = source.direction if isinstance(source.direction, str) else target.reasons[metric]
        estimate = nothing(reason) if reason else target.estimate(metric, source.row)
        means = torch.empty(0) if reason else target.values[metric].mean(1)
        row = {**head, "metric": metric, **columns(estimate), "n_source": len(source.group.restricted)}
        row |= placebo_columns(estimate.value, means[drawn], name="random")
        made.append(row | placebo_columns(estimate.value, means[source.shuffled], name="shuffled"))
    return made


def _clusters(prompts: Prompts, rows: list[int]) -> tuple[str, ...]:
    return tuple(prompts[row].cluster for row in rows)
