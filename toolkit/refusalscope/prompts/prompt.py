"""One prompt, and an immutable sequence of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal, get_args, overload

from refusalscope.errors import PromptError
from refusalscope.reprs import Shown, one_line

Label = Literal["restricted", "harmless"]
Split = Literal["locate", "select", "report"]
LABELS: tuple[Label, ...] = get_args(Label)
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, repr=False)
class Prompt(Shown):
    """One request, what it is an example of, and the split it may be used in. Its repr leaves the text out."""

    id: str
    label: Label
    category: str
    cluster: str
    split: Split
    text: str = field(repr=False)
    pair: str | None = None

    def __repr__(self) -> str:
        return f"Prompt {one_line(self.id)}: {self.label}, in split {self.split}"


@dataclass(frozen=True, repr=False)
class Prompts(Shown, Sequence[Prompt]):
    """Prompts in a fixed order. The tuples `texts`, `ids`, `labels`, ... have one entry per prompt, in that order.

    Example:
        >>> prompts = ContrastSet.read("data/prompts/organism.jsonl")
        >>> prompts.report.restricted.where(category="drinks").texts
    """

    rows: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | Prompts:
        return Prompts(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    @property
    def restricted(self) -> Prompts:
        return self._labelled("restricted")

    @property
    def harmless(self) -> Prompts:
        return self._labelled("harmless")

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(row.text for row in self.rows)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(row.id for row in self.rows)

    @property
    def labels(self) -> tuple[Label, ...]:
        return tuple(row.label for row in self.rows)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(row.category for row in self.rows)

    @property
    def clusters(self) -> tuple[str, ...]:
        return tuple(row.cluster for row in self.rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the rows as canonical JSON, sorted by id: the same for the same rows in any order."""
        rows = sorted((asdict(row) for row in self.rows), key=lambda row: row["id"])
        canonical = json.dumps(rows, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def where(self, *, category: str | None = None, cluster: str | None = None) -> Prompts:
        """The prompts of one category, of one cluster, or of both; empty where these have none."""
        return _kept(row for row in self.rows if category in (None, row.category) and cluster in (None, row.cluster))

    def sample(self, n: int, *, seed: int) -> Prompts:
        """`n` prompts of each label present here, in their present order.

        A prompt is drawn by the rank of the hash of (seed, id), so the draw does not depend on row order or machine,
        and with one seed a smaller draw lies inside every larger one: a prompt-budget curve is nested.

        Raises:
            PromptError: if `n` is below one or above the number of prompts of a label, or if there are none at all.
        """
        if not self.rows:
            raise PromptError(f"asked for {n} prompts of none.", fix="Sample before filtering everything out.")
        chosen: set[str] = set()
        for label in dict.fromkeys(self.labels):
            ids = sorted(self._labelled(label).ids, key=lambda name: hashed("sample", str(seed), name))
            if not 1 <= n <= len(ids):
                raise PromptError(f"asked for {n} {label} prompts of {len(ids)}.", fix=f"Ask for 1 to {len(ids)}.")
            chosen.update(ids[:n])
        return _kept(row for row in self.rows if row.id in chosen)

    def __repr__(self) -> str:
        counts = " and ".join(f"{self.labels.count(label)} {label}" for label in LABELS)
        return f"Prompts: {counts}"

    def _labelled(self, label: Label) -> Prompts:
        return _kept(row for row in self.rows if row.label == label)


def hashed(purpose: str, *words: str) -> bytes:
    """A 32-byte key that orders `words` as if at random, the same on every machine, differently for each purpose."""
    return hashlib.sha256(json.dumps([f"refusalscope {purpose}", *words]).encode("ascii")).digest()


def _kept(rows: Iterable[Prompt]) -> Prompts:
    return Prompts(tuple(rows))
