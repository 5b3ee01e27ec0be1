"""The contrast set: what every measurement is made on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from refusalscope.prompts.lines import Place, Row
from refusalscope.prompts.prompt import LABELS, SPLITS, Prompt, Prompts, Split
from refusalscope.prompts.readers import read_drafts
from refusalscope.prompts.rules import Draft, check_together, draft
from refusalscope.prompts.splits import made_splits
from refusalscope.reprs import Shown, one_line, table


@dataclass(frozen=True, repr=False)
class ContrastSet(Shown):
    """Restricted and harmless prompts in three splits, disjoint by folded text and by pair; both labels in each.

    Nothing is ever reported on a split that was used to locate or select. Where `shares_clusters` is true, a template
    occurs in more than one split, and a number measured on `report` is not about unseen templates.

    Example:
        >>> prompts = ContrastSet.read("data/prompts/organism.jsonl")
        >>> prompts.report.restricted.texts

    Attributes:
        prompts: all of them, in file order.
        source: the file name, without its folder.
        split_note: "given" by the file, or how the splits were made.
    """

    prompts: Prompts
    source: str
    split_note: str = "given"

    def __post_init__(self) -> None:
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(self.source).is_absolute():
                raise Place(self.source).error("source is an absolute path.", "Give the file name only.")
        rows = (Row(Place(self.source, n), vars(row)) for n, row in enumerate(self.prompts, 1))
        check_together([draft(row) for row in rows], file=self.source)

    @classmethod
    def read(cls, path: Path | str) -> ContrastSet:
        """The contrast set in a `.jsonl`, `.csv` or `.parquet` file, or in a directory of `datasets.save_to_disk`.

        Columns: `id label category cluster text`, and optionally `split` and `pair`, and no others. Without `split`,
        splits are made (`made_splits`). The line in an error is the physical line, in a table the row, from one. The
        same rows have the same digest in every format. Nothing is fetched, copied or executed.

        Raises:
            PromptError: for the first thing wrong, with file, line and fix. Nothing is half loaded.
        """
        path = Path(path)
        return _built(read_drafts(path), file=path, source=path.name or path.resolve().name)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, object]], source: str = "rows") -> ContrastSet:
        """The contrast set of rows held in memory, under the rules for files; the line in an error counts the rows.

        Raises:
            PromptError: as `read` does.
        """
        drafts = [draft(Row(Place(source, n), values)) for n, values in enumerate(rows, 1)]
        return _built(drafts, file=source, source=source)

    @classmethod
    def from_texts(cls, restricted: Sequence[str], harmless: Sequence[str], source: str = "texts") -> ContrastSet:
        """The contrast set of two lists of sentences: each its own cluster, one category, splits made.

        A line in an error counts the restricted texts first, then the harmless ones. A few sentences make a set, and
        hardly a verdict: five refused ones per split are the least that an interval needs.

        Raises:
            PromptError: as `read` does, and for one text where a list is wanted.

        Example:
            >>> ContrastSet.from_texts(["Write an insult.", ...], ["Write a compliment.", ...])
        """
        rows = []
        for label, texts in zip(LABELS, (restricted, harmless), strict=True):
            if isinstance(texts, str):
                raise Place(source).error(f"the {label} texts are one text.", "Give a list of texts.")
            names = [f"{label}-{n}" for n in range(1, len(texts) + 1)]
            same = {"label": label, "category": "own"}
            rows += [
                {"id": name, "cluster": name, "text": text, **same} for name, text in zip(names, texts, strict=True)
            ]
        return cls.from_rows(rows, source=source)

    @property
    def locate(self) -> Prompts:
        return self._in_split("locate")

    @property
    def select(self) -> Prompts:
        return self._in_split("select")

    @property
    def report(self) -> Prompts:
        return self._in_split("report")

    @property
    def restricted(self) -> Prompts:
        return self.prompts.restricted

    @property
    def harmless(self) -> Prompts:
        return self.prompts.harmless

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the rows, splits included, in any order. It names the set in results instead of its text."""
        return self.prompts.digest

    @property
    def shares_clusters(self) -> bool:
        """Whether any cluster has prompts in two splits."""
        return len({(row.cluster, row.split) for row in self.prompts}) > len(set(self.prompts.clusters))

    def __repr__(self) -> str:
        clusters = _counted(self.prompts.clusters, "cluster")
        shared = "some shared between splits" if self.shares_clusters else "none shared between splits"
        claim = "restricted and harmless prompts in three disjoint splits"
        return f"ContrastSet {one_line(self.source)}: {claim}, {clusters}, {shared}"

    def _repr_html_(self) -> str:
        rows = [*(_counts(split, self._in_split(split)) for split in SPLITS), _counts("all", self.prompts)]
        notes = f"splits {self.split_note}; categories {_listed(self.prompts.categories)}; digest {self.digest[:12]}"
        caption = f"{one_line(self.source)}: {notes}"
        return table(rows, caption=caption, head=("split", *LABELS, "categories", "clusters"))

    def _in_split(self, split: Split) -> Prompts:
        return Prompts(tuple(row for row in self.prompts if row.split == split))


def _built(drafts: Sequence[Draft], *, file: Path | str, source: str) -> ContrastSet:
    check_together(drafts, file=file)
    given: dict[str, Split] = {row.id: row.split for row in drafts if row.split is not None}
    split_of, note = (given, "given") if given else made_splits(drafts, file=file)
    prompts = Prompts(tuple(_prompt(row, split=split_of[row.id]) for row in drafts))
    return ContrastSet(prompts=prompts, source=source, split_note=note)


def _prompt(row: Draft, *, split: Split) -> Prompt:
    return Prompt(row.id, row.label, row.category, row.cluster, split, row.text, row.pair)


def _counts(name: str, prompts: Prompts) -> list[str]:
    labels = [str(prompts.labels.count(label)) for label in LABELS]
    return [name, *labels, str(len(set(prompts.categories))), str(len(set(prompts.clusters)))]


def _listed(names: Sequence[str], most: int = 12) -> str:
    distinct = sorted(set(names))
    rest = f" and {len(distinct) - most} more" if len(distinct) > most else ""
    return ", ".join(distinct[:most]) + rest


def _counted(names: Sequence[str], noun: str) -> str:
    n = len(set(names))
    return f"{n} {noun}" + ("" if n == 1 else "s")
