"""A crate read from its folder, strictly: what is no JSON is an error, what has not the shape of its kind a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from refusalscope.crate.given import METADATA
from refusalscope.crate.schema import CONTEXT, Entity, read
from refusalscope.errors import ResultError
from refusalscope.figure_check import Fault
from refusalscope.results.files import single_keys

AGAIN = "Run `refusalscope reproduce` again."
Kind = TypeVar("Kind", bound=Entity)
Raw = dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """A crate's entities, by identifier.

    Attributes:
        folder: where the crate lies.
        root: the checkout it speaks of.
        raw: every entity that has an identifier, as it stands there.
        good: those with the shape of their kind.
        faults: what the others lack.
    """

    folder: Path
    root: Path
    raw: dict[str, Raw]
    good: dict[str, Entity]
    faults: tuple[Fault, ...]

    def all(self, kind: type[Kind]) -> list[Kind]:
        """Returns the entities of a kind or of a narrower one."""
        return [entity for entity in self.good.values() if isinstance(entity, kind)]


def read_crate(folder: Path, root: Path) -> Graph:
    """Returns the crate in a folder.

    Raises:
        ResultError: its metadata is missing, or no JSON of a crate.
    """
    rows = _rows(folder / METADATA)
    names = [str(row.get("@id", "")) for row in rows]
    raw = {name: row for name, row in zip(names, rows, strict=True) if name}
    found = [Fault(name, "@id", "two entities have it", AGAIN) for name in sorted(raw) if names.count(name) > 1]
    good: dict[str, Entity] = {}
    for number, row in enumerate(rows, 1):
        entity, lacking = read(row)
        called = str(row.get("@id") or row.get("name") or f"entity {number} of @graph")
        found += [Fault(called, field, problem, AGAIN) for field, problem in lacking]
        good |= {} if entity is None else {entity.id: entity}
    return Graph(folder, root, raw, good, tuple(found))


def references(value: Any) -> Iterator[str]:
    """Yields every identifier that a field refers to."""
    if isinstance(value, dict):
        yield from [str(value["@id"])] if "@id" in value else []
    elif isinstance(value, list):
        yield from (name for one in value for name in references(one))


def _rows(file: Path) -> list[Raw]:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=single_keys)
    except OSError as error:
        raise ResultError(f"{file}: cannot be read ({error.strerror or error}). {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{file}: not JSON ({error}). {AGAIN}") from error
    for key in ("@context", "@graph"):
        if not isinstance(metadata, dict) or key not in metadata:
            raise ResultError(f"{file}: {key} is missing. {AGAIN}")
    rows = metadata["@graph"]
    if metadata["@context"] != CONTEXT or set(metadata) != {"@context", "@graph"}:
        raise ResultError(f"{file}: @context is not {CONTEXT} alone. {AGAIN}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ResultError(f"{file}: @graph is not a list of entities. {AGAIN}")
    return rows
