"""Readings of directions beside random ones, and rows in words: oracles, known answers, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from refusalscope import language
from refusalscope.errors import MeasurementError
from refusalscope.prompts import Prompts
from refusalscope.transfer import harm_and_refusal, in_words, plane, readings, tail

CONTRASTS = [("restricted", "harmless"), ("harmless", "harmless")]


@pytest.fixture(scope="module")
def read(organism, contrast):
    """At the layer before the one it was planted in: there the classes differ so much that any direction tells them."""
    model = organism("planted-1")
    asked = contrast.report.sample(24, seed=0)
    classes = {"restricted": asked.restricted, "harmless": asked.harmless}
    pair = harm_and_refusal(tail(model, contrast.locate), layer=2)
    return readings(model, pair, classes, CONTRASTS, placebos=19), plane(model, pair, classes)


def test_a_reading_is_scikit_learns_area_under_the_curve_of_the_projections(read):
    frame, points = read
    for row in frame[frame["second"] != frame["first"]].itertuples():
        expected = roc_auc_score(points["prompts"] == "restricted", points[row.read])
        assert row.value == pytest.approx(expected)
        assert row.n == len(points)


def test_a_planted_refusal_is_read_beyond_random_directions_and_a_class_is_not_read_from_itself(read):
    frame, _ = read
    found = frame.set_index(["first", "second", "read"])
    refusal = found.loc[("restricted", "harmless", "refusal")]
    assert refusal["value"] > 0.98
    assert refusal["random_p"] == 1 / 20
    same = found.loc["harmless"]
    assert (same["value"] == 0.5).all()
    assert (same[["random_low", "random_high"]] == 0.5).all(axis=None)


def test_items_as_clusters_widen_the_interval_that_phrasings_give(organism, contrast):
    """Every phrasing asks about the same few items, so that intervals over phrasings know nothing of items."""
    model, widths = organism("guarded-0"), []
    pair = harm_and_refusal(tail(model, contrast.locate), layer=3)
    find = language().parse
    by_item = Prompts(tuple(replace(row, cluster=find(row.text).item.name) for row in contrast.report))
    for prompts in (contrast.report, by_item):
        classes = {"restricted": prompts.restricted, "harmless": prompts.harmless}
        row = readings(model, pair, classes, CONTRASTS[:1], placebos=1).iloc[0]
        widths.append(row["high"] - row["low"])
    assert widths[1] > 2 * widths[0]


def test_a_contrast_of_an_unknown_class_is_refused(organism, contrast):
    model, few = organism("planted-1"), contrast.report.sample(5, seed=0)
    pair = harm_and_refusal(tail(model, contrast.locate), layer=3)
    with pytest.raises(MeasurementError, match=r"name \['borderline'\]"):
        readings(model, pair, {"restricted": few.restricted}, [("restricted", "borderline")])


def row(**changes: object) -> pd.Series:
    made = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 32, "clusters": 8.0, "method": "BCa 95%", "note": ""}
    made |= {"random_low": -0.1, "random_high": 0.2, "random_p": 0.005}
    return pd.Series({**made, "shuffled_low": math.nan, "shuffled_high": math.nan, "shuffled_p": math.nan, **changes})


def test_a_row_in_words_is_its_estimate_and_the_placebos_that_were_measured():
    assert in_words(row()) == "0.80 [0.70, 0.90] (BCa 95%, n = 32, 8 clusters); random -0.10 to 0.20, p = 0.005"
    both = in_words(row(shuffled_low=0.0, shuffled_high=0.5, shuffled_p=0.05))
    assert both.endswith("; shuffled 0.00 to 0.50, p = 0.05")
    assert in_words(row().drop(["random_low", "random_high", "random_p"])).endswith("8 clusters)")


def test_a_row_without_an_interval_says_why_in_words_and_refuses_to_stay_silent():
    gap = row(low=math.nan, high=math.nan, clusters=math.nan, note="one cluster")
    assert in_words(gap).startswith("0.8 [no interval] (BCa 95%, n = 32): one cluster; random")
    with pytest.raises(MeasurementError, match="no note"):
        in_words(row(low=math.nan, high=math.nan))
