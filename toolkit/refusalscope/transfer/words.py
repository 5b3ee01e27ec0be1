"""A row of a tidy frame in words, as evidence for a claim."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from refusalscope.stats import Estimate

PLACEBOS = ("random", "shuffled")


def in_words(row: pd.Series) -> str:
    """Returns one line: the Estimate a row holds, then the band of each of its placebos that was measured, with its p.

    Example:
        >>> {f"{row.source} on {row.target}": in_words(row) for _, row in frame.iterrows()}

    Args:
        row: of a frame with the columns ``value low high n clusters method note`` and ``<placebo>_low _high _p``.
    """
    held: dict[str, Any] = dict(row)
    interval = None if math.isnan(held["low"]) else (float(held["low"]), float(held["high"]))
    counts = {"n": int(held["n"]), "clusters": None if pd.isna(held["clusters"]) else int(held["clusters"])}
    estimate = Estimate(float(held["value"]), interval, **counts, method=held["method"], note=held["note"])
    return "; ".join([str(estimate), *(_placebo(held, name) for name in PLACEBOS if _measured(held, name))])


def _measured(held: dict[str, Any], name: str) -> bool:
    return not math.isnan(held.get(f"{name}_p", math.nan))


def _placebo(held: dict[str, Any], name: str) -> str:
    low, high, p = (held[f"{name}_{column}"] for column in ("low", "high", "p"))
    return f"{name} {low:.2f} to {high:.2f}, p = {p:.2g}"
