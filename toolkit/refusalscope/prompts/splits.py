"""Splits for a set that comes without: disjoint by cluster where the set allows, else by category and hashed id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from refusalscope.prompts.lines import Place
from refusalscope.prompts.prompt import LABELS, SPLITS, Label, Split, hashed
from refusalscope.prompts.rules import Draft

SHARES: dict[Split, int] = {"locate": 4, "select": 3, "report": 3}  # tenths of the prompts of each label
BY_CLUSTER, BY_ID = "made by cluster", "made by category and hashed id"


class Unit(NamedTuple):
    """Prompts that must stay in one split, under the cluster names or the ids that make them one."""

    names: tuple[str, ...]
    rows: tuple[Draft, ...]

    @property
    def counts(self) -> Counter[Label]:
        return Counter(row.label for row in self.rows)


def made_splits(drafts: Sequence[Draft], *, file: Path | str) -> tuple[dict[str, Split], str]:
    """A split for every id, and how the splits were made.

    Whole clusters are dealt out if every split can then have both labels: exactly if at least three units hold a
    restricted prompt and three hold a harmless one. Otherwise prompts are, within each category in turn. Pairs always
    stay together (clusters that a pair connects are one unit). Nothing depends on row order, machine or time; there is
    no seed to choose, so no split can be shopped for. Few or unequal clusters make the shares of `SHARES` rough.

    Raises:
        PromptError: if a split would lack a label. Says how many more prompts are needed.
    """
    clusters = _units(drafts, name=lambda row: row.cluster)
    if not any(_short(clusters).values()):
        return _dealt(sorted(clusters, key=_rank)), BY_CLUSTER
    pairs = _units(drafts, name=lambda row: row.id)
    if needed := " and ".join(f"{n} {label}" for label, n in _short(pairs).items() if n):
        problem = "too few prompts to make three splits that each have both labels."
        raise Place(file).error(problem, f"Add at least {needed} that no pair ties to the others.")
    return _dealt(sorted(pairs, key=_rank)), BY_ID


def _units(drafts: Sequence[Draft], *, name: Callable[[Draft], str]) -> list[Unit]:
    root = {name(row): name(row) for row in drafts}

    def top(one: str) -> str:
        while root[one] != one:
            root[one] = one = root[root[one]]
        return one

    named = {row.id: name(row) for row in drafts}
    for row in drafts:
        if row.pair is not None:
            root[top(named[row.id])] = top(named[row.pair])
    members: dict[str, list[Draft]] = {}
    for row in drafts:
        members.setdefault(top(named[row.id]), []).append(row)
    return [Unit(tuple(sorted({named[row.id] for row in rows})), tuple(rows)) for rows in members.values()]


def _short(units: Sequence[Unit]) -> dict[Label, int]:
    return {label: max(0, len(SPLITS) - sum(unit.counts[label] > 0 for unit in units)) for label in LABELS}


def _rank(unit: Unit) -> tuple[int, bool, int, str, bytes]:
    """Units of both labels first, then one label after the other; large before small; category by category."""
    category = min(row.category for row in unit.rows)
    return -len(unit.counts), "restricted" in unit.counts, -len(unit.rows), category, hashed("split", *unit.names)


def _dealt(units: Sequence[Unit]) -> dict[str, Split]:
    """A split for every id: each unit goes to the split furthest behind its share of what was dealt so far.

    Over units in the order of `_rank`, this is systematic sampling: every category is shared out in proportion. A split
    that still lacks a label of the unit comes first; as units of both labels lead, every split gets both.
    """
    held: dict[Split, Counter[Label]] = {split: Counter() for split in SPLITS}
    split_of: dict[str, Split] = {}
    for unit in units:
        split = _next_split(unit, held)
        held[split].update(unit.counts)
        split_of |= {row.id: split for row in unit.rows}
    return split_of


def _next_split(unit: Unit, held: dict[Split, Counter[Label]]) -> Split:
    lacking: list[Split] = [split for split in SPLITS if any(held[split][label] == 0 for label in unit.counts)]
    behind: dict[Split, int] = {split: _behind(split, unit=unit, held=held) for split in lacking or SPLITS}
    return max(behind, key=lambda split: behind[split])


def _behind(split: Split, *, unit: Unit, held: dict[Split, Counter[Label]]) -> int:
    """How many tenths of a prompt this split lacks of its share, over the labels of the unit, were it dealt out."""
    seen = {label: sum(held[other][label] for other in SPLITS) + n for label, n in unit.counts.items()}
    return sum(SHARES[split] * seen[label] - 10 * held[split][label] for label in unit.counts)
