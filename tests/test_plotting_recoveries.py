"""The drawing of recovery is tested by its data: every angle stands in its row, and what failed has no mark."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from refusalscope import canvas, plotting
from refusalscope.errors import MeasurementError
from test_plotting import texts

TITLE = "locators recover what was planted"
COLUMNS = ("organism", "truth_rank", "locator", "rank", "angle_1", "angle", "random_low", "random_high", "rule")
FRAME = pd.DataFrame(
    [
        ("one-0", 1, "means", 1, 7.0, 7.0, 75.0, 90.0, True),
        ("one-0", 1, "whitened", 1, 71.0, 71.0, 75.0, 90.0, False),
        ("one-1", 1, "means", 1, 9.0, 9.0, 74.0, 89.0, True),
        ("one-1", 1, "whitened", 1, math.nan, math.nan, math.nan, math.nan, True),
        ("two-0", 2, "means", 1, 5.0, 5.0, 70.0, 86.0, True),
        ("two-0", 2, "means", 2, 4.0, 80.0, 81.0, 90.0, True),
        ("two-0", 2, "cone", 2, 31.0, 65.0, 81.0, 90.0, False),
    ],
    columns=COLUMNS,
)


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def marks(axes: Axes) -> list[tuple[str, float, int, bool]]:
    """Marker, angle, row and whether it is filled, of every mark that can be seen."""
    drawn = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    seen = [(line, float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in drawn]
    return [(line.get_marker(), x, round(y), to_hex(line.get_mfc()) == canvas.INK) for line, x, y in seen if x == x]


def test_every_angle_is_a_mark_in_its_row_and_what_failed_has_none():
    single, double = plotting.recovery_by_locator(FRAME, title=TITLE).axes
    assert sorted(marks(single)) == [("o", 7.0, 0, True), ("o", 9.0, 0, True), ("o", 71.0, 1, False)]
    assert sorted(marks(double)) == [("D", 65.0, 2, False), ("D", 80.0, 0, True), ("o", 5.0, 0, True)]


def test_a_line_leads_from_the_smallest_angle_to_the_largest():
    _, double = plotting.recovery_by_locator(FRAME, title=TITLE).axes
    spans = [tuple(map(float, line.get_xdata())) for line in double.lines if len(line.get_xdata()) == 2]
    assert {(5.0, 5.0), (4.0, 80.0), (31.0, 65.0)} <= set(spans)


def test_chance_is_the_widest_band_of_a_row_and_the_limit_is_drawn():
    single, double = plotting.recovery_by_locator(FRAME, title=TITLE, near=15.0).axes
    bands = {(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in single.patches}
    assert (0, 74.0, 16.0) in bands
    assert all(15.0 in [float(line.get_xdata()[0]) for line in ax.lines] for ax in (single, double))


def test_organisms_of_one_panel_do_not_cover_each_other():
    single, _ = plotting.recovery_by_locator(FRAME, title=TITLE).axes
    heights = [float(line.get_ydata()[0]) for line in single.lines if line.get_marker() == "o"]
    assert len(set(heights)) == len(heights)


def test_it_says_what_is_drawn():
    said = [text.get_text() for text in texts(plotting.recovery_by_locator(FRAME, title=TITLE))]
    joined = " ".join(said).replace("\n", " ")
    for words in (TITLE, "one-0, one-1", "two-0", "1 planted direction", "2 planted directions", "means", "cone"):
        assert words in joined
    alone = plotting.recovery_by_locator(FRAME[FRAME["truth_rank"] == 1], title=TITLE)
    assert "as many as planted" not in " ".join(text.get_text() for text in texts(alone))
    assert alone.get_figwidth() == canvas.COLUMN


def test_the_caller_keeps_the_frame_it_gave():
    kept = FRAME.copy()
    plotting.recovery_by_locator(FRAME, title=TITLE)
    pd.testing.assert_frame_equal(FRAME, kept)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(column):
    with pytest.raises(MeasurementError, match=column):
        plotting.recovery_by_locator(FRAME.drop(columns=column), title=TITLE)
