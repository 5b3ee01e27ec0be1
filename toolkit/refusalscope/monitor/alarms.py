"""Alarms: the share of several kinds of prompts a frozen monitor alarms on, and what its probe shares with refusal."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.model.chat import ChatModel
from refusalscope.monitor.fit import Monitor, scores_along
from refusalscope.monitor.surviving import refuse_others
from refusalscope.placebo import random_like
from refusalscope.prompts import Prompts
from refusalscope.subspace import Subspace
from refusalscope.transfer.contrasts import Row, columns, placebo_columns


def alarms(found: Monitor, model: ChatModel, classes: Mapping[str, Prompts]) -> pd.DataFrame:
    """Returns the share of each kind of prompts above the frozen threshold, under whatever intervention is active.

    Columns ``prompts value low high n clusters method note``. Questions about restricted subjects that the model is
    meant to answer tell what is read: alarms on them say the subject, silence the request or the refusal. One
    prompt-forward per prompt. Raises MeasurementError for a kind without prompts, and as ``survival`` does.
    """
    refuse_others(found, model)
    rows: list[Row] = []
    for name, prompts in classes.items():
        if not len(prompts):
            raise MeasurementError(f"There are no prompts of the kind {name!r}: leave it out.")
        raised = (scores_along(model, prompts, found.subspace) > found.calibration.threshold).numpy()
        rows.append({"prompts": name, **columns(stats.rate(raised, clusters=prompts.clusters))})
    return pd.DataFrame(rows)


def overlap(found: Monitor, subspace: Subspace, *, random: int = 199, seed: int = 0) -> pd.DataFrame:
    """Returns the cosine of every cell's probe with a subspace: how much of what is read goes when that is ablated.

    Columns ``layer position chosen cosine``, with ``random_low random_high random_p random_n`` of random directions.
    The cosine is the largest over the subspace, |Uᵀw|. It has no sampling interval: it is a fact about two fitted
    directions. NaN in a cell without a probe. Raises MeasurementError for a subspace of another width.
    """
    width = found.probes.vectors.shape[-1]
    if subspace.vectors.shape[1] != width:
        raise MeasurementError(f"The {subspace!r} has width {subspace.vectors.shape[1]}, the probes {width}.")
    drawn = torch.cat([one.basis for one in random_like(found.subspace, random, seed=seed)], dim=1)
    nulls = torch.linalg.vector_norm(subspace.basis.T @ drawn, dim=0).numpy()
    rows: list[Row] = []
    for layer, position in found.probes.cells():
        empty = found.probes.is_empty(layer, position)
        along_probe = found.probes.at(layer, position).vectors[0]
        value = float("nan")
        if not empty:
            value = float(
                torch.linalg.vector_norm(subspace.basis.T @ along_probe) / torch.linalg.vector_norm(along_probe)
            )
        at = {"layer": layer, "position": position, "chosen": (layer, position) == found.cell, "cosine": value}
        rows.append(at | placebo_columns(value, nulls, name="random"))
    return pd.DataFrame(rows)
