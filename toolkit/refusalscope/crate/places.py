"""Text without the places of one machine: what lies in the checkout is named from its root, all else by last name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ELSEWHERE = "…/"
COLOUR = r"\x1b\[[\d;]*m"
PATH = re.compile(
    rf"(?:file://|{COLOUR}|(?<![\w.<+/~…]))/(?:[\w.@+-]+/)+(?P<name>[\w.@+-]*)"
    r"|\b[A-Z]:\\(?:[^\\\s'\"]+\\)*(?P<last>[^\\\s'\"]*)"
)


def portable(text: str, root: Path) -> str:
    """Returns a text in which no absolute path is left: relative below ``root``, else ``…/`` and the last name."""
    for place, short in ((str(root), "."), (str(Path.home()), "~")):
        if len(place) > 1:
            text = re.sub(rf"(?:file://)?{re.escape(place)}(?![\w-])", short, text)
    return PATH.sub(lambda found: ELSEWHERE + (found["name"] or found["last"] or ""), text)


def portable_notebook(notebook: dict, root: Path) -> dict:
    """Returns an executed notebook (nbformat 4, as JSON) whose outputs and metadata hold no absolute path.

    The source of its cells stays as it is: that is the checkout's own.
    """
    cells = [_outside_source(cell, lambda text: portable(text, root)) for cell in notebook["cells"]]
    rest = {key: value for key, value in notebook.items() if key != "cells"}
    return {"cells": cells, **_mapped(rest, lambda text: portable(text, root))}


def paths(value: Any) -> list[str]:
    """Returns the absolute paths in any text of a JSON value."""
    return [found[0] for text in _texts(value) for found in PATH.finditer(text)]


def paths_in_notebook(notebook: dict) -> list[str]:
    """Returns the absolute paths in the outputs and the metadata of a notebook."""
    cells = [{key: value for key, value in cell.items() if key != "source"} for cell in notebook.get("cells", [])]
    return paths({**notebook, "cells": cells})


def _outside_source(cell: dict, change: Callable[[str], str]) -> dict:
    return {key: value if key == "source" else _mapped(value, change) for key, value in cell.items()}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text changed, pictures apart."""
    if isinstance(value, dict):
        return {key: one if key.startswith("image/") else _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [_mapped(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (text for key, one in value.items() if not key.startswith("image/") for text in _texts(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in _texts(one))
    elif isinstance(value, str):
        yield value
