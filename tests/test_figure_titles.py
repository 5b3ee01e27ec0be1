"""Every figure's title follows from its own numbers, and numbers that do not bear it out are noticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from figure_titles import TITLES, contradicted, tables
from refusalscope.figures import Record, read_record

FIGURES = Path(__file__).parents[1] / "figures"
RECORDS = {file.stem: file for file in sorted(FIGURES.glob("*.json"))}
VARIED = ("layer", "position", "dose", "kappa", "depth", "dimension", "rank", "n_knocked")
KEPT = (*VARIED, "other_layer", "other_position", "layers", "n", "clusters")  # what was varied, and counts


def alike(record: Record) -> Record:
    """The record with every measured number the same; what was varied, counts, flags and words stay."""

    def cell(column: str, value):
        return 0.5 if column not in KEPT and type(value) in (int, float) else value

    parts = {
        name: dataclasses.replace(one, rows=tuple(tuple(map(cell, one.columns, row)) for row in one.rows))
        for name, one in record.tables.items()
    }
    return dataclasses.replace(record, tables=parts)


def test_every_figure_has_a_comparison_and_no_comparison_is_of_a_figure_that_is_gone():
    assert set(RECORDS) == set(TITLES)


@pytest.mark.parametrize("name", RECORDS)
def test_the_title_of_every_figure_follows_from_its_own_numbers(name):
    assert contradicted(read_record(RECORDS[name])) == ""


@pytest.mark.parametrize("name", RECORDS)
def test_numbers_that_do_not_bear_a_title_out_are_noticed(name):
    record = read_record(RECORDS[name])
    assert "do not bear out" in contradicted(alike(record))


@pytest.mark.parametrize("name", RECORDS)
def test_another_title_needs_another_comparison(name):
    record = dataclasses.replace(read_record(RECORDS[name]), claim="Everything is as it should be")
    assert "the comparison is for" in contradicted(record)
    assert set(tables(record)) == set(record.tables)
