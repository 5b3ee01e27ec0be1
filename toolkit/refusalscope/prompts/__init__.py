"""Contrast sets: restricted and harmless prompts in three disjoint splits, read strictly or not at all."""

from __future__ import annotations

from refusalscope.prompts.contrast import ContrastSet
from refusalscope.prompts.prompt import Prompt, Prompts

__all__ = ["ContrastSet", "Prompt", "Prompts"]
