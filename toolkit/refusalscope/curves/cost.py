"""Cost: what locating and ablating took on this model, and what the same recipe takes on larger ones.

Counts are exact, so they have no interval; seconds are one wall-clock measurement; extrapolated rows are arithmetic
on the assumptions they carry. What a person spends on installing, reading and trying again is in none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from refusalscope.errors import MeasurementError
from refusalscope.model.chat import ChatModel
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reprs import Shown
from refusalscope.selection import Choice

READOUT = "find how it refuses"
STEPS = (READOUT, "capture", "select", "ablate and measure")
CONTROL = "placebos (control, not part of an attack)"


@dataclass(frozen=True, repr=False)
class Step(Shown):
    """One step of an attack: what it is, its prompt-forwards, tokens per prompt, and seconds where it was timed."""

    name: str
    pf: float
    tokens_per_prompt: float
    seconds: float = math.nan


@dataclass(frozen=True, repr=False)
class Size(Shown):
    """A larger model: parameters in all, those active per token, layers."""

    name: str
    parameters: float
    active: float
    layers: int


SIZES = (
    Size("1B", 1e9, 1e9, 16),
    Size("8B", 8e9, 8e9, 32),
    Size("70B", 70e9, 70e9, 80),
    Size("671B", 671e9, 37e9, 61),
)


@dataclass(frozen=True, repr=False)
class Assumptions(Shown):
    """What an extrapolation takes for granted; every field goes into the table as a row of text.

    Attributes:
        flops_per_second: sustained, of one accelerator: by default 1e14, a tenth of the dense bf16 peak of one H100 or
            H200 (989e12), for short prompts and hooks. Layers that lie on several accelerators run one after the
            other, so more of them hold a larger model but do not run it faster.
        locate, select, report: prompts per class in each split.
        tokens_per_prompt: with the chat template.
        positions: post-instruction tokens of the template, each a candidate per layer.
    """

    flops_per_second: float = 1e14
    locate: int = 128
    select: int = 32
    report: int = 100
    tokens_per_prompt: float | int = 40
    positions: int = 5

    def __post_init__(self) -> None:
        if any(not (math.isfinite(value) and value > 0) for value in vars(self).values()):
            raise MeasurementError(f"Every assumption must be a positive number; got {self}.")

    def pf(self, layers: int) -> dict[str, float]:
        """Returns prompt-forwards per step for a model of so many layers, a full sweep of every cell.

        How it refuses: both classes twice, once for their replies. Capture: once. Selection: 3N(1 + PL), as the
        reference implementation. Measuring: baseline and ablated.
        """
        both = 2.0 * self.locate
        sweep = 3.0 * self.select * (1 + self.positions * layers)
        return dict(zip(STEPS, (2 * both, both, sweep, 4.0 * self.report), strict=True))

    @property
    def sentences(self) -> tuple[str, ...]:
        """The assumptions in words."""
        return (
            "FLOPs per token = 2 × active parameters; the attention term is left out (short prompts)",
            f"sustained {self.flops_per_second:.0e} FLOP/s: one accelerator at work at a time",
            f"{self.locate} prompts per class to locate, {self.select} to select, {self.report} to report",
            f"{self.tokens_per_prompt:g} tokens per prompt, chat template included",
            f"every one of {self.positions} positions × layers is scored: 3N(1 + PL) prompt-forwards",
            "671B: a mixture of experts with 37B parameters active per token, memory for all of them at hand",
            "not counted: loading the weights, choosing prompts, placebos, decoding, a person's time",
        )


def steps(
    model: ChatModel,
    prompts: ContrastSet,
    choice: Choice | float | int,
    *,
    seconds: Mapping[str, float] | None = None,
    placebos: int = 0,
) -> list[Step]:
    """Returns the steps of locating and ablating on this model with their prompt-forwards and token counts.

    Args:
        choice: of the selection, or its prompt-forwards.
        seconds: measured wall-clock time by name of the step; that of the selection comes with the choice.
        placebos: ablations measured beside; a step of its own, which an attacker would leave out.

    Raises:
        MeasurementError: when seconds are given for a step that is not there.
    """
    selected, known = (choice.pf_used, {"select": choice.seconds}) if isinstance(choice, Choice) else (choice, {})
    known |= dict(seconds or {})
    n_report = len(prompts.report)
    made = [
        _step(model, STEPS[0], prompts.locate, 2 * len(prompts.locate), known),
        _step(model, STEPS[1], prompts.locate, len(prompts.locate), known),
        _step(model, STEPS[2], prompts.select, selected, known),
        _step(model, STEPS[3], prompts.report, 2 * n_report, known),
    ]
    if placebos:
        made.append(_step(model, CONTROL, prompts.report, placebos * n_report, known))
    if unknown := sorted(set(known) - {step.name for step in made}):
        raise MeasurementError(f"Seconds for {unknown}, which are no steps: they are {[step.name for step in made]}.")
    return made


def table(model: ChatModel, steps: Sequence[Step]) -> pd.DataFrame:
    """Returns one row per step and their total (placebos left out): ``step pf tokens flops attention_flops seconds``.

    ``flops`` = 2 · parameters · tokens, every parameter counted once and active (wrong for a mixture of experts);
    ``attention_flops`` = 2 · L · T · d per token on top of it, the causal half of scores and weighted sums, d = heads ·
    head width, taken at the mean T (Kaplan et al. 2020, table 1). ``flops_per_second`` is what the machine sustained.
    """
    size, width = parameters(model), model.bridge.cfg.n_heads * model.bridge.cfg.d_head
    rows = []
    for step in steps:
        tokens = step.pf * step.tokens_per_prompt
        attention = 2.0 * model.n_layers * step.tokens_per_prompt * width * tokens
        rows.append((step.name, step.pf, tokens, 2.0 * size * tokens, attention, step.seconds))
    frame = pd.DataFrame(rows, columns=["step", "pf", "tokens", "flops", "attention_flops", "seconds"])
    total = frame[frame["step"] != CONTROL].drop(columns="step").sum(skipna=False)
    frame = pd.concat([frame, pd.DataFrame([{"step": "total", **total}])], ignore_index=True)
    return frame.assign(flops_per_second=frame["flops"] / frame["seconds"])


def extrapolated(assumed: Assumptions | None = None, sizes: Sequence[Size] = SIZES) -> pd.DataFrame:
    """Returns what the same recipe would take on larger models: arithmetic, not measurement.

    One row per model and step, and their total: ``model step parameters active layers pf tokens flops seconds
    minutes``. The assumptions stand below in rows of their own, in the column ``assumption``; nothing else is filled
    there.
    """
    taken, rows = assumed or Assumptions(), []
    for size in sizes:
        spent = taken.pf(size.layers)
        for name, pf in {**spent, "total": sum(spent.values())}.items():
            tokens = pf * taken.tokens_per_prompt
            flops = 2 * size.active * tokens
            facts = {"model": size.name, "step": name, "parameters": size.parameters, "active": size.active}
            facts |= {"layers": size.layers, "pf": pf, "tokens": tokens, "flops": flops}
            seconds = flops / taken.flops_per_second
            rows.append({**facts, "seconds": seconds, "minutes": seconds / 60, "assumption": ""})
    rows += [{"model": "assumption", "step": "", "assumption": sentence} for sentence in taken.sentences]
    return pd.DataFrame(rows)


def parameters(model: ChatModel) -> int:
    """Returns the number of parameters, tied ones once."""
    return sum(value.numel() for value in model.bridge.original_model.parameters())


def _step(model: ChatModel, name: str, prompts: Prompts, pf: float | int, seconds: Mapping[str, float]) -> Step:
    lengths = [len(tokens) for tokens in model.encode(prompts.texts)]
    return Step(name, float(pf), sum(lengths) / len(lengths), float(seconds.get(name, math.nan)))
