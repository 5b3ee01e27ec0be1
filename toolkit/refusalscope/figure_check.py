"""What is wrong with a checkout's `figures/`: each file against its record, its manifest row and its notebook."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from refusalscope.errors import ResultError
from refusalscope.figure_sheet import SHEET, contact_sheet, saved_in, stated_in
from refusalscope.figures import DPI, MANIFEST, PACKAGES, Record, read_manifest, read_record, source_of

SUFFIXES = ("svg", "png", "json")
POINTS_PER_INCH = 72
SOURCE_TAG = "{http://purl.org/dc/elements/1.1/}source"
AGAIN = "Run its notebook again with `refusalscope reproduce`."


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the file below the checkout, the field of it, the problem, and what to do."""

    file: str
    field: str
    problem: str
    action: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.file}: {self.field}: {self.problem}. {self.action}"


def check(root: Path) -> list[Fault]:
    """Returns the faults of `figures/` below a checkout, read again from disk; none when all belongs together.

    Raises:
        ResultError: there is no figure there, or the manifest cannot be read.
    """
    folder = root / "figures"
    rows = read_manifest(folder)
    if not rows:
        raise ResultError(f"{folder}: no {MANIFEST} with figures. Run this from a checkout, or give --root.")
    found = [fault for row in rows for fault in _figure(root, row)]
    return [*_manifest(rows), *_strangers(folder, rows), *found, *_unsaved(root, rows), *_sheet(root, found)]


def recompute(root: Path, *, say: Callable[[str], None] = print) -> list[Fault]:
    """Returns what differs when every notebook runs again, its figures in a folder that is gone afterwards.

    Compared as `reproduce` compares: claims letter by letter, numbers within the tolerances of the committed records.

    Raises:
        ResultError: there are no notebooks, or a committed record cannot be read.
    """
    from refusalscope.reproduce import reproduce

    with tempfile.TemporaryDirectory() as place:
        runs, states = reproduce(root, say=say, fresh=Path(place))
    bad = [run for run in runs if run.verdict != "claims hold"]
    found = [Fault(f"notebooks/{run.name}.ipynb", "recomputed", _one_line(run.detail), AGAIN) for run in bad]
    absent = {row["figure"]: "no notebook saved it" for row in read_manifest(root / "figures")}
    changed = {name: state for name, state in states.items() if state != "same numbers"}
    missing = {name: said for name, said in absent.items() if name not in states}
    return found + [
        Fault(f"figures/{n}.json", "recomputed", _one_line(s), AGAIN) for n, s in (changed | missing).items()
    ]


def _manifest(rows: list[dict[str, str]]) -> Iterator[Fault]:
    names = [row["figure"] for row in rows]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Fault(f"figures/{MANIFEST}", "figure", f"{name} has {names.count(name)} rows", "Delete all but one.")
    if names != sorted(names):
        yield Fault(f"figures/{MANIFEST}", "figure", "the rows are not sorted", "Sort them by figure.")


def _strangers(folder: Path, rows: list[dict[str, str]]) -> Iterator[Fault]:
    """Files that no row of the manifest asks for."""
    wanted = {f"{row['figure']}.{suffix}" for row in rows for suffix in SUFFIXES} | {MANIFEST, SHEET}
    for name in sorted(file.name for file in folder.iterdir() if file.name not in wanted):
        yield Fault(f"figures/{name}", "file", f"no row of {MANIFEST} has it", "Save its figure again, or delete it.")


def _figure(root: Path, row: dict[str, str]) -> Iterator[Fault]:
    """The faults of one row: its files, its record, its pictures, its own cells, its notebook."""
    for suffix in SUFFIXES:
        file = root / "figures" / f"{row['figure']}.{suffix}"
        if not file.is_file() or not file.stat().st_size:
            yield Fault(f"figures/{file.name}", "file", "missing or empty", AGAIN)
    yield from _record(root, row)
    yield from _pictures(root, row)
    yield from _made_with(root, row)
    yield from _notebook(root, row)


def _record(root: Path, row: dict[str, str]) -> Iterator[Fault]:
    """The record against its schema, and against each cell of the row that repeats it."""
    file = root / "figures" / f"{row['figure']}.json"
    name = f"figures/{file.name}"
    if not file.is_file():
        return
    if (digest := hashlib.sha256(file.read_bytes()).hexdigest()) != row["record_sha256"]:
        yield Fault(name, "record_sha256", f"{digest[:12]}…, {row['record_sha256'][:12]}… in {MANIFEST}", AGAIN)
    try:
        record = read_record(file)
    except ResultError as error:
        yield Fault(name, "schema", str(error).rstrip("."), AGAIN)
        return
    for field, said in _heads(record).items():
        if said != row[field]:
            yield Fault(name, field, f"{said!r}, {row[field]!r} in {MANIFEST}", AGAIN)


def _heads(record: Record) -> dict[str, str]:
    seed = "" if record.seed is None else str(record.seed)
    return {"figure": record.figure, "claim": record.claim, "notebook": record.notebook, "seed": seed}


def _pictures(root: Path, row: dict[str, str]) -> Iterator[Fault]:
    """Both pictures: whole, of one size, and carrying the digest of the record beside them."""
    record, seen = root / "figures" / f"{row['figure']}.json", {}
    for suffix, reader in (("svg", _svg), ("png", _png)):
        file = record.with_suffix(f".{suffix}")
        if not file.is_file() or not file.stat().st_size or not record.is_file():
            continue
        try:
            source, seen[suffix] = reader(file)
        except (OSError, SyntaxError, ValueError) as error:
            yield Fault(f"figures/{file.name}", "picture", f"damaged ({_one_line(str(error))})", AGAIN)
            continue
        if source != source_of(hashlib.sha256(record.read_bytes()).hexdigest()):
            problem = f"it was drawn from another record than {record.name}" if source else "it names no record"
            yield Fault(f"figures/{file.name}", "Source", problem, AGAIN)
    if len(seen) == 2 and any(abs(a - b) > 1 for a, b in zip(seen["svg"], seen["png"], strict=True)):
        sizes = " and ".join(f"{width:.0f} × {height:.0f}" for width, height in seen.values())
        yield Fault(f"figures/{row['figure']}.png", "size", f"SVG and PNG are {sizes} pixels", AGAIN)


def _svg(file: Path) -> tuple[str, tuple[float, float]]:
    """The Source of a drawing, and its size in pixels of the PNG."""
    tree = ElementTree.parse(file).getroot()
    width, height = (
        float(tree.get(side, "").removesuffix("pt")) * DPI / POINTS_PER_INCH for side in ("width", "height")
    )
    return tree.findtext(f".//{SOURCE_TAG}", ""), (width, height)


def _png(file: Path) -> tuple[str, tuple[float, float]]:
    """The Source of a picture, and its size in pixels; reading it whole proves its checksums."""
    with Image.open(file) as picture:
        picture.load()
        return str(picture.info.get("Source", "")), (float(picture.width), float(picture.height))


def _made_with(root: Path, row: dict[str, str]) -> Iterator[Fault]:
    """The row's versions against `constraints.txt`, and its recipe against the organisms of the checkout."""
    place, said = f"figures/{MANIFEST}", dict(re.findall(r"([\w.-]+) ([^\s;]+)", row["versions"]))
    if missing := [package for package in PACKAGES if package not in said]:
        yield Fault(place, f"versions of {row['figure']}", f"no {', '.join(missing)}", AGAIN)
    for package, pinned in pins(root).items():
        if package in said and said[package].split("+")[0] != pinned:
            problem = f"{package} {said[package]}, {pinned} in constraints.txt"
            yield Fault(place, f"versions of {row['figure']}", problem, AGAIN)
    if row["recipe"] and row["recipe"] not in _recipes(root):
        problem = f"no organism of data/organisms has the recipe {row['recipe'][:12]}…"
        yield Fault(place, f"recipe of {row['figure']}", problem, AGAIN)


def pins(root: Path) -> dict[str, str]:
    """Returns the versions that `make` installs, of the packages that a row names; none without `constraints.txt`."""
    file = root / "constraints.txt"
    lines = re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(encoding="utf-8"), re.M) if file.is_file() else []
    return {package: version for package, version in lines if package in PACKAGES}


def _recipes(root: Path) -> set[str]:
    cards = (root / "data" / "organisms").rglob("organism.json")
    return {json.loads(card.read_text(encoding="utf-8")).get("recipe", "") for card in cards}


def _notebook(root: Path, row: dict[str, str]) -> Iterator[Fault]:
    """The notebook of a row: it is there, it saves the figure, and its stored output makes the same claim."""
    name, figure = f"notebooks/{row['notebook']}.ipynb", row["figure"]
    if not row["notebook"] or not (root / name).is_file():
        problem = f"{name} is not there" if row["notebook"] else "no notebook is named"
        yield Fault(f"figures/{MANIFEST}", f"notebook of {figure}", problem, "Save it from a notebook, or delete it.")
        return
    try:
        saved, stated = saved_in(root / name), stated_in(root / name)
    except ResultError as error:
        yield Fault(name, "notebook", str(error).rstrip("."), "Restore it.")
        return
    if figure not in saved and figure not in stated:
        yield Fault(name, "figure", f"it does not save {figure}", f"Save it there, or delete figures/{figure}.*.")
    if stated.get(figure, row["claim"]) != row["claim"]:
        problem = f"{stated[figure]!r}, {row['claim']!r} in {MANIFEST}"
        yield Fault(name, f"claim of {figure}", problem, "Run all its cells and save it with its figures.")


def _unsaved(root: Path, rows: list[dict[str, str]]) -> Iterator[Fault]:
    """Figures that a notebook saves and the manifest lacks."""
    known = {row["figure"] for row in rows}
    for notebook in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        try:
            lacking = [name for name in saved_in(notebook) if name not in known]
        except ResultError:
            continue  # a notebook that a row names is reported there
        for name in lacking:
            yield Fault(f"notebooks/{notebook.name}", "figure", f"{MANIFEST} has no row of {name}", AGAIN)


def _sheet(root: Path, others: list[Fault]) -> Iterator[Fault]:
    """The contact sheet, letter by letter; not while a record cannot be read."""
    file = root / "figures" / SHEET
    try:
        current = contact_sheet(root)
    except ResultError as error:
        if not others:
            yield Fault(f"figures/{SHEET}", "captions", str(error).rstrip("."), "Restore it.")
        return
    if not file.is_file() or file.read_text(encoding="utf-8") != current:
        yield Fault(f"figures/{SHEET}", "captions", "not what the records say", "Run `refusalscope figures sheet`.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
