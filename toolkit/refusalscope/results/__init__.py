"""Results as they are stored: closed records, written at once or not at all, and read strictly."""

from __future__ import annotations

from refusalscope.results.stored import GuardrailCard, SelectionResult

__all__ = ["GuardrailCard", "SelectionResult"]
