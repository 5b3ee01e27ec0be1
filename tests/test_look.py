"""The look of the figures: one sheet that shows it, whose lines are apart in grey print too."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.image import imread

import refusalscope as rs
from refusalscope import canvas
from refusalscope.plotting.look import MEANINGS, in_grey


def test_the_sheet_is_a_picture_at_column_width_and_leaves_nothing_open():
    before, settings = plt.get_fignums(), dict(plt.rcParams)
    shown = rs.show_theme()
    height, width, _ = imread(io.BytesIO(shown.png)).shape
    assert width == round(canvas.COLUMN * canvas.SETTINGS["figure.dpi"])
    assert height < 2 * width
    assert plt.get_fignums() == before
    assert dict(plt.rcParams) == settings
    assert shown.png in rs.show_theme().png, "the same picture each time"


def test_its_text_is_a_claim_and_its_colours_are_those_of_the_figures():
    shown = rs.show_theme()
    assert "restricted prompts orange" in repr(shown)
    assert shown.colours == {meaning: ink for ink, meaning in MEANINGS}
    assert {canvas.ORANGE, canvas.BLUE, canvas.FAINT, canvas.GREY, canvas.INK} == set(shown.colours.values())


@pytest.mark.parametrize(("ink", "grey"), [("black", 0.0), ("white", 1.0), ("#808080", 128 / 255)])
def test_grey_stays_grey_of_its_own_lightness(ink, grey):
    assert float(in_grey(ink)) == pytest.approx(grey, abs=0.005)


def test_lines_are_told_apart_without_their_colour():
    names = ["one", "two", "three", "four"]
    frame = pd.DataFrame([{"x": x, "y": float(x), "by": name} for name in names for x in range(3)])
    figure, axes = plt.subplots()
    canvas.curves(axes, frame, x="x", y="y", by="by", inks=canvas.colours(names), band=("low", "high"))
    marks = {line.get_marker() for line in axes.get_lines()}
    plt.close(figure)
    assert len(marks) == len(names)
