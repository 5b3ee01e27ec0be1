"""Drawings of published numbers in the forms of their papers, with the same measured on an organism beside them."""

from __future__ import annotations

from refusalscope.plotting.published.effects import judges, losses, removals
from refusalscope.plotting.published.grids import cosine_maps, score_grids, search_costs, survivors

__all__ = ["cosine_maps", "judges", "losses", "removals", "score_grids", "search_costs", "survivors"]
