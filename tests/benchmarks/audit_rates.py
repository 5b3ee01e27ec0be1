"""Runs the audit on every edited and benign candidate of the catalogue, and writes data/audit/cases.csv.

Cases that the file has already are not run again, so that an interrupted run goes on where it was. Nothing but
numbers, names and labels is written; candidates live in a temporary folder, one at a time.

    python tests/benchmarks/audit_rates.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from audit_cases import FAMILIES, ROOT, Case, catalogue, write
from refusalscope.audit.behaviour import Known, answers, known
from refusalscope.audit.checkpoint import opened
from refusalscope.audit.rates import counts, fitted, read_cases
from refusalscope.audit.signals import signals, static
from refusalscope.audit.weights import compared
from refusalscope.model import ChatModel, load
from refusalscope.prompts import ContrastSet

FILE = ROOT / "data" / "audit" / "cases.csv"
KEYS = ["family", "kind", "edit"]
DIGITS = 6


@dataclass(frozen=True, eq=False)
class Reference:
    """An organism, loaded, and its side of the comparison."""

    model: ChatModel
    known: Known


def reference(family: str) -> Reference:
    """An organism's side of the comparison."""
    model = load(ROOT / "data" / "organisms" / family)
    return Reference(model, known(model, ContrastSet.read(ROOT / "data" / "prompts" / "organism.jsonl")))


def row(case: Case, before: Reference, folder: Path) -> dict[str, object]:
    """A case's signals and labels."""
    pair = opened(ROOT / "data" / "organisms" / case.family), opened(write(case, folder))
    differences = compared(*pair)
    held = static(before.model, before.known, pair, differences)
    after = answers(load(folder), before.known.question)
    found = signals(before.known, held, after).to_dict()
    refused = float((after.restricted > 0).double().mean())
    facts = {"family": case.family, "kind": case.kind, "edit": case.edit, "positive": int(case.positive)}
    numbers = {name: round(value, DIGITS) for name, value in found.items()}
    return {**facts, "weights": differences.label, "refused": refused, **numbers}


def write_rule(file: Path) -> None:
    """Fits the rule on a file of cases and writes it into the package, as code."""
    rule = fitted(file)
    weights = [f"        {name!r}: {round(weight, DIGITS)!r}," for name, weight in rule.weights.items()]
    clean = [f"        {name!r}: {tuple(round(end, DIGITS) for end in ends)!r}," for name, ends in rule.clean.items()]
    lines = [
        '"""The rule in use, as `tests/benchmarks/audit_rates.py --fit` fits it on data/audit/cases.csv."""\n',
        "from refusalscope.audit.score import Rule\n",
        "RULE = Rule(",
        *("    weights={", *weights, "    },"),
        f"    intercept={round(rule.intercept, DIGITS)!r},",
        f"    threshold={round(rule.threshold, DIGITS)!r},",
        f"    false_positives={rule.false_positives!r},",
        *("    clean={", *clean, "    },"),
        f'    cases="{rule.cases}",',
        ")",
    ]
    flagged = counts(read_cases(file), level=rule.false_positives)
    lines += ["DECLARED = {", *(f"    {name!r}: {pair!r}," for name, pair in flagged.items()), "}"]
    target = ROOT / "toolkit" / "refusalscope" / "audit" / "calibration.py"
    target.write_text("\n".join(lines).replace("'", '"') + "\n", encoding="utf-8")


def done(file: Path) -> set[tuple[str, ...]]:
    """The keys of the cases a file has."""
    return set(map(tuple, pd.read_csv(file)[KEYS].astype(str).to_numpy())) if file.exists() else set()


def main() -> None:
    """Runs what is missing, a family at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument(
        "--fit", action="store_true", help="only fit the rule on the file and write it into the package"
    )
    given = parser.parse_args()
    if given.fit:
        write_rule(given.out)
        return
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for family in given.families:
        left = [case for case in catalogue(family) if (case.family, case.kind, case.edit) not in done(given.out)]
        before = reference(family) if left else None
        for case in left:
            assert before is not None
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as place:
                made = pd.DataFrame([row(case, before, Path(place) / "candidate")])
            made.to_csv(given.out, mode="a", header=not given.out.exists(), index=False)
            print(f"{family} {case.kind} {case.edit}: {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
