"""Run folders that papers publish: read where they are; where they are not, the records of the figures stand in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.figure_record import read_record
from refusalscope.published.facts import NAMES, choices
from refusalscope.published.grids import CELLS, judged
from refusalscope.replay import GRID, read_grid
from refusalscope.reprs import Shown, facts

VARIABLE = "PUBLISHED_RUNS"
DIRECTIONS = "mean_diffs.safetensors"
RECORDS = {"grids": "published_grids", "cosines": "published_cosines"}
TABLE = "published"
PANELS = ("score grids", "survivors and near-ties", "replayed cost", "cosines between candidates")


@dataclass(frozen=True, repr=False)
class Runs(Shown):
    """Where published runs are read from: a folder of run folders, or else the committed records of the figures.

    Attributes:
        folder: holds a folder per run, or None.
        records: `figures/`, whose records hold the numbers once drawn, to six digits.
        layers: name of a run to the layers of its model, which a run does not say.
    """

    folder: Path | None
    records: Path
    layers: Mapping[str, int]

    def __repr__(self) -> str:
        """The same line with and without the folder: where the numbers come from stands in the HTML."""
        return "Published runs: score grids of chat models, and the candidate directions of one"

    def _repr_html_(self) -> str:
        skipped = f"skipped, as there are no run folders (set {VARIABLE}): shown as stored"
        said = "computed from the run folders" if self.folder else skipped
        others = [run.name for run in self._found() if run.name not in self.layers]
        left_out = {"not drawn: the facts do not state their layers": ", ".join(others)} if others else {}
        return facts(dict.fromkeys(PANELS, said) | left_out, caption=repr(self))

    def grids(self) -> pd.DataFrame:
        """Returns every cell of the runs with what the rule says of it: columns `CELLS`, runs in order of name.

        A run whose layers the facts do not state is left out, and the HTML says so: its grid can be read with `replay`.

        Raises:
            MeasurementError: the folder holds no run, or none whose layers are known.
        """
        if self.folder is None:
            return _stored(self.records, "grids").loc[:, list(CELLS)]
        found = self._found()
        if not found:
            raise MeasurementError(
                f"{VARIABLE}: {self.folder.name}/ holds no run with {GRID}. Give the folder of runs."
            )
        known = [run for run in found if run.name in self.layers]
        if not known:
            raise MeasurementError(
                f"{found[0].name}: its layers are not known. Add its cell to the facts on 'selection'."
            )
        frames = [judged(read_grid(run, self.layers[run.name]), NAMES.get(run.name, run.name)) for run in known]
        return pd.concat(frames, ignore_index=True)

    def _found(self) -> list[Path]:
        """The run folders that hold a grid, in order of name."""
        return sorted(path.parents[1] for path in self.folder.glob(f"*/{GRID}")) if self.folder else []

    def cosines(self) -> pd.DataFrame:
        """Returns cosines between the candidate directions of the first run that has them, as `cosines_between`.

        Raises:
            MeasurementError: no run holds directions.
        """
        if self.folder is None:
            return _stored(self.records, "cosines")
        files = sorted(self.folder.glob(f"*/{DIRECTIONS}"))
        if not files:
            raise MeasurementError(f"{VARIABLE}: no run in {self.folder.name}/ holds {DIRECTIONS}.")
        tensor = load_file(files[0])["mean_diffs"]
        name = files[0].parent.name
        return cosines_between(tensor.transpose(0, 1), NAMES.get(name, name))


def runs(facts: pd.DataFrame, folder: Path | str = "", *, records: Path | str | None = None) -> Runs:
    """Returns where published runs are: `folder`, else the variable PUBLISHED_RUNS, else `../shared/published_runs`.

    The last is beside the checkout, and used only when it is there; else numbers come from the records of figures.

    Args:
        facts: what `read` returned; it knows the layers of the models.
        records: the folder of figures; by default that of the checkout.

    Raises:
        MeasurementError: a folder is named, and is not there.
    """
    checkout = _checkout()
    named = str(folder) or os.environ.get(VARIABLE, "")
    beside = checkout.parent / "shared" / "published_runs"
    if named and not Path(named).is_dir():
        raise MeasurementError(f"{VARIABLE}: no folder {named}. Give the folder of the run folders, or nothing.")
    place = Path(named) if named else beside if beside.is_dir() else None
    known = choices(facts)
    layers = dict(zip(known["model"], map(int, known["layers"]), strict=True))
    return Runs(place, Path(records or checkout / "figures"), layers)


def cosines_between(vectors: Float[Tensor, "layer pos d"], model: str) -> pd.DataFrame:
    """Returns the cosine of every two candidates, once for each pair, in order of position, then of layer.

    Cells without a direction are left out: there the prompts are the same token by token, as at the template positions
    of layer 0. Columns `model position layer other_position other_layer cosine`. Exact, so no interval.
    """
    positions, norms = vectors.shape[1], torch.linalg.vector_norm(vectors.double(), dim=-1)
    there = norms > 1e-6 * norms.max()
    cells = [(p, layer) for p in range(positions) for layer in range(len(vectors)) if there[layer, p]]
    unit = torch.stack([vectors[layer, p].double() / norms[layer, p] for p, layer in cells])
    cosine = unit @ unit.T
    rows = [
        (model, p - positions, layer, q - positions, other, float(cosine[i, j]))
        for i, (p, layer) in enumerate(cells)
        for j, (q, other) in enumerate(cells[: i + 1])
    ]
    return pd.DataFrame(rows, columns=["model", "position", "layer", "other_position", "other_layer", "cosine"])


def _stored(records: Path, what: str) -> pd.DataFrame:
    """The published table of a committed figure record."""
    file = records / f"{RECORDS[what]}.json"
    if not file.is_file():
        raise MeasurementError(f"No published runs and no {file.name}: set {VARIABLE} to the folder of the runs.")
    table = read_record(file).tables[TABLE]
    return pd.DataFrame(table.rows, columns=list(table.columns))


def _checkout() -> Path:
    """The first directory from the working directory upward that holds the published facts; else the working one."""
    here = Path.cwd()
    return next((place for place in (here, *here.parents) if (place / "data" / "published").is_dir()), here)
