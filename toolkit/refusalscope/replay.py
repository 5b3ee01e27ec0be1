"""Replay: the selection rule applied to a grid somebody published, without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from refusalscope.errors import MeasurementError
from refusalscope.rule import Cell, Kind, Mode, Rule, Search, default_rule, search

GRID = Path("select_direction") / "direction_evaluations.json"
KEYS: dict[Kind, tuple[str, ...]] = {  # as Arditi et al. name the scores, and as a published replication does
    "bypass": ("refusal_score", "bypass_score"),
    "induce": ("steering_score", "induce_score"),
    "kl": ("kl_div_score",),
}
PUBLISHED_N = 32


@dataclass(frozen=True)
class PublishedGrid:
    """Scores of a published run as a scorer, charging what a model would have cost.

    Attributes:
        frame: columns ``layer position bypass induce kl``, one row per cell.
        n_layers: layers of the model that was measured.
        n_prompts: prompts per class; ratios of costs do not depend on it.
    """

    frame: pd.DataFrame
    n_layers: int
    n_prompts: int = PUBLISHED_N

    def cells(self) -> list[Cell]:
        """Returns the published cells, in file order."""
        return [Cell(int(layer), int(position)) for layer, position in self.frame[["layer", "position"]].to_numpy()]

    def score(self, kind: Kind, cells: Sequence[Cell]) -> list[float]:
        """Looks the published scores up."""
        table = self.frame.set_index(["layer", "position"])[kind]
        return [float(table.loc[tuple(cell)]) for cell in cells]

    def cost(self, kind: Kind, cell: Cell) -> float:
        """Returns N prompt-forwards, of which induction runs the layers from the cell's on; none for an exact no-op.

        The residual entering layer 0 at the template positions is the same for all prompts, so no direction is there
        and the baseline is the score. Such cells show in a grid by a KL of exactly zero.
        """
        if self.score("kl", [cell]) == [0.0]:
            return 0.0
        share = (self.n_layers - cell.layer) / self.n_layers if kind == "induce" else 1.0
        return self.n_prompts * share


def read_grid(run: Path | str, layers: int) -> PublishedGrid:
    """Returns the selection grid of a run folder of the ``refusal_direction`` repository (Arditi et al. 2024).

    The scores may have the names of that repository (``refusal_score``, ``steering_score``) or those of its published
    replication (``bypass_score``, ``induce_score``).

    Raises:
        MeasurementError: naming the file, when it is missing, is no grid, or holds layers the model does not have.
    """
    file = Path(run) / GRID
    spellings = ", ".join(" or ".join(names) for names in KEYS.values())
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        table = _with_our_names(pd.DataFrame(rows))
        frame = pd.DataFrame({name: table[name] for name in ("layer", "position", *KEYS)})
        frame = frame.astype(dict.fromkeys(KEYS, float))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MeasurementError(f"{file}: not found. Give the run folder that holds {GRID.parent}/.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MeasurementError(f"{file}: not a selection grid: needs layer, position and {spellings}.") from error
    if frame.empty or any(frame[column].dtype.kind != "i" for column in ("layer", "position")):
        raise MeasurementError(f"{file}: not a selection grid: layer and position must be whole numbers in every row.")
    cells = list(zip(frame["layer"].tolist(), frame["position"].tolist(), strict=True))
    highest = max(layer for layer, _ in cells)
    if any(layer < 0 or position >= 0 for layer, position in cells):
        raise MeasurementError(f"{file}: layers count from 0, positions from the end: -1 is the last token.")
    if len(set(cells)) < len(cells):
        raise MeasurementError(f"{file}: the same layer and position occurs twice.")
    if highest >= layers:
        raise MeasurementError(f"{file}: holds layer {highest}, so the model has more than {layers} layers.")
    return PublishedGrid(frame, layers)


def replay(run: Path | str, layers: int, *, mode: Mode = "winner", rule: Rule | None = None) -> Search:
    """Returns what the rule chooses on a published grid, with the prompt-forwards either way of searching needs."""
    grid = read_grid(run, layers)
    return search(grid, grid.cells(), rule=rule or default_rule(layers), mode=mode)


def _with_our_names(table: pd.DataFrame) -> pd.DataFrame:
    """Renames the score columns; a file that spells one score in both ways is no grid, and raises ValueError."""
    ours = {theirs: kind for kind, names in KEYS.items() for theirs in names if theirs in table.columns}
    if len(set(ours.values())) < len(ours):
        raise ValueError(f"a score is spelled in two ways: {sorted(ours)}")
    return table.rename(columns=ours)
