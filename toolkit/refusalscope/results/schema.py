"""The published schemas: what a stored result may hold, as JSON Schema, for readers in any language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from refusalscope.results.audit import AuditResult
from refusalscope.results.files import write_text
from refusalscope.results.stored import GuardrailCard, SelectionResult

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PUBLISHED = {
    "audit.schema.json": AuditResult,
    "card.schema.json": GuardrailCard,
    "selection.schema.json": SelectionResult,
}


def schema(kind: type) -> dict[str, Any]:
    """Returns the JSON Schema of a result: closed, every key declared. Pydantic checks a little more."""
    return {"$schema": DIALECT} | TypeAdapter(kind).json_schema()


def publish(folder: Path | str) -> list[Path]:
    """Writes the schemas of all stored results into a folder and returns their paths. Raises ResultError."""
    paths = []
    for name, kind in PUBLISHED.items():
        write_text(path := Path(folder) / name, json.dumps(schema(kind), indent=1, sort_keys=True) + "\n")
        paths.append(path)
    return paths
