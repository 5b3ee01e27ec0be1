"""Optionality: the worst case over a declared attack family at limited damage, its verdict, and comparisons of it."""

from __future__ import annotations

from refusalscope.optionality.adaptive import adaptive
from refusalscope.optionality.by_part import by_part, only
from refusalscope.optionality.compare import Difference, compare
from refusalscope.optionality.declared import Declared, plain
from refusalscope.optionality.family import ADAPTIVE, FULL, QUICK, Located, Menu, best_first, early, family, spans
from refusalscope.optionality.frontier import Optionality, optionality
from refusalscope.optionality.grounds import KAPPA, KAPPAS
from refusalscope.optionality.measured import Answers, answers, measured
from refusalscope.optionality.placebos import placebo_family
from refusalscope.optionality.points import Point
from refusalscope.optionality.verdict import Judgement, judge

__all__ = [
    "ADAPTIVE",
    "FULL",
    "KAPPA",
    "KAPPAS",
    "QUICK",
    "Answers",
    "Declared",
    "Difference",
    "Judgement",
    "Located",
    "Menu",
    "Optionality",
    "Point",
    "adaptive",
    "answers",
    "best_first",
    "by_part",
    "compare",
    "early",
    "family",
    "judge",
    "measured",
    "only",
    "optionality",
    "placebo_family",
    "plain",
    "spans",
]
