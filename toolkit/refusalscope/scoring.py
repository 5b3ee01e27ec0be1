"""Scoring candidates on a live model: several per batch, only the layers that matter, one value per prompt kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from refusalscope.interventions import ablate, add
from refusalscope.metrics import Readings, kl, margin, read
from refusalscope.model.batching import Batch, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.continuations import packed
from refusalscope.model.resume import recorded, resume
from refusalscope.progress import bar
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import Read, Readout
from refusalscope.rule import Cell, Kind
from refusalscope.subspace import Candidates, Subspace

TOGETHER = 8


class ModelScorer:
    """Scores cells by ablating or adding their candidates; keeps the per-prompt values behind every mean.

    KL and induction are of the harmless prompts that the model answers at baseline: ``harmless`` holds those alone.

    An empty candidate (no direction: layer 0 at the template positions) is an exact no-op, so its scores are the
    baselines and cost nothing.
    """

    def __init__(self, model: ChatModel, candidates: Candidates, prompts: Prompts, readout: Readout) -> None:
        self.model, self.candidates, self.readout = model, candidates, readout
        self.restricted, self._asked = prompts.restricted, prompts.harmless
        self.n_layers = model.n_layers
        self.n_prompts = max(len(self.restricted), len(self._asked))
        self.values: dict[Kind, dict[Cell, Float[Tensor, " prompt"]]] = {"bypass": {}, "induce": {}, "kl": {}}

    @property
    def _resumes(self) -> bool:
        return self.model.can_resume and (self.readout.one_token or self.model.can_pack)

    @cached_property
    def restricted_margin(self) -> Float[Tensor, " prompt"]:
        """Baseline margins of the restricted prompts, in nats."""
        return margin(self.model, self.restricted, self.readout)

    @cached_property
    def _before(self) -> Readings:
        return read(self.model, self._asked, self.readout, keep_base=True)

    @cached_property
    def _answered(self) -> list[int]:
        """Rows of the harmless prompts that are answered; all of them where none is, so that the rule still decides."""
        return (~self._before.refuses).nonzero().flatten().tolist() or list(range(len(self._asked)))

    @cached_property
    def harmless(self) -> Prompts:
        """The harmless prompts that the model answers at baseline."""
        return Prompts(tuple(self._asked[row] for row in self._answered))

    @cached_property
    def harmless_base(self) -> Float[Tensor, "prompt vocab"]:
        """Baseline log-probabilities on the answered harmless prompts."""
        assert self._before.base is not None
        return self._before.base[self._answered]

    @cached_property
    def harmless_margin(self) -> Float[Tensor, " prompt"]:
        """Baseline margins of the answered harmless prompts, from the same forwards as ``harmless_base``."""
        return self._before.margin[self._answered]

    def score(self, kind: Kind, cells: Sequence[Cell]) -> list[float]:
        """Returns the mean over prompts for every cell: margin under ablation, margin under addition, or KL."""
        real = [cell for cell in cells if not self.candidates.is_empty(*cell)]
        made = self._induced(real) if kind == "induce" else self._ablated(kind, real)
        self.values[kind] |= dict(zip(real, made, strict=True))
        for cell in set(cells) - set(real):
            self.values[kind][cell] = self._no_op(kind)
        return [float(self.values[kind][cell].double().mean()) for cell in cells]

    def cost(self, kind: Kind, cell: Cell) -> float:
        """Returns prompt-forwards: N, for induction the share of layers that run, and none for an empty candidate.

        Induction runs on every harmless prompt, because which of them are answered is known from the same forwards.
        """
        if self.candidates.is_empty(*cell):
            return 0.0
        if kind == "induce":
            return ((self.n_layers - cell.layer) / self.n_layers if self._resumes else 1.0) * len(self._asked)
        answered = self.harmless if "_before" in self.__dict__ else self._asked
        return float(len(self.restricted if kind == "bypass" else answered))

    def subspace(self, cell: Cell) -> Subspace:
        """Returns the candidate of a cell."""
        return self.candidates.at(*cell)

    def _no_op(self, kind: Kind) -> Tensor:
        if kind == "kl":
            return torch.zeros(len(self.harmless))
        return self.restricted_margin if kind == "bypass" else self.harmless_margin

    def _ablated(self, kind: Kind, cells: Sequence[Cell]) -> list[Tensor]:
        made: list[Tensor] = []
        base = self.harmless_base if kind == "kl" and cells else None  # before any block: a cached baseline is for good
        with bar(len(cells), f"selection, {kind}") as shown:
            for start in range(0, len(cells), TOGETHER):
                together = [self.subspace(cell) for cell in cells[start : start + TOGETHER]]
                with ablate(self.model, together):
                    if base is None:
                        values = margin(self.model, self.restricted, self.readout, copies=len(together))
                    else:
                        values = kl(self.model, self.harmless, base, copies=len(together))
                made.extend(values.reshape(len(together), -1))
                shown.update(len(together))
        return made

    def _induced(self, cells: Sequence[Cell]) -> list[Tensor]:
        if not cells:
            return []
        return self._induced_resuming(cells) if self._resumes else [self._induced_whole(cell) for cell in cells]

    def _induced_whole(self, cell: Cell) -> Tensor:
        answered = self._answered  # before the block: what is answered at baseline is for good
        with add(self.model, self.subspace(cell)):
            return margin(self.model, self._asked, self.readout)[answered]

    def _induced_resuming(self, cells: Sequence[Cell]) -> list[Tensor]:
        """Runs every batch once, then only the later layers for each candidate, all positions of a layer together."""
        by_layer = [(layer, list(group)) for layer, group in groupby(sorted(cells), key=lambda cell: cell.layer)]
        tree = self.readout.tree
        bases: dict[int, Tensor] = {}
        readings: dict[int, Tensor] = {}

        def scored(batch: Batch) -> Float[Tensor, "row cell"]:
            whole = batch if len(tree) == 1 else packed(self.model, batch, tree)
            first, residuals = recorded(self.model, whole, keep=len(tree))
            nodes = first[:, None] if len(tree) == 1 else first
            bases.update(zip(batch.rows.tolist(), nodes[:, 0].log_softmax(-1).cpu(), strict=True))
            readings.update(zip(batch.rows.tolist(), _columns(self.readout.read(nodes)), strict=True))
            columns = []
            for layer, group in by_layer:
                vectors = torch.stack([self.subspace(cell).vectors[0] for cell in group]).float().to(self.model.device)
                base = residuals[layer]
                moved = rearrange(base.float() + rearrange(vectors, "c d -> c 1 1 d"), "c r p d -> (c r) p d").to(
                    base.dtype
                )
                logits = resume(self.model, residuals, layer, moved)
                margins = self.readout.margin_of(logits[:, None] if len(tree) == 1 else logits)
                columns.append(rearrange(margins, "(c r) -> r c", c=len(group)))
            return torch.cat(columns, dim=1)

        values = map_rows(self.model, self.model.encode(self._asked.texts), scored, progress="induction").cpu()
        # The same forwards give the baseline, so it is not run again; a cached one stays.
        margins, refuses, complies, unread = torch.stack([readings[row] for row in sorted(readings)]).unbind(-1)
        base = torch.stack([bases[row] for row in sorted(bases)])
        self.__dict__.setdefault("_before", Readings(margins, refuses > 0, complies > 0, unread, base=base))
        values = values[self._answered]
        found = dict(zip((cell for _, group in by_layer for cell in group), values.T, strict=True))
        return [found[cell] for cell in cells]


def _columns(one: Read) -> Float[Tensor, "row 4"]:
    return torch.stack([one.margin, one.refuses.to(one.margin), one.complies.to(one.margin), one.unread], -1).cpu()
