"""What a run is given: the checkout's files, named by digest, and the parameters of each notebook."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path, PurePosixPath

from refusalscope.errors import ResultError
from refusalscope.figure_sheet import code_cells

METADATA, PINS = "ro-crate-metadata.json", "constraints.txt"
FOLDERS = ("data", "toolkit")
FORMATS = {
    ".csv": "text/csv",
    ".ipynb": "application/x-ipynb+json",
    ".jinja": "text/plain",
    ".j2": "text/plain",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".png": "image/png",
    ".py": "text/x-python",
    ".svg": "image/svg+xml",
    ".toml": "application/toml",
    ".txt": "text/plain",
}
OTHER = "application/octet-stream"


def described(name: str, content: bytes) -> dict[str, str]:
    """Returns what a crate says of any file: name, format, size in bytes and digest."""
    kind = FORMATS.get(PurePosixPath(name).suffix, OTHER)
    digest = hashlib.sha256(content).hexdigest()
    return {"name": name, "encodingFormat": kind, "contentSize": str(len(content)), "sha256": digest}


def given(root: Path) -> list[str]:
    """Returns the files below a checkout that notebooks may read, sorted; what is hidden or built is left out."""
    files = (path.relative_to(root) for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if not any(map(_is_built, path.parts)))


def sources(root: Path) -> list[str]:
    """Returns the notebooks that `reproduce` runs, in order, as paths below the checkout."""
    return [f"notebooks/{path.name}" for path in sorted((root / "notebooks").glob("[0-9]*.ipynb"))]


def parameters(notebook: Path) -> dict[str, int | float | bool | str]:
    """Returns what the cell tagged `parameters` assigns: numbers, flags and texts as they are, all else as Python.

    Raises:
        ResultError: the file is not a notebook, or that cell is not plain Python.
    """
    cells = [cell for cell in code_cells(notebook) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    try:
        lines = [line for cell in cells for line in ast.parse("".join(cell["source"])).body]
        pairs = [(line.targets[0], line.value) for line in lines if isinstance(line, ast.Assign)]
        return {name.id: _plain(value) for name, value in pairs if isinstance(name, ast.Name)}
    except (SyntaxError, KeyError) as error:
        raise ResultError(f"{notebook}: its parameters cannot be read ({type(error).__name__}). Restore it.") from error


def _plain(node: ast.expr) -> int | float | bool | str:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float | str) else ast.unparse(node)


def _is_built(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__" or part.endswith(".egg-info")
