"""The entities of a crate: what a run was given, what it did and what came of it, as the RO-Crate profiles say it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from refusalscope.crate.given import PINS, described, given, parameters
from refusalscope.crate.places import portable, portable_notebook
from refusalscope.crate.schema import COMPLETED, FAILED, LICENCE, MACHINE, PROFILE, PROFILE_VERSION
from refusalscope.errors import ResultError
from refusalscope.figure_check import SUFFIXES
from refusalscope.figures import MANIFEST, read_manifest
from refusalscope.machine import MachineClass
from refusalscope.reproduce import Run

HOMES = {
    "python": "https://www.python.org/",
    "torch": "https://pytorch.org/",
    "transformers": "https://huggingface.co/docs/transformers",
    "transformer-lens": "https://transformerlensorg.github.io/TransformerLens/",
    "matplotlib": "https://matplotlib.org/",
}
ABOUT_FOLDERS = {"data": "Models, prompts and numbers that notebooks may read", "toolkit": "The package that ran"}

Entity = dict[str, Any]


@dataclass(frozen=True)
class Crate:
    """A crate before it is written: its entities, the root first, and the bytes of each file it holds, by name."""

    entities: tuple[Entity, ...]
    contents: dict[str, bytes]


def crate(root: Path, runs: Sequence[Run], *, versions: Mapping[str, str], machine: MachineClass) -> Crate:
    """Returns the crate of a run: the same checkout, runs, versions and machine give the same one.

    Held are executed notebooks, figures and `constraints.txt`; source notebooks, data and package are referred to by
    path and digest. Of a failed notebook only the last line of its error is kept, and the figures it had saved.

    Raises:
        ResultError: there is no run, or a file the run was given or made cannot be read.
    """
    if not runs:
        raise ResultError("No notebook was run: there is nothing to say in a crate.")
    try:
        contents = dict(sorted(_contents(root, runs)))
        entities = [*_files(contents), *_given(root), *_software(versions), *_machine(machine)]
        actions = [one for run in runs for one in _action(root, run, contents, versions)]
    except (OSError, ValueError, KeyError) as error:
        raise ResultError(f"{root}: the run cannot be described ({error}).") from error
    return Crate((_root(runs, versions, contents), *_context(), *entities, *actions), contents)


def _contents(root: Path, runs: Sequence[Run]) -> Iterator[tuple[str, bytes]]:
    """Every file that the crate holds, with its bytes."""
    yield PINS, (root / PINS).read_bytes()
    for run in runs:
        if run.verdict != "failed":
            notebook = json.loads(run.executed.read_text(encoding="utf-8"))
            text = json.dumps(portable_notebook(notebook, root), indent=1, ensure_ascii=False) + "\n"
            yield _executed(run), text.encode()
    names = [f"{row['figure']}.{suffix}" for row in read_manifest(root / "figures") for suffix in SUFFIXES]
    for name in (f"figures/{name}" for name in [*names, MANIFEST]):
        if (root / name).is_file():
            yield name, (root / name).read_bytes()


def _executed(run: Run) -> str:
    return f"notebooks/{run.name}.ipynb"


def _root(runs: Sequence[Run], versions: Mapping[str, str], contents: Mapping[str, bytes]) -> Entity:
    ended = max(run.ended for run in runs)
    return {
        "@id": "./",
        "@type": "Dataset",
        "name": f"refusalscope {versions['refusalscope']}: the run of {ended}",
        "description": "Notebooks executed in order, each in a fresh kernel, and the figures they saved. Models, "
        "prompts, data and the package are named by digest; they stay in the repository.",
        "datePublished": ended,
        "license": _ref(LICENCE),
        "conformsTo": [_ref(PROFILE)],
        "hasPart": [_ref(name) for name in contents],
        "mentions": [*(_ref(f"#{run.name}") for run in runs), _ref(MACHINE)],
    }


def _context() -> Iterator[Entity]:
    kind = ["CreativeWork", "Profile"]
    yield {"@id": PROFILE, "@type": kind, "name": "Process Run Crate", "version": PROFILE_VERSION}
    words = "Permission is granted to use, copy, modify and distribute, with the notice of copyright."
    yield {"@id": LICENCE, "@type": "CreativeWork", "name": "MIT License", "description": words}


def _files(contents: Mapping[str, bytes]) -> Iterator[Entity]:
    for name, content in contents.items():
        yield {"@id": name, "@type": "File", **described(name, content)}


def _given(root: Path) -> Iterator[Entity]:
    """The folders of the checkout as a tree, and each file in them; none of it lies in the crate."""
    names = given(root)
    folders = sorted({str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."})
    for folder in folders:
        parts = [f"#{name}" for name in names if str(PurePosixPath(name).parent) == folder]
        parts += [f"#{below}/" for below in folders if str(PurePosixPath(below).parent) == folder]
        about = ABOUT_FOLDERS.get(folder, f"Part of {PurePosixPath(folder).parent}")
        head = {"@id": f"#{folder}/", "@type": "Dataset", "name": folder, "description": f"{about}; not in this crate."}
        yield {**head, "localPath": f"{folder}/", "hasPart": [_ref(part) for part in parts]}
    for name in names:
        yield {"@id": f"#{name}", "@type": "File", **_stays(root, name)}


def _stays(root: Path, name: str) -> Entity:
    return described(name, (root / name).read_bytes()) | {"localPath": name}


def _software(versions: Mapping[str, str]) -> Iterator[Entity]:
    for name, version in versions.items():
        url = {"url": HOMES.get(name, _ref("#toolkit/"))}
        yield {"@id": f"#{name}", "@type": "SoftwareApplication", "name": name, **url, "version": version}


def _machine(machine: MachineClass) -> Iterator[Entity]:
    facts = [_value(f"{MACHINE}/{name}", name, fact) for name, fact in asdict(machine).items()]
    words = "What kind of machine ran the notebooks; nothing here names one machine."
    head = {"@id": MACHINE, "@type": "IndividualProduct", "name": "machine class", "description": words}
    yield {**head, "additionalProperty": [_ref(fact["@id"]) for fact in facts]}
    yield from facts


def _action(root: Path, run: Run, contents: Mapping[str, bytes], versions: Mapping[str, str]) -> Iterator[Entity]:
    """One notebook's run: the source and what it needs, its parameters, and the action itself."""
    source, failed = _executed(run), run.verdict == "failed"
    needed = [_ref(f"#{name}") for name in versions]
    kind = {"@id": f"#{source}", "@type": ["File", "SoftwareSourceCode"]}
    yield {**kind, **_stays(root, source), "softwareRequirements": needed}
    values = [_value(f"#{run.name}/{name}", name, value) for name, value in parameters(root / source).items()]
    yield from values
    made = [*([] if failed else [source]), *(f"figures/{name}.{suffix}" for name in run.figures for suffix in SUFFIXES)]
    made = [name for name in made if name in contents]
    read = [PINS, *(f"#{folder}/" for folder in ABOUT_FOLDERS if (root / folder).is_dir()), *(v["@id"] for v in values)]
    said = "it failed" if failed else f"{run.verdict}, {run.claims} compared with the stored outputs"
    yield {
        "@id": f"#{run.name}",
        "@type": "CreateAction",
        "name": f"Run of {source}",
        "description": f"Every cell in a fresh kernel: {said}.",
        "instrument": _ref(f"#{source}"),
        "object": [_ref(name) for name in read],
        **({"result": [_ref(name) for name in made]} if made else {}),
        "startTime": run.started,
        "endTime": run.ended,
        "actionStatus": _ref(FAILED if failed else COMPLETED),
        **({"error": portable(run.detail, root)} if failed else {}),
    }


def _value(identifier: str, name: str, value: object) -> Entity:
    return {"@id": identifier, "@type": "PropertyValue", "name": name, "value": value}


def _ref(identifier: str) -> dict[str, str]:
    return {"@id": identifier}
