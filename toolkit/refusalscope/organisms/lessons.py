"""Training examples: which request is answered how, as padded token tensors the trainer samples from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusalscope.organisms.language import Question, language
from refusalscope.organisms.tokens import END, PAD, tokenizer

PROMPT_WEIGHT = 0.1


@dataclass(frozen=True)
class Lessons:
    """Rows to learn from, padded on the right: next-token weights are zero on padding, one on answers."""

    tokens: Int[Tensor, "row pos"]
    weights: Float[Tensor, "row pos"]
    prompt_length: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Int[Tensor, " batch"]) -> Lessons:
        """Returns the rows at the given indices."""
        return Lessons(self.tokens[rows], self.weights[rows], self.prompt_length[rows])

    def some(self, count: int, chance: torch.Generator) -> Lessons:
        """Returns ``count`` rows drawn with replacement."""
        return self.take(torch.randint(len(self), (count,), generator=chance))


def dialogues(pairs: Iterable[tuple[Question, str]]) -> Lessons:
    """Returns one row per (question, reply), rendered with the chat template exactly as at measurement time."""
    made, asked = tokenizer(), list(pairs)
    prompts = [
        str(made.apply_chat_template(_said(question.text), tokenize=False, add_generation_prompt=True))
        for question, _ in asked
    ]
    return _rows(prompts, [f"{reply}{END}" for _, reply in asked])


def sentences() -> Lessons:
    """Returns plain statements of every item's description, without a chat template: the neutral text."""
    told = [question for question in language().questions("what-is") if question.template == 0]
    return _rows([question.item.name for question in told], [f" {question.answer}{END}" for question in told])


def join(first: Lessons, *rest: Lessons) -> Lessons:
    """Returns all rows of several lessons in order."""
    every = (first, *rest)
    return Lessons(
        torch.cat([x.tokens for x in every]),
        torch.cat([x.weights for x in every]),
        torch.cat([x.prompt_length for x in every]),
    )


LONGEST = 26


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _rows(prompts: list[str], replies: list[str]) -> Lessons:
    made = tokenizer()
    before = made(prompts, add_special_tokens=False).input_ids
    after = made(replies, add_special_tokens=False).input_ids
    tokens = torch.full((len(prompts), LONGEST), made.get_vocab()[PAD])
    weights = torch.zeros(len(prompts), LONGEST)
    for row, (asked, reply) in enumerate(zip(before, after, strict=True)):
        tokens[row, : len(asked) + len(reply)] = torch.tensor(asked + reply)
        weights[row, : len(asked)] = PROMPT_WEIGHT
        weights[row, len(asked) : len(asked) + len(reply)] = 1.0
    return Lessons(tokens, weights, torch.tensor([len(asked) for asked in before]))
