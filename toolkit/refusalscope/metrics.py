"""Metrics: one value per prompt, from logits and teacher-forced fixed openings, in float32 or better.

Every function runs under whatever intervention is active, and knows none of them. With ``copies=c`` each batch holds
its prompts c times, candidate-major, and the result gains a leading axis of c: one block per ablated subspace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.model.batching import Batch, forward, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.model.continuations import Tree, read_continuations
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import Readout
from refusalscope.reprs import Shown


@dataclass(frozen=True, repr=False)
class Openings(Shown):
    """Fixed first words of replies, for the opening margin: text to score, never to generate."""

    refusals: tuple[str, ...]
    compliances: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Openings: {len(self.refusals)} refusals and {len(self.compliances)} compliances"


@dataclass(frozen=True, repr=False, eq=False)
class Readings(Shown):
    """What every prompt answers, read at the openings of a readout; ``[copies, prompt]`` where several were ablated.

    Attributes:
        margin: log p_O − log(1 − p_O) in nats; NaN where the logits are not finite.
        refuses: whether the greedy path enters a refusal opening.
        complies: whether it enters a compliance opening.
        unread: 1 − p_O − p_C.
        kl: KL(base‖now) in nats at the first response token; None where no base was given.
        base: log-probabilities of the first response token, where they were asked for.
    """

    margin: Float[Tensor, "*copies prompt"]
    refuses: Bool[Tensor, "*copies prompt"]
    complies: Bool[Tensor, "*copies prompt"]
    unread: Float[Tensor, "*copies prompt"]
    kl: Float[Tensor, "*copies prompt"] | None = None
    base: Float[Tensor, "prompt vocab"] | None = None

    def __repr__(self) -> str:
        return "Readings: margin, refusal, compliance and unread mass of every prompt"


def read(
    model: ChatModel,
    prompts: Prompts,
    readout: Readout,
    *,
    copies: int = 1,
    base: Float[Tensor, "prompt vocab"] | None = None,
    keep_base: bool = False,
    progress: str = "readings",
) -> Readings:
    """Returns everything a readout says of every prompt, in one forward per prompt and copy.

    Nothing is decoded: openings are teacher-forced. Wrong for a model that refuses later than its openings reach; what
    that comes to is the ``late`` of ``validate_readout``.

    Args:
        base: log-probabilities of the first response token at baseline, for KL(base‖now).
        keep_base: also returns those of now, which costs prompts × vocabulary numbers.
    """
    _refuse_unequal(base, prompts)
    kept: dict[int, Tensor] = {}

    def score(logits: Float[Tensor, "row node vocab"], rows: Tensor) -> Float[Tensor, "row 5"]:
        one = readout.read(logits)
        if keep_base:
            kept.update(zip(rows.tolist(), logits[:, 0].log_softmax(-1).cpu(), strict=True))
        nats = torch.zeros_like(one.margin) if base is None else _divergence(base.to(logits)[rows], logits[:, 0])
        return torch.stack([one.margin, one.refuses.to(nats), one.complies.to(nats), one.unread, nats], dim=-1)

    tokens = model.encode(prompts.texts)
    values = read_continuations(model, tokens, readout.tree, score, copies=copies, progress=progress)
    margin, refuses, complies, unread, nats = values.unbind(-1)
    return Readings(
        margin,
        refuses > 0,
        complies > 0,
        unread,
        kl=None if base is None else nats,
        base=torch.stack([kept[row] for row in sorted(kept)]) if keep_base else None,
    )


def margin(
    model: ChatModel, prompts: Prompts, readout: Readout, *, copies: int = 1, progress: str = "margins"
) -> Float[Tensor, "*copies prompt"]:
    """Returns the refusal margin of every prompt, log p_O − log(1 − p_O) in nats; one prompt-forward each.

    With one-token openings it is eq. 8 of Arditi et al. (2024). Positive: the reply is more likely to open with a
    refusal than not; ``refuses`` says whether it does at temperature zero.
    """
    return read(model, prompts, readout, copies=copies, progress=progress).margin


def refuses(
    model: ChatModel, prompts: Prompts, readout: Readout, *, copies: int = 1, progress: str = "refusals"
) -> Bool[Tensor, "*copies prompt"]:
    """Returns whether each prompt is refused at temperature zero: the greedy path enters a refusal opening.

    Decided teacher-forced (at each step the most likely token is the opening's); nothing is decoded.
    """
    return read(model, prompts, readout, copies=copies, progress=progress).refuses


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
    _refuse_unequal(base, prompts)

    def divergence(logits: Tensor, rows: Tensor) -> Tensor:
        return _divergence(base.to(logits)[rows], logits)

    return per_prompt(model, prompts, divergence, copies=copies, progress=progress)


def _refuse_unequal(base: Tensor | None, prompts: Prompts) -> None:
    if base is not None and len(base) != len(prompts):
        raise MeasurementError(
            f"The base holds {len(base)} prompts, the set {len(prompts)}: measure both on the same prompts."
        )


def _divergence(before: Float[Tensor, "row vocab"], logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    return (before.exp() * (before - logits.log_softmax(-1))).sum(-1).clamp(min=0)


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
    tokens = model.encode(prompts.texts)
    return read_continuations(
        model, tokens, Tree(), lambda logits, rows: score(logits[:, 0], rows), copies=copies, progress=progress
    )
