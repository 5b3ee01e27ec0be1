"""Cards side by side: known differences, missing numbers, and every reason not to compare them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt

import refusalscope as rs
import results_by_hand as by_hand
from refusalscope.errors import MeasurementError
from refusalscope.optionality.intervals import mover
from refusalscope.results.parts import InstrumentCheck

PASSED = InstrumentCheck("passed", "as it was")


def card(name: str, **facts):
    return replace(by_hand.card(name=name, **facts), instrument_check=PASSED)


def test_the_table_holds_both_worst_cases_and_the_difference_to_the_first():
    found = rs.compare(card("a", x=0.95, bypass=(0.85, 0.99)), card("b", x=0.25, bypass=(0.15, 0.4)))
    rows = found.frame.set_index(["measure", "model"])
    assert rows.loc[("bypass", "b"), "value"] == 0.25
    assert rows.loc[("bypass", "b"), "difference"] == pytest.approx(-0.7)
    assert np.isnan(rows.loc[("bypass", "a"), "difference"])
    assert rows.loc[("bypass", "b"), "placebo"] == 0.2
    assert (found.caveats, set(rows["state"])) == ((), {"optional"})
    low, high = rows.loc[("bypass", "b"), ["difference_low", "difference_high"]]
    assert (low, high) == pytest.approx((-0.7 - np.hypot(0.1, 0.04), -0.7 + np.hypot(0.15, 0.1)))


def test_the_interval_of_a_difference_covers_it():
    """Two rates from 60 prompts each, 2,000 times: the interval from their Wilson intervals covers in 95%."""
    chance, truth, held = np.random.default_rng(0), (0.8, 0.55), 0
    for _ in range(2000):
        flags = [chance.random(60) < rate for rate in truth]
        parts = [rs.stats.rate(list(one)) for one in flags]
        low, high = mover(*((part.value, part.interval) for part in parts))
        held += low <= truth[0] - truth[1] <= high
    assert 0.935 <= held / 2000 <= 0.97


def test_a_correlation_narrows_the_interval_of_a_difference():
    one, other = (0.8, (0.7, 0.88)), (0.6, (0.5, 0.69))
    (wide_low, wide_high), (low, high) = mover(one, other), mover(one, other, correlation=0.8)
    assert wide_low < low < 0.2 < high < wide_high


def test_a_card_without_a_number_keeps_its_row_and_says_why():
    empty = replace(card("b"), optionality=None, effect=None, verdict=by_hand.Verdict("undetermined", "No.", ("few",)))
    found = rs.compare(card("a"), empty)
    row = found.frame.set_index(["measure", "model"]).loc[("bypass", "b")]
    assert np.isnan(row["value"])
    assert np.isnan(row["difference"])
    assert any("b has no worst case: few" in one for one in found.caveats)
    plt.close(found.forest())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "different seeds"),
        ({"plan": "quick"}, "different plans"),
        ({"attack_family": ("another",)}, "different attack families"),
        ({"versions": dict.fromkeys(by_hand.VERSIONS, "2.0")}, "different versions"),
        ({"instrument_check": InstrumentCheck("not run", "no organisms")}, "instrument check of b: not run"),
    ],
)
def test_what_keeps_cards_from_being_compared_is_said(change, said):
    assert rs.compare(card("a"), card("b")).caveats == ()
    found = rs.compare(card("a"), replace(card("b"), **change))
    assert len(found.caveats) == 1
    assert said in found.caveats[0]


def test_other_prompts_are_a_caveat():
    other = card("b")
    other = replace(other, prompts=replace(other.prompts, digest="f" * 64))
    assert rs.compare(card("a"), other).caveats == ("The cards are of different prompts.",)


def test_one_card_or_two_of_one_name_are_no_comparison():
    with pytest.raises(MeasurementError, match="two cards or more; got 1"):
        rs.compare(card("a"))
    with pytest.raises(MeasurementError, match="Two cards are of 'a'"):
        rs.compare(card("a"), card("a"))


def test_the_forest_has_a_row_for_each_model_and_names_from_outside_are_escaped():
    found = rs.compare(card("a"), card("<script>"), card("c", x=0.25, bypass=(0.15, 0.4)))
    figure = found.forest()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "<script>", "c"]
    assert len(figure.axes) == 2
    plt.close(figure)
    assert "<script>" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()
