"""Locators: plain functions from activations to candidates. None of them sees a model."""

from __future__ import annotations

from refusalscope.locators.mean_difference import mean_difference

__all__ = ["mean_difference"]
