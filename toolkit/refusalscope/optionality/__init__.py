"""Optionality: the worst case over a declared attack family at limited damage, its verdict, and comparisons of it."""

from __future__ import annotations

from refusalscope.optionality.compare import Difference, compare
from refusalscope.optionality.family import FULL, QUICK, Located, Menu, best_first, early, family, spans
from refusalscope.optionality.frontier import Optionality, optionality
from refusalscope.optionality.grounds import KAPPA, KAPPAS
from refusalscope.optionality.measured import measured
from refusalscope.optionality.placebos import placebo_family
from refusalscope.optionality.points import Point
from refusalscope.optionality.verdict import Judgement, judge

__all__ = [
    "FULL",
    "KAPPA",
    "KAPPAS",
    "QUICK",
    "Difference",
    "Judgement",
    "Located",
    "Menu",
    "Optionality",
    "Point",
    "best_first",
    "compare",
    "early",
    "family",
    "judge",
    "measured",
    "optionality",
    "placebo_family",
    "spans",
]
