"""Scores every locator on every planted organism, against the truth that none of them saw, and writes the rows.

    python tests/benchmarks/recovery.py

Rows of organisms that the file has already, with the same weights, are kept: an interrupted run goes on where it was.
Nothing but numbers and names is written. An organism takes one to two minutes on one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

import refusalscope as rs

ROOT = Path(__file__).parents[2]
FILE = ROOT / "data" / "recovery" / "scores.csv"
DIGITS = 6


def scored(name: str) -> pd.DataFrame:
    """One organism: a row per locator and rank, and one for the truth."""
    model = rs.load(ROOT / "data" / "organisms" / name)
    prompts = rs.ContrastSet.read(ROOT / "data" / "prompts" / "organism.jsonl")
    truth = rs.truth.planted_subspace(rs.organisms.read_recipe(ROOT / "data" / "recipes" / f"{name}.toml"))
    return rs.recovered(model, truth, prompts, progress=False).assign(weights=model.origin.weights).round(DIGITS)


def main() -> None:
    """Adds what is missing, an organism at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE)
    file = parser.parse_args().out
    file.parent.mkdir(parents=True, exist_ok=True)
    cards = [rs.truth.read_card(one.parent) for one in sorted((ROOT / "data" / "organisms").glob("*/organism.json"))]
    planted = {card.name: card.weights for card in cards if card.kind == "planted"}
    rows = pd.read_csv(file, keep_default_na=False, na_values=[""]) if file.exists() else pd.DataFrame()
    if len(rows):
        rows = rows[rows["organism"].map(planted) == rows["weights"]]
    for name in planted:
        if len(rows) and name in set(rows["organism"]):
            continue
        began = time.perf_counter()
        rows = pd.concat([rows, scored(name)], ignore_index=True).sort_values("organism", kind="stable")
        rows.to_csv(file, index=False)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
