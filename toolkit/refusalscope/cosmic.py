"""COSMIC (Siu et al. 2025, arXiv 2506.00085): a selector that looks at hidden states only, never at an output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from refusalscope.errors import MeasurementError, SelectionError
from refusalscope.interventions import ablate, add
from refusalscope.metrics import per_prompt
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.progress import bar
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown
from refusalscope.rule import Cell, Rule, default_rule
from refusalscope.selection import refuse_strangers
from refusalscope.subspace import Candidates, NotExported, Subspace

TOGETHER = 8


@dataclass(frozen=True, repr=False, eq=False)
class CosmicChoice(Shown, NotExported):
    """The candidate COSMIC chooses, and what it scored.

    Attributes:
        cells: one row per scored cell, ``layer position complied refused score chosen``; cosines, the score their sum.
        layers: the layers whose leaving states were compared, least similar between the classes first.
        baseline: cosine between the classes' states there before any intervention: what ``complied`` and ``refused``
            are when a candidate does nothing.
        pf: prompt-forwards spent.
    """

    subspace: Subspace
    cells: pd.DataFrame
    layers: tuple[int, ...]
    baseline: float
    pf: float

    @property
    def cell(self) -> Cell:
        """The chosen (layer, position)."""
        assert self.subspace.layer is not None
        assert self.subspace.position is not None
        return Cell(self.subspace.layer, self.subspace.position)

    def __repr__(self) -> str:
        return f"CosmicChoice: layer {self.cell.layer}, position {self.cell.position}, by {self.subspace.locator}"


def cosmic(
    model: ChatModel, candidates: Candidates, prompts: Prompts, *, share: float = 0.1, rule: Rule | None = None
) -> CosmicChoice:
    """Returns the candidate under which each class looks most like the other.

    States are the residual stream leaving a layer at the last position, averaged over a class's prompts. Compared are
    the ``share`` of layers (at least one) where the classes' mean states have the lowest cosine similarity. Over those
    layers, ``complied`` is the mean cosine between restricted prompts under ablation of the candidate and harmless ones
    untouched; ``refused`` that between harmless prompts under its addition at its layer and restricted ones untouched.
    The highest sum wins, among the layers the selection rule allows (its ``layer_share``).

    The published code takes one cosine of states averaged over layers too, and also drops candidates by KL. Here each
    layer counts alike, and no logit is read: check the damage of what was chosen with ``effect``. Something is always
    chosen, from a model without a guardrail as well. Costs one prompt-forward per prompt, and one more per scored cell.

    Raises:
        MeasurementError: for candidates of another model or a rank above one, or prompts of one class only.
        SelectionError: when every candidate in reach is empty.
    """
    _check(model, candidates, prompts)
    restricted, harmless = (_states(model, part)[0] for part in (prompts.restricted, prompts.harmless))
    apart = cosine_similarity(restricted, harmless, dim=-1)
    layers = apart.argsort()[: max(1, round(share * model.n_layers))].tolist()
    cells = [Cell(*cell) for cell in candidates.cells() if not candidates.is_empty(*cell)]
    cells = [cell for cell in cells if (rule or default_rule(model.n_layers)).is_early(cell, model.n_layers)]
    if not cells:
        raise SelectionError("Every candidate in the layers the rule allows is empty: the classes do not differ there.")
    ablated = _ablated(model, [candidates.at(*cell) for cell in cells], prompts.restricted)
    added = _added(model, [candidates.at(*cell) for cell in cells], prompts.harmless)
    frame = pd.DataFrame(cells).assign(
        complied=cosine_similarity(ablated, harmless, dim=-1)[:, layers].mean(1).numpy(),
        refused=cosine_similarity(added, restricted, dim=-1)[:, layers].mean(1).numpy(),
    )
    frame["score"] = frame["complied"] + frame["refused"]
    best = int(frame["score"].to_numpy().argmax())
    frame["chosen"] = [row == best for row in range(len(frame))]
    pf = float((1 + len(cells)) * len(prompts))
    return CosmicChoice(candidates.at(*cells[best]), frame, tuple(layers), float(apart[layers].mean()), pf)


def _check(model: ChatModel, candidates: Candidates, prompts: Prompts) -> None:
    if not len(prompts.restricted) or not len(prompts.harmless):
        raise MeasurementError(f"COSMIC needs restricted and harmless prompts; got {prompts!r}.")
    refuse_strangers(model, candidates)
    if candidates.vectors.shape[2] != 1:
        raise MeasurementError(
            f"COSMIC adds candidates, so they must be of rank one; got {candidates.vectors.shape[2]}."
        )


def _ablated(model: ChatModel, subspaces: Sequence[Subspace], prompts: Prompts) -> Float[Tensor, "cell layer d"]:
    made = []
    with bar(len(subspaces), "COSMIC, ablated") as shown:
        for start in range(0, len(subspaces), TOGETHER):
            together = subspaces[start : start + TOGETHER]
            with ablate(model, together):
                made.append(_states(model, prompts, copies=len(together)))
            shown.update(len(together))
    return torch.cat(made)


def _added(model: ChatModel, subspaces: Sequence[Subspace], prompts: Prompts) -> Float[Tensor, "cell layer d"]:
    made = []
    with bar(len(subspaces), "COSMIC, added") as shown:
        for one in subspaces:
            with add(model, one):
                made.append(_states(model, prompts))
            shown.update()
    return torch.cat(made)


def _states(model: ChatModel, prompts: Prompts, *, copies: int = 1) -> Float[Tensor, "copies layer d"]:
    """Returns mean states leaving every layer at the last position, under whatever intervention is active."""
    seen: dict[int, Tensor] = {}

    def reading(layer: int):
        def hook(x: Float[Tensor, "row pos d"], hook) -> None:
            seen[layer] = x[:, -1].double()

        return hook

    def stacked(_logits: Tensor, _rows: Tensor) -> Float[Tensor, "row layer d"]:
        return torch.stack([seen[layer] for layer in range(model.n_layers)], dim=1)

    with hooked(model, [(site, reading(layer)) for layer, site in enumerate(model.sites.resid_post)]):
        states = per_prompt(model, prompts, stacked, copies=copies, progress="states")
    return states.reshape(copies, len(prompts), model.n_layers, model.d_model).mean(1)
