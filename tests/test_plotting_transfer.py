"""Drawings of transfer are tested by their data: every digit stands in its cell, every prompt and dose at its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from refusalscope import plotting
from refusalscope.errors import MeasurementError
from test_plotting import texts

TITLE = "refusal is one direction"


def every(**axes: list) -> pd.DataFrame:
    return pd.MultiIndex.from_product(axes.values(), names=axes.keys()).to_frame(index=False)


def matrix(grouping: str, names: list[str]) -> pd.DataFrame:
    frame = every(source=names, target=names).assign(grouping=grouping)
    frame["value"] = 0.5 + 0.01 * np.arange(len(frame))
    placebo = dict(zip(names, 0.02 + 0.01 * np.arange(len(names)), strict=True))
    return frame.assign(random_high=frame["target"].map(placebo), shuffled_high=frame["value"] - 0.25)


CELLS = pd.concat([matrix("category", ["pisedu", "redu", "ruze", "zulise"]), matrix("dialect", ["ostari", "velune"])])
CELLS = CELLS.reset_index(drop=True)
POINTS = every(prompts=["restricted how-to", "harmless how-to", "harmless what-is"], number=range(7)).assign(
    harmfulness=lambda frame: 10.0 * np.sin(frame.index), refusal=lambda frame: 5.0 * frame.index
)
CURVES = every(by=["ablation", "addition"], prompts=["restricted", "borderline"], dose=[0.0, 0.5, 1.0]).assign(
    value=[1, 0.8, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0.5],
    low=lambda frame: frame["value"] - 0.05,
    high=lambda frame: frame["value"] + 0.05,
    random_low=lambda frame: np.where(frame["prompts"] == "restricted", 0.9, 0),
    random_high=lambda frame: np.where(frame["prompts"] == "restricted", 1, 0.1),
)
DRAWINGS: dict[str, tuple[Callable[[pd.DataFrame], Figure], pd.DataFrame, tuple[str, ...]]] = {
    "transfer": (
        lambda frame: plotting.transfer(frame, title=TITLE, unit="suppression"),
        CELLS,
        ("grouping", "source", "target", "value", "random_high", "shuffled_high"),
    ),
    "plane": (lambda frame: plotting.plane(frame, title=TITLE), POINTS, ("prompts", "harmfulness", "refusal")),
    "trade_off": (
        lambda frame: plotting.trade_off(frame, title=TITLE),
        CURVES,
        ("by", "dose", "prompts", "value", "low", "high", "random_low", "random_high"),
    ),
}
VALUE = {"plane": "refusal", "trade_off": "value"}


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def drawn(name: str, frame: pd.DataFrame | None = None) -> Figure:
    draw, whole, _ = DRAWINGS[name]
    return draw(whole if frame is None else frame)


def written(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


# What all drawings share.


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_bears_its_title_and_no_legend(name: str):
    figure = drawn(name)
    assert figure.get_suptitle().replace("\n", " ") == TITLE
    assert all(axes.get_legend() is None for axes in figure.axes)


@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_are_inside_the_figure_readable_and_clear_of_each_other(name: str):
    figure = drawn(name)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts if text.get_text()]
        assert all(not one.overlaps(other) for one, other in combinations(boxes, 2))
    for text in texts(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 6, text
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_leaves_settings_and_frame_as_they_were(name: str):
    draw, frame, _ = DRAWINGS[name]
    settings, before = mpl.rcParams.copy(), frame.copy()
    draw(frame)
    assert mpl.rcParams == settings
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in DRAWINGS for column in DRAWINGS[name][2]])
def test_a_missing_column_is_named(name: str, column: str):
    with pytest.raises(MeasurementError, match=rf"'{column}'"):
        drawn(name, DRAWINGS[name][1].drop(columns=column))


@pytest.mark.parametrize("name", DRAWINGS)
def test_an_empty_frame_is_refused_by_the_name_of_a_column(name: str):
    _, frame, columns = DRAWINGS[name]
    with pytest.raises(MeasurementError, match=rf"'{columns[0]}' has no rows"):
        drawn(name, frame.iloc[:0])
    assert not plt.get_fignums()


@pytest.mark.parametrize(("name", "column"), VALUE.items())
def test_a_nan_value_is_refused_rather_than_left_out(name: str, column: str):
    frame = DRAWINGS[name][1]
    with pytest.raises(MeasurementError, match=rf"'{column}' has 1 nan among {len(frame)} rows"):
        drawn(name, frame.assign(**{column: frame[column].where(frame.index != 0)}))


# The matrices.


def test_every_cell_bears_its_value_over_its_shuffled_bound_and_every_column_its_random_bound():
    figure = drawn("transfer", CELLS.sample(frac=1, random_state=0))
    for axes in figure.axes:
        part = CELLS[CELLS["grouping"] == axes.get_title(loc="left").removeprefix("by ")]
        down, across = (
            [label.get_text() for label in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels())
        )
        assert down[-1] == "random"
        expected = {
            (across.index(row.target), down.index(row.source), text)
            for row in part.itertuples()
            for text in (f"{row.value:.2f}", f"≤{row.shuffled_high:.2f}")
        }
        expected |= {(across.index(row.target), len(down) - 1, f"≤{row.random_high:.2f}") for row in part.itertuples()}
        assert {(*text.xy, text.get_text()) for text in axes.texts} == expected


def test_the_colours_are_those_of_the_values_and_the_random_bounds_on_a_fixed_scale():
    axes = drawn("transfer").axes[1]
    part = CELLS[CELLS["grouping"] == "dialect"]
    image = axes.images[0]
    assert np.asarray(image.get_array())[:2].ravel().tolist() == part["value"].tolist()
    assert np.asarray(image.get_array())[2].tolist() == [0.02, 0.03]
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_digits_stand_out_from_the_darkest_cell_in_colour_and_in_grey():
    image = drawn("transfer").axes[0].images[0]
    rgb = np.array(image.cmap(1.0)[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    ink = (int("26", 16) / 255 + 0.055) ** 2.4 / 1.055**2.4
    assert (linear + 0.05) / (ink + 0.05) >= 4.5  # WCAG 2.2, contrast of text


def test_a_cell_that_was_not_measured_stays_open_and_one_without_shuffles_has_no_bound():
    first = (CELLS["source"] == "ostari") & (CELLS["target"] == "velune")
    holes = dict.fromkeys(("value", "random_high", "shuffled_high"), math.nan)
    axes = drawn("transfer", CELLS.assign(**{k: CELLS[k].mask(first, v) for k, v in holes.items()})).axes[1]
    assert np.isnan(np.asarray(axes.images[0].get_array().filled(np.nan))[0, 1])
    assert axes.patch.get_hatch()
    assert [text for text in axes.texts if text.xy == (1, 0) and text.get_text()] == []
    assert "≤0.03" in written(axes), "the other source still has the random bound of this target"
    bare = drawn("transfer", CELLS.assign(shuffled_high=math.nan)).axes[1]
    assert sum("≤" in text for text in written(bare)) == 2


def test_several_metrics_at_once_are_refused():
    with pytest.raises(MeasurementError, match="several rows for one cell"):
        drawn("transfer", pd.concat([CELLS, CELLS.iloc[:1]]))


def test_eight_phrasings_fit_one_panel():
    names = [f"{dialect}/how-to/{number:02d}" for dialect in ("ostari", "velune") for number in range(4)]
    figure = drawn("transfer", matrix("phrasing", names).assign(shuffled_high=math.nan))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert all(not one.overlaps(other) for one, other in combinations(boxes, 2))


# The plane.


def test_the_plane_has_every_prompt_at_its_projections_and_names_each_class_once():
    (axes,) = drawn("plane").axes
    for (name, part), strip in zip(POINTS.groupby("prompts", sort=False), axes.collections, strict=True):
        assert np.asarray(strip.get_offsets()).tolist() == part[["harmfulness", "refusal"]].to_numpy().tolist()
        assert written(axes).count(name) == 1


def test_the_classes_of_the_plane_differ_in_shape_as_well_as_in_colour():
    (axes,) = drawn("plane").axes
    assert len({line.get_marker() for line in axes.lines}) == len(axes.lines) == 3
    medians = POINTS.groupby("prompts", sort=False)[["harmfulness", "refusal"]].median().to_numpy().tolist()
    assert [np.ravel(line.get_xydata()).tolist() for line in axes.lines] == medians


# The trade-off.


def test_the_trade_off_has_a_panel_per_intervention_and_a_named_line_per_kind():
    figure = drawn("trade_off", CURVES.sample(frac=1, random_state=0).sort_values(["by", "prompts"]))
    for axes, (_, part) in zip(figure.axes, CURVES.groupby("by"), strict=True):
        found = sorted(np.asarray(line.get_xydata()).tolist() for line in axes.lines)
        expected = sorted(
            line.sort_values("dose")[["dose", "value"]].to_numpy().tolist() for _, line in part.groupby("prompts")
        )
        assert found == expected
        assert {"restricted", "borderline", "random, 95% band"} == set(written(axes))


def test_the_trade_off_draws_the_band_of_random_directions_for_every_kind():
    axes = drawn("trade_off").axes[0]
    bands = [band.get_paths()[0].get_extents() for band in axes.collections[:2]]
    assert sorted((round(box.y0, 9), round(box.y1, 9)) for box in bands) == [(0, 0.1), (0.9, 1)]
