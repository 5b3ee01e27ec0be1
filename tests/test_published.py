"""Published numbers: every fact stands in its source, and every figure draws those facts and bears its title out."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import refusalscope as rs
from refusalscope import plotting, published, stats
from refusalscope.errors import ContractError, MeasurementError
from refusalscope.figures import read_record
from refusalscope.published.facts import COLUMNS, TOPICS
from refusalscope.published.runs import VARIABLE, cosines_between

ROOT = Path(__file__).parents[1]
DATA, FIGURES = ROOT / "data" / "published", ROOT / "figures"
SHARED = Path(os.environ.get("REFUSALSCOPE_SHARED", ROOT.parent / "shared"))
RUNS, NUMBERS = SHARED / "published_runs", SHARED / "published_numbers.csv"
SIX_DIGITS = 1e-5
CHAT = {"Gemma-2B": "gemma-2b-it", "Qwen-1.8B": "qwen-1_8b-chat", "Llama-3-8B": "meta-llama-3-8b-instruct"}


@pytest.fixture(scope="module")
def facts() -> pd.DataFrame:
    return published.read(DATA)


@pytest.fixture
def sources() -> Path:
    if not (RUNS.is_dir() and NUMBERS.is_file()):
        pytest.skip("the sources of the published numbers are not here: set REFUSALSCOPE_SHARED to their folder")
    return SHARED


@pytest.fixture
def stored() -> published.Runs:
    """Runs without run folders: what a clone sees."""
    return published.Runs(None, FIGURES, {})


def drawn(figure: str, table: str = "data") -> pd.DataFrame:
    found = read_record(FIGURES / f"{figure}.json").tables[table]
    return pd.DataFrame(found.rows, columns=list(found.columns))


# Facts and their sources.


def test_every_fact_stands_in_the_source_table_word_for_word(facts, sources):
    with NUMBERS.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    known = {(row["paper"], row["model"], row["metric"], row["condition"], row["source"]): row for row in rows}
    for fact in facts.to_dict("records"):
        row = known[(fact["paper"], fact["model"], fact["metric"], fact["condition"], fact["table"])]
        assert (fact["value"], fact["mark"]) == (row["value"], row["mark"])


def test_every_fact_names_its_source_its_table_and_its_mark(facts):
    assert set(facts["topic"]) == set(TOPICS)
    assert not (facts[["value", "source", "table", "mark"]] == "").to_numpy().any()
    assert not facts.duplicated(["topic", "paper", "model", "metric", "condition"]).any()


GOOD = dict.fromkeys(COLUMNS, "x") | {"value": "1", "mark": "READ"}
SPOILED = {
    "a missing source": ([GOOD | {"source": ""}], "no source"),
    "a missing value": ([GOOD, GOOD | {"value": " "}], "line 3 has no value"),
    "an unknown mark": ([GOOD | {"mark": "GUESSED"}], "READ, COMPUTED"),
    "another column": ([GOOD | {"extra": "x"}], "the columns must be"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_table_of_facts_is_refused_by_name(case, tmp_path):
    rows, said = SPOILED[case]
    for topic in TOPICS:
        pd.DataFrame([GOOD]).to_csv(tmp_path / f"{topic}.csv", index=False)
    assert len(published.read(tmp_path)) == len(TOPICS)
    pd.DataFrame(rows).to_csv(tmp_path / "losses.csv", index=False)
    with pytest.raises(MeasurementError, match=rf"losses\.csv.*{said}"):
        published.read(tmp_path)


def test_a_missing_table_of_facts_is_named(tmp_path):
    with pytest.raises(MeasurementError, match=r"selection\.csv"):
        published.read(tmp_path)


def test_a_metric_nobody_published_is_an_error(facts):
    with pytest.raises(MeasurementError, match="vibes"):
        published.stated(facts, topic="losses", metric="vibes")


def test_a_rate_that_is_no_count_of_its_n_is_refused(facts):
    wrong = facts.assign(value=facts["value"].where(facts["topic"] != "refusals", "0.915"))
    with pytest.raises(MeasurementError, match="no count of n = 100"):
        published.refusals(wrong)


# The numbers drawn are the numbers published.


def test_the_losses_drawn_are_those_published(facts):
    shown = drawn("published_losses").set_index(["model", "corpus", "condition"])["value"]
    rows = published.losses(facts).set_index(["model", "corpus", "condition"])["value"]
    assert len(rows) == 45
    pd.testing.assert_series_equal(shown.loc[rows.index], rows, rtol=SIX_DIGITS)


def test_the_refusals_drawn_are_wilson_intervals_of_the_published_counts(facts):
    shown = drawn("published_refusals").set_index(["group", "condition"])
    rows = facts[(facts["topic"] == "refusals") & (facts["metric"] == "substring_matching_success_rate")]
    one = rows[(rows["model"] == "gemma-2b-it") & (rows["condition"] == "jailbreakbench_baseline n=100")][
        "value"
    ].item()
    expected = stats.wilson(100 - round(100 * float(one)), 100)
    found = shown.loc[("Gemma-2B", "restricted, before")]
    assert found[["value", "low", "high"]].tolist() == pytest.approx(
        [expected.value, expected.low, expected.high], rel=SIX_DIGITS
    )
    assert len(published.refusals(facts)) == 20


def test_the_intervals_recomputed_are_those_printed(facts):
    """Young prints Wilson intervals with one decimal of a percentage: they agree to half of it."""
    shown = drawn("published_removals", "published").dropna(subset=["stated_low"])
    assert len(shown) == 8
    for end in ("low", "high"):
        assert shown[end].to_numpy() == pytest.approx(shown[f"stated_{end}"].to_numpy(), abs=5.1e-4)
    assert published.agreement(facts).interval_gap <= 5.1e-4


def test_the_correlation_printed_rests_on_the_two_models_of_largest_damage(facts):
    told = published.agreement(facts)
    assert round(told.recomputed_r, 2) == told.printed_r
    assert (told.n, told.n_mild) == (8, 6)
    assert told.mild_r < 0.5


def test_paper_and_run_agree_on_layers_and_on_all_positions_but_one(facts):
    told = published.agreement(facts)
    assert (told.relayered, told.moved) == ((), ("qwen-1_8b-chat",))


def test_the_judges_drawn_are_those_published_and_disagree_as_the_title_says(facts):
    shown = drawn("published_judges", "published")
    assert shown["refused"].tolist() == published.judgements(facts)["refused"].tolist()
    for table, n in (("published", 50), ("organism", 128)):
        spread = drawn("published_judges", table).groupby("answers")["refused"].agg(["min", "max"])
        assert ((spread["min"] == 0) & (spread["max"] == n)).any()


def test_the_losses_bear_the_title_out():
    pile = (
        drawn("published_losses")
        .query("corpus == 'the Pile'")
        .pivot(index="model", columns="condition", values="value")
    )
    assert (pile["ablated"] - pile["base"]).abs().max() < 0.02
    assert ((pile["added"] - pile["base"]) > 5 * (pile["ablated"] - pile["base"]).abs()).all()


def test_the_refusals_bear_the_title_out():
    rates = drawn("published_refusals").pivot(index="group", columns="condition")
    assert (rates["low"]["restricted, before"] > rates["high"]["restricted, ablated"]).all()
    assert (rates["low"]["harmless, added"] > rates["high"]["harmless, before"]).all()


@pytest.mark.parametrize("table", ["published", "organism"])
def test_the_cosines_bear_the_title_out(table):
    frame = drawn("published_cosines", table)
    pairs = frame[(frame["position"] != frame["other_position"]) | (frame["layer"] != frame["other_layer"])]
    mean = pairs["cosine"].groupby(pairs["position"] == pairs["other_position"]).mean()
    assert mean[True] > mean[False] + 0.1


# Grids and cosines: from run folders, and as stored without them.


def test_a_clone_without_run_folders_sees_the_stored_grids_and_says_so(stored):
    grids = stored.grids()
    assert grids.groupby("model").size().to_dict() == {"Gemma-2B": 90, "Llama-3-8B": 160, "Qwen-1.8B": 120}
    assert "skipped" in stored._repr_html_()
    costs = published.costs(grids, n_prompts=32)
    assert costs["same"].all()
    assert (costs["saving"] > 3).all()


def test_the_text_of_runs_is_the_same_with_and_without_folders(stored, tmp_path):
    there = published.Runs(tmp_path, FIGURES, {})
    assert repr(there) == repr(stored)
    assert there._repr_html_() != stored._repr_html_()


def test_the_grids_and_cosines_drawn_are_those_of_the_run_folders(facts, sources, stored):
    live = published.runs(facts, RUNS)
    for frame, kept in ((live.grids(), stored.grids()), (live.cosines(), stored.cosines())):
        pd.testing.assert_frame_equal(frame, kept, check_dtype=False, rtol=SIX_DIGITS, atol=1e-9)


def test_the_chosen_cells_are_those_of_the_facts(facts, stored):
    grids = stored.grids()
    told = published.choices(facts).set_index("model")
    for name, run in CHAT.items():
        best = grids[grids["chosen"] & (grids["model"] == name)].iloc[0]
        row = told.loc[run]
        assert (best["layer"], best["position"]) == (row["run_layer"], row["run_position"])
        assert best["bypass"] == pytest.approx(row["run_bypass"], abs=5e-4)


def test_as_many_cells_survive_as_in_the_authors_files(facts, stored):
    """Their code cuts at int(0.8 L), as the rule does here; as printed, a layer more would survive in two models."""
    grids, passing = stored.grids(), published.agreement(facts).passing
    for model, run in CHAT.items():
        part = grids[(grids["model"] == model) & (grids["reason"] == "kept")]
        assert len(part) == passing[run]


def test_without_filters_two_of_three_models_give_a_cell_that_breaks_them(stored):
    worst = published.unfiltered(stored.grids()).set_index("model")
    assert worst.loc["Gemma-2B", "kl"] > 10
    assert worst.loc["Qwen-1.8B", "kl"] > 7
    assert worst.loc["Llama-3-8B", "chosen"]


def test_the_gap_of_survivors_is_the_distance_to_the_chosen_cell(stored):
    frame = published.survivors(stored.grids())
    assert (frame.loc[frame["chosen"], "gap"] == 0).all()
    kept = frame[frame["reason"] == "kept"]
    assert (kept["gap"] >= 0).all()
    assert frame.loc[frame["reason"] != "kept", "gap"].isna().all()
    nearest = kept[~kept["chosen"]].groupby("model")["gap"].min()
    assert nearest.round(2).to_dict() == {"Gemma-2B": 0.12, "Llama-3-8B": 0.27, "Qwen-1.8B": 0.04}


def test_baselines_are_read_off_exact_no_ops_and_off_nothing_else(stored):
    grids = stored.grids()
    found = published.baselines(grids).set_index("model")
    assert found.loc["Gemma-2B"].tolist() == pytest.approx([5.628, -13.938], abs=5e-4)
    with pytest.raises(MeasurementError, match="no-op"):
        published.baselines(grids[grids["kl"] > 0])


def test_cosines_leave_out_cells_without_a_direction():
    vectors = torch.zeros(2, 2, 3)
    vectors[1] = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    frame = cosines_between(vectors, "toy")
    assert frame["layer"].eq(1).all()
    assert frame["cosine"].tolist() == pytest.approx([1.0, math.sqrt(0.5), 1.0])


def test_where_runs_are_looked_for(facts, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert published.runs(facts).folder == tmp_path
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(MeasurementError, match=VARIABLE):
        published.runs(facts)
    assert published.runs(facts, tmp_path).folder == tmp_path
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "clone" / "data" / "published").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "clone")
    assert published.runs(facts).folder is None
    (tmp_path / "shared" / "published_runs").mkdir(parents=True)
    assert published.runs(facts).folder == tmp_path / "shared" / "published_runs"


def test_a_folder_without_runs_an_unknown_run_and_no_record_are_errors(tmp_path):
    with pytest.raises(MeasurementError, match="holds no run"):
        published.Runs(tmp_path, FIGURES, {}).grids()
    with pytest.raises(MeasurementError, match="mean_diffs"):
        published.Runs(tmp_path, FIGURES, {}).cosines()
    file = tmp_path / "new-model" / "select_direction" / "direction_evaluations.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([]))
    with pytest.raises(MeasurementError, match="new-model"):
        published.Runs(tmp_path, FIGURES, {}).grids()
    assert "new-model" in published.Runs(tmp_path, FIGURES, {})._repr_html_()
    with pytest.raises(MeasurementError, match=r"published_grids\.json"):
        published.Runs(None, tmp_path, {}).grids()


# Each drawing, from its stored frames and from a frame that lacks a column.


def test_every_drawing_draws_its_frame_and_refuses_another(stored, facts):
    grids, draw = stored.grids(), plotting.published
    calls = {
        draw.score_grids: (grids, {"baselines": published.baselines(grids)}, "bypass"),
        draw.survivors: (published.survivors(grids), {}, "state"),
        draw.search_costs: (published.costs(grids, n_prompts=32), {}, "saving"),
        draw.losses: (published.losses(facts), {}, "corpus"),
        draw.cosine_maps: (stored.cosines(), {}, "cosine"),
    }
    for function, (frame, options, column) in calls.items():
        assert function(frame, title="t", **options).axes
        with pytest.raises(MeasurementError, match=column):
            function(frame.drop(columns=column), title="t", **options)
    for function, frame, column in (
        (draw.removals, published.removals(facts), "kl"),
        (draw.judges, published.judgements(facts), "judge"),
    ):
        assert function({"published": frame}, title="t").axes
        with pytest.raises(MeasurementError, match=column):
            function({"published": frame.drop(columns=column)}, title="t")


# The same on a model that is here.


def test_what_still_refuses_is_what_is_not_bypassed(guarded, prompts):
    refusal = rs.readout(guarded, prompts.locate)
    found = rs.locate.mean_difference(*rs.capture(guarded, prompts.locate))
    before = rs.baseline(guarded, prompts.report, refusal)
    cells = {"early": found.at(1, -1), "chosen": found.at(4, -1)}
    shown = published.live.removals(before, cells).set_index("model")
    for name, subspace in cells.items():
        effect = rs.effect(before, subspace)
        assert shown.loc[name, "value"] == pytest.approx(1 - effect.bypass.value)
        assert shown.loc[name, "kl"] == pytest.approx(effect.kl.value, rel=1e-5)
    judged = published.live.judgements(before, cells["chosen"], doses=(0.0, 1.0))
    assert judged.groupby("answers")["refused"].max().to_dict()["before"] == len(before.prompts.restricted)
    first = judged.set_index(["judge", "answers"]).loc["first token", "value"]
    assert first["ablated, dose 1"] == shown.loc["chosen", "value"]


def test_a_model_that_is_no_organism_is_never_decoded_for_judges(before, direction):
    other = copy.copy(before.model)
    other.__dict__["is_organism"] = False
    with pytest.raises(ContractError, match="not an organism"):
        published.live.judgements(replace(before, model=other), direction(), doses=(1.0,))
