"""Result files: closed records written at once or not at all, and read strictly or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from refusalscope.errors import ResultError

CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
LINE_WIDTH = 120

T = TypeVar("T")


def to_record(result: object) -> dict[str, Any]:
    """Returns a result as plain JSON values, checked against its own schema once more.

    Raises:
        ResultError: when it holds anything its schema does not: a NaN, another key, a list where a number belongs.
    """
    adapter = TypeAdapter(type(result))
    try:
        text = json.dumps(adapter.dump_python(result, mode="json", warnings=False), allow_nan=False)
        adapter.validate_json(text)
    except (ValidationError, ValueError, TypeError) as error:
        raise ResultError(f"Not a {type(result).__name__}: {_first(error)}.") from error
    return json.loads(text)


def to_json(result: object) -> str:
    """Returns a result as strict JSON, short values on one line each, so that a diff shows what changed."""
    return _laid_out(to_record(result), 0) + "\n"


def read_result(kind: type[T], path: Path | str) -> T:
    """Returns the result of one kind stored in a file.

    Raises:
        ResultError: naming the file and the key, when it cannot be read, a key is unknown, missing or double, or a
            value is outside the closed schema.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        result = TypeAdapter(kind).validate_json(text)
        json.loads(text, object_pairs_hook=single_keys)
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValidationError, ValueError) as error:
        raise ResultError(f"{path}: not a {kind.__name__}: {_first(error)}.") from error
    return result


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content until the new one is on disk; makes its folder.

    Raises:
        ResultError: naming the file, when the folder or the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_through(draft, text)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror or error}).") from error


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of ``path`` at the end, or is gone when anything raises.

    Raises:
        ResultError: naming the folder, when it cannot be written.
    """
    draft, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}") for _ in range(2))
    try:
        draft.mkdir(parents=True)
        yield draft
        if path.exists():
            os.replace(path, old)
        os.replace(draft, path)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for place in (draft, old):
            shutil.rmtree(place, ignore_errors=True)


def _write_through(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _laid_out(value: object, indent: int) -> str:
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, dict | list) or len(line) + indent <= LINE_WIDTH:
        return line
    pad = "\n" + " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_laid_out(item, indent + 1)}" for key, item in value.items()]
    else:
        items = [_laid_out(item, indent + 1) for item in value]
    return line[0] + pad + f",{pad}".join(items) + "\n" + " " * indent + line[-1]


def single_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns the pairs as a dictionary; the standard library would keep the last of a double key in silence.

    Raises:
        ValueError: naming the key that occurs twice.
    """
    if len(dict(pairs)) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return dict(pairs)


def _first(error: Exception) -> str:
    """Where the first problem is and what it is, without the value: it may be long."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else problem["msg"]
