"""Drawings of tidy frames, one message each, stated by the title that the caller gives. They compute nothing."""

from __future__ import annotations

from refusalscope.canvas import theme
from refusalscope.plotting.cells import (
    KL_LIMIT,
    LAYER_CUT,
    layer_position_map,
    margins,
    near_ties,
    rates,
    recovery,
    selection_grid,
)
from refusalscope.plotting.lines import dose, frontier

__all__ = [
    "KL_LIMIT",
    "LAYER_CUT",
    "dose",
    "frontier",
    "layer_position_map",
    "margins",
    "near_ties",
    "rates",
    "recovery",
    "selection_grid",
    "theme",
]
