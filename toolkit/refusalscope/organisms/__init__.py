"""Organisms: tiny chat models on a fictional language, trained here from recipes. The only trainer in the package."""

from __future__ import annotations

from refusalscope.organisms.language import Question, language
from refusalscope.organisms.planting import planted_basis
from refusalscope.organisms.prompt_set import contrast_rows, neutral_sentences, question_prompts
from refusalscope.organisms.recipe import Recipe, read_recipe

__all__ = [
    "Question",
    "Recipe",
    "contrast_rows",
    "language",
    "neutral_sentences",
    "planted_basis",
    "question_prompts",
    "read_recipe",
]
