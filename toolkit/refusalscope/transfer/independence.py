"""Cross-ablation: what is left of one direction when the other is ablated, at every layer, beside random ablations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.interventions import ablate
from refusalscope.model.chat import ChatModel
from refusalscope.placebo import random_like
from refusalscope.prompts import Prompts
from refusalscope.stats import Estimate
from refusalscope.subspace import Subspace
from refusalscope.transfer.contrasts import Row, auroc, columns, difference, placebo_columns
from refusalscope.transfer.harm import Pair, tail

ROUNDING = 1e-5
METRICS = ("auroc", "separation", "cosine")


class _Reading(NamedTuple):
    """Projections on one direction at every layer and their cosines: ``[prompt, layer]`` of either class."""

    restricted: Float[Tensor, "prompt layer"]
    harmless: Float[Tensor, "prompt layer"]
    cosine: Float[Tensor, "prompt layer"]


def cross_ablation(
    model: ChatModel, pair: Pair | Mapping[str, Subspace], prompts: Prompts, *, placebos: int = 39, seed: int = 0
) -> pd.DataFrame:
    """Returns how well each direction is read, by layer, while nothing, itself or another is ablated.

    ``pair`` is harmfulness and refusal, or any directions of rank one by name; one that was located at no position is
    read at the last.

    Columns ``ablated read layer metric value low high n clusters note random_low random_high random_p``. Metrics:
    ``auroc`` and ``separation`` (difference in means, in units of the residual stream) of restricted against harmless
    prompts projected on the direction that is read, at its own position; ``cosine`` of the restricted prompts'
    activations with it, whose change under ablation is Wollschläger et al.'s measure of independence. The placebos
    ablate ``placebos`` random directions; p is two-sided, for the change against ablating nothing. Costs
    (3 + placebos) × prompts in prompt-forwards (``attrs["pf"]``). Take prompts that located neither. A direction whose
    ``auroc`` is near one half while nothing is ablated was not there to read: its independence says nothing.

    Raises MeasurementError for a subspace of another rank.
    """
    directions = dict(pair.items())
    wide = [name for name, one in directions.items() if one.rank != 1]
    if wide or not directions:
        raise MeasurementError(
            f"Cross-ablation reads single directions; got {', '.join(wide) + ' of another rank' if wide else 'none'}."
        )
    conditions: dict[str, Subspace | None] = {"nothing": None, **directions}
    found = {name: _readings(model, directions, prompts, ablated) for name, ablated in conditions.items()}
    like = list(directions.values())[-1]
    drawn = [_readings(model, directions, prompts, one) for one in random_like(like, placebos, seed=seed)]
    rows: list[Row] = []
    for read in directions:
        for layer in range(model.n_layers):
            for metric in METRICS:
                null = np.array([_point(reading[read], layer, metric) for reading in drawn])
                base = _point(found["nothing"][read], layer, metric)
                for ablated, readings in found.items():
                    estimate = _estimate(readings[read], layer, metric, prompts)
                    row = {"ablated": ablated, "read": read, "layer": layer, "metric": metric, **columns(estimate)}
                    rows.append(row | _changed(estimate.value, base, null))
    frame = pd.DataFrame(rows)
    frame.attrs["pf"] = float((len(conditions) + len(drawn)) * len(prompts))
    return frame


def _changed(value: float, base: float, null: np.ndarray) -> Row:
    """The placebos' band in the metric's own unit, with p for the size of the change."""
    band = placebo_columns(value, null, name="random")
    return band | {"random_p": placebo_columns(abs(value - base), abs(null - base), name="random")["random_p"]}


def _readings(
    model: ChatModel, directions: Mapping[str, Subspace], prompts: Prompts, ablated: Subspace | None
) -> dict[str, _Reading]:
    with nullcontext() if ablated is None else ablate(model, ablated):
        restricted, harmless = tail(model, prompts).activations
    return {
        name: _Reading(_projected(restricted, one), _projected(harmless, one), _cosines(restricted, one))
        for name, one in directions.items()
    }


def _projected(kept: Activations, one: Subspace) -> Float[Tensor, "prompt layer"]:
    """Projections on the unit vector; what rounding leaves of an ablated direction counts as nothing."""
    x = _at(kept, one)
    inside = x @ one.basis[:, 0]
    return inside * (inside.abs() > ROUNDING * torch.linalg.vector_norm(x, dim=-1))


def _cosines(kept: Activations, one: Subspace) -> Float[Tensor, "prompt layer"]:
    return _projected(kept, one) / torch.linalg.vector_norm(_at(kept, one), dim=-1)


def _at(kept: Activations, one: Subspace) -> Float[Tensor, "prompt layer d"]:
    assert kept.each is not None
    return kept.each[:, :, -1 if one.position is None else one.position].double()


def _point(reading: _Reading, layer: int, metric: str) -> float:
    x, y = reading.restricted[:, layer], reading.harmless[:, layer]
    if metric == "auroc":
        return float((x[:, None] > y).double().mean() + 0.5 * (x[:, None] == y).double().mean())
    return float(x.mean() - y.mean()) if metric == "separation" else float(reading.cosine[:, layer].mean())


def _estimate(reading: _Reading, layer: int, metric: str, prompts: Prompts) -> Estimate:
    asked, harmless = prompts.restricted.clusters, prompts.harmless.clusters
    if metric == "cosine":
        return stats.mean(reading.cosine[:, layer], clusters=asked)
    contrast = auroc if metric == "auroc" else difference
    return contrast(reading.restricted[:, layer], reading.harmless[:, layer], clusters=(*asked, *harmless))
