"""Refusal phrases: whether a reply declines, by which shipped phrase, and where in the reply the phrase stands."""

from __future__ import annotations

from refusalscope.lexicon.declining import languages, refusal_phrase, refusal_span
from refusalscope.lexicon.lines import Language, read_language

__all__ = ["Language", "languages", "read_language", "refusal_phrase", "refusal_span"]
