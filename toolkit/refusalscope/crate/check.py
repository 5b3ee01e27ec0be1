"""What is wrong with a crate: fields, references, files, and the checkout's files that it names by digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from refusalscope.crate import schema
from refusalscope.crate.check_run import run_faults
from refusalscope.crate.given import METADATA, given, sources
from refusalscope.crate.places import paths, paths_in_notebook
from refusalscope.crate.read import AGAIN, Graph, read_crate, references
from refusalscope.errors import ResultError
from refusalscope.figure_check import Fault


def check(folder: Path, root: Path) -> list[Fault]:
    """Returns the faults of the crate in a folder, read again from disk and held against the checkout it speaks of.

    Every fault names a file or an entity and the field of it. None when all that the crate says is so.

    Raises:
        ResultError: there is no such folder, its metadata cannot be read, or the checkout has no notebooks.
    """
    if not folder.is_dir():
        raise ResultError(f"{folder}: no folder with a crate. {AGAIN}")
    if not sources(root):
        raise ResultError(f"{root}: no notebooks in it. Run this from a checkout, or give --root.")
    graph = read_crate(folder, root)
    found = [*graph.faults, *_needed(graph), *_linked(graph), *_held(graph), *_given(graph), *run_faults(graph)]
    return list(dict.fromkeys([*found, *_places(graph)]))


def counts(folder: Path, root: Path) -> tuple[int, int, int]:
    """Returns how many notebooks a crate says were run, how many of them failed, and how many files it holds.

    Raises:
        ResultError: its metadata cannot be read.
    """
    graph = read_crate(folder, root)
    held = [file for file in graph.all(schema.Held) if not isinstance(file, schema.Given)]
    return len(graph.all(schema.Action)), len(graph.all(schema.FailedAction)), len(held)


def _needed(graph: Graph) -> Iterator[Fault]:
    """What every crate has: itself, its root, its profile."""
    wanted = {"about": "./", "conformsTo": schema.SPECIFICATION}
    if METADATA not in graph.raw:
        yield Fault(METADATA, "@id", "no entity describes the metadata", AGAIN)
    if "./" not in graph.raw:
        yield Fault("./", "@id", "no entity describes the crate", AGAIN)
    for name, fields in {METADATA: wanted, "./": {"conformsTo": schema.PROFILE, "license": schema.LICENCE}}.items():
        for field, value in fields.items():
            if name in graph.good and value not in list(references(graph.raw[name][field])):
                yield Fault(name, field, f"not {value}", AGAIN)


def _linked(graph: Graph) -> Iterator[Fault]:
    """References to nothing, and entities that nothing leads to."""
    for name, row in graph.raw.items():
        for field, value in row.items():
            for other in references(value):
                if other not in graph.raw and other not in schema.OUTSIDE:
                    yield Fault(name, field, f"{other} is not in the crate", AGAIN)
    for name in sorted(set(graph.raw) - _reached(graph)):
        yield Fault(name, "@id", "nothing in the crate leads to it", AGAIN)


def _reached(graph: Graph) -> set[str]:
    reached, ahead = set[str](), [METADATA]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += [other for value in graph.raw.get(name, {}).values() for other in references(value)]
    return reached


def _held(graph: Graph) -> Iterator[Fault]:
    """The files of the crate against their entities, both ways, and against the list of its parts."""
    files = {file.id: file for file in graph.all(schema.Held) if not isinstance(file, schema.Given)}
    for name, file in files.items():
        yield from _same(graph.folder / name, name, file)
    if isinstance(root := graph.good.get("./"), schema.Root):
        parts = {part.id for part in root.hasPart}
        for name in sorted(set(files) - parts):
            yield Fault(name, "hasPart", "the crate does not list it among its parts", AGAIN)
    there = {path.relative_to(graph.folder).as_posix() for path in graph.folder.rglob("*") if not path.is_dir()}
    for name in sorted(there - set(graph.raw)):
        yield Fault(name, "file", "no entity describes it", AGAIN)


def _given(graph: Graph) -> Iterator[Fault]:
    """The checkout's files against their entities, both ways."""
    files = {file.localPath: file for file in graph.all(schema.Given)}
    for name, file in files.items():
        if file.id != f"#{name}":
            yield Fault(file.id, "localPath", f"{name} is another file", AGAIN)
        yield from _same(graph.root / name, name, file)
    for name in [*given(graph.root), *sources(graph.root)]:
        if f"#{name}" not in graph.raw:
            yield Fault(name, "file", "the crate does not name it, although the run could read it", AGAIN)


def _same(path: Path, name: str, file: schema.Held) -> Iterator[Fault]:
    """A file against what its entity says of it."""
    if file.name != name:
        yield Fault(file.id, "name", f"{file.name!r}", AGAIN)
    if not path.is_file():
        yield Fault(name, "file", "missing", AGAIN)
        return
    content = path.read_bytes()
    if str(len(content)) != file.contentSize:
        yield Fault(name, "contentSize", f"{len(content)} bytes, {file.contentSize} in the crate", AGAIN)
    if (digest := hashlib.sha256(content).hexdigest()) != file.sha256:
        yield Fault(name, "sha256", f"{digest[:12]}…, {file.sha256[:12]}… in the crate", AGAIN)


def _places(graph: Graph) -> Iterator[Fault]:
    """Paths of one machine, in the metadata and in what executed notebooks show."""
    for name, row in graph.raw.items():
        for field, value in row.items():
            if any(paths(value)):
                yield Fault(name, field, "it names a place on one machine", AGAIN)
    for file in sorted((graph.folder / "notebooks").glob("*.ipynb")):
        try:
            found = paths_in_notebook(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as error:
            yield Fault(f"notebooks/{file.name}", "file", f"not a notebook ({type(error).__name__})", AGAIN)
            continue
        if found:
            yield Fault(f"notebooks/{file.name}", "outputs", "they name a place on one machine", AGAIN)
