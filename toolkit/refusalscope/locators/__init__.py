"""Locators: plain functions from activations to candidates. None of them sees a model.

``gradient`` and ``cone`` take an objective instead of activations, and start from what another locator found.
"""

from __future__ import annotations

from refusalscope.locators.gradient import cone, cone_members, gradient
from refusalscope.locators.leace import leace
from refusalscope.locators.logistic import logistic
from refusalscope.locators.mean_difference import mean_difference
from refusalscope.locators.mean_differences import mean_differences
from refusalscope.locators.paired_pca import paired_pca
from refusalscope.locators.standardised import standardised
from refusalscope.locators.whitened import whitened
from refusalscope.locators.winsorised import winsorised

__all__ = [
    "cone",
    "cone_members",
    "gradient",
    "leace",
    "logistic",
    "mean_difference",
    "mean_differences",
    "paired_pca",
    "standardised",
    "whitened",
    "winsorised",
]
