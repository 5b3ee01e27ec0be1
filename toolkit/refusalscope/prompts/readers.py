"""Prompt sets on disk, one reader per kind. The standard library accepts far more than a row; these do not."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from refusalscope.prompts.lines import LINE_LIMIT, Place, Row, lines, quoted
from refusalscope.prompts.rules import OPTIONAL, Draft, check_header, draft, refuse_repeated
from refusalscope.prompts.tables import SEVERAL, STATE, dataset_rows, parquet_rows

Lines = Iterator[tuple[Place, str]]

_ONE_OBJECT = 'Write one object per line, like {"id": "r1", "label": "restricted", ...}.'
_CLOSE_QUOTES = 'Close every quote, write a quote inside quotes as "", and save as comma-separated UTF-8.'


def read_drafts(path: Path) -> list[Draft]:
    """The checked rows of a file, or of a directory written by `datasets.save_to_disk`, in order; all or none.

    Raises:
        PromptError: for the first thing wrong, with its line.
    """
    try:
        return [draft(row) for row in _rows(path)]
    except OSError as error:
        raise Place(path).error(f"cannot be read ({error.strerror}).", "Check the path and its permissions.") from error


def _rows(path: Path) -> Iterator[Row]:
    if (path / STATE).is_file() or (path / SEVERAL).is_file():
        return dataset_rows(path)
    if path.suffix.lower() not in READERS:
        problem = f"{quoted(path.suffix)} is not a prompt file."
        raise Place(path).error(problem, f"Use one of {', '.join(READERS)}, or a directory saved by datasets.")
    _refuse_missing(path)
    return READERS[path.suffix.lower()](path)


def _refuse_missing(path: Path) -> None:
    if path.is_file():
        return
    if path.exists():
        raise Place(path).error("is not a file.", "Name a file, or a directory written by datasets.save_to_disk.")
    siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    likely = get_close_matches(path.name, [one for one in siblings if Path(one).suffix.lower() in READERS])
    hint = f"Did you mean {' or '.join(map(quoted, likely))}?" if likely else "Check the path."
    raise Place(path).error("there is no such file.", hint)


def jsonl_rows(numbered: Lines) -> Iterator[Row]:
    """One row per line, each a JSON value without repeated keys, NaN or Infinity."""
    for at, text in numbered:
        yield Row(at, _json_value(text, at=at))


def _json_value(text: str, *, at: Place) -> object:
    if not text.strip():
        raise at.error("the line is empty.", "Remove it.")
    unique, constant = partial(_unique, at=at), partial(_refuse_constant, at=at)
    try:
        # parse_int: an integer of 5000 digits would raise in `int`, and every number is refused later anyway.
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=float)
    except json.JSONDecodeError as error:
        raise at.error(f"not JSON: {error.msg} at column {error.colno}.", _ONE_OBJECT) from error
    except RecursionError as error:
        raise at.error("the JSON is nested too deeply.", _ONE_OBJECT) from error


def _unique(pairs: list[tuple[str, Any]], *, at: Place) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    refuse_repeated(keys, kind="key", at=at)
    return dict(pairs)


def _refuse_constant(name: str, *, at: Place) -> NoReturn:
    raise at.error(f"{name} is not JSON.", "Write the value as text in quotes, or leave the key out.")


def csv_rows(numbered: Lines) -> Iterator[Row]:
    r"""One row per record under a header; its place is the line where the record starts.

    An empty optional field means none. A line end inside a quoted field is read as `\n`, so that a checkout
    with other line ends holds the same prompts.
    """
    records = iter(_Records(numbered))
    first = next(records, None)
    if first is None:
        return
    header = first[1]
    check_header(header, at=first[0])
    for at, fields in records:
        if not fields:
            raise at.error("the line is empty.", "Remove it.")
        if len(fields) != len(header):
            problem = f"the row has {len(fields)} fields, the header has {len(header)}."
            raise at.error(problem, "Give every row one field per column, and quote texts that hold commas.")
        given = zip(header, fields, strict=True)
        yield Row(at, {name: None if name in OPTIONAL and value == "" else value for name, value in given})


class _Records:
    """CSV records with the place where each starts. Bounds the record too: quotes let one span any number of lines."""

    def __init__(self, numbered: Lines) -> None:
        self._numbered, self._size = numbered, 0
        self._reader = csv.reader(self._physical(), strict=True)

    def _physical(self) -> Iterator[str]:
        for at, text in self._numbered:
            self._start = self._start if self._size else at
            self._size += len(text) + 1
            if self._size > LINE_LIMIT + 1:
                raise self._start.error(f"the row is longer than the limit of {LINE_LIMIT} bytes.", _CLOSE_QUOTES)
            yield text + "\n"

    def __iter__(self) -> Iterator[tuple[Place, list[str]]]:
        while True:
            self._size = 0
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._start.error(f"not CSV: {error}.", _CLOSE_QUOTES) from error
            yield self._start, fields


def _from_lines(rows: Callable[[Lines], Iterator[Row]], path: Path) -> Iterator[Row]:
    with path.open("rb") as handle:
        yield from rows(lines(handle, file=path))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": partial(_from_lines, jsonl_rows),
    ".csv": partial(_from_lines, csv_rows),
    ".parquet": parquet_rows,
}
