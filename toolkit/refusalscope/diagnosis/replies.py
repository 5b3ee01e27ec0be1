"""What a model says next, before and under an ablation: read once per condition, from logits and fixed openings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from refusalscope.effect import Baseline, baseline_from
from refusalscope.metrics import Openings, Readings, cross_entropy, opening_margin, read
from refusalscope.model import ChatModel
from refusalscope.openings import COMPLIANCES as COMPLIANCES
from refusalscope.openings import REFUSALS as REFUSALS
from refusalscope.openings import default_openings as default_openings
from refusalscope.organisms.prompt_set import neutral_sentences
from refusalscope.prompts import Prompts
from refusalscope.reading import Readout

MOST_NEUTRAL = 64


@dataclass(frozen=True, eq=False)
class Replies:
    """How replies begin in one condition.

    Attributes:
        read_restricted, read_harmless: what the readout says.
        opening_restricted, opening_harmless: opening margins in nats per token.
        ce: cross-entropy of neutral texts in nats per token; None where there are none.
        pf: prompt-forwards spent.
    """

    read_restricted: Readings
    read_harmless: Readings
    opening_restricted: Float[Tensor, " restricted"]
    opening_harmless: Float[Tensor, " harmless"]
    ce: Float[Tensor, " text"] | None
    pf: float

    @property
    def restricted(self) -> Float[Tensor, "restricted vocab"]:
        """Log-probabilities of the first response token on restricted prompts."""
        assert self.read_restricted.base is not None
        return self.read_restricted.base

    @property
    def harmless(self) -> Float[Tensor, "harmless vocab"]:
        """The same on harmless prompts."""
        assert self.read_harmless.base is not None
        return self.read_harmless.base


def replies(
    model: ChatModel, prompts: Prompts, readout: Readout, openings: Openings, neutral: Sequence[str]
) -> Replies:
    """Returns how replies begin under whatever intervention is active. Nothing is decoded."""
    many = len(openings.refusals) + len(openings.compliances)
    return Replies(
        read(model, prompts.restricted, readout, keep_base=True),
        read(model, prompts.harmless, readout, keep_base=True),
        opening_margin(model, prompts.restricted, openings),
        opening_margin(model, prompts.harmless, openings),
        cross_entropy(model, neutral) if neutral else None,
        float((1 + many) * len(prompts) + len(neutral)),
    )


def baseline_of(model: ChatModel, prompts: Prompts, readout: Readout, before: Replies) -> Baseline:
    """Returns the baseline that was read already, without another forward."""
    return baseline_from(model, prompts, readout, before.read_restricted, before.read_harmless)


def default_neutral(model: ChatModel) -> tuple[str, ...]:
    """Returns neutral texts of an organism's language; none for any other model, whose user gives them."""
    return tuple(neutral_sentences()[:MOST_NEUTRAL]) if model.is_organism else ()


def first_words(model: ChatModel, openings: Openings) -> tuple[str, ...]:
    """Returns the first words of refusal openings that are one token each: stand-ins for tokens not discovered."""
    words = dict.fromkeys(text.split()[0] for text in openings.refusals if text.split())
    unknown = model.tokenizer.unk_token_id
    return tuple(word for word in words if len(ids := model.encode_reply(word)) == 1 and ids[0] != unknown)
