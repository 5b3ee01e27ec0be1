"""Transfer: a guardrail located on one kind of prompt and measured on another; harmfulness and over-refusal too."""

from __future__ import annotations

from refusalscope.transfer.alignment import alignment
from refusalscope.transfer.cosines import cosines
from refusalscope.transfer.groups import Group, Grouping, by_category, by_dialect, by_template, groups
from refusalscope.transfer.harm import Pair, cosines_by_layer, harm_and_refusal, plane, tail
from refusalscope.transfer.independence import cross_ablation
from refusalscope.transfer.matrix import matrices
from refusalscope.transfer.readings import readings
from refusalscope.transfer.sources import Sources, balanced_shuffles, direction, reliability, sources
from refusalscope.transfer.tradeoff import refusal_by_dose
from refusalscope.transfer.words import in_words

__all__ = [
    "Group",
    "Grouping",
    "Pair",
    "Sources",
    "alignment",
    "balanced_shuffles",
    "by_category",
    "by_dialect",
    "by_template",
    "cosines",
    "cosines_by_layer",
    "cross_ablation",
    "direction",
    "groups",
    "harm_and_refusal",
    "in_words",
    "matrices",
    "plane",
    "readings",
    "refusal_by_dose",
    "reliability",
    "sources",
    "tail",
]
