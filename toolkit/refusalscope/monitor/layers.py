"""Which layers survive: probes frozen and fitted again under an intervention, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.interventions import ablate
from refusalscope.model.chat import ChatModel
from refusalscope.monitor.fit import FITS, Monitor, fit, unit
from refusalscope.monitor.rates import calibrate, estimates, numbers
from refusalscope.monitor.reading import along
from refusalscope.monitor.surviving import DOSES, refuse_others
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.subspace import Ablatable, Candidates
from refusalscope.transfer.contrasts import Row, columns, nothing, placebo_columns

KEPT = ("auroc", "caught_at_reset")


def by_layer(
    found: Monitor,
    model: ChatModel,
    prompts: ContrastSet,
    subspace: Ablatable,
    *,
    doses: Sequence[float | int] = DOSES,
    position: int | None = None,
    random: int = 199,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns how well every layer's probe tells restricted from harmless on ``report``, frozen and fitted again.

    Columns ``dose position layer probe measure value low high n clusters method note random_low random_high random_p
    random_n``; ``probe`` is ``frozen``, as fitted on the plain model, or ``refit``, fitted anew on ``locate`` under the
    ablation, by the same method; ``measure`` is ``auroc`` or ``caught_at_reset``. The placebos are random directions
    read at the same place under the same ablation. Layers without a probe keep their rows, unmeasured. What a refit
    still reads is there; what only the refit reads has moved. (locate + report) prompt-forwards per dose: see
    ``attrs["pf"]``.

    Args:
        subspace: what is ablated, such as the one that was located for refusal.
        position: where it is read; the monitor's where None.

    Raises:
        MeasurementError: a model of another shape or template, a split without a class, or a monitor whose probes have
            no known way of fitting.
        InterventionError: a hook did not fire, or an ablation did not happen as declared.
    """
    refuse_others(found, model)
    if found.probes.locator not in FITS:
        raise MeasurementError(f"Probes by {found.probes.locator!r} cannot be fitted again here.")
    place, rows = found.cell[1] if position is None else position, []
    for dose in map(float, doses):
        with ablate(model, subspace, dose=dose):
            both = {"frozen": found.probes, "refit": fit(model, prompts.locate, found.probes.locator)}
            at = {"dose": dose, "position": place}
            rows += _rows(model, both, prompts.report, at, _drawn(model, random, seed), rate=found.calibration.rate)
    frame = pd.DataFrame(rows)
    frame.attrs["pf"] = float(len(doses) * (len(prompts.locate) + len(prompts.report)))
    return frame


def _rows(
    model: ChatModel, probes: dict[str, Candidates], prompts: Prompts, at: Row, drawn: Tensor, *, rate: float
) -> list[Row]:
    place = at["position"]
    assert isinstance(place, int)
    layers, restricted = range(model.n_layers), np.array([label == "restricted" for label in prompts.labels])
    clusters, rows = (prompts.restricted.clusters, prompts.harmless.clusters), []
    directions = torch.stack([torch.cat([*_columns(probes, layer, place), drawn], dim=1) for layer in layers])
    scores = along(model, prompts, directions, layers=layers, position=place).numpy()
    for layer in layers:
        x, y = scores[restricted, layer].T, scores[~restricted, layer].T
        nulls = numbers(x[len(probes) :], y[len(probes) :], threshold=0.0, rate=rate)
        for row, (name, fitted) in enumerate(probes.items()):
            made = {measure: nothing("the class means are equal here: no probe") for measure in KEPT}
            if not fitted.is_empty(layer, place):
                made = estimates(x[row], y[row], calibration=calibrate(y[row], rate=rate), clusters=clusters)
            for measure in KEPT:
                beside = placebo_columns(made[measure].value, nulls[measure], name="random")
                where = {**at, "layer": layer, "probe": name, "measure": measure}
                rows.append({**where, **columns(made[measure]), **beside})
    return rows


def _drawn(model: ChatModel, count: int, seed: int) -> Float[Tensor, "d random"]:
    """Unit directions drawn uniformly, the same ones at every layer and dose."""
    noise = stats.torch_generator(seed, "random placebo, monitor layers")
    drawn = torch.randn((model.d_model, count), generator=noise, dtype=torch.float64)
    return drawn / torch.linalg.vector_norm(drawn, dim=0)


def _columns(probes: dict[str, Candidates], layer: int, place: int) -> Iterator[Float[Tensor, "d one"]]:
    """Unit directions of one cell, zeros where there is none."""
    for one in probes.values():
        empty = torch.zeros(one.vectors.shape[-1], 1, dtype=torch.float64)
        yield empty if one.is_empty(layer, place) else unit(one, layer, place).basis
