"""Replay: the rule chooses the authors' cells on their own published grids, and refuses what is no grid."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from refusalscope import replay
from refusalscope.errors import MeasurementError, SelectionError
from refusalscope.replay import GRID, read_grid
from refusalscope.rule import Cell, Rule

SHARED = Path(os.environ.get("REFUSALSCOPE_SHARED", Path(__file__).parents[2] / "shared")) / "published_runs"
LAYERS = {
    "gemma-2b-it": 18,
    "meta-llama-3-8b-instruct": 32,
    "qwen-1_8b-chat": 24,
    "llama-3.2-1b-instruct": 16,
    "replication/Llama-2-13b-chat-hf": 40,
    "replication/Meta-Llama-3-8B-Instruct": 32,
    "replication/Qwen-1_8B-chat": 24,
    "replication/gemma-2b-it": 18,
}
THEIRS = {"refusal_score": "bypass_score", "steering_score": "induce_score"}  # as the replication names the scores
LEAST_SAVING = 3.5


def row(layer: int, position: int = -1, *, bypass=-1.0, induce=1.0, kl=0.01) -> dict:
    return {
        "position": position,
        "layer": layer,
        "refusal_score": bypass,
        "steering_score": induce,
        "kl_div_score": kl,
    }


def respelled(rows):
    """The same rows with the names of the replication; text stays as it is."""
    if isinstance(rows, str):
        return rows
    return [{THEIRS.get(key, key): value for key, value in one.items()} for one in rows]


@pytest.fixture(params=["as Arditi et al.", "as the replication"])
def run(request, tmp_path):
    """A function from rows (or text) to a run folder that holds them as its grid, with either names of the scores."""
    named = respelled if request.param == "as the replication" else lambda rows: rows

    def write(rows) -> Path:
        file, rows = tmp_path / GRID, named(rows)
        file.parent.mkdir(exist_ok=True)
        file.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture(params=LAYERS)
def published(request) -> tuple[Path, int]:
    folder = SHARED / request.param
    if not folder.is_dir():
        pytest.skip(f"the published runs are not here: set REFUSALSCOPE_SHARED to the folder that holds {SHARED.name}/")
    return folder, LAYERS[request.param]


@pytest.mark.parametrize("mode", ["winner", "map"])
def test_the_rule_chooses_the_authors_cell(published, mode):
    folder, layers = published
    stated = json.loads((folder / "direction_metadata.json").read_text())
    assert replay(folder, layers, mode=mode).chosen == Cell(stated["layer"], stated["pos"])


def test_no_published_run_is_left_out():
    if not SHARED.is_dir():
        pytest.skip(f"the published runs are not here: set REFUSALSCOPE_SHARED to the folder that holds {SHARED.name}/")
    assert {str(file.parents[1].relative_to(SHARED)) for file in SHARED.rglob(str(GRID))} == set(LAYERS)


def test_the_winner_saves_most_of_the_prompt_forwards(published):
    folder, layers = published
    found = replay(folder, layers)
    assert found.pf_naive / found.pf_used >= LEAST_SAVING
    assert found.pf_used < replay(folder, layers, mode="map").pf_used <= found.pf_naive


def test_a_rule_without_its_filters_chooses_otherwise(published):
    """Positive control: only for Llama 3 is the authors' cell simply the one with the least margin."""
    folder, layers = published
    free = replay(folder, layers, rule=Rule(kl_limit=1e9, induce_floor=-1e9, layer_share=1.0))
    assert (free.chosen == replay(folder, layers).chosen) == ("llama-3" in folder.name.lower())


GRIDS = {
    "the least margin": ([row(1, bypass=-1.0), row(2, bypass=-2.0)], 2),
    "not at a KL at the limit": ([row(1), row(2, bypass=-2.0, kl=0.1)], 1),
    "not without induction": ([row(1), row(2, bypass=-2.0, induce=0.0)], 1),
    "not in a late layer": ([row(1), row(8, bypass=-2.0)], 1),
    "not where a score is missing": ([row(1), row(2, bypass=None), row(3, bypass=-2.0, kl=float("nan"))], 1),
    "the first of equals": ([row(3), row(2), row(1)], 3),
}


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize("mode", ["winner", "map"])
def test_the_rule_on_small_grids_chooses(run, case, mode):
    rows, layer = GRIDS[case]
    assert replay(run(rows), 10, mode=mode).chosen == Cell(layer, -1)


def test_costs_count_later_layers_for_induction_and_nothing_for_a_no_op(run):
    grid = read_grid(run([row(0, kl=0.0), row(1), row(5)]), 10)
    assert [grid.cost(kind, Cell(0, -1)) for kind in ("bypass", "induce", "kl")] == [0.0, 0.0, 0.0]
    assert grid.cost("bypass", Cell(5, -1)) == grid.cost("kl", Cell(5, -1)) == grid.n_prompts
    assert grid.cost("induce", Cell(5, -1)) == 0.5 * grid.n_prompts
    assert grid.cells() == [Cell(0, -1), Cell(1, -1), Cell(5, -1)]


def test_a_grid_where_nothing_survives_gives_a_diagnosis(run):
    with pytest.raises(SelectionError, match="damages 2"):
        replay(run([row(1, kl=3.0), row(2, kl=4.0)]), 10)


MALFORMED = {
    "no JSON": "{",
    "not a list": "3",
    "a string": '"layer"',
    "an object of numbers": '{"layer": 1}',
    "empty": "[]",
    "numbers": "[1, 2]",
    "a missing column": [{"layer": 1, "position": -1, "refusal_score": 0.0, "steering_score": 0.0}],
    "a score in words": [row(1, bypass="low")],
    "a score in a list": [row(1, kl=[0.1])],
    "a layer in words": [row("one")],
    "half a layer": [row(1.5)],
    "a missing layer": [row(None), row(1)],
    "a negative layer": [row(-1)],
    "a position from the start": [row(1, 0)],
    "a cell twice": [row(1), row(1)],
    "a layer the model has not": [row(1), row(10)],
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_grid_is_refused_by_file_name(run, case):
    with pytest.raises(MeasurementError, match=r"direction_evaluations\.json"):
        replay(run(MALFORMED[case]), 10)


def test_a_grid_with_neither_name_of_a_score_is_told_both(run):
    rows = [{key: value for key, value in row(1).items() if key != "steering_score"}]
    with pytest.raises(MeasurementError, match="steering_score or induce_score"):
        replay(run([{**one, "induction": 1.0} for one in rows]), 10)


def test_a_score_under_both_of_its_names_is_refused(run):
    both = [row(1) | respelled([row(1)])[0]]
    with pytest.raises(MeasurementError, match="refusal_score or bypass_score"):
        replay(run(json.dumps(both)), 10)


def test_the_cut_decides_on_a_grid_as_on_a_model(run):
    """Layer 25 of 32 has the least margin: it is before 25.6, and not before int(25.6)."""
    folder = run([row(20, -5, bypass=-6.748), row(25, bypass=-6.9)])
    assert replay(folder, 32).chosen == Cell(20, -5)
    assert replay(folder, 32, rule=Rule(layer_cut="printed")).chosen == Cell(25, -1)


def test_bytes_that_are_no_text_are_refused(run):
    folder = run("[]")
    (folder / GRID).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeasurementError, match="not a selection grid"):
        replay(folder, 10)


def test_a_missing_grid_says_what_to_give(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(MeasurementError, match="Give the run folder"):
            replay(folder, 10)


def test_the_frame_keeps_every_published_score(run):
    rows = [row(1, -2), row(2, -1, bypass=-3.0)]
    frame = read_grid(run(rows), 10).frame
    pd.testing.assert_frame_equal(
        frame.sort_index(axis=1),
        pd.DataFrame(rows)
        .rename(columns={"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"})
        .sort_index(axis=1),
    )
