"""Direct attribution: which heads and MLPs write a located direction.

After Arditi et al. 2024 (arXiv 2406.11717, figure 6): the residual stream is the sum of its writes, so the projection
of the one is the sum of the projections of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.activations import Moments
from refusalscope.errors import MeasurementError
from refusalscope.model.batching import Batch, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.writes import Component, Writers, find_writers, read_writes
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown, between, digits, table
from refusalscope.subspace import Subspace
from refusalscope.transfer.contrasts import Row, columns, difference, placebo_columns

PROBED = 8


@dataclass(frozen=True, repr=False, eq=False)
class Attribution(Shown):
    """What every component writes along a direction.

    Attributes:
        frame: a row per component: ``component kind layer head upstream value low high n clusters note random_low
            random_high random_p random_p_max``. ``value`` is the mean projection of its write on restricted prompts
            minus that on harmless ones, in units of the residual stream; ``upstream`` is true for writes that entered
            the residual the direction was located in. p is two-sided; ``random_p_max`` compares with the largest
            component of every random direction.
        total: what the values of the components add up to: the difference in projection of the last residual.
        pf: prompt-forwards that were spent.
    """

    frame: pd.DataFrame
    total: float
    position: int
    writers: Writers
    pf: float

    @property
    def ranked(self) -> tuple[Component, ...]:
        """Components that can be knocked out, strongest writer towards refusal first."""
        order = self.frame["value"].to_numpy().argsort(kind="stable")[::-1]
        return tuple(self.writers.components[row] for row in order if self.writers.components[row].kind != "embedding")

    def __repr__(self) -> str:
        return f"Attribution of a direction to {len(self.frame)} components; first {self.ranked[0].name}"

    def _repr_html_(self) -> str:
        top = self.frame.sort_values("value", ascending=False).head(8)
        rows = [
            (row["component"], _with_interval(row), between(row["random_low"], row["random_high"]))
            for row in top.to_dict("records")
        ]
        return table(rows, caption=repr(self), head=("component", "writes", "along random directions"))


def _with_interval(row: dict[Any, Any]) -> str:
    interval = None if math.isnan(row["low"]) else (row["low"], row["high"])
    return f"{' '.join(digits(row['value'], interval))}, n = {row['n']}{' ' * bool(row['note'])}{row['note']}"


def attribution(
    model: ChatModel,
    subspace: Subspace,
    prompts: Prompts,
    *,
    position: int | None = None,
    random: int = 199,
    seed: int = 0,
) -> Attribution:
    """Returns how much every head and MLP writes along a direction, restricted against harmless prompts.

    The sum over upstream components and the embedding is the difference in projection of the residual the direction was
    located in. A random direction is a weak placebo here, as a difference in means is made of these very writes: it
    tells a writer from the general size of writes, not a cause from a bystander. For that, knock out. Intervals are
    clustered by phrasing. One prompt-forward per prompt.

    Args:
        subspace: of rank one.
        prompts: that did not locate it, both classes.
        position: counted from the end of the prompt; the subspace's own where None (−1 if it has none).
        random: how many random directions.

    Raises:
        MeasurementError: for another rank, a class without prompts, or a position outside the template's.
        ModelError: when the writes do not sum to the residual stream.
    """
    place = (-1 if subspace.position is None else subspace.position) if position is None else position
    if subspace.rank != 1 or not len(prompts.restricted) or not len(prompts.harmless) or place not in model.positions:
        raise MeasurementError(
            f"Attribution needs one direction, both classes and a position in {model.positions.start}..-1; got a "
            f"{subspace!r}, {prompts!r} and position {place}."
        )
    writers = find_writers(model, model.encode(prompts.texts[:PROBED]))
    along = subspace.basis[:, 0]
    (asked, mean), (benign, other) = (
        _written(model, writers, part, place, along) for part in (prompts.restricted, prompts.harmless)
    )
    null = (mean - other) @ _random_directions(random, len(along), seed=seed)
    strongest = null.abs().amax(0) if random else torch.empty(0)
    clusters = (*prompts.restricted.clusters, *prompts.harmless.clusters)
    rows: list[Row] = []
    for index, one in enumerate(writers.components):
        estimate = difference(asked[:, index], benign[:, index], clusters=clusters)
        row: Row = {"component": one.name, "kind": one.kind, "layer": one.layer, "head": one.head}
        row |= {"upstream": one.kind == "embedding" or subspace.layer is None or one.layer < subspace.layer}
        row |= columns(estimate) | placebo_columns(estimate.value, null[index], name="random")
        size = abs(estimate.value)
        row["random_p"] = placebo_columns(size, null[index].abs(), name="p")["p_p"]
        rows.append(row | {"random_p_max": placebo_columns(size, strongest, name="p")["p_p"]})
    total = float(asked.sum(1).mean() - benign.sum(1).mean())
    frame = pd.DataFrame(rows).astype({"head": "Int64"})
    return Attribution(frame, total, place, writers, float(len(prompts)))


def _written(
    model: ChatModel, writers: Writers, prompts: Prompts, position: int, along: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "prompt component"], Float[Tensor, "component d"]]:
    """Every component's write along the direction per prompt, and its mean write."""
    moments = Moments()

    def rows(batch: Batch) -> Tensor:
        writes = read_writes(model, writers, batch, position=position)
        moments.add(writes[:, :, None])
        return writes @ along

    each = map_rows(model, model.encode(prompts.texts), rows, progress="attribution")
    return each, moments.activations("written", each=None).mean[:, 0]


def _random_directions(count: int, width: int, *, seed: int) -> Float[Tensor, "d direction"]:
    noise = torch.randn(
        (width, count), generator=stats.torch_generator(seed, "random placebo, attribution"), dtype=torch.float64
    )
    return noise / torch.linalg.vector_norm(noise, dim=0)
