"""A small checkout after a run, and its crate: nothing is executed, what a run leaves is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from refusalscope.crate.graph import Crate, crate
from refusalscope.crate.write import save as save_crate
from refusalscope.figures import PACKAGES, save
from refusalscope.machine import MachineClass
from refusalscope.reproduce import Run

VERSIONS = {"python": "3.11.4", **{package: version(package) for package in PACKAGES}}
MACHINE = MachineClass(2, 1, "x86_64", "Linux", "cpu")
FILES = {
    "data/organisms/guarded-0/config.json": "{}",
    "data/organisms/guarded-0/model.safetensors": "weights",
    "data/prompts/few.jsonl": '{"id": "r-01"}\n',
    "toolkit/refusalscope/stats.py": "MEAN = 1\n",
    "toolkit/refusalscope/__pycache__/stats.pyc": "built",
    "data/.DS_Store": "hidden",
}
FIGURES = {"00_first": ("opening",), "01_small": ("answers", "margins")}
METADATA = "ro-crate-metadata.json"
Metadata = dict[str, Any]


def cell(source: str, *outputs: dict, tags: tuple[str, ...] = ()) -> dict:
    head = {"cell_type": "code", "execution_count": 1, "metadata": {"tags": list(tags)}}
    return head | {"source": source.splitlines(keepends=True), "outputs": list(outputs)}


def notebook(name: str, *outputs: dict, told: dict | None = None) -> str:
    seeds = f'MODEL = "../data/{name}"\nDOSES = (0.5, 1.0)\nFAST = True\nSEED = 3'
    cells = [cell(seeds, tags=("parameters",)), cell('print("no /place/in a source is changed")', *outputs)]
    return json.dumps({"cells": cells, "metadata": told or {}, "nbformat": 4, "nbformat_minor": 4})


def checkout(root: Path) -> Path:
    """The checkout before a run."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for folder in ("figures", "notebooks", "build/notebooks"):
        (root / folder).mkdir(parents=True)
    pins = {name: told.split("+")[0] for name, told in VERSIONS.items() if name not in ("python", "refusalscope")}
    (root / "constraints.txt").write_text("".join(f"{name}=={pin}\n" for name, pin in pins.items()))
    for name, figures in FIGURES.items():
        (root / "notebooks" / f"{name}.ipynb").write_text(notebook(name))
        for figure in figures:
            frame, drawn = pd.DataFrame({"margin": [1.0]}), Figure(figsize=(1, 1))
            save(drawn, figure, data=frame, claim="it holds", notebook=name, seed=3, folder=root / "figures")
    return root


def ran(root: Path, name: str, *, minute: int = 0, error: str = "", figures: tuple[str, ...] | None = None) -> Run:
    """A notebook's run, and the executed copy as papermill leaves it, with the machine's places in it."""
    copy = root / "build" / "notebooks" / f"{name}.ipynb"
    warned = {
        "output_type": "stream",
        "name": "stderr",
        "text": [f"{Path.home()}/lib/x.py:1: {root}/data and /opt/a/b\n"],
    }
    told = {"papermill": {"input_path": f"{root}/notebooks/{name}.ipynb", "output_path": str(copy)}}
    copy.write_text(notebook(name, warned, told=told))
    made = FIGURES[name] if figures is None else figures
    times = (f"2026-11-28T05:0{minute}:00+00:00", f"2026-11-28T05:0{minute}:30+00:00")
    return Run(name, "failed" if error else "claims hold", 0 if error else 2, 30.0, error, copy, *times, made)


def described(root: Path, *runs: Run) -> Crate:
    return crate(
        root, runs or [ran(root, "00_first"), ran(root, "01_small", minute=1)], versions=VERSIONS, machine=MACHINE
    )


def crated(root: Path, *runs: Run) -> Path:
    """The folder of the crate of a run of that checkout."""
    return save_crate(described(root, *runs), root / "build" / "crate")


def metadata(folder: Path) -> Metadata:
    return json.loads((folder / METADATA).read_text(encoding="utf-8"))


def rewrite(folder: Path, changed: Metadata) -> None:
    (folder / METADATA).write_text(json.dumps(changed), encoding="utf-8")


def edited(whole: Metadata, change: Callable[[list[dict]], object]) -> Metadata:
    """A copy of the metadata after a change of its graph."""
    copy = deepcopy(whole)
    change(copy["@graph"])
    return copy


def without_a_field(whole: Metadata) -> Iterator[tuple[str, str, Metadata]]:
    """Every entity's every field gone, one at a time: what must be named (entity and field), and the metadata."""
    for number, entity in enumerate(whole["@graph"]):
        for field in entity:
            name = entity["@id"] if field != "@id" else entity.get("name", f"entity {number + 1} of @graph")
            yield name, field, edited(whole, lambda graph, n=number, f=field: graph[n].pop(f))


def without_a_reference(whole: Metadata) -> Iterator[tuple[str, str, Metadata]]:
    """Every reference in every list gone, one at a time: the entity that had it, the one it led to, the metadata."""
    for number, entity in enumerate(whole["@graph"]):
        for field, value in entity.items():
            for place in range(len(value)) if isinstance(value, list) and isinstance(value[0], dict) else ():
                gone = edited(whole, lambda graph, n=number, f=field, p=place: graph[n][f].pop(p))
                yield entity["@id"], value[place]["@id"], gone


def without_an_entity(whole: Metadata) -> Iterator[tuple[str, Metadata]]:
    for number, entity in enumerate(whole["@graph"]):
        yield entity["@id"], edited(whole, lambda graph, n=number: graph.pop(n))
