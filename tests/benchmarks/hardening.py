"""Attacks every defended organism with the adaptive family, and writes what each part of it reached, and the frontier.

    python tests/benchmarks/hardening.py

Rows of organisms that the file has already, with the same weights, are kept: an interrupted run goes on where it was.
Nothing but numbers and names is written. An organism takes two to four minutes on one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

import refusalscope as rs
from refusalscope.optionality import Answers, adaptive, answers, by_part, only, optionality
from refusalscope.truth import read_card

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "hardening"
FILES = ("parts", "frontier")
ORGANISMS = [f"{kind}-{seed}" for kind in ("guarded", "extended", "hardened", "rerouted") for seed in (0, 1, 2)]
PLACEBOS, DIGITS = 199, 6


def tried(folder: Path) -> dict[str, pd.DataFrame]:
    """One organism under the adaptive family: two rows per part, the frontier of the plain part and of all."""
    model, prompts = rs.load(folder), rs.ContrastSet.read(ROOT / "data" / "prompts" / "organism.jsonl")
    refusal = rs.readout(model, prompts.locate)
    attacks = adaptive(model, prompts, refusal)
    made = answers(model, prompts, refusal, attacks, placebos=PLACEBOS, progress=False)
    facts = {"organism": folder.name, "weights": model.origin.weights}
    parts = by_part(made.select, made.report, placebos=made.placebos).assign(pf=attacks.pf, **facts)
    frontiers = pd.concat([frontier(made, part) for part in ("plain", "every part")]).assign(**facts)
    return {"parts": parts.round(DIGITS), "frontier": frontiers.round(DIGITS)}


def frontier(made: Answers, part: str) -> pd.DataFrame:
    """The worst case within every damage limit, of one part or of all."""
    every = (made.select, made.report, made.placebos)
    select, report, placebos = every if part == "every part" else (only(one, part) for one in every)
    found = optionality(select, report, placebos=placebos)
    return found.frame.assign(part=part, n=found.bypass.n, clusters=found.bypass.clusters)


def stored(folder: Path) -> dict[str, pd.DataFrame]:
    """The rows of organisms whose weights are still those in data/organisms."""
    frames = {}
    for name in FILES:
        file = folder / f"{name}.csv"
        frame = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["organism", "weights"])
        now = {one: read_card(ROOT / "data" / "organisms" / one).weights for one in set(frame["organism"])}
        frames[name] = frame[frame["organism"].map(now) == frame["weights"]]
    return frames


def main() -> None:
    """Adds what is missing, an organism at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--organisms", nargs="+", default=ORGANISMS)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    done = stored(chosen.out)
    for name in chosen.organisms:
        if name in set(done["parts"]["organism"]):
            continue
        began = time.perf_counter()
        for file, frame in tried(ROOT / "data" / "organisms" / name).items():
            done[file] = pd.concat([done[file], frame], ignore_index=True)
            done[file].to_csv(chosen.out / f"{file}.csv", index=False)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
