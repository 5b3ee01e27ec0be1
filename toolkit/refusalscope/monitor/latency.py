"""Latency: what watching costs per prompt, beside a plain forward of the same prompt, timed in alternation."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.model.batching import Batch, batches, forward
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.monitor.fit import Monitor
from refusalscope.monitor.surviving import refuse_others
from refusalscope.prompts import Prompts
from refusalscope.transfer.contrasts import columns

UNITS = {"plain": "ms per prompt", "monitored": "ms per prompt", "ratio": "monitored / plain"}


def latency(found: Monitor, model: ChatModel, prompts: Prompts, *, rounds: int = 20, seed: int = 0) -> pd.DataFrame:
    """Returns the median time of a forward of one prompt, plain and with the monitor's alarm raised or not, in ms.

    Rows ``plain``, ``monitored`` and ``ratio`` (the median of the ratios of each pair) with columns ``what unit value
    low high n clusters method note``; intervals by bootstrap of the median over pairs. Every pair is one prompt, both
    ways, one after the other, in turn first; the first round warms up and is not counted. A batch of one is the worst
    case: the hook's own cost does not grow with the batch, the forward's does. Wrong on a machine that is busy with
    something else: compare ratios, not times. 2 × (rounds + 1) × prompts prompt-forwards: see ``attrs["pf"]``.

    Raises:
        MeasurementError: no prompts, no rounds, or a model of another shape or template.
        InterventionError: the hook did not fire.
    """
    refuse_others(found, model)
    if rounds < 1 or not len(prompts):
        raise MeasurementError(f"Latency needs prompts and rounds; got {len(prompts)} and {rounds}.")
    singles = list(batches(model, model.encode(prompts.texts), batch_size=1))
    ways = {"plain": lambda batch: _plain(model, batch), "monitored": lambda batch: _watched(found, model, batch)}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for number, batch in enumerate(singles):
            for name in sorted(ways, reverse=bool((turn + number) % 2)):
                took = ways[name](batch)
                if turn:
                    spent[name].append(1000 * took)
    times = {name: np.array(each) for name, each in spent.items()}
    times["ratio"] = times["monitored"] / times["plain"]
    frame = pd.DataFrame([{"what": name, "unit": UNITS[name], **_median(times[name], seed)} for name in UNITS])
    frame.attrs["pf"] = float(2 * (rounds + 1) * len(prompts))
    return frame


def _median(values: np.ndarray, seed: int) -> dict[str, object]:
    return columns(stats.bca(values, seed=seed, statistic=np.median, resamples=999))


def _plain(model: ChatModel, batch: Batch) -> float:
    return _timed(model, lambda: forward(model, batch))


def _watched(found: Monitor, model: ChatModel, batch: Batch) -> float:
    """The time of a forward and of the alarm; the hook is in place before, as it would be in deployment."""
    layer, position = found.cell
    along = found.subspace.basis[:, 0].to(model.device, torch.promote_types(model.dtype, torch.float32))
    seen: list[Tensor] = []

    def hook(x: Float[Tensor, "row pos d"], hook) -> None:
        seen.append(x[:, position].to(along) @ along)

    def watched() -> None:
        forward(model, batch)
        _ = [float(score) > found.calibration.threshold for score in seen[-1:]]

    with hooked(model, {model.sites.resid_pre[layer]: hook}):
        took = _timed(model, watched)
    if not seen:
        site = model.sites.resid_pre[layer]
        raise InterventionError(f"{model.origin.name}: the hook at {site} did not fire, so the monitor read nothing.")
    return took


def _timed(model: ChatModel, work: Callable[[], object]) -> float:
    """Seconds of some work; the device has done it when the clock is read."""
    _settle(model)
    began = time.perf_counter()
    work()
    _settle(model)
    return time.perf_counter() - began


def _settle(model: ChatModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
