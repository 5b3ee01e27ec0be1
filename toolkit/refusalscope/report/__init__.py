"""Reports: from a model and its prompts to a card, and from cards to a comparison."""

from __future__ import annotations

from refusalscope.report.card import estimated_measure_cost, measure
from refusalscope.report.compare import Comparison, compare
from refusalscope.report.plan import PLANS, Plan

__all__ = ["PLANS", "Comparison", "Plan", "compare", "estimated_measure_cost", "measure"]
