"""Alignment: how far activations point along a direction, layer by layer, for several kinds of prompts.

Arditi et al. 2024 (arXiv 2406.11717, figure 5) draw it for harmful and harmless instructions, with
and without suffixes.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.model.chat import ChatModel
from refusalscope.placebo import random_like
from refusalscope.prompts import Prompts
from refusalscope.subspace import Subspace
from refusalscope.transfer.contrasts import Row, columns, placebo_columns
from refusalscope.transfer.harm import captured


def alignment(
    model: ChatModel, direction: Subspace, classes: Mapping[str, Prompts], *, random: int = 199, seed: int = 0
) -> pd.DataFrame:
    """Returns the mean cosine of the residual stream with a direction, for every class of prompts and layer.

    Columns ``prompts layer value low high n clusters method note random_low random_high random_p random_n``. The
    residual stream is the one entering the layer, at the direction's own position (the last one where it has none);
    intervals are clustered; the placebos are the same mean cosines with random directions. One prompt-forward a
    prompt (``attrs["pf"]``). Wrong as a picture of what decides: a class may point along a direction nobody reads.

    Args:
        direction: of rank one.
        classes: prompts by the name of their class; none that located the direction.

    Raises:
        MeasurementError: for a subspace of another rank, or a class without prompts.
    """
    empty = [name for name, prompts in classes.items() if not len(prompts)]
    if direction.rank != 1 or empty or not classes:
        raise MeasurementError(
            f"Alignment needs one direction and prompts of every class; got a {direction!r}, and "
            f"{', '.join(empty) or 'no class'} without prompts."
        )
    position = -1 if direction.position is None else direction.position
    drawn = torch.cat([one.basis.T for one in random_like(direction, random, seed=seed)]) if random else None
    rows: list[Row] = []
    for name, prompts in classes.items():
        each = captured(model, prompts, name).each
        assert each is not None
        units = torch.nn.functional.normalize(each[:, :, position].double(), dim=-1)
        rows += _rows(name, units, direction.basis[:, 0], drawn, prompts)
    frame = pd.DataFrame(rows)
    frame.attrs["pf"] = float(sum(map(len, classes.values())))
    return frame


def _rows(
    name: str,
    units: Float[Tensor, "prompt layer d"],
    along: Float[Tensor, " d"],
    drawn: Float[Tensor, "direction d"] | None,
    prompts: Prompts,
) -> list[Row]:
    rows: list[Row] = []
    for layer in range(units.shape[1]):
        estimate = stats.mean(units[:, layer] @ along, clusters=prompts.clusters)
        null = [] if drawn is None else (units[:, layer].mean(0) @ drawn.T).tolist()
        band = placebo_columns(estimate.value, null, name="random")
        rows.append({"prompts": name, "layer": layer, **columns(estimate), **band})
    return rows
