"""Curves: how the effect of an ablation changes with dose, rank, prompts, layers and depth, and what it all costs."""

from __future__ import annotations

from refusalscope.curves.budget import Sampling, at_cell, budget, sizes_of
from refusalscope.curves.cost import CONTROL, READOUT, Assumptions, Step, extrapolated, steps, table
from refusalscope.curves.curve import Curve, thinned
from refusalscope.curves.depth import DEEPEST, depth
from refusalscope.curves.dose import DOSES, dose
from refusalscope.curves.rank import nested, rank
from refusalscope.curves.scope import scope, scopes_of

__all__ = [
    "CONTROL",
    "DEEPEST",
    "DOSES",
    "READOUT",
    "Assumptions",
    "Curve",
    "Sampling",
    "Step",
    "at_cell",
    "budget",
    "depth",
    "dose",
    "extrapolated",
    "nested",
    "rank",
    "scope",
    "scopes_of",
    "sizes_of",
    "steps",
    "table",
    "thinned",
]
