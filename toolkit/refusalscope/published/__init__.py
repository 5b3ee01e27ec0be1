"""Published numbers of real models, as tidy frames, each beside the same frame measured on an organism."""

from __future__ import annotations

from refusalscope.published import live
from refusalscope.published.checks import Agreement, agreement
from refusalscope.published.facts import choices, judgements, losses, read, refusals, removals, stated
from refusalscope.published.grids import as_grid, baselines, costs, survivors, unfiltered
from refusalscope.published.runs import Runs, runs

__all__ = [
    "Agreement",
    "Runs",
    "agreement",
    "as_grid",
    "baselines",
    "choices",
    "costs",
    "judgements",
    "live",
    "losses",
    "read",
    "refusals",
    "removals",
    "runs",
    "stated",
    "survivors",
    "unfiltered",
]
