"""Drawings of tidy frames, one message each, stated by the title that the caller gives. They compute nothing."""

from __future__ import annotations

from refusalscope.canvas import theme
from refusalscope.plotting import published
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
from refusalscope.plotting.cones import cones
from refusalscope.plotting.forest import before_after, forest
from refusalscope.plotting.harm import independence, plane
from refusalscope.plotting.lines import banded, curve, dose, frontier
from refusalscope.plotting.look import Theme, show_theme
from refusalscope.plotting.matrices import transfer
from refusalscope.plotting.monitors import survival, survival_by_layer
from refusalscope.plotting.recoveries import recovery_by_locator
from refusalscope.plotting.roc import roc
from refusalscope.plotting.tradeoff import trade_off
from refusalscope.plotting.writers import writers

__all__ = [
    "KL_LIMIT",
    "LAYER_CUT",
    "Theme",
    "banded",
    "before_after",
    "cones",
    "curve",
    "dose",
    "forest",
    "frontier",
    "independence",
    "layer_position_map",
    "margins",
    "near_ties",
    "plane",
    "published",
    "rates",
    "recovery",
    "recovery_by_locator",
    "roc",
    "selection_grid",
    "show_theme",
    "survival",
    "survival_by_layer",
    "theme",
    "trade_off",
    "transfer",
    "writers",
]
