"""What a model says next, before and under an ablation: read once per condition, from logits and fixed openings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from refusalscope.effect import Baseline
from refusalscope.metrics import Openings, cross_entropy, margin_of, next_token, opening_margin
from refusalscope.model import ChatModel, RefusalTokens
from refusalscope.openings import COMPLIANCES as COMPLIANCES
from refusalscope.openings import REFUSALS as REFUSALS
from refusalscope.openings import default_openings as default_openings
from refusalscope.organisms.prompt_set import neutral_sentences
from refusalscope.prompts import Prompts

MOST_NEUTRAL = 64


@dataclass(frozen=True, eq=False)
class Replies:
    """How replies begin in one condition.

    Attributes:
        restricted, harmless: log-probabilities of the first response token.
        opening_restricted, opening_harmless: opening margins in nats per token.
        ce: cross-entropy of neutral texts in nats per token; None where there are none.
        pf: prompt-forwards spent.
    """

    restricted: Float[Tensor, "restricted vocab"]
    harmless: Float[Tensor, "harmless vocab"]
    opening_restricted: Float[Tensor, " restricted"]
    opening_harmless: Float[Tensor, " harmless"]
    ce: Float[Tensor, " text"] | None
    pf: float


def replies(model: ChatModel, prompts: Prompts, openings: Openings, neutral: Sequence[str]) -> Replies:
    """Returns how replies begin under whatever intervention is active. Nothing is decoded."""
    many = len(openings.refusals) + len(openings.compliances)
    return Replies(
        next_token(model, prompts.restricted),
        next_token(model, prompts.harmless),
        opening_margin(model, prompts.restricted, openings),
        opening_margin(model, prompts.harmless, openings),
        cross_entropy(model, neutral) if neutral else None,
        float((1 + many) * len(prompts) + len(neutral)),
    )


def baseline_of(model: ChatModel, prompts: Prompts, refusal: RefusalTokens, before: Replies) -> Baseline:
    """Returns the baseline that was read already, without another forward."""
    restricted, harmless = (margin_of(part, refusal.ids) for part in (before.restricted, before.harmless))
    return Baseline(model, prompts, refusal, restricted, harmless, before.harmless)


def default_neutral(model: ChatModel) -> tuple[str, ...]:
    """Returns neutral texts of an organism's language; none for any other model, whose user gives them."""
    return tuple(neutral_sentences()[:MOST_NEUTRAL]) if model.is_organism else ()


def first_words(model: ChatModel, openings: Openings) -> tuple[str, ...]:
    """Returns the first words of refusal openings that are one token each: stand-ins for tokens not discovered."""
    words = dict.fromkeys(text.split()[0] for text in openings.refusals if text.split())
    unknown = model.tokenizer.unk_token_id
    return tuple(word for word in words if len(ids := model.encode_reply(word)) == 1 and ids[0] != unknown)
