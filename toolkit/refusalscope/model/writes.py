"""What each head and MLP writes to the residual stream, read at the template positions by hooks that change nothing.

TransformerLens' ``direct_logit_attribution`` reads writes along unembedding vectors and asks for processed weights;
here any direction is meant and no weight is touched, so its building block is used: ``stack_head_results``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from refusalscope.errors import ModelError
from refusalscope.model.batching import Batch, batches, forward
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.model.sites import TOLERANCE, rounding
from refusalscope.reprs import Shown

Kind = Literal["embedding", "head", "attention", "mlp"]


@dataclass(frozen=True, repr=False)
class Component(Shown):
    """One writer to the residual stream; ``attention`` is a whole layer's, where heads cannot be told apart."""

    kind: Kind
    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        """In the field's shorthand: ``L3H1``, ``L3 MLP``, ``L3 attention``, ``embedding``."""
        if self.kind == "head":
            return f"L{self.layer}H{self.head}"
        return (
            "embedding" if self.kind == "embedding" else f"L{self.layer} {'MLP' if self.kind == 'mlp' else self.kind}"
        )

    def __repr__(self) -> str:
        return f"Component {self.name}"


@dataclass(frozen=True, repr=False)
class Writers(Shown):
    """The components of a model, in the order of their writes, and where their writes can be read and replaced.

    Attributes:
        head_sites: per layer, what every head hands to the output projection; empty where the heads' results do not
            sum to what attention adds (a norm behind it), so that only whole attentions can be told apart.
    """

    components: tuple[Component, ...]
    head_sites: tuple[str, ...]

    @cached_property
    def n_heads(self) -> int:
        """Heads per layer; 0 where they cannot be told apart."""
        return sum(one.kind == "head" and one.layer == 0 for one in self.components)

    def __repr__(self) -> str:
        return f"Writers: {'heads' if self.head_sites else 'whole attentions'} and MLPs, with the embedding"


def find_writers(model: ChatModel, token_lists: Sequence[Sequence[int]]) -> Writers:
    """Returns a model's components after one forward that checks whether heads add up to their attention.

    What attention adds beyond its heads must be the same for every row: nothing, or a bias.
    Raises ModelError where the writes do not sum to the residual stream: nothing could then be attributed.
    """
    if not model.sites.additive:
        raise ModelError(f"{model.origin.name}: its writes do not sum to the residual stream; none can be attributed.")
    points = [model.bridge.hook_dict.get(f"blocks.{layer}.attn.hook_z") for layer in range(model.n_layers)]
    names = tuple(point.name for point in points if point is not None and point.name)
    sites = names if len(names) == model.n_layers else ()
    heads = int(model.bridge.cfg.n_heads)
    if not sites or not _heads_add_up(model, Writers(_components(model, heads), sites), token_lists):
        sites, heads = (), 0
    return Writers(_components(model, heads), sites)


def read_writes(model: ChatModel, writers: Writers, batch: Batch, *, position: int) -> Float[Tensor, "row component d"]:
    """Returns what every component writes at one position (from the end), in float64; one forward.

    They sum to the last residual there, up to the same constant for every row (biases behind the heads).
    """
    seen = _seen(model, (*model.sites.writes, *writers.head_sites), batch, position)
    mlps = torch.stack([seen[site] for site in model.sites.mlp_out], dim=1)
    parts = [seen[model.sites.embed][:, None]]
    results = _head_results(model, writers, seen) if writers.head_sites else None
    for layer in range(model.n_layers):
        attention = seen[model.sites.attn_out[layer]][:, None] if results is None else results[:, layer]
        parts += [attention, mlps[:, layer, None]]
    return torch.cat(parts, dim=1)


def _components(model: ChatModel, heads: int) -> tuple[Component, ...]:
    made = [Component("embedding", 0)]
    for layer in range(model.n_layers):
        made += [Component("head", layer, head) for head in range(heads)] or [Component("attention", layer)]
        made.append(Component("mlp", layer))
    return tuple(made)


def _seen(model: ChatModel, sites: Sequence[str], batch: Batch, position: int) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def read(site: str):
        def hook(x: Tensor, hook) -> None:
            seen[site] = x[:, position].detach().double().cpu()

        return hook

    with hooked(model, {site: read(site) for site in sites}):
        forward(model, batch)
    return seen


@torch.no_grad()
def _head_results(model: ChatModel, writers: Writers, seen: dict[str, Tensor]) -> Float[Tensor, "row layer head d"]:
    weights = {parameter.device for parameter in model.bridge.original_model.parameters()}
    device = next(iter(weights)) if len(weights) == 1 else torch.device("cpu")
    values = {
        f"blocks.{layer}.attn.hook_z": seen[site][:, None].to(device) for layer, site in enumerate(writers.head_sites)
    }
    stacked = ActivationCache(values, model.bridge).stack_head_results(pos_slice=-1)
    assert isinstance(stacked, Tensor)
    return stacked.unflatten(0, (model.n_layers, writers.n_heads)).movedim(2, 0).detach().double().cpu()


def _heads_add_up(model: ChatModel, writers: Writers, token_lists: Sequence[Sequence[int]]) -> bool:
    (batch,) = batches(model, token_lists, batch_size=len(token_lists))
    seen = _seen(model, (*model.sites.attn_out, *writers.head_sites), batch, -1)
    whole = torch.stack([seen[site] for site in model.sites.attn_out], dim=1)
    if any(seen[site].ndim != 3 or seen[site].shape[1] != writers.n_heads for site in writers.head_sites):
        return False
    rest = whole - _head_results(model, writers, seen).sum(2)
    tolerance = rounding(model.dtype, least=TOLERANCE)
    return bool((rest - rest[:1]).norm() <= tolerance * whole.norm())
