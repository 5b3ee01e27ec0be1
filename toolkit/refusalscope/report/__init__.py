"""Reports: from a model and its prompts to a card, and from cards to a comparison."""

from __future__ import annotations

from refusalscope.report.card import estimated_measure_cost, measure
from refusalscope.report.compare import Comparison, compare
from refusalscope.report.plan import PLANS, Plan
from refusalscope.report.time_budget import TimeBudget, time_budget

__all__ = ["PLANS", "Comparison", "Plan", "TimeBudget", "compare", "estimated_measure_cost", "measure", "time_budget"]
