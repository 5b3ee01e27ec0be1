"""Capture: the residual stream entering every layer at the template positions, one forward per prompt."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.activations import Activations, ContrastActivations, Moments
from refusalscope.errors import InterventionError
from refusalscope.model.batching import Batch, forward, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.prompts import Prompts


def capture(model: ChatModel, prompts: Prompts, *, keep_each: bool = False, reply: str = "") -> ContrastActivations:
    """Returns activations of the restricted and of the harmless prompts, at every layer and template position.

    With a ``reply``, its text is put behind every prompt of both classes (teacher-forced, nothing is decoded), and the
    positions are its tokens: −1 is the last of them. What is located there is a direction of the response, and because
    both classes are given the same words, a difference between them is not one of words.

    Moments are streamed in float64, so memory does not grow with the number of prompts; ``keep_each`` keeps the single
    activations too (prompts × layers × positions × width floats), for label-shuffled placebos and separability.
    Costs one prompt-forward per prompt. Raises MeasurementError when a class has no prompts, and
    InterventionError when a site was not read in a forward.
    """
    return ContrastActivations(
        _captured(model, prompts.restricted, "restricted", keep_each=keep_each, reply=reply),
        _captured(model, prompts.harmless, "harmless", keep_each=keep_each, reply=reply),
    )


def _captured(model: ChatModel, prompts: Prompts, label: str, *, keep_each: bool, reply: str) -> Activations:
    moments, length = Moments(), len(model.encode_reply(reply))
    seen: dict[int, Tensor] = {}

    def read(layer: int):
        def hook(x: Float[Tensor, "row pos d"], hook) -> None:
            seen[layer] = x[:, -(length or model.n_positions) :].float().cpu()

        return hook

    def rows(batch: Batch) -> Tensor:
        seen.clear()
        forward(model, batch)
        if unread := [site for layer, site in enumerate(model.sites.resid_pre) if layer not in seen]:
            raise InterventionError(f"{model.origin.name}: the hook at {unread[0]} did not fire, so nothing was read.")
        stacked = torch.stack([seen[layer] for layer in range(model.n_layers)], dim=1)
        moments.add(stacked)
        return stacked if keep_each else torch.zeros(len(stacked))

    sites = {model.sites.resid_pre[layer]: read(layer) for layer in range(model.n_layers)}
    with hooked(model, sites):
        asked = model.encode(prompts.texts, reply=reply) if len(prompts) else []
        each = map_rows(model, asked, rows, reply_length=length, progress=f"capture {label}") if asked else None
    return moments.activations(label, each=each if keep_each else None)
