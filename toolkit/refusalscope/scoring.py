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
from refusalscope.metrics import kl, margin, margin_of, next_token
from refusalscope.model.batching import Batch, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.refusal_tokens import RefusalTokens
from refusalscope.model.resume import recorded, resume
from refusalscope.progress import bar
from refusalscope.prompts import Prompts
from refusalscope.rule import Cell, Kind
from refusalscope.subspace import Candidates, Subspace

TOGETHER = 8


class ModelScorer:
    """Scores cells by ablating or adding their candidates; keeps the per-prompt values behind every mean.

    An empty candidate (no direction: layer 0 at the template positions) is an exact no-op, so its scores are the
    baselines and cost nothing.
    """

    def __init__(self, model: ChatModel, candidates: Candidates, prompts: Prompts, refusal: RefusalTokens) -> None:
        self.model, self.candidates, self.refusal = model, candidates, refusal
        self.restricted, self.harmless = prompts.restricted, prompts.harmless
        self.n_layers = model.n_layers
        self.n_prompts = max(len(self.restricted), len(self.harmless))
        self.values: dict[Kind, dict[Cell, Float[Tensor, " prompt"]]] = {"bypass": {}, "induce": {}, "kl": {}}

    @cached_property
    def restricted_margin(self) -> Float[Tensor, " prompt"]:
        """Baseline margins of the restricted prompts, in nats."""
        return margin(self.model, self.restricted, self.refusal)

    @cached_property
    def harmless_base(self) -> Float[Tensor, "prompt vocab"]:
        """Baseline log-probabilities on the harmless prompts."""
        return next_token(self.model, self.harmless)

    @cached_property
    def harmless_margin(self) -> Float[Tensor, " prompt"]:
        """Baseline margins of the harmless prompts, from the same forwards as ``harmless_base``."""
        return margin_of(self.harmless_base, self.refusal.ids)

    def score(self, kind: Kind, cells: Sequence[Cell]) -> list[float]:
        """Returns the mean over prompts for every cell: margin under ablation, margin under addition, or KL."""
        real = [cell for cell in cells if not self.candidates.is_empty(*cell)]
        made = self._induced(real) if kind == "induce" else self._ablated(kind, real)
        self.values[kind] |= dict(zip(real, made, strict=True))
        for cell in set(cells) - set(real):
            self.values[kind][cell] = self._no_op(kind)
        return [float(self.values[kind][cell].double().mean()) for cell in cells]

    def cost(self, kind: Kind, cell: Cell) -> float:
        """Returns prompt-forwards: N, for induction the share of layers that run, and none for an empty candidate."""
        if self.candidates.is_empty(*cell):
            return 0.0
        share = (self.n_layers - cell.layer) / self.n_layers if kind == "induce" and self.model.can_resume else 1.0
        return share * len(self.restricted if kind == "bypass" else self.harmless)

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
                        values = margin(self.model, self.restricted, self.refusal, copies=len(together))
                    else:
                        values = kl(self.model, self.harmless, base, copies=len(together))
                made.extend(values.reshape(len(together), -1))
                shown.update(len(together))
        return made

    def _induced(self, cells: Sequence[Cell]) -> list[Tensor]:
        if not cells:
            return []
        return self._induced_resuming(cells) if self.model.can_resume else [self._induced_whole(cell) for cell in cells]

    def _induced_whole(self, cell: Cell) -> Tensor:
        with add(self.model, self.subspace(cell)):
            return margin(self.model, self.harmless, self.refusal)

    def _induced_resuming(self, cells: Sequence[Cell]) -> list[Tensor]:
        """Runs every batch once, then only the later layers for each candidate, all positions of a layer together."""
        by_layer = [(layer, list(group)) for layer, group in groupby(sorted(cells), key=lambda cell: cell.layer)]
        bases: dict[int, Tensor] = {}

        def scored(batch: Batch) -> Float[Tensor, "row cell"]:
            logits, residuals = recorded(self.model, batch)
            bases.update(zip(batch.rows.tolist(), logits.log_softmax(-1).cpu(), strict=True))
            columns = []
            for layer, group in by_layer:
                vectors = torch.stack([self.subspace(cell).vectors[0] for cell in group]).float().to(self.model.device)
                base = residuals[layer]
                moved = rearrange(base.float() + rearrange(vectors, "c d -> c 1 1 d"), "c r p d -> (c r) p d").to(
                    base.dtype
                )
                margins = margin_of(resume(self.model, residuals, layer, moved), self.refusal.ids)
                columns.append(rearrange(margins, "(c r) -> r c", c=len(group)))
            return torch.cat(columns, dim=1)

        values = map_rows(self.model, self.model.encode(self.harmless.texts), scored, progress="induction").cpu()
        # The same forwards give the baseline, so it is not run again; a cached one stays.
        self.__dict__.setdefault("harmless_base", torch.stack([bases[row] for row in sorted(bases)]))
        found = dict(zip((cell for _, group in by_layer for cell in group), values.T, strict=True))
        return [found[cell] for cell in cells]
