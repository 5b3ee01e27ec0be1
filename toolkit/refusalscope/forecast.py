"""What a selection or a card will take on a model, known from its configuration before anything is loaded or run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from refusalscope.bounds import selection_bounds
from refusalscope.curves import Assumptions
from refusalscope.footprint import GB, Memory, Size, flops_per_prompt, memory, size_of
from refusalscope.machine import Machine
from refusalscope.model.chat import ChatModel
from refusalscope.model.unloaded import positions_are_assumed, unloaded
from refusalscope.prompts import ContrastSet
from refusalscope.report import PLANS, Plan, estimated_measure_cost
from refusalscope.reprs import Shown, table
from refusalscope.selection import estimated_cost

CATEGORIES, PHRASINGS = 4, 4


@dataclass(frozen=True, repr=False)
class Work(Shown):
    """One thing to do: the fewest and the most prompt-forwards it can take, and operations and seconds of the most.

    Attributes:
        expected: prompt-forwards where every early cell induces and the best one does not damage; None where only
            bounds are known.
    """

    name: str
    least: float
    most: float
    expected: float | None
    flops: float
    seconds: float


@dataclass(frozen=True, repr=False)
class Forecast(Shown):
    """Cost in advance. Prompt-forwards are bounds, memory is good to a factor of two, time is as good as ``machine``.

    Attributes:
        works: locating, selection in both modes, the quick and the full card.
        memory, card_memory: at the peak of a selection, and of a full card, which keeps single activations.
        tokens_per_prompt: mean, chat template included.
        assumed: what stands in for what was not known, a sentence each.
    """

    name: str
    dtype: str
    size: Size
    positions: int
    tokens_per_prompt: float
    works: tuple[Work, ...]
    memory: Memory
    card_memory: Memory
    machine: Machine
    assumed: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Returns everything by name, memory in GB."""
        gigabytes = {
            what: {**{part: value / GB for part, value in asdict(found).items()}, "total": found.total / GB}
            for what, found in (("memory_gb", self.memory), ("card_memory_gb", self.card_memory))
        }
        kept = {key: value for key, value in asdict(self).items() if key not in ("memory", "card_memory")}
        return {**kept, **gigabytes}

    def lines(self) -> list[str]:
        """Returns a small table as text."""
        size = self.size
        active = "" if size.active == size.parameters else f", {_count(size.active)} of them active per token"
        head = f"{'':<16}{'prompt-forwards':<26}{'operations':>12}{'at most':>12}"
        rows = [
            f"{work.name:<16}{_range(work):<26}{work.flops:>12.1e}{_duration(work.seconds):>12}" for work in self.works
        ]
        parts = asdict(self.memory).items()
        return [
            f"{self.name}: {_count(size.parameters)} parameters{active}, {size.layers} layers of width {size.width}, "
            f"{self.positions} positions, {self.tokens_per_prompt:.0f} tokens per prompt",
            head,
            *rows,
            f"memory in {self.dtype}: {self.memory.total / GB:.2f} GB for a selection ("
            + ", ".join(f"{part} {value / GB:.2f}" for part, value in parts)
            + f"), {self.card_memory.total / GB:.2f} GB for a full card",
            *(f"assumed: {sentence}" for sentence in self.assumed),
        ]

    def __repr__(self) -> str:
        return f"Forecast for {self.name}: bounds on prompt-forwards, memory and time, before anything runs"

    def _repr_html_(self) -> str:
        rows = [(one.name, _range(one), f"{one.flops:.1e}", _duration(one.seconds)) for one in self.works]
        notes = f"{self!r}; {self.memory.total / GB:.2f} GB. Assumed: {'; '.join(self.assumed)}"
        return table(rows, caption=notes, head=("", "prompt-forwards", "operations", "at most"))


def forecast(
    name: str | Path,
    machine: Machine,
    *,
    prompts: ContrastSet | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    revision: str | None = None,
) -> Forecast:
    """Returns what selection and cards will take on a model, from its configuration alone; nothing is loaded.

    Args:
        name: a directory with a ``config.json``, or a Hub id; weights are neither opened nor downloaded.
        machine: how fast it will run.
        prompts: what it will be measured on; by default as many as ``curves.Assumptions`` has.
        dtype: of the parameters.
        batch_size: rows per forward, the default of ``load`` where None.

    Raises:
        ModelError: for settings that are missing, unsafe, or of no causal language model.
    """
    model = unloaded(name, revision=revision, dtype=dtype)
    model = model if batch_size is None else replace(model, batch_size=batch_size)
    contrast, lengths, assumed = prompts or assumed_prompts(), [round(Assumptions().tokens_per_prompt)], []
    if positions_are_assumed(model):
        assumed.append(f"{model.n_positions} positions, as no tokenizer lies beside config.json")
    if prompts is None:
        assumed.append(_spelled(contrast))
    if prompts is None or positions_are_assumed(model):
        assumed.append(f"{lengths[0]} tokens per prompt")
    else:
        lengths = [len(tokens) for tokens in model.encode(contrast.prompts.texts)]
    assumed.append(f"{machine.share:.0%} of {machine.flops_per_second:.1e} operations per second ({machine.how})")
    mean, size = sum(lengths) / len(lengths), size_of(model)
    needed = {"tokens": max(lengths), "harmless": len(contrast.select.harmless)}
    return Forecast(
        name=model.origin.name,
        dtype=model.origin.dtype,
        size=size,
        positions=model.n_positions,
        tokens_per_prompt=mean,
        works=tuple(_timed(row, flops_per_prompt(size, mean), machine) for row in _bounds(model, contrast)),
        memory=memory(model, **needed),
        card_memory=memory(model, **needed, kept=len(contrast.locate)),
        machine=machine,
        assumed=tuple(assumed),
    )


def assumed_prompts() -> ContrastSet:
    """Returns a set without content, of the sizes in ``curves.Assumptions``, in 4 categories × 4 phrasings."""
    sizes = {"locate": Assumptions().locate, "select": Assumptions().select, "report": Assumptions().report}
    rows = (
        {
            "id": f"{label}-{split}-{n}",
            "label": label,
            "category": f"category {n % CATEGORIES}",
            "cluster": f"phrasing {n // CATEGORIES % PHRASINGS}",
            "split": split,
            "text": f"{label} prompt {n} to {split}",
        }
        for split, count in sizes.items()
        for label in ("restricted", "harmless")
        for n in range(count)
    )
    return ContrastSet.from_rows(rows, source="assumed")


def card_bounds(
    model: ChatModel, prompts: ContrastSet, *, plan: Plan, selected: tuple[float, float]
) -> tuple[float, float]:
    """Returns the fewest and the most prompt-forwards of a card whose rule chooses something.

    Least: tokens, activations, baseline, choice, its effect and placebos; the attack family comes on top, so that this
    bound is far below. A card that ends at its first stage takes less.
    """
    least = 2.0 * len(prompts.locate) + selected[0] + (2 + plan.curve_placebos) * len(prompts.report)
    return least, estimated_measure_cost(model, prompts, plan=plan)


def _bounds(model: ChatModel, prompts: ContrastSet) -> list[tuple[str, float, float, float | None]]:
    located = 2.0 * len(prompts.locate)
    winner = selection_bounds(model, prompts.select, mode="winner")
    rows = [
        ("locate", located, located, None),
        ("select", *winner, min(winner[1], estimated_cost(model, prompts.select))),
        ("select, map", *selection_bounds(model, prompts.select, mode="map"), None),
    ]
    return (
        rows
        + [
            (f"{plan.name} card", *card_bounds(model, prompts, plan=plan, selected=winner), None)
            for plan in PLANS.values()
        ][::-1]
    )


def _timed(row: tuple[str, float, float, float | None], flops: float, machine: Machine) -> Work:
    name, least, most, expected = row
    return Work(name, least, most, expected, most * flops, machine.seconds(most * flops))


def _spelled(prompts: ContrastSet) -> str:
    splits = (("locate", prompts.locate), ("select", prompts.select), ("report", prompts.report))
    sizes = ", ".join(f"{len(part.restricted)} to {name}" for name, part in splits)
    return f"prompts of each label: {sizes}; {CATEGORIES} categories in {PHRASINGS} phrasings"


def _range(work: Work) -> str:
    expected = "" if work.expected is None else f" (expect {work.expected:,.0f})"
    return f"{work.least:,.0f}" if work.least == work.most else f"{work.least:,.0f}–{work.most:,.0f}{expected}"


def _count(number: int) -> str:
    return next(
        (f"{number / unit:.2f}{name}" for unit, name in ((1e9, "B"), (1e6, "M")) if number >= unit / 2), f"{number}"
    )


def _duration(seconds: float) -> str:
    units = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))
    return next((f"{seconds / unit:.1f} {name}" for unit, name in units if seconds >= 2 * unit), f"{seconds:.1f} s")
