"""What a row must be, and what rows must be together, before they count as a contrast set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TypeVar

from refusalscope.prompts.folding import fold
from refusalscope.prompts.lines import Place, Row, quoted
from refusalscope.prompts.prompt import LABELS, SPLITS, Label, Split

REQUIRED = ("id", "label", "category", "cluster", "text")
OPTIONAL = ("split", "pair")
COLUMNS = ("id", "label", "category", "cluster", "split", "text", "pair")

_KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "an array"}
_KINDS |= {type(None): "null"}
_Word = TypeVar("_Word", bound=str)


class Draft(NamedTuple):
    """A row whose own fields are in order; its split may still have to be made."""

    place: Place
    id: str
    label: Label
    category: str
    cluster: str
    split: Split | None
    text: str
    pair: str | None


def draft(row: Row) -> Draft:
    """The row as checked fields.

    Raises:
        PromptError: for a missing or unknown column, a field that is not a string, or a value that is not allowed.
    """
    at, values = row
    if not isinstance(values, Mapping):
        raise at.error(f"the row is {_kind(values)}, not an object.", f"Write the columns {', '.join(COLUMNS)}.")
    check_columns(values, at=at)
    fields = {name: _string(values.get(name), name=name, at=at) for name in COLUMNS}
    return Draft(
        place=at,
        id=_name(fields["id"], column="id", at=at),
        label=_one_of(LABELS, fields["label"], column="label", at=at),
        category=_name(fields["category"], column="category", at=at),
        cluster=_name(fields["cluster"], column="cluster", at=at),
        split=None if fields["split"] is None else _one_of(SPLITS, fields["split"], column="split", at=at),
        text=_text(fields["text"], at=at),
        pair=None if fields["pair"] is None else _name(fields["pair"], column="pair", at=at),
    )


def check_columns(names: Iterable[object], *, at: Place) -> None:
    """Returns nothing; the schema is closed, so that a misspelt column is an error rather than a default.

    Raises:
        PromptError: for a column that is unknown or missing.
    """
    names = list(names)
    missing = [name for name in REQUIRED if name not in names]
    for name in names:
        if name not in COLUMNS:
            likely = get_close_matches(str(name)[:60].strip().lower(), COLUMNS, n=1)
            hint = f"Did you mean {likely[0]!r}? " if likely else ""
            lacking = f"; missing column {', '.join(map(repr, missing))}" if missing else ""
            problem = f"unknown column {quoted(str(name))}{lacking}."
            raise at.error(problem, f"{hint}The columns are {', '.join(COLUMNS)}.")
    if missing:
        found = f"there is {', '.join(map(str, names)) or 'none'}"
        raise at.error(f"missing column {', '.join(map(repr, missing))}; {found}.", f"Add {', '.join(missing)}.")


def check_header(names: Sequence[str], *, at: Place) -> None:
    """Returns nothing; a header that passes names every column once, as `check_columns` wants them.

    Raises:
        PromptError: for a column that is unnamed, repeated, unknown or missing.
    """
    if "" in names or not names:
        raise at.error("a column of the header has no name.", f"Name the columns {', '.join(COLUMNS)}.")
    refuse_repeated(names, kind="column", at=at)
    check_columns(names, at=at)


def refuse_repeated(names: Sequence[str], *, kind: str, at: Place) -> None:
    """Returns nothing. Raises PromptError for a key or column that occurs twice: one of the two would be lost."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise at.error(f"{kind} {quoted(name)} appears twice.", f"Keep one {kind} {quoted(name)}.")
        seen.add(name)


def check_together(drafts: Sequence[Draft], *, file: Path | str) -> None:
    """Returns nothing; a set that passes has no repeated id or text, no broken pair, and both labels in every split.

    Raises:
        PromptError: at the line of the second of two rows that contradict each other.
    """
    if not drafts:
        raise Place(file).error("the file holds no prompts.", "Add restricted and harmless prompts.")
    _check_split_given_to_all_or_none(drafts)
    _check_ids(drafts)
    _check_texts(drafts)
    _check_pairs(drafts)
    _check_labels(drafts, file=file)


def _check_split_given_to_all_or_none(drafts: Sequence[Draft]) -> None:
    first = drafts[0]
    for row in drafts:
        if (row.split is None) != (first.split is None):
            has, had = ("no split", "one") if row.split is None else ("a split", "none")
            problem = f"prompt {quoted(row.id)} has {has}, prompt {quoted(first.id)} has {had}."
            raise row.place.error(problem, "Give every prompt a split, or none.")


def _check_ids(drafts: Sequence[Draft]) -> None:
    seen: dict[str, Draft] = {}
    for row in drafts:
        if row.id in seen:
            problem = f"duplicate id {quoted(row.id)}, first on line {seen[row.id].place.line}."
            raise row.place.error(problem, "Give every prompt its own id.")
        seen[row.id] = row


def _check_texts(drafts: Sequence[Draft]) -> None:
    seen: dict[str, Draft] = {}
    for row in drafts:
        first = seen.setdefault(fold(row.text), row)
        if first is row:
            continue
        where = f"line {first.place.line}" + (f" in split {first.split!r}" if first.split != row.split else "")
        problem = f"prompt {quoted(row.id)} has the same text as {quoted(first.id)} on {where}, up to case and spacing."
        raise row.place.error(problem, "Remove one of the two.")


def _check_pairs(drafts: Sequence[Draft]) -> None:
    by_id = {row.id: row for row in drafts}
    for row in drafts:
        if row.pair is None:
            continue
        pair, other = f"pair {quoted(row.pair)} of {quoted(row.id)}", by_id.get(row.pair)
        if other is None:
            likely = get_close_matches(row.pair[:60], by_id, n=1)
            hint = f"Did you mean {quoted(likely[0])}?" if likely else "Name a prompt of this set, or leave pair out."
            raise row.place.error(f"{pair} is unknown.", hint)
        if other.label == row.label:
            raise row.place.error(f"{pair} is {row.label} too.", "Pair a restricted prompt with a harmless one.")
        if other.split != row.split:
            problem = f"{pair} is in split {other.split!r}, not {row.split!r}."
            raise row.place.error(problem, "Put both in one split; apart, one leaks what the other is about.")


def _check_labels(drafts: Sequence[Draft], *, file: Path | str) -> None:
    for label in LABELS:
        if all(row.label != label for row in drafts):
            raise Place(file).error(f"the set has no {label} prompts.", f"Add {label} prompts.")
    for split in SPLITS if drafts[0].split is not None else ():
        inside = [row for row in drafts if row.split == split]
        for label in LABELS:
            if all(row.label != label for row in inside):
                at = inside[0].place if inside else Place(file)
                raise at.error(f"split {split!r} has no {label} prompts.", f"Add at least 1 {label} prompt to {split}.")


def _string(value: object, *, name: str, at: Place) -> str | None:
    if value is None and name in OPTIONAL:
        return None
    if not isinstance(value, str):
        or_out = ", or leave it out" if name in OPTIONAL else ""
        raise at.error(f"{name!r} is {_kind(value)}, not a string.", f"Write {name} as text in quotes{or_out}.")
    return str(value)


def _kind(value: object) -> str:
    if isinstance(value, float) and value != value:
        return "NaN"
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


def _name(value: str | None, *, column: str, at: Place) -> str:
    if not value or not value.isprintable() or value != value.strip():
        problem = f"{column} {quoted(value or '')} is empty, has spaces at an end, or holds invisible characters."
        raise at.error(problem, f"Write {column} as visible characters.")
    return value


def _one_of(allowed: Sequence[_Word], value: str | None, *, column: str, at: Place) -> _Word:
    for word in allowed:
        if value == word:
            return word
    raise at.error(f"unknown {column} {quoted(value or '')}.", f"Use one of {', '.join(allowed)}.")


def _text(value: str | None, *, at: Place) -> str:
    if value is not None and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise at.error("text holds a NUL or half of a surrogate pair.", "Remove the character, and save as UTF-8.")
    if value is None or not fold(value):
        raise at.error("text is empty.", "Write the prompt, or remove the row.")
    return value
