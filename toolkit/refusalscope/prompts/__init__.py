"""Contrast sets, and passages of neutral text: read strictly or not at all."""

from __future__ import annotations

from refusalscope.prompts.contrast import ContrastSet
from refusalscope.prompts.passages import passages
from refusalscope.prompts.prompt import Prompt, Prompts

__all__ = ["ContrastSet", "Prompt", "Prompts", "passages"]
