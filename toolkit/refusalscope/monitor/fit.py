"""Fitting a monitor: a probe per layer and position on ``locate``, one of them chosen on ``select``, a threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from refusalscope.activations import Activations, Moments
from refusalscope.errors import MeasurementError
from refusalscope.interventions import ablate
from refusalscope.locators.logistic import logistic
from refusalscope.locators.mean_difference import mean_difference
from refusalscope.model.chat import ChatModel
from refusalscope.monitor.rates import Calibration, calibrate, numbers
from refusalscope.monitor.reading import along, read
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reprs import Shown, facts
from refusalscope.subspace import Ablatable, Candidates, NotExported, Subspace

Probe = Literal["mean_difference", "logistic"]
FITS: dict[str, Callable[[Activations, Activations], Candidates]] = {
    "mean_difference": mean_difference,
    "logistic": logistic,
}


@dataclass(frozen=True, repr=False, eq=False)
class Monitor(Shown, NotExported):
    """A probe for restricted requests, frozen: where it reads, along what, and from where on it alarms.

    Attributes:
        model: name of the model it was fitted on.
        subspace: the unit direction it reads along, with layer and position; in memory only.
        calibration: the threshold and the false-alarm rate it can be relied on for.
        cells: one row per cell, on ``select``: ``layer position auroc separation worst_auroc worst_separation chosen``;
            separation is the gap of the means in pooled standard deviations; NaN in a cell without a probe.
        probes: the fitted probe of every cell.
        template: digest of the chat template, which gives positions their meaning.
        pf: prompt-forwards spent.
    """

    model: str
    subspace: Subspace
    calibration: Calibration
    cells: pd.DataFrame
    probes: Candidates
    template: str
    pf: float

    @property
    def cell(self) -> tuple[int, int]:
        """The (layer, position) it reads."""
        assert self.subspace.layer is not None
        assert self.subspace.position is not None
        return self.subspace.layer, self.subspace.position

    def __repr__(self) -> str:
        layer, position = self.cell
        enough = "" if self.calibration.keeps else "; too few prompts for its rate of false alarms"
        return f"Monitor of {self.model}: layer {layer}, position {position}, by {self.subspace.locator}{enough}"

    def _repr_html_(self) -> str:
        chosen, calibration = self.cells[self.cells["chosen"]].iloc[0], self.calibration
        rows = {"AUROC on select, plain": f"{chosen['auroc']:.3f}"}
        rows |= {"AUROC on select, worst case": f"{chosen['worst_auroc']:.3f}"}
        rows |= {
            "declared false-alarm rate": f"{calibration.rate:g}",
            "on calibration prompts": str(calibration.alarms),
        }
        rows |= {"expected on further ones": f"{calibration.expected:.3g}", "note": calibration.note or "–"}
        rows |= {"prompt-forwards": f"{self.pf:,.0f}"}
        return facts(rows, caption=repr(self))


def monitor(
    model: ChatModel,
    prompts: ContrastSet,
    *,
    probe: Probe | Candidates = "mean_difference",
    false_alarms: float = 0.01,
    calibration: Prompts | None = None,
    withstand: Sequence[Ablatable] = (),
) -> Monitor:
    """Returns a monitor that reads the residual stream with a hook and tells restricted requests from harmless ones.

    A probe is fitted on ``locate`` in every cell, a layer and one of the positions −P − 1 (the last instruction token)
    to −1. The cell with the largest AUROC on ``select`` is taken; ties go to the larger separation. Which cell that is
    decides what is read: late in the template it is often the refusal itself, gone when that is ablated.

    Args:
        probe: what is fitted, or the ``probes`` of another monitor of this model, which are then not fitted again.
        false_alarms: the declared rate on harmless prompts.
        calibration: harmless prompts that set the threshold; those of ``select`` where None, which also chose the cell.
        withstand: subspaces ablated in turn while choosing: the cell is then the best in its worst case, the plain
            model included. Probes and threshold are of the plain model all the same.

    Raises:
        MeasurementError: a split lacks a class, numbers that are not finite, or no cell where a probe could be fitted.
        InterventionError: a hook did not fire.
    """
    _need_both(prompts)
    fitted = fit(model, prompts.locate, probe) if isinstance(probe, str) else probe
    refuse_strangers(model, fitted)
    cells = _cells(model, fitted, prompts.select, withstand)
    chosen = cells[cells["chosen"]].iloc[0]
    cell = int(chosen["layer"]), int(chosen["position"])
    one = unit(fitted, *cell)
    given = prompts.select.harmless if calibration is None else calibration
    if not len(given):
        raise MeasurementError("Calibration needs harmless prompts; got none.")
    scores = scores_along(model, given, one).numpy()
    fits = len(prompts.locate) if isinstance(probe, str) else 0
    return Monitor(
        model=model.origin.name,
        subspace=one,
        calibration=calibrate(scores, rate=false_alarms, clusters=given.clusters),
        cells=cells,
        probes=fitted,
        template=model.origin.template,
        pf=float(fits + len(prompts.select) * (1 + len(withstand)) + len(given)),
    )


def fit(model: ChatModel, prompts: Prompts, probe: str) -> Candidates:
    """Returns a probe for every layer and position, from one prompt-forward per prompt, under whatever is active."""
    if probe not in FITS:
        raise MeasurementError(f"There is no probe {probe!r}: take one of {', '.join(FITS)}.")
    return FITS[probe](*(_activations(model, part) for part in (prompts.restricted, prompts.harmless)))


def unit(probes: Candidates, layer: int, position: int) -> Subspace:
    """Returns the probe of one cell with norm one: scores are then in units of the residual stream."""
    found = probes.at(layer, position)
    return Subspace(found.basis.T, layer, position, f"{probes.locator} probe")


def scores_along(model: ChatModel, prompts: Prompts, one: Subspace) -> Float[Tensor, " prompt"]:
    """Returns the score of every prompt, in units of the residual stream, under whatever is active."""
    assert one.layer is not None
    assert one.position is not None
    return along(model, prompts, one.basis[None], layers=(one.layer,), position=one.position)[:, 0, 0]


def refuse_strangers(model: ChatModel, probes: Candidates) -> None:
    """Raises MeasurementError for probes whose layers, positions or width are not this model's."""
    layers, positions, _, width = probes.vectors.shape
    if (layers, positions, width) != (model.n_layers, model.n_positions + 1, model.d_model):
        raise MeasurementError(
            f"The probes are for {layers} layers, {positions} positions and width {width}; {model.origin.name} has "
            f"{model.n_layers}, {model.n_positions + 1} and {model.d_model}. Fit a monitor on this model."
        )


def _need_both(prompts: ContrastSet) -> None:
    for name in ("locate", "select"):
        part: Prompts = getattr(prompts, name)
        if min(len(part.restricted), len(part.harmless)) < 2:
            raise MeasurementError(f"A monitor needs two prompts of each class in {name}; got {part!r}.")


def _activations(model: ChatModel, prompts: Prompts) -> Activations:
    label, moments = prompts.labels[0], Moments()
    each = read(model, prompts, lambda x: x.float(), progress=f"monitor, {label}")
    if not bool(torch.isfinite(each).all()):
        raise MeasurementError(f"{model.origin.name}: activations that are not finite numbers. Load it in float32.")
    moments.add(each)
    return moments.activations(label, each=each)


def _cells(model: ChatModel, probes: Candidates, prompts: Prompts, withstand: Sequence[Ablatable]) -> pd.DataFrame:
    """The frame of cells: every probe on ``select``, plain and in its worst case, and which one is chosen."""
    grids = []
    for subspace in (None, *withstand):
        with nullcontext() if subspace is None else ablate(model, subspace):
            grids.append(_grid(model, probes, prompts))
    frame = grids[0].copy()
    for name in ("auroc", "separation"):
        frame[f"worst_{name}"] = np.min([grid[name] for grid in grids], axis=0)
    known = frame.dropna().sort_values(["worst_auroc", "worst_separation"], kind="stable")
    if known.empty:
        raise MeasurementError(f"{model.origin.name}: no cell has a probe; the means of both classes are equal.")
    return frame.assign(chosen=frame.index == known.index[-1])


def _grid(model: ChatModel, probes: Candidates, prompts: Prompts) -> pd.DataFrame:
    rows, directions = [], _units(probes)
    first, second = (_projected(model, part, directions) for part in (prompts.restricted, prompts.harmless))
    for layer, position in probes.cells():
        x, y = (scores[:, layer, position] for scores in (first, second))
        if probes.is_empty(layer, position):
            rows.append((layer, position, np.nan, np.nan))
            continue
        gap, spread = float(x.mean() - y.mean()), float(((x.var() + y.var()) / 2).sqrt())
        area = numbers(x.numpy(), y.numpy(), threshold=0.0, rate=0.5)["auroc"]
        rows.append((layer, position, float(area), gap / spread if spread > 0 else 0.0))
    return pd.DataFrame(rows, columns=["layer", "position", "auroc", "separation"])


def _units(probes: Candidates) -> Float[Tensor, "layer pos d"]:
    vectors = probes.vectors[:, :, 0]
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-300)


def _projected(model: ChatModel, prompts: Prompts, directions: Tensor) -> Float[Tensor, "prompt layer pos"]:
    return read(model, prompts, lambda x: einsum(x, directions, "row layer pos d, layer pos d -> row layer pos"))
