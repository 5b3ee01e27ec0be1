"""Metrics: one value per prompt, from logits and teacher-forced fixed openings, in float32 or better.

Every function runs under whatever intervention is active, and knows none of them. With ``copies=c`` each batch holds
its prompts c times, candidate-major, and the result gains a leading axis of c: one block per ablated subspace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.model.batching import Batch, forward, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.refusal_tokens import RefusalTokens
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown


@dataclass(frozen=True, repr=False)
class Openings(Shown):
    """Fixed first words of replies, for the opening margin: text to score, never to generate."""

    refusals: tuple[str, ...]
    compliances: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Openings: {len(self.refusals)} refusals and {len(self.compliances)} compliances"


def margin_of(logits: Float[Tensor, "*row vocab"], ids: Sequence[int]) -> Float[Tensor, "*row"]:
    """Returns m = log Σ_{t∈R} p_t − log Σ_{t∉R} p_t in nats, from logits alone: exact where p is all but 0 or 1."""
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[list(ids)] = True
    return logits[..., inside].logsumexp(-1) - logits[..., ~inside].logsumexp(-1)


def margin(
    model: ChatModel, prompts: Prompts, refusal: RefusalTokens, *, copies: int = 1, progress: str = "margins"
) -> Float[Tensor, "*copies prompt"]:
    """Returns the refusal margin of every prompt at the first response token, in nats (Arditi et al. 2024, eq. 8).

    Positive: the first token is more likely to open a refusal than not. One prompt-forward per prompt and copy. Wrong
    for a model that refuses later than its first token: compare with ``opening_margin``.
    """
    return per_prompt(
        model, prompts, lambda logits, _rows: margin_of(logits, refusal.ids), copies=copies, progress=progress
    )


def next_token(model: ChatModel, prompts: Prompts, *, progress: str = "first tokens") -> Float[Tensor, "prompt vocab"]:
    """Returns log-probabilities of the first response token, the base that ``kl`` compares with. Natural log."""
    return per_prompt(model, prompts, lambda logits, _rows: logits.log_softmax(-1), copies=1, progress=progress)


def kl(
    model: ChatModel,
    prompts: Prompts,
    base: Float[Tensor, "prompt vocab"],
    *,
    copies: int = 1,
    progress: str = "damage",
) -> Float[Tensor, "*copies prompt"]:
    """Returns KL(base‖now) in nats at the first response token, per prompt; base is ``next_token`` at baseline."""
    if len(base) != len(prompts):
        raise MeasurementError(
            f"The base holds {len(base)} prompts, the set {len(prompts)}: measure both on the same prompts."
        )

    def divergence(logits: Tensor, rows: Tensor) -> Tensor:
        before = base.to(logits)[rows]
        return (before.exp() * (before - logits.log_softmax(-1))).sum(-1).clamp(min=0)

    return per_prompt(model, prompts, divergence, copies=copies, progress=progress)


def opening_margin(model: ChatModel, prompts: Prompts, openings: Openings) -> Float[Tensor, " prompt"]:
    """Returns mean per-token log-probability of refusal openings minus that of compliance openings, teacher-forced.

    Mean over openings, in nats per token. It sees past the first token without decoding anything.
    """
    if not openings.refusals or not openings.compliances:
        raise MeasurementError("The opening margin needs at least one refusal and one compliance opening.")
    refused = torch.stack([opening_logprob(model, prompts, text) for text in openings.refusals]).mean(0)
    complied = torch.stack([opening_logprob(model, prompts, text) for text in openings.compliances]).mean(0)
    return refused - complied


def opening_logprob(model: ChatModel, prompts: Prompts, opening: str) -> Float[Tensor, " prompt"]:
    """Returns the mean per-token log-probability in nats of a fixed opening of the reply, per prompt."""
    length = len(model.tokenizer(opening, add_special_tokens=False).input_ids)
    if length == 0:
        raise MeasurementError("An opening must be at least one token long; got an empty one.")

    def scored(batch: Batch) -> Tensor:
        logits = forward(model, batch, keep=length + 1)[:, :-1].log_softmax(-1)
        replies = batch.tokens[:, -length:].to(logits.device)
        return logits.gather(-1, replies.unsqueeze(-1)).squeeze(-1).mean(-1)

    return map_rows(model, model.encode(prompts.texts, reply=opening), scored, reply_length=length).cpu()


def cross_entropy(model: ChatModel, texts: Sequence[str]) -> Float[Tensor, " text"]:
    """Returns the mean next-token cross-entropy of each neutral text, in nats per token; ΔCE is a difference of two.

    Texts are tokenised as they are, without a chat template. Raises MeasurementError for texts under two tokens.
    """
    lists = model.tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    if not lists or min(map(len, lists)) < 2:
        raise MeasurementError("Cross-entropy needs texts of at least two tokens each.")

    def scored(batch: Batch) -> Tensor:
        width = batch.tokens.shape[1]
        logits = forward(model, batch, keep=width)[:, :-1].log_softmax(-1)
        each = -logits.gather(-1, batch.tokens[:, 1:, None].to(logits.device)).squeeze(-1)
        counted = (batch.mask[:, 1:] * batch.mask[:, :-1]).to(each)
        return (each * counted).sum(-1) / counted.sum(-1)

    return map_rows(model, lists, scored).cpu()


def per_prompt(
    model: ChatModel,
    prompts: Prompts,
    score: Callable[[Tensor, Tensor], Tensor],
    *,
    copies: int,
    progress: str,
) -> Tensor:
    """Returns ``score(logits [row, vocab], rows)`` for every prompt in order, ``[copies, prompt, …]`` if copies > 1."""

    def scored(batch: Batch) -> Tensor:
        rows = batch.rows.repeat(copies)
        logits = forward(model, _copied(batch, copies))[:, -1]
        return rearrange(score(logits, rows.to(logits.device)), "(c r) ... -> r c ...", c=copies)

    size = max(1, model.batch_size // copies)
    values = map_rows(model, model.encode(prompts.texts), scored, batch_size=size, progress=progress).cpu()
    return values[:, 0] if copies == 1 else values.transpose(0, 1)


def _copied(batch: Batch, copies: int) -> Batch:
    if copies == 1:
        return batch
    return replace(
        batch, tokens=batch.tokens.repeat(copies, 1), mask=batch.mask.repeat(copies, 1), rows=batch.rows.repeat(copies)
    )
