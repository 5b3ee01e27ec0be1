"""Prompt tables: Parquet files, and directories written by `datasets.save_to_disk`. Nothing of them is executed.

A table has no lines: the line in an error is its row, counted from one, as it is for rows held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from refusalscope.prompts.lines import LINE_LIMIT, Place, Row, quoted
from refusalscope.prompts.rules import check_header

STATE, SEVERAL = "state.json", "dataset_dict.json"
TOGETHER = 256

_SAVE_AGAIN = "Save the table again, or write it as .jsonl."


def parquet_rows(path: Path) -> Iterator[Row]:
    """One row per row of a Parquet file; a null is a missing value, and every other value stays what it is.

    Raises:
        PromptError: where pyarrow is not installed, the file is damaged, or a column or a value is not allowed.
    """
    parquet = _needed("pyarrow.parquet", "pyarrow", at=Place(path))
    with _readable(path), parquet.ParquetFile(path) as file:
        check_header(file.schema_arrow.names, at=Place(path))
        yield from _rows(path, file.iter_batches(batch_size=TOGETHER), named={})


def dataset_rows(path: Path) -> Iterator[Row]:
    """One row per row of a dataset in a directory, in its saved order; a class label is read as its name.

    Raises:
        PromptError: where datasets is not installed, or the directory holds several datasets, files from elsewhere,
            or a damaged one; and as `parquet_rows` does.
    """
    if (path / SEVERAL).is_file():
        inside = ", ".join(sorted(one.name for one in path.iterdir() if (one / STATE).is_file())) or "none"
        raise Place(path).error(f"holds several datasets ({inside}).", "Name the folder of one of them.")
    if not _files(path):
        return  # datasets cannot read what it saved of no rows
    datasets = _needed("datasets", "datasets", at=Place(path))
    with _readable(path):
        saved = datasets.Dataset.load_from_disk(str(path), keep_in_memory=False)
        check_header(saved.column_names, at=Place(path))
        named = {name: kind.int2str for name, kind in saved.features.items() if isinstance(kind, datasets.ClassLabel)}
        # As Arrow: any other format may decode what a column points at, such as an image.
        batches = saved.with_format("arrow").iter(batch_size=TOGETHER)
        yield from _rows(path, batches, named=named)


def _rows(path: Path, batches: Iterable[Any], *, named: Mapping[str, Callable[[int], str]]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in _batch(batch, at=Place(path, number + 1)):
            number += 1
            at = Place(path, number)
            _refuse_long(values, at=at)
            yield Row(at, {name: _name(named.get(name), value, at=at) for name, value in values.items()})


def _batch(batch: Any, *, at: Place) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        raise at.error("a text in this row, or one of the next, is not UTF-8.", "Save the texts as UTF-8.") from error


def _refuse_long(values: Mapping[str, Any], *, at: Place) -> None:
    size = sum(len(value) for value in values.values() if isinstance(value, str | bytes))
    if size > LINE_LIMIT:
        raise at.error(f"the row is longer than the limit of {LINE_LIMIT} characters.", "Write one prompt per row.")


def _name(names: Callable[[int], str] | None, value: Any, *, at: Place) -> Any:
    if names is None or not isinstance(value, int):
        return value
    try:
        return names(value)
    except (ValueError, IndexError) as error:
        raise at.error(f"class label {value} has no name.", "Give the label as text.") from error


def _files(path: Path) -> list[str]:
    """The names of the files a saved dataset consists of, all of them inside its directory."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        files = [str(one["filename"]) for one in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Place(path).error(f"{STATE} does not describe a saved dataset.", _SAVE_AGAIN) from error
    for file in files:
        inside = Path(file).name == file and (path / file).resolve().parent == path.resolve()
        if not inside or not (path / file).is_file():
            problem = f"{STATE} names {quoted(file)}, which is not a file of this directory."
            raise Place(path).error(problem, _SAVE_AGAIN)
    return files


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what the readers raise for damaged files into one line."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = quoted(" ".join(str(error).split()) or type(error).__name__)
        raise Place(path).error(f"is damaged, or no table ({reason}).", _SAVE_AGAIN) from error


def _needed(module: str, package: str, *, at: Place) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        problem, fix = f"reading it needs the package {package!r}.", f"Run: pip install {package}"
        raise at.error(problem, f"{fix}. Or write the set as .jsonl or .csv.") from error
