"""The one door through which a figure is saved: SVG, PNG, the record of its numbers, and one row of the manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib import style
from matplotlib.figure import Figure

from refusalscope.claims import BROKEN, Claim
from refusalscope.errors import ResultError
from refusalscope.figure_record import Record as Record
from refusalscope.figure_record import compare as compare
from refusalscope.figure_record import make_record
from refusalscope.figure_record import read_record as read_record
from refusalscope.reprs import Shown, picture

FOLDER_VARIABLE = "REFUSALSCOPE_FIGURES"
MANIFEST = "manifest.csv"
MANIFEST_COLUMNS: tuple[str, ...] = ("figure", "notebook", "recipe", "seed", "claim", "versions", "record_sha256")
PACKAGES = ("refusalscope", "torch", "transformers", "transformer-lens", "matplotlib")
DPI = 150


@dataclass(frozen=True, repr=False)
class SavedFigure(Shown):
    """A figure on disk: as text its claim, as HTML the picture with the claim as caption."""

    name: str
    claim: str
    folder: Path
    png: bytes = field(repr=False)

    def __repr__(self) -> str:
        """One line: the claim."""
        return f"figure {self.name} saved: {self.claim}"

    def _repr_html_(self) -> str:
        """The picture, inline, with the escaped claim as alternative text and as caption."""
        return picture(self.png, self.claim)


def save(
    figure: Figure,
    name: str,
    *,
    data: pd.DataFrame | Mapping[str, pd.DataFrame],
    claim: str | Claim,
    notebook: str = "",
    recipe: str = "",
    seed: int | None = None,
    folder: Path | str | None = None,
    tolerance: Mapping[str, float] | None = None,
) -> SavedFigure:
    """Writes `<name>.svg`, `.png` and `.json` and one row of `manifest.csv`, each atomically; closes the figure.

    The same figure, data and versions give the same bytes; both pictures carry the digest of the record, see
    `source_of`. Wrong when `data` is not what was drawn: the record is all that a later run is compared with.

    Args:
        name: file name without suffix, of a-z, 0-9 and _.
        data: the tidy frames that were drawn, without a named index; one frame is the table "data".
        claim: what the figure shows, one line, without digits that could wobble. Give a `Claim`, the sentence with
            the comparison of numbers behind it, wherever the sentence can be wrong: one that does not hold is refused.
        notebook: the notebook that made it, as `02_locate`.
        recipe: digest of the recipe of the organism shown.
        seed: the seed that was applied.
        folder: default: the variable REFUSALSCOPE_FIGURES, else `figures/` of the checkout we are in.
        tolerance: column to absolute tolerance; for the default see `compare`.

    Raises:
        ResultError: the claim does not hold, the record is not of the closed schema, or the folder is missing or
            cannot be written.
    """
    claim = _borne_out(name, claim)
    tables = {"data": data} if isinstance(data, pd.DataFrame) else data
    record = make_record(name, tables, claim=claim, notebook=notebook, seed=seed, tolerance=tolerance or {})
    written = record.to_json().encode()
    digest = hashlib.sha256(written).hexdigest()
    drawn = {kind: _drawn(figure, name, kind=kind, source=source_of(digest)) for kind in ("svg", "png")}
    target = _folder(folder)
    for suffix, content in {**drawn, "json": written}.items():
        _replace(target / f"{name}.{suffix}", content)
    values = (name, notebook, recipe, seed, claim, _versions(), digest)
    _enter(target, dict(zip(MANIFEST_COLUMNS, values, strict=True)))
    plt.close(figure)
    return SavedFigure(name, claim, target, drawn["png"])


def _borne_out(name: str, claim: str | Claim) -> str:
    """The sentence of a claim that holds; a plain sentence as it is."""
    if isinstance(claim, str):
        return claim
    if not claim.holds:
        numbers = "; ".join(f"{what}: {number}" for what, number in claim.evidence.items())
        raise ResultError(
            f"Figure {name}: its claim {BROKEN}: {claim.sentence} ({numbers or 'no evidence given'}). "
            "State what the numbers show."
        )
    return claim.sentence


def read_manifest(folder: Path | str) -> list[dict[str, str]]:
    """The rows of the manifest in a folder, as text; none where there is no manifest yet.

    Raises:
        ResultError: it cannot be read, or its columns are not those of a manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), restkey="", strict=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultError(f"Cannot read the manifest {path}: {error}.") from error
    if tuple(reader.fieldnames or ()) != MANIFEST_COLUMNS or any("" in row or None in row.values() for row in rows):
        raise ResultError(f"{path} does not have the columns {', '.join(MANIFEST_COLUMNS)}. Restore it, or delete it.")
    return rows


def source_of(digest: str) -> str:
    """What a picture says in its metadata, under `Source`: the digest of the record that it draws."""
    return f"record sha256 {digest}"


def _drawn(figure: Figure, name: str, *, kind: str, source: str) -> bytes:
    """The picture as bytes that depend on figure and record only: default settings, salt from the name, no date."""
    told = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind] | {"Source": source}
    buffer = io.BytesIO()
    with style.context("default"), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=told)
    return buffer.getvalue()


def _folder(folder: Path | str | None) -> Path:
    """The folder to save in, which must exist: as given, as in the environment, or of the checkout."""
    target = Path(folder or os.environ.get(FOLDER_VARIABLE) or _checkout() / "figures")
    if not target.is_dir():
        raise ResultError(f"No folder {target} to save figures in. Create it, or give folder=.")
    return target


def _checkout() -> Path:
    """The first directory from the working directory upward whose pyproject.toml names refusalscope."""
    here = Path.cwd()
    for place in (here, *here.parents):
        project = place / "pyproject.toml"
        if project.is_file() and re.search(r'^name\s*=\s*"refusalscope"', project.read_text(errors="replace"), re.M):
            return place
    raise ResultError(f"No checkout of refusalscope at or above {here}. Give folder=, or set {FOLDER_VARIABLE}.")


def _replace(path: Path, content: bytes) -> None:
    """Writes the file at once or not at all: readers see the old content until the new one is on disk."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise ResultError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)


def _enter(folder: Path, row: Mapping[str, object]) -> None:
    """Puts the row into the manifest, in place of one of the same figure, sorted by figure."""
    with _alone(folder):
        others = [old for old in read_manifest(folder) if old["figure"] != row["figure"]]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, MANIFEST_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*others, row], key=lambda one: str(one["figure"])))
        _replace(folder / MANIFEST, text.getvalue().encode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock on the folder, so that notebooks that save at once keep each other's rows; none on Windows."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _versions() -> str:
    return "; ".join(f"{package} {version(package)}" for package in PACKAGES)
