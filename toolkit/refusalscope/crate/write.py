"""Writes a crate: entities and files through ro-crate-py, into a folder that is there whole or not at all."""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from refusalscope.crate.graph import Crate, crate
from refusalscope.crate.schema import VERSION
from refusalscope.figures import PACKAGES
from refusalscope.machine import machine_class
from refusalscope.reproduce import Run
from refusalscope.results.files import replaced_folder

FOLDER = "build/crate"


def write(root: Path, runs: Sequence[Run]) -> Path:
    """Returns the folder `build/crate` of a checkout, written anew from its files and the runs of its notebooks.

    Raises:
        ResultError: the run cannot be described, or the folder not be written.
    """
    versions = {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
    return save(crate(root, runs, versions=versions, machine=machine_class()), root / FOLDER)


def save(described: Crate, folder: Path) -> Path:
    """Returns the folder, in place of what it held: the crate's files and their `ro-crate-metadata.json`.

    Raises:
        ResultError: naming the folder, when it cannot be written.
    """
    made = ROCrate(version=VERSION)
    (root, *others), contents = described.entities, described.contents
    for entity in others:
        name, told = entity["@id"], {key: value for key, value in entity.items() if key != "@id"}
        if name in contents:
            made.add_file(io.BytesIO(contents[name]), name, properties=told)
        else:
            made.add(ContextEntity(made, name, properties=told))
    for key in root.keys() - {"@id", "@type"}:
        made.root_dataset[key] = root[key]
    with replaced_folder(folder) as draft:
        made.write(draft)
    return folder
