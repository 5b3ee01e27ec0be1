"""Knock-out: components write their harmless mean instead, most strongly attributed first, beside random orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.attribution.direct import PROBED, Attribution
from refusalscope.effect import Baseline
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.interventions import intervention
from refusalscope.metrics import read
from refusalscope.model.batching import Batch, forward, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.model.writes import Component, Writers, find_writers
from refusalscope.progress import bar
from refusalscope.prompts import Prompts
from refusalscope.receipt import Receipt
from refusalscope.reprs import Shown
from refusalscope.subspace import NotExported
from refusalscope.transfer.contrasts import Row, columns, nothing, placebo_columns


@dataclass(frozen=True, repr=False, eq=False)
class MeanWrites(Shown, NotExported):
    """What every component writes on average, at each template position: what a knocked-out one writes instead.

    Attributes:
        values: per site, ``[pos, head, d_head]`` for heads (before the output projection, which is linear) and
            ``[pos, d]`` for others, float64.
        n: prompts averaged over.
    """

    writers: Writers
    values: dict[str, Tensor]
    n: int

    def __repr__(self) -> str:
        return f"MeanWrites of {self.n} prompts"


def mean_writes(model: ChatModel, prompts: Prompts) -> MeanWrites:
    """Returns the mean writes of some prompts, harmless ones of another split as a rule; one prompt-forward each."""
    if not len(prompts):
        raise MeasurementError("Mean writes need prompts to average over: the set is empty.")
    writers = find_writers(model, model.encode(prompts.texts[:PROBED]))
    sums: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def read(site: str):
        def hook(x: Tensor, hook) -> None:
            seen[site] = x[:, -model.n_positions :].detach().double().sum(0).cpu()

        return hook

    def rows(batch: Batch) -> Tensor:
        forward(model, batch)  # a batch that did not fit never comes to the sums
        sums.update({site: sums.get(site, 0) + value for site, value in seen.items()})
        return torch.zeros(len(batch))

    with hooked(model, {_site(model, writers, one): read(_site(model, writers, one)) for one in _removable(writers)}):
        map_rows(model, model.encode(prompts.texts), rows, progress="mean writes")
    return MeanWrites(writers, {site: total / len(prompts) for site, total in sums.items()}, len(prompts))


@contextmanager
def knock_out(model: ChatModel, components: Sequence[Component], means: MeanWrites) -> Iterator[Receipt]:
    """Makes some components write their mean at every template position while the block runs; yields a receipt.

    Positions before the template keep what was written there: the instruction itself is still read.

    Raises:
        InterventionError: for an empty list, the embedding or a component the means do not have; on leaving, if a hook
            did not fire on every forward, or a parameter, buffer or hook is not as it was.
    """
    unknown = [one.name for one in components if one not in _removable(means.writers)]
    if unknown or not components:
        raise InterventionError(f"Cannot knock out {', '.join(unknown) or 'nothing'}: name heads, attentions or MLPs.")
    by_site: dict[str, list[Component]] = {}
    for one in components:
        by_site.setdefault(_site(model, means.writers, one), []).append(one)
    edits = {site: _replacement(means.values[site], members) for site, members in by_site.items()}
    receipt = Receipt(f"knock-out of {len(components)} components", tuple(edits), checked=())
    with intervention(model, edits, receipt):
        yield receipt


def knockout_curve(
    before: Baseline,
    found: Attribution,
    means: MeanWrites,
    *,
    counts: Sequence[int] | None = None,
    orders: int = 19,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns margin and refusal rate of restricted prompts after knocking out the first n components.

    Columns ``n_knocked component metric value low high n clusters note random_low random_high random_p``; metrics are
    ``margin`` (mean, nats) and ``refusal rate`` (at temperature zero); ``component`` is the last one added. Components
    go in the order of their attribution, strongest writer towards refusal first; placebos are ``orders`` random orders
    of the same components, and p counts those that lower the metric as much. Costs counts × (1 + orders)
    prompt-forwards per restricted prompt (``attrs["pf"]``). A model broken by many knock-outs has no margin either:
    read the curve where it leaves the band.

    Args:
        before: baseline of the ``report`` split.
        means: what is written instead; of harmless prompts of another split.
        counts: how many to knock out, 0 to all; 0, 1, 2, 3, 4, 6, 8, 12, … where None.
    """
    ranked = found.ranked
    chosen = _counts(len(ranked)) if counts is None else sorted(set(counts))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] <= len(ranked):
        raise MeasurementError(f"Counts of components to knock out must lie in 0..{len(ranked)}; got {chosen}.")
    shuffles = [stats.generator(seed, f"order {k}").permutation(len(ranked)).tolist() for k in range(orders)]
    rows: list[Row] = []
    with bar(len(chosen), "knock-outs") as shown:
        for count in chosen:
            margins = _margins(before, ranked[:count], means)
            null = [_margins(before, [ranked[i] for i in order[:count]], means) for order in shuffles]
            head = {"n_knocked": count, "component": ranked[count - 1].name if count else ""}
            rows += [head | row for row in _rows(before, margins, null)]
            shown.update()
    frame = pd.DataFrame(rows)
    frame.attrs["pf"] = float(len(before.restricted) * (1 + orders) * sum(count > 0 for count in chosen))
    return frame


def _rows(before: Baseline, margins: Tensor, null: list[Tensor]) -> list[Row]:
    clusters, rows = before.prompts.restricted.clusters, []
    valid = bool(torch.isfinite(margins).all())
    pictures: dict[str, Callable[[Tensor], Tensor]] = {
        "margin": lambda m: m[0].double(),
        "refusal rate": lambda m: m[1].double().where(torch.isfinite(m[0]), torch.nan),
    }
    for metric, of in pictures.items():
        values = of(margins)
        if not valid:
            estimate = nothing("invalid: a hook did not fire on every forward")
        elif metric == "margin":
            estimate = stats.mean(values, clusters=clusters, unit="nats")
        else:
            estimate = stats.rate(values, clusters=clusters)
        placebos = np.array([float(of(one).mean()) for one in null])
        band = placebo_columns(estimate.value, placebos, name="random", larger_is_stronger=False)
        rows.append({"metric": metric, **columns(estimate), **band})
    return rows


def _margins(before: Baseline, components: Sequence[Component], means: MeanWrites) -> Float[Tensor, "2 prompt"]:
    """Margins of the restricted prompts, and one where the prompt is refused."""
    if not components:
        return torch.stack([before.restricted, before.refused.to(before.restricted)])
    try:
        with knock_out(before.model, components, means):
            found = read(before.model, before.prompts.restricted, before.readout)
    except InterventionError:
        return torch.full_like(before.restricted, torch.nan).expand(2, -1)
    return torch.stack([found.margin, found.refuses.to(found.margin)])


def _counts(most: int) -> list[int]:
    counts, step = [0, 1, 2, 3, 4], 2
    while counts[-1] < most:
        counts += [counts[-1] + step, counts[-1] + 2 * step]
        step *= 2
    return sorted({min(count, most) for count in counts})


def _removable(writers: Writers) -> tuple[Component, ...]:
    return tuple(one for one in writers.components if one.kind != "embedding")


def _site(model: ChatModel, writers: Writers, component: Component) -> str:
    if component.kind == "head":
        return writers.head_sites[component.layer]
    return (model.sites.mlp_out if component.kind == "mlp" else model.sites.attn_out)[component.layer]


def _replacement(mean: Tensor, components: Sequence[Component]) -> Callable[[Tensor], Tensor]:
    heads = [one.head for one in components if one.head is not None]

    def edit(x: Tensor) -> Tensor:
        put, kept = mean.to(x), x[:, -len(mean) :]
        replaced = put.expand_as(kept)
        if heads:
            chosen = torch.zeros(len(put[0]), 1, dtype=torch.bool, device=x.device)
            chosen[heads] = True
            replaced = torch.where(chosen, replaced, kept)
        return torch.cat([x[:, : -len(mean)], replaced], dim=1)

    return edit
