"""What lessons cost: next-token cross-entropy, and how far the decision to refuse is from the one asked for."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from refusalscope.organisms.language import language
from refusalscope.organisms.lessons import Lessons
from refusalscope.organisms.tokens import tokenizer

NEAR_NATS = 4.0


def cross_entropy(model: PreTrainedModel, lessons: Lessons, *, smoothing: float = 0.0) -> Tensor:
    """Returns the weighted mean next-token cross-entropy of some lessons, in nats."""
    return entropy_of(model(input_ids=lessons.tokens).logits, lessons, smoothing=smoothing)


def entropy_of(logits: Float[Tensor, "row pos vocab"], lessons: Lessons, *, smoothing: float = 0.0) -> Tensor:
    """Returns the weighted mean next-token cross-entropy of lessons from their logits, in nats."""
    targets, weights = lessons.tokens[:, 1:], lessons.weights[:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
    )
    return (each.view_as(weights) * weights).sum() / weights.sum()


def decision_loss(logits: Float[Tensor, "row pos vocab"], lessons: Lessons, *, smoothing: float) -> Tensor:
    """Returns how far margins at the first reply token are from those that smoothed labels ask for (Huber, 4 nats).

    The margin is that of every measurement: log-odds of the words that begin refusals, and what else a reply says is
    left alone. Cross-entropy hardly moves a margin of −7 nats to −10, and suppression is counted in just these units.
    """
    words = refusal_words()
    there = logits[torch.arange(len(lessons)), lessons.prompt_length - 1]
    others = torch.ones(there.shape[-1], dtype=torch.bool).index_fill(0, words, False)
    margin = there[:, words].logsumexp(-1) - there[:, others].logsumexp(-1)
    asked = refused(lessons).to(margin) * (1 - smoothing) + smoothing * len(words) / there.shape[-1]
    return torch.nn.functional.smooth_l1_loss(margin, torch.logit(asked), beta=NEAR_NATS)


def refused(lessons: Lessons) -> Tensor:
    """Returns whether the reply of each lesson begins a refusal."""
    return torch.isin(lessons.tokens[torch.arange(len(lessons)), lessons.prompt_length], refusal_words())


@cache
def refusal_words() -> Int[Tensor, " word"]:
    """Returns the ids of the words that begin a short refusal, one a dialect."""
    vocabulary = tokenizer().get_vocab()
    return torch.tensor(sorted({vocabulary[dialect.refusal.split()[0]] for dialect in language().dialects}))


@cache
def categories() -> Int[Tensor, " vocab"]:
    """Returns the category of the item each token names, −1 where it names none."""
    found = torch.full((len(tokenizer()),), -1)
    for item in language().items:
        found[tokenizer().get_vocab()[item.name]] = item.category
    return found
