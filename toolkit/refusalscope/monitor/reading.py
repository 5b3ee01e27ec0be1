"""Reading: the residual stream at the prompt's last tokens, through hooks, under whatever intervention is active."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.metrics import per_prompt
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.prompts import Prompts

Reader = Callable[[Float[Tensor, "row layer pos d"]], Tensor]
SPARE = 8  # times the rounding of one number in the model's dtype: what scores that should be equal may differ by


def read(
    model: ChatModel,
    prompts: Prompts,
    reader: Reader,
    *,
    layers: Sequence[int] | None = None,
    copies: int = 1,
    progress: str = "monitor",
) -> Tensor:
    """Returns what ``reader`` makes of every prompt's activations: ``[prompt, …]``, or ``[copies, prompt, …]``.

    The reader gets the residual stream entering each of the layers (all where None), in float64 on the CPU, at the
    last instruction token (position −P − 1, where Zhao et al. 2025 read harmfulness) and at the P template tokens. One
    prompt-forward per prompt and copy; nothing is decoded.

    Raises:
        InterventionError: a hook did not fire in a forward.
    """
    at, kept, seen = tuple(range(model.n_layers)) if layers is None else tuple(layers), model.n_positions + 1, {}

    def reading(layer: int):
        def hook(x: Float[Tensor, "row pos d"], hook) -> None:
            seen[layer] = x[:, -kept:].double().cpu()

        return hook

    def score(logits: Tensor, rows: Tensor) -> Tensor:
        if unread := [layer for layer in at if layer not in seen]:
            site = model.sites.resid_pre[unread[0]]
            raise InterventionError(
                f"{model.origin.name}: the hook at {site} did not fire, so the monitor read nothing."
            )
        return reader(torch.stack([seen.pop(layer) for layer in at], dim=1))

    with hooked(model, {model.sites.resid_pre[layer]: reading(layer) for layer in at}):
        return per_prompt(model, prompts, score, copies=copies, progress=progress)


def along(
    model: ChatModel,
    prompts: Prompts,
    directions: Float[Tensor, "layer d m"],
    *,
    layers: Sequence[int],
    position: int,
    copies: int = 1,
) -> Float[Tensor, "*copies prompt layer m"]:
    """Returns the projections of every prompt on some unit directions of each layer, at one position.

    Read all prompts that are to be compared together: ``level`` decides over them what is constant.

    Raises:
        InterventionError: a hook did not fire.
        MeasurementError: no prompts, or the stream holds numbers that are not finite.
    """

    def reader(x: Float[Tensor, "row layer pos d"]) -> Float[Tensor, "row layer m_and_norm"]:
        h = x[:, :, position]
        inside = einsum(h, directions, "row layer d, layer d m -> row layer m")
        return torch.cat([inside, torch.linalg.vector_norm(h, dim=-1, keepdim=True)], dim=-1)

    found = read(model, prompts, reader, layers=layers, copies=copies)
    if not bool(torch.isfinite(found).all()):
        raise MeasurementError(
            f"{model.origin.name}: the monitor read numbers that are not finite. Load the model in float32."
        )
    rounding = SPARE * torch.finfo(model.dtype).eps * found[..., -1:].amax(-3, keepdim=True)
    return level(found[..., :-1], rounding=rounding)


def level(
    scores: Float[Tensor, "*copies prompt layer m"], *, rounding: Float[Tensor, "*copies 1 layer 1"]
) -> Float[Tensor, "*copies prompt layer m"]:
    """Returns the scores, with those along a direction that differ by no more than rounding made equal.

    Where a direction is ablated nothing is left of it but rounding, and an order among rounding errors tells nothing.
    """
    spread = scores.amax(-3, keepdim=True) - scores.amin(-3, keepdim=True)
    return torch.where(spread <= rounding, scores.mean(-3, keepdim=True), scores)
