"""The contact sheet of `figures/`: every figure with a caption built from its record, in the order of the notebooks."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from refusalscope.errors import ResultError
from refusalscope.figure_record import Record
from refusalscope.figures import read_manifest, read_record

SHEET = "README.md"
HEAD = """# Figures

Written by `refusalscope figures sheet` from the records beside the pictures, in the order of the notebooks. Do not
edit it: `refusalscope figures check` fails when a caption is not what its record says.
"""


def contact_sheet(root: Path) -> str:
    """The Markdown of the sheet: number, claim, picture, notebook, n and seed of every figure in the manifest.

    Raises:
        ResultError: the manifest or a record cannot be read, or there is no figure.
    """
    names = [row["figure"] for row in read_manifest(root / "figures")]
    if not names:
        raise ResultError(f"{root / 'figures'}: no figures. Run this from a checkout of the repository.")
    records = [read_record(root / "figures" / f"{name}.json") for name in names]
    ordered = sorted(records, key=lambda one: _place(root, one))
    return "\n".join([HEAD, *(_entry(number, one) for number, one in enumerate(ordered, 1))])


def saved_in(notebook: Path) -> list[str]:
    """The figures that a notebook saves, in order: each call of `save` whose second argument is a name in quotes.

    A name that is computed is not seen here, only by `stated_in`.

    Raises:
        ResultError: the file is not a notebook.
    """
    nodes = [node for tree in map(_parsed, code_cells(notebook)) for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and _is_save(node.func)]
    names = [call.args[1] for call in calls if len(call.args) > 1]
    return [name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str)]


def stated_in(notebook: Path) -> dict[str, str]:
    """The claims of the figures that a notebook's stored outputs say it saved, by figure.

    Raises:
        ResultError: the file is not a notebook.
    """
    shown = [
        output.get("data", {}).get("text/plain", "") for cell in code_cells(notebook) for output in cell["outputs"]
    ]
    return dict(hit for text in map("".join, shown) for hit in re.findall(r"^figure (\w+) saved: (.*)$", text, re.M))


def code_cells(notebook: Path) -> list[dict]:
    """The code cells of a notebook (nbformat 4), as JSON.

    Raises:
        ResultError: the file is not a notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [cell for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{notebook}: not a notebook ({type(error).__name__}). Restore it.") from error


def sizes(record: Record) -> str:
    """The n of a record in words: the least and the most of its columns `n`, or why there is none."""
    found = sorted(set(_counts(record)))
    if not found:
        rows = sum(len(table.rows) for table in record.tables.values())
        return f"no n in its record, {counted(rows, 'row')} drawn"
    return f"n = {found[0]}" if len(found) == 1 else f"n from {found[0]} to {found[-1]}"


def counted(number: int, noun: str) -> str:
    """The number with its noun: "1 row", "2 rows"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _counts(record: Record) -> Iterator[int]:
    for table in record.tables.values():
        place = table.columns.index("n") if "n" in table.columns else None
        cells = [] if place is None else [row[place] for row in table.rows]
        yield from (int(cell) for cell in cells if type(cell) in (int, float))  # pyright: ignore[reportArgumentType]


def _place(root: Path, record: Record) -> tuple[str, int, str]:
    """Where a figure stands: its notebook, then where the notebook saves it, then its name."""
    notebook = root / "notebooks" / f"{record.notebook}.ipynb"
    saved = saved_in(notebook) if record.notebook and notebook.is_file() else []
    return record.notebook, saved.index(record.figure) if record.figure in saved else len(saved), record.figure


def _entry(number: int, record: Record) -> str:
    """One figure: the claim as heading and as alternative text, the picture, and where its numbers come from."""
    name, claim = record.figure, _plain(record.claim)
    book = f"[`{record.notebook}`](../notebooks/{record.notebook}.ipynb)" if record.notebook else "no notebook"
    seed = "no seed" if record.seed is None else f"seed {record.seed}"
    files = f"[SVG]({name}.svg), [numbers]({name}.json)"
    return f"## {number}. {claim}\n\n![{claim}]({name}.png)\n\n{book} · {sizes(record)} · {seed} · {files}\n"


def _plain(text: str) -> str:
    """The text with every character that Markdown or HTML would read as its own made to show as it is."""
    return re.sub(r"([\\`*_\[\]<>|$&#~])", r"\\\1", text)


def _parsed(cell: dict) -> ast.Module:
    """The statements of a cell; none when it is not plain Python, which another rule reports."""
    source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def _is_save(function: ast.expr) -> bool:
    return (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")) == "save"
