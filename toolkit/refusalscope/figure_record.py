"""The numbers under a figure as a closed record: written with six digits, read strictly, compared within tolerances."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from refusalscope.errors import ResultError
from refusalscope.reprs import Shown

MAX_ROWS, MAX_COLUMNS, MAX_TABLES = 5000, 24, 12
DIGITS, RELATIVE, ABSOLUTE = 6, 1e-3, 1e-3
CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=80)]
Line = Annotated[str, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$", max_length=300)]
Short = Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=120)]
Cell = bool | int | float | Short | None


@dataclass(frozen=True, repr=False, config=CLOSED)
class Table(Shown):
    """A tidy frame as plain cells. `tolerance`: column to the absolute difference that `compare` lets pass."""

    columns: Annotated[tuple[Short, ...], Field(min_length=1, max_length=MAX_COLUMNS)]
    tolerance: dict[Short, Annotated[float, Field(ge=0)]]
    rows: Annotated[tuple[tuple[Cell, ...], ...], Field(min_length=1, max_length=MAX_ROWS)]

    def __post_init__(self) -> None:
        """Refuses columns that repeat, rows of another width, and a tolerance for no column."""
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns repeat: {list(self.columns)}")
        if bad := [number for number, row in enumerate(self.rows) if len(row) != len(self.columns)]:
            raise ValueError(f"row {bad[0]} does not have {len(self.columns)} cells")
        if unknown := sorted(set(self.tolerance) - set(self.columns)):
            raise ValueError(f"tolerance for {unknown}, not among the columns {list(self.columns)}")


@dataclass(frozen=True, repr=False, config=CLOSED)
class Record(Shown):
    """The numbers under a figure: scalars, short strings and None, in bounded tables under closed keys.

    Args:
        schema: version of this schema.
        claim: what the figure shows, one line, without digits that could wobble.
        seed: the seed that was applied; None where nothing was random.
    """

    schema: Literal[1]
    figure: Name
    claim: Line
    notebook: Short
    seed: int | None
    tables: Annotated[dict[Name, Table], Field(min_length=1, max_length=MAX_TABLES)]

    def to_json(self) -> str:
        """Strict JSON with one row of a table per line, so that a diff shows rows."""
        heads = ("schema", "figure", "claim", "notebook", "seed")
        lines = [f"{_dump(key)}: {_dump(getattr(self, key))}" for key in heads]
        tables = ",\n".join(f"{_dump(name)}: {_table_json(table)}" for name, table in self.tables.items())
        return "{\n" + ",\n".join((*lines, f'"tables": {{\n{tables}\n}}')) + "\n}\n"


def make_record(
    name: str,
    tables: Mapping[str, pd.DataFrame],
    *,
    claim: str,
    notebook: str = "",
    seed: int | None = None,
    tolerance: Mapping[str, float],
) -> Record:
    """The checked record of the frames: floats at six significant digits, a nan as None.

    Args:
        tables: frames without a named index, which would be lost.
        tolerance: column to absolute tolerance, in every table that has the column.

    Raises:
        ResultError: a cell that is no scalar, an infinite number, or more rows, columns or text than the bounds allow.
    """
    if unknown := sorted(set(tolerance) - {column for frame in tables.values() for column in frame.columns}):
        raise ResultError(f"tolerance names {unknown}: no frame has such a column.")
    try:
        made = {key: _table(frame, tolerance) for key, frame in tables.items()}
        return Record(schema=1, figure=name, claim=claim, notebook=notebook, seed=seed, tables=made)
    except ValidationError as error:
        raise ResultError(f"Not a figure record: {_first(error)}.") from error


def read_record(path: Path | str) -> Record:
    """The record that `figures.save` wrote.

    Raises:
        ResultError: it cannot be read, a key is unknown, missing or double, or a value is outside the closed schema.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        record = TypeAdapter(Record).validate_json(text)
        json.loads(text, object_pairs_hook=_single_keys)
    except ValidationError as error:
        raise ResultError(f"{path} is not a figure record: {_first(error)}.") from error
    except (OSError, ValueError) as error:
        raise ResultError(f"Cannot read the figure record {path}: {error}.") from error
    return record


def compare(record_a: Record, record_b: Record) -> list[str]:
    """The differences between two records, in words; empty when there are none.

    With a tolerance t for the column, numbers agree when |a − b| <= t. Without, a float agrees within 1e-3 plus 1e-3 of
    the larger; integers, strings, flags and None agree only when equal. A changed tolerance is itself a difference.
    """
    heads = ((key, getattr(record_a, key), getattr(record_b, key)) for key in ("figure", "claim", "notebook", "seed"))
    found = [f"{key}: {a!r} became {b!r}" for key, a, b in heads if a != b]
    if set(record_a.tables) != set(record_b.tables):
        found.append(f"tables: {sorted(record_a.tables)} became {sorted(record_b.tables)}")
    shared = [name for name in record_a.tables if name in record_b.tables]
    return found + [f"{n}: {line}" for n in shared for line in _changes(record_a.tables[n], record_b.tables[n])]


def _changes(a: Table, b: Table) -> list[str]:
    """What differs between two tables: their shape, or else each cell beyond its tolerance."""
    shapes = (("columns", a.columns, b.columns), ("tolerance", a.tolerance, b.tolerance))
    shapes = (*shapes, ("number of rows", len(a.rows), len(b.rows)))
    if found := [f"{key}: {x} became {y}" for key, x, y in shapes if x != y]:
        return found
    rows = enumerate(zip(a.rows, b.rows, strict=True))
    cells = [(number, *cell) for number, pair in rows for cell in zip(a.columns, *pair, strict=True)]
    changed = ((n, key, x, y) for n, key, x, y in cells if not _same(x, y, a.tolerance.get(key)))
    return [f"row {number}, {key}: {x!r} became {y!r}" for number, key, x, y in changed]


def _same(a: Cell, b: Cell, tolerance: float | None) -> bool:
    """Equal in type and value; or two numbers within the tolerance given, else, with a float, the default one."""
    exact = tolerance is None and type(a) is type(b) is int
    if exact or not (_is_number(a) and _is_number(b)):
        return type(a) is type(b) and a == b
    x, y = float(a), float(b)  # pyright: ignore[reportArgumentType]
    near = ABSOLUTE + RELATIVE * max(abs(x), abs(y)) if tolerance is None else tolerance
    return abs(x - y) <= near


def _is_number(cell: Cell) -> bool:
    return type(cell) in (int, float)


def _table(frame: pd.DataFrame, tolerance: Mapping[str, float]) -> Table:
    """The frame as a checked table; a named index is refused, because it would be lost."""
    if named := [name for name in frame.index.names if name is not None]:
        raise ResultError(f"The index {named} would not be saved. Call reset_index() on the frame first.")
    own = {column: bound for column, bound in tolerance.items() if column in frame.columns}
    rows = frame.itertuples(index=False, name=None)
    cells = tuple(tuple(_cell(cell, key) for cell, key in zip(row, frame.columns, strict=True)) for row in rows)
    return Table(columns=tuple(frame.columns), tolerance=own, rows=cells)


def _cell(value: object, column: object) -> Cell:
    """A plain scalar: floats at six significant digits, missing as None."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, bool | int | str):
        return value
    raise ResultError(f"Column {column!r} holds a {type(value).__name__}: a record takes numbers, short text and None.")


def _table_json(table: Table) -> str:
    columns, tolerance, rows = astuple(table)
    lines = ",\n".join(map(_dump, rows))
    return f'{{"columns": {_dump(columns)}, "tolerance": {_dump(tolerance)}, "rows": [\n{lines}\n]}}'


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _single_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The pairs as a dictionary; the standard library would keep the last of a double key in silence."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"a key is double among {[key for key, _ in pairs]}")
    return dict(pairs)


def _first(error: ValidationError) -> str:
    """Where the first problem is and what it is, without the value: it may be long.

    The deepest one, as those around it follow from it; a cell may be of several types, and each that it is not counts
    as a problem: these come last.
    """
    problems = error.errors(include_url=False, include_input=False)
    problem = min(problems, key=lambda one: (-len(one["loc"]), one["type"].endswith("_type")))
    return ".".join(map(str, problem["loc"])) + ": " + problem["msg"]
