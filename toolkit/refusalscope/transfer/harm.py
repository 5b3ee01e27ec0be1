"""Harmfulness against refusal: is "this is restricted" the same direction as "I refuse"? Zhao et al. 2025.

arXiv 2507.11878: harmfulness is read at the last token of the instruction, refusal at the post-instruction tokens.
Wollschläger et al. 2025 (2502.17420): two directions are representationally independent when ablating either leaves the
cosine of the activations with the other unchanged at every layer; being orthogonal is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.activations import Activations, ContrastActivations, Moments
from refusalscope.errors import MeasurementError
from refusalscope.model.batching import Batch, forward, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.placebo import random_like
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown
from refusalscope.subspace import NotExported, Subspace
from refusalscope.transfer.contrasts import Row, columns, nothing, placebo_columns
from refusalscope.transfer.cosines import cosine, pooled, resampled_cosine
from refusalscope.transfer.groups import Group
from refusalscope.transfer.sources import Sources, balanced_shuffles, direction, reliability


@dataclass(frozen=True, repr=False, eq=False)
class Pair(Shown, NotExported):
    """A harmfulness direction, at the last instruction token, and a refusal direction, at a post-instruction one."""

    harmfulness: Subspace
    refusal: Subspace

    def items(self) -> tuple[tuple[str, Subspace], ...]:
        """Returns both with their names."""
        return ("harmfulness", self.harmfulness), ("refusal", self.refusal)

    def __repr__(self) -> str:
        return f"Pair: harmfulness by {self.harmfulness!r}, refusal by {self.refusal!r}"


def tail(model: ChatModel, prompts: Prompts) -> Sources:
    """Returns activations of every prompt at the last instruction token and all post-instruction tokens.

    Positions run from −P − 1, the last instruction token, to −1. One prompt-forward per prompt.
    """
    return Sources(
        prompts,
        ContrastActivations(
            captured(model, prompts.restricted, "restricted"), captured(model, prompts.harmless, "harmless")
        ),
    )


def harm_and_refusal(located: Sources, *, layer: int, position: int = -1) -> Pair:
    """Returns both directions at one layer, each a difference in means of the same prompts.

    Wrong as a measure of harmfulness where restricted prompts differ from harmless ones in more than that.
    Raises MeasurementError where either is empty: the means are equal, as at layer 0.
    """
    both, everyone = [], _everyone(located.prompts)
    for place in (_instruction(located), position):
        made = direction(located, everyone, cell=(layer, place))
        if isinstance(made, str):
            raise MeasurementError(f"No direction at layer {layer}, position {place}: {made}. Take a later layer.")
        both.append(made)
    return Pair(*both)


def cosines_by_layer(
    located: Sources, *, position: int = -1, random: int = 199, shuffled: int = 39, seed: int = 0
) -> pd.DataFrame:
    """Returns the cosine between harmfulness and refusal at every layer, located on the same prompts.

    Columns ``layer value low high n clusters note``, ``low high p`` of two placebos (random directions; balanced label
    shuffles of the refusal cell), and ``ceiling``, what one shared direction would reach with so few prompts. Layers
    where either is empty keep their row.
    """
    rows, everyone, place = [], _everyone(located.prompts), _instruction(located)
    for layer in range(located.activations.restricted.mean.shape[0]):
        harm, refusal = (direction(located, everyone, cell=(layer, p)) for p in (place, position))
        if isinstance(harm, str) or isinstance(refusal, str):
            estimate, drawn, shuffles, ceiling = nothing("the means are equal at this layer"), [], [], float("nan")
        else:
            views = [(pooled(located, layer, p), everyone) for p in (place, position)]
            estimate = resampled_cosine(located, views[0], views[1], seed=seed)
            drawn = [cosine(harm, one) for one in random_like(harm, random, seed=seed)]
            placebos = balanced_shuffles(located, everyone, shuffled, cell=(layer, position), seed=seed)
            shuffles = [cosine(harm, one) for one in placebos]
            steady = [reliability(located, everyone, cell=(layer, p), seed=seed) for p in (place, position)]
            ceiling = (steady[0] * steady[1]) ** 0.5
        row = {"layer": layer, **columns(estimate), **placebo_columns(estimate.value, drawn, name="random")}
        rows.append(row | placebo_columns(estimate.value, shuffles, name="shuffled") | {"ceiling": ceiling})
    return pd.DataFrame(rows)


def plane(model: ChatModel, pair: Pair, classes: Mapping[str, Prompts]) -> pd.DataFrame:
    """Returns every prompt's projection on both directions, each at its own layer and position.

    Columns ``prompts harmfulness refusal cluster``, in units of the residual stream; ``classes`` maps the name of a
    class (restricted, harmless, borderline) to its prompts. One prompt-forward per prompt.
    """
    rows: list[Row] = []
    for name, prompts in classes.items():
        each = captured(model, prompts, name).each
        assert each is not None
        scores = {
            kind: (each[:, one.layer, one.position].double() @ one.basis[:, 0]).tolist() for kind, one in pair.items()
        }
        both = zip(scores["harmfulness"], scores["refusal"], prompts.clusters, strict=True)
        rows += [{"prompts": name, "harmfulness": h, "refusal": r, "cluster": cluster} for h, r, cluster in both]
    return pd.DataFrame(rows)


def _instruction(located: Sources) -> int:
    return -located.activations.restricted.mean.shape[1]


def _everyone(prompts: Prompts) -> Group:
    return Group("everyone", tuple(range(len(prompts.restricted))), tuple(range(len(prompts.harmless))))


def captured(model: ChatModel, prompts: Prompts, label: str) -> Activations:
    """Returns activations of every prompt from the last instruction token to the end: ``[prompt, layer, P + 1, d]``."""
    moments, seen, kept = Moments(), {}, model.n_positions + 1

    def read(layer: int):
        def hook(x: Float[Tensor, "row pos d"], hook) -> None:
            seen[layer] = x[:, -kept:].float().cpu()

        return hook

    def rows(batch: Batch) -> Tensor:
        forward(model, batch)
        stacked = torch.stack([seen[layer] for layer in range(model.n_layers)], dim=1)
        moments.add(stacked)
        return stacked

    with hooked(model, {model.sites.resid_pre[layer]: read(layer) for layer in range(model.n_layers)}):
        each = map_rows(model, model.encode(prompts.texts), rows, progress=f"capture {label}") if len(prompts) else None
    return moments.activations(label, each=each)
