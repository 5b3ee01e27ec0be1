"""Drawings are tested by their data: what the frame says is what the ink says, and every line bears its name."""

import io
import math
from collections.abc import Callable
from functools import cache
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from refusalscope import canvas, plotting
from refusalscope.errors import MeasurementError
from refusalscope.rule import Cell, Rule, default_rule

TITLE = "one direction carries refusal"
PLACEBO = (5.5, 6.5)


def every(**axes: list) -> pd.DataFrame:
    return pd.MultiIndex.from_product(axes.values(), names=axes.keys()).to_frame(index=False)


def with_interval(frame: pd.DataFrame, value: str = "value", width: float = 0.1) -> pd.DataFrame:
    return frame.assign(low=frame[value] - width, high=frame[value] + width)


MARGINS = every(condition=["before", "after"], label=["restricted", "harmless"], prompt=range(9)).assign(
    value=lambda frame: np.linspace(-9, 7, len(frame))
)
SUMMARY = with_interval(
    every(condition=["before", "after"], label=["restricted", "harmless"]).assign(value=[-7, -3, 1, 5])
)
CELLS = every(position=[-3, -2, -1], layer=range(10)).assign(
    bypass=lambda frame: 5 - frame["layer"] + frame["position"],
    induce=lambda frame: -9.0 + frame["layer"],
    kl=lambda frame: 0.01 * frame["layer"],
    chosen=lambda frame: (frame["layer"] == 6) & (frame["position"] == -2),
)
TIES = with_interval(
    pd.DataFrame(
        {"layer": [6, 5], "position": [-2, -1], "share": [0.7, 0.3], "bypass": [-3.0, -2.9], "chosen": [True, False]}
    ),
    "bypass",
)
ANGLES = every(organism=["a", "b"], position=[-2, -1], layer=range(4)).assign(
    angle_degrees=lambda frame: 60.0 + frame["layer"] + frame["position"]
)
RATES = with_interval(
    every(condition=["guarded", "planted-1"], group=["restricted refused", "harmless right"]).assign(
        value=[0.9, 0.8, 0.7, 0.6], target=[0.95, 0.9, 0.95, 0.9]
    )
)
DOSES = with_interval(
    every(series=["located", "random"], dose=[0.0, 0.5, 1.0]).assign(value=[6.0, 2.0, -3.0, 6.0, 5.9, 5.8])
)
BY_RANK = DOSES.rename(columns={"dose": "rank"}).assign(placebo_high=[math.nan, 1.0, 2.0] * 2)
WORST = with_interval(
    every(measure=["bypass", "suppression"], series=["guarded", "planted"], kappa=[0.001, 0.1, 1.0]).assign(
        value=np.linspace(0.1, 0.9, 12), placebo=0.05
    )
)
BY_LAYER = with_interval(
    every(series=["restricted", "harmless"], layer=range(6)).assign(
        value=[0, 0.1, 0.3, 0.5, 0.6, 0.6, 0, 0.1, 0, -0.1, -0.2, -0.1],
        random_low=[-0.2] * 11 + [math.nan],
        random_high=[0.2] * 11 + [math.nan],
    )
)
WRITTEN = with_interval(
    pd.DataFrame(
        {
            "component": ["embedding", "L0H0", "L0H1", "L0 MLP", "L1H0", "L1H1", "L1 MLP"],
            "layer": [0, 0, 0, 0, 1, 1, 1],
            "upstream": [True] * 4 + [False] * 3,
            "value": [0.0, 0.4, -3.0, 9.0, 1.0, 0.2, 2.0],
            "random_low": -0.5,
            "random_high": 0.5,
        }
    )
)
CROSSED = with_interval(
    every(read=["harmfulness", "refusal"], ablated=["nothing", "harmfulness", "refusal"], layer=range(4)).assign(
        value=np.linspace(0.1, 0.8, 24), random_low=0.3, random_high=0.4
    )
)
MEMBERS = every(series=["cone", "random"], dimension=[1, 2, 3], member=range(8)).assign(
    value=lambda frame: np.where(frame["series"] == "cone", 0.8, 0.1) + 0.01 * frame["member"]
)
FOREST = with_interval(
    every(measure=["bypass", "suppression"], model=["guarded-0", "a model with quite a long name", "planted"]).assign(
        value=[0.95, 0.5, 0.1, 0.7, 0.3, 0.05],
        placebo=[0.2, 0.1, math.nan] * 2,
        n=[128, 96, 9] * 2,
        clusters=[8, 8, None] * 2,
    )
)

Draw = Callable[[pd.DataFrame], Figure]
DRAWINGS: dict[str, tuple[Draw, pd.DataFrame, tuple[str, ...]]] = {
    "margins": (lambda f: plotting.margins(f, title=TITLE, placebo=PLACEBO), MARGINS, ("condition", "label", "value")),
    "layer_position_map": (
        lambda f: plotting.layer_position_map(f, value="kl", title=TITLE, unit="nats", mark=(6, -2)),
        CELLS,
        ("layer", "position", "kl"),
    ),
    "selection_grid": (
        lambda f: plotting.selection_grid(f, title=TITLE, baselines={"bypass": 6.0}),
        CELLS,
        ("layer", "position", "bypass", "induce", "kl", "chosen"),
    ),
    "near_ties": (
        lambda f: plotting.near_ties(f, title=TITLE),
        TIES,
        ("layer", "position", "share", "bypass", "low", "high", "chosen"),
    ),
    "recovery": (
        lambda f: plotting.recovery(f, title=TITLE, placebo=(80, 90)),
        ANGLES,
        ("layer", "position", "angle_degrees"),
    ),
    "rates": (lambda f: plotting.rates(f, title=TITLE), RATES, ("condition", "group", "value", "low", "high")),
    "dose": (
        lambda f: plotting.dose(f, title=TITLE, unit="refusal margin (nats)", placebo=PLACEBO),
        DOSES,
        ("dose", "value", "low", "high", "series"),
    ),
    "curve": (
        lambda f: plotting.curve(f, x="rank", title=TITLE, label="rank", unit="bypass rate"),
        BY_RANK,
        ("rank", "value", "low", "high", "placebo_high", "series"),
    ),
    "frontier": (
        lambda f: plotting.frontier(f, title=TITLE, limit=0.1),
        WORST,
        ("kappa", "measure", "value", "low", "high", "placebo", "series"),
    ),
    "banded": (
        lambda f: plotting.banded(f, x="layer", title=TITLE, label="layer", unit="cosine", placebo="random"),
        BY_LAYER,
        ("layer", "value", "low", "high", "random_low", "random_high", "series"),
    ),
    "writers": (
        lambda f: plotting.writers(f, title=TITLE),
        WRITTEN,
        ("component", "layer", "upstream", "value", "low", "high", "random_low", "random_high"),
    ),
    "independence": (
        lambda f: plotting.independence(f, title=TITLE),
        CROSSED,
        ("read", "ablated", "layer", "value", "low", "high", "random_low", "random_high"),
    ),
    "cones": (
        lambda f: plotting.cones(f, title=TITLE, unit="suppression"),
        MEMBERS,
        ("dimension", "value", "series"),
    ),
    "forest": (
        lambda f: plotting.forest(f, title=TITLE),
        FOREST,
        ("model", "measure", "n", "value", "low", "high", "placebo"),
    ),
}
GAPS = {"low", "high", "kl", "bypass", "induce", "placebo", "placebo_high", "random_low", "random_high"}


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def drawn(name: str, frame: pd.DataFrame | None = None) -> Figure:
    return whole(name) if frame is None else DRAWINGS[name][0](frame)


@cache
def whole(name: str) -> Figure:
    draw, frame, _ = DRAWINGS[name]
    return draw(frame)


def texts(figure: Figure) -> list[Text]:
    """All texts but the labels of ticks outside the limits, which are never drawn."""
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            unseen |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
            unseen |= {tick.label2 for tick in axis.get_major_ticks()}
    return [text for text in figure.findobj(Text) if text.get_text() and text not in unseen]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def lines(axes: Axes, marker: str = canvas.MARKS, style: str = "-") -> list[np.ndarray]:
    found = [line for line in axes.lines if str(line.get_marker()) in marker and line.get_linestyle() == style]
    return [np.asarray(line.get_xydata()) for line in found]


def levels(axes: Axes) -> list[float]:
    return [float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "--"]


def spans(axes: Axes, *, vertical: bool) -> list[tuple[float, float]]:
    boxes = [patch.get_bbox() for patch in axes.patches if patch.get_facecolor() == mpl.colors.to_rgba(canvas.FAINT)]
    return [(float(box.x0), float(box.x1)) if vertical else (float(box.y0), float(box.y1)) for box in boxes]


# What all drawings share.


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_bears_its_title_and_no_legend(name: str):
    figure = drawn(name)
    assert figure.get_suptitle().replace("\n", " ") == TITLE
    assert all(axes.get_legend() is None for axes in figure.axes)


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_text_is_inside_the_figure(name: str):
    figure = drawn(name)
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    for text in texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_two_names_at_the_ends_of_lines_overlap(name: str):
    figure = drawn(name)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts if text.get_text()]  # without the leader
        assert all(not one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("name", DRAWINGS)
def test_type_is_at_least_six_points(name: str):
    assert all(text.get_fontsize() >= 6 for text in texts(drawn(name)))


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_leaves_the_settings_as_they_were(name: str):
    before, (draw, frame, _) = mpl.rcParams.copy(), DRAWINGS[name]
    draw(frame)
    assert mpl.rcParams == before


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_leaves_the_frame_as_it_was(name: str):
    draw, frame, _ = DRAWINGS[name]
    before = frame.copy()
    draw(frame)
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_does_not_change_with_the_settings_it_is_saved_under(name: str):
    pictures = []
    for settings in ({}, {"xtick.labelsize": 20, "ytick.labelsize": 2, "font.size": 20, "axes.titlesize": 3}):
        picture = io.BytesIO()
        with mpl.rc_context(settings):
            drawn(name).savefig(picture)
        pictures.append(picture.getvalue())
    assert pictures[0] == pictures[1]


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


@pytest.mark.parametrize("name", [name for name in DRAWINGS if name != "forest" and "kl" not in DRAWINGS[name][2]])
def test_a_nan_value_is_refused_rather_than_left_out(name: str):
    _, frame, columns = DRAWINGS[name]
    value = next(column for column in ("value", "angle_degrees", "share") if column in columns)
    with pytest.raises(MeasurementError, match=rf"'{value}' has 1 nan among {len(frame)} rows"):
        drawn(name, frame.assign(**{value: frame[value].where(frame.index != 0)}))


@pytest.mark.parametrize("name", [name for name in DRAWINGS if "low" in DRAWINGS[name][2]])
def test_an_estimate_without_an_interval_is_drawn_without_a_bar(name: str):
    assert drawn(name, DRAWINGS[name][1].assign(low=math.nan, high=math.nan)).axes


def test_an_error_while_drawing_closes_the_figure():
    with pytest.raises(MeasurementError, match="marked cell, layer 99"):
        plotting.layer_position_map(CELLS, value="kl", title=TITLE, unit="nats", mark=(99, -1))
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", ["selection_grid", "recovery", "dose", "curve", "banded", "frontier"])
def test_lines_of_a_panel_differ_in_marker_as_well_as_in_colour(name: str):
    for axes in drawn(name).axes:
        looks = [(line.get_marker(), line.get_color()) for line in axes.lines if line.get_linestyle() == "-"]
        looks = [look for look in looks if look[0] in canvas.MARKS]
        assert len({marker for marker, _ in looks}) == len({colour for _, colour in looks}) == len(set(looks)) > 1


# Margins.


def test_margins_puts_every_prompt_at_its_margin_in_the_row_of_its_condition_and_label():
    (axes,) = drawn("margins").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "before, restricted",
        "before, harmless",
        "after, restricted",
        "after, harmless",
    ]
    for row, strip in enumerate(axes.collections):
        x, y = np.asarray(strip.get_offsets()).T
        assert x.tolist() == MARGINS["value"][9 * row : 9 * row + 9].tolist()
        assert np.abs(y - row).max() <= 0.25
    assert len(axes.collections) == 4


def test_margins_gives_each_label_its_colour_in_points_and_name():
    (axes,) = drawn("margins").axes
    inks = [canvas.ORANGE, canvas.BLUE] * 2
    assert [label.get_color() for label in axes.get_yticklabels()] == inks
    assert [mpl.colors.to_hex(strip.get_facecolor()[0]) for strip in axes.collections] == inks


def test_margins_draws_the_placebo_band_and_the_line_at_zero():
    figure = drawn("margins")
    assert spans(figure.axes[0], vertical=True) == [PLACEBO]
    assert "placebo band" in words(figure)
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"] == [0]
    assert "placebo band" not in words(plotting.margins(MARGINS, title=TITLE))


def test_margins_writes_the_summary_beside_its_strip():
    figure = plotting.margins(MARGINS, title=TITLE, summary=SUMMARY.iloc[::-1])
    (axes,) = figure.axes
    assert {"−7.00\n[−7.10, −6.90]", "5.00\n[4.90, 5.10]"} <= set(words(figure))
    assert sorted(point[0].tolist() for point in lines(axes, style="None")) == [[-7, 0], [-3, 1], [1, 2], [5, 3]]


def test_margins_writes_no_interval_where_there_is_none():
    figure = plotting.margins(MARGINS, title=TITLE, summary=SUMMARY.assign(low=None, high=None))
    assert {"−7.00", "5.00"} <= set(words(figure))


def test_margins_refuses_a_summary_of_no_strip():
    with pytest.raises(MeasurementError, match="nowhere"):
        plotting.margins(MARGINS, title=TITLE, summary=SUMMARY.assign(condition="nowhere"))


# The map.


def image(figure: Figure) -> np.ndarray:
    return np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)


def test_the_map_has_layers_across_and_positions_down():
    figure = drawn("layer_position_map", CELLS.sample(frac=1, random_state=0))
    assert image(figure).tolist() == [[0.01 * layer for layer in range(10)]] * 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["−3", "−2", "−1"]
    assert "nats" in words(figure)


def test_the_map_outlines_and_names_the_marked_cell():
    figure = drawn("layer_position_map")
    outlines = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    assert {patch.get_xy() for patch in outlines} == {(5.5, 0.5)}
    assert "□ layer 6, position −2" in words(figure)


def test_the_map_leaves_cells_that_were_not_measured_open():
    unmeasured = CELLS["layer"] == 3
    for frame in (CELLS.assign(kl=CELLS["kl"].mask(unmeasured)), CELLS[~(unmeasured & (CELLS["position"] == -1))]):
        figure = drawn("layer_position_map", frame)
        assert np.isnan(image(figure)[2, 3])
        assert figure.axes[0].patch.get_hatch()


def test_the_map_centres_its_colours_on_zero_only_where_signs_differ():
    signed = plotting.layer_position_map(CELLS, value="bypass", title=TITLE, unit="nats").axes[0].images[0]
    assert signed.norm.vmin == -signed.norm.vmax
    unsigned = drawn("layer_position_map").axes[0].images[0]
    assert (unsigned.norm.vmin, unsigned.norm.vmax) == (0, 0.09)


def test_the_map_refuses_a_cell_that_comes_twice():
    with pytest.raises(MeasurementError, match="several rows for one layer and position"):
        drawn("layer_position_map", pd.concat([CELLS, CELLS.iloc[:1]]))


# The grid.


def test_the_grid_has_a_line_per_position_in_each_of_three_panels():
    figure = drawn("selection_grid", CELLS.sample(frac=1, random_state=0))
    for axes, score in zip(figure.axes, ("bypass", "induce", "kl"), strict=True):
        found = {tuple(map(tuple, line)) for line in lines(axes)}
        cells = [part.sort_values("layer") for _, part in CELLS.groupby("position")]
        assert found == {tuple(map(tuple, part[["layer", score]].to_numpy())) for part in cells}
        names = [text.get_text() for text in axes.texts]
        assert {"−3", "−2", "−1"} <= set(names)


def test_the_grid_rings_and_names_the_chosen_cell():
    figure = drawn("selection_grid")
    rings = [lines(axes, style="None")[0].tolist() for axes in figure.axes]
    assert np.allclose(rings, [[[6, -3]], [[6, -3]], [[6, 0.06]]])
    assert "○ layer 6, position −2" in words(figure)
    assert "no cell chosen" in words(drawn("selection_grid", CELLS.assign(chosen=False)))


def test_the_grid_draws_baselines_and_limit_and_names_them():
    figure = drawn("selection_grid")
    assert [levels(axes) for axes in figure.axes] == [[6.0], [], [0.1]]
    assert {"baseline", "limit"} <= set(words(figure))


@pytest.mark.parametrize("n_layers", [10, 11, 14, 15, 18, 26, 32, 35])
def test_the_grid_shades_the_layers_that_the_rule_leaves_out(n_layers: int):
    figure = plotting.selection_grid(CELLS, title=TITLE, baselines={}, n_layers=n_layers)
    left = [layer for layer in range(n_layers) if default_rule(n_layers).is_early(Cell(layer, -1), n_layers)]
    assert spans(figure.axes[0], vertical=True) == [(max(left) + 0.5, n_layers - 0.5)]
    plt.close(figure)


def test_the_grid_draws_the_limit_of_the_rule():
    assert (Rule().kl_limit, Rule().layer_share) == (plotting.KL_LIMIT, plotting.LAYER_CUT)


def test_the_grid_draws_cells_that_were_not_evaluated_as_gaps():
    frame = CELLS.assign(kl=CELLS["kl"].where(CELLS["chosen"]), bypass=math.nan)
    bypass, _, kl = drawn("selection_grid", frame).axes
    drawn_points = np.concatenate(lines(kl))
    assert drawn_points[~np.isnan(drawn_points[:, 1])].tolist() == [[6, 0.06]]
    assert [text.get_text() for text in bypass.texts if text.get_text()] == ["baseline"]


def test_the_grid_draws_bands_only_for_scores_that_have_them():
    frame = CELLS.assign(induce_low=CELLS["induce"] - 1, induce_high=CELLS["induce"] + 1)
    assert [len(axes.collections) for axes in drawn("selection_grid", frame).axes] == [0, 3, 0]


@pytest.mark.parametrize("options", [{"n_layers": 9}, {"baselines": {"margin": 1.0}}])
def test_the_grid_refuses_what_does_not_fit_the_frame(options: dict):
    with pytest.raises(MeasurementError, match="do not fit"):
        plotting.selection_grid(CELLS, title=TITLE, **({"baselines": {}} | options))


# Near-ties, recovery, rates, dose.


def test_near_ties_draws_shares_and_intervals_in_the_order_given():
    figure = drawn("near_ties")
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [0.7, 0.3]
    assert [label.get_text() for label in left.get_yticklabels()] == ["layer 6, pos. −2", "layer 5, pos. −1"]
    assert left.yaxis_inverted()
    assert right.yaxis_inverted()
    assert [point[0].tolist() for point in lines(right, style="None")] == [[-3.0, 0], [-2.9, 1]]
    assert np.allclose([bar[:, 0] for bar in lines(right, marker="|")], TIES[["low", "high"]])
    assert words(figure).count("chosen") == 1


def test_recovery_draws_a_line_per_organism_and_position_and_names_each_position_once():
    figure = drawn("recovery")
    (axes,) = figure.axes
    expected = [part["angle_degrees"].tolist() for _, part in ANGLES.groupby(["organism", "position"])]
    assert sorted(line[:, 1].tolist() for line in lines(axes)) == sorted(expected)
    assert [words(figure).count(name) for name in ("−2", "−1", "placebo band", "position")] == [1, 1, 1, 1]
    assert spans(axes, vertical=False) == [(80, 90)]


def test_recovery_draws_cosines_where_there_are_no_angles():
    frame = ANGLES.rename(columns={"angle_degrees": "cosine"}).assign(cosine=0.4)
    (axes,) = plotting.recovery(frame, title=TITLE, placebo=(0, 0.1)).axes
    assert {float(y) for line in lines(axes) for y in line[:, 1]} == {0.4}
    assert "cosine" in axes.get_ylabel()


def test_rates_has_a_panel_per_group_and_a_row_per_condition():
    figure = drawn("rates")
    for axes, (group, part) in zip(figure.axes, RATES.groupby("group", sort=False), strict=True):
        assert axes.get_title().replace("\n", " ") == group
        assert [point[0].tolist() for point in lines(axes, style="None")] == [
            [value, row] for row, value in enumerate(part["value"])
        ]
        assert np.allclose([bar[:, 0] for bar in lines(axes, marker="|")], part[["low", "high"]])
        (targets,) = lines(axes, marker="|", style="None")
        assert targets[:, 0].tolist() == part["target"].tolist()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["guarded", "planted-1"]


def test_rates_keeps_a_condition_in_its_row_when_another_group_lacks_it():
    _, right = drawn("rates", RATES.drop(index=1)).axes
    assert [point[0].tolist() for point in lines(right, style="None")] == [[0.6, 1]]


def test_rates_has_the_fewer_of_conditions_and_groups_side_by_side():
    frame = RATES.rename(columns={"group": "condition", "condition": "group"})
    wide = pd.concat([frame, frame.assign(group=[f"{name}, hardened" for name in frame["group"]])])  # indices repeat
    figure = drawn("rates", wide)
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes] == ["restricted refused", "harmless right"]
    assert [len(lines(axes, style="None")) for axes in figure.axes] == [4, 4]
    assert lines(figure.axes[1], marker="|", style="None")[0][:, 0].tolist() == [0.9, 0.9, 0.9, 0.9]


def test_rates_speaks_of_targets_only_where_there_are_some():
    some = drawn("rates", RATES.assign(target=[0.9, None, None, None]))
    assert "share of requests (tick: target)" in words(some)
    for frame in (RATES.assign(target=None), RATES.drop(columns="target")):
        assert "share of requests" in words(drawn("rates", frame))


def test_rates_refuses_percentages():
    with pytest.raises(MeasurementError, match=r"outside 0\.\.1"):
        drawn("rates", RATES.assign(value=RATES["value"] * 100))


def test_dose_draws_each_series_with_its_band_and_its_name():
    figure = drawn("dose", DOSES.sample(frac=1, random_state=0))
    (axes,) = figure.axes
    expected = [part[["dose", "value"]].to_numpy().tolist() for _, part in DOSES.groupby("series")]
    assert sorted(line.tolist() for line in lines(axes)) == sorted(expected)
    assert len(axes.collections) == 2
    assert {"located", "random", "placebo band", "refusal margin (nats)"} <= set(words(figure))
    assert spans(axes, vertical=False) == [PLACEBO]


# The parts.


def test_a_name_is_level_with_the_end_of_its_line():
    with canvas.panels(TITLE, height=2.0) as (_, (axes,)):
        axes.plot([0, 1, 2], [-10, 10, 0])
        canvas.name_ends(axes, [("half way up", canvas.INK, 2.0, 0.0)])
    assert np.isclose(axes.texts[0].get_position()[1], 0.5)


def test_names_stay_apart_and_as_near_to_their_lines_as_that_allows():
    level = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    placed = canvas.apart(level, gap=0.1)
    assert np.allclose(placed, [0.1, 0.4, 0.5, 0.6, 0.9])
    assert np.allclose(canvas.apart(np.array([0.0, 0.0]), gap=0.2), [0, 0.2])
    assert np.allclose(canvas.apart(np.array([1.0, 1.0]), gap=0.2), [0.8, 1])


def test_a_minus_sign_replaces_a_hyphen_only_before_a_number():
    assert [canvas.minus(name) for name in (-3, "planted-1", "[-0.5, -0.1]", "a-b")] == [
        "−3",
        "planted-1",
        "[−0.5, −0.1]",
        "a-b",
    ]


def test_points_of_a_strip_never_share_a_height():
    offsets = canvas.scattered(200)
    assert len(np.unique(offsets)) == 200
    assert np.abs(offsets).max() <= 0.25


def test_the_curve_draws_its_placebos_dotted_in_the_ink_of_their_series():
    (axes,) = drawn("curve").axes
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    full = [line for line in axes.lines if str(line.get_marker()) in canvas.MARKS]
    assert [line.get_color() for line in dotted] == [line.get_color() for line in full]
    assert [line.get_ydata()[-1] for line in dotted] == [2.0, 2.0]


def test_the_forest_has_a_dot_for_every_value_and_the_limits_of_the_verdict_on_bypass_alone():
    first, second = drawn("forest").axes
    dots = [line.get_xdata()[0] for line in first.lines if str(line.get_marker()) in canvas.MARKS]
    assert dots == [0.95, 0.5, 0.1]
    assert sum(line.get_linestyle() == "--" for line in first.lines) == 2
    assert not [line for line in second.lines if line.get_linestyle() == "--"]


def test_the_forest_says_of_how_many_prompts_and_clusters_each_value_is():
    for axes in drawn("forest").axes:
        said = [text for text in axes.texts if text.get_text().startswith("n = ")]
        assert [text.get_text() for text in said] == ["n = 128, 8 clusters", "n = 96, 8 clusters", "n = 9"]
        assert [text.xy[1] for text in said] == [0, 1, 2]
    alone = drawn("forest", FOREST.drop(columns="clusters"))
    assert words(alone).count("n = 128") == 2
    empty = drawn("forest", FOREST.assign(value=FOREST["value"].where(FOREST["model"] != "planted")))
    assert "n = 9" not in words(empty), "where there is no value there is nothing for it to be of"


def test_a_model_without_a_number_keeps_its_row_in_the_forest():
    figure = drawn("forest", FOREST.assign(value=FOREST["value"].where(FOREST["model"] != "planted")))
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(names) == 3
    assert "planted" in names


# Lines over the band of their placebos.


def test_banded_draws_every_series_and_the_widest_band_of_the_placebos():
    (axes,) = drawn("banded").axes
    for line, (_, part) in zip(lines(axes), BY_LAYER.groupby("series", sort=False), strict=True):
        assert line.tolist() == part[["layer", "value"]].to_numpy(float).tolist()
    grey = [
        area for area in axes.collections if area.get_facecolor()[0].tolist()[:3] == [*mpl.colors.to_rgb(canvas.FAINT)]
    ]
    (corners,) = (area.get_paths()[0].get_extents() for area in grey)
    assert (corners.x0, corners.x1, corners.y0, corners.y1) == (0, 5, -0.2, 0.2)
    assert {"restricted", "harmless", "placebos"} <= set(words(drawn("banded")))


def test_banded_without_any_placebo_names_none():
    figure = drawn("banded", BY_LAYER.assign(random_low=math.nan, random_high=math.nan))
    assert "placebos" not in words(figure)


# Writers.


def test_writers_puts_every_component_at_what_it_writes_and_names_the_strongest():
    figure = drawn("writers")
    (axes,) = figure.axes
    dots = np.concatenate(lines(axes, style="None"))
    assert sorted(dots.tolist(), key=lambda dot: dot[1]) == [[value, row] for row, value in enumerate(WRITTEN["value"])]
    assert {"L0 MLP  9.0", "L0H1  −3.0", "L1 MLP  2.0"} <= set(words(figure))
    assert not {"L0H0  0.4", "L1H0  1.0"} & set(words(figure))


def test_writers_tells_what_comes_after_the_direction_by_hollow_dots():
    (axes,) = drawn("writers").axes
    faces = {line.get_markerfacecolor(): len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"}
    assert faces == {canvas.BLUE: 4, "white": 3}


# Independence.


def test_independence_has_a_panel_for_each_direction_without_its_own_ablation():
    figure = drawn("independence")
    assert [axes.get_ylabel() for axes in figure.axes] == ["cosine with harmfulness", "cosine with refusal"]
    for axes, read, other in zip(figure.axes, ("harmfulness", "refusal"), ("refusal", "harmfulness"), strict=True):
        part = CROSSED[CROSSED["read"] == read]
        for ablated, style in (("nothing", "-"), (other, "--")):
            want = part.loc[part["ablated"] == ablated, ["layer", "value"]].to_numpy(float).tolist()
            assert [line.tolist() for line in lines(axes, style=style)] == [want]
        assert {f"{name} ablated" for name in ("nothing", other)} <= {text.get_text() for text in axes.texts}


# Cones.


def test_cones_boxes_hold_all_members_and_every_member_is_a_dot():
    (axes,) = drawn("cones").axes
    dots = np.concatenate([np.asarray(strip.get_offsets())[:, 1] for strip in axes.collections])
    assert sorted(dots.tolist()) == pytest.approx(sorted(MEMBERS["value"]))
    assert {"cone", "random"} <= set(words(drawn("cones")))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
