"""Drawings of prompts, cells of the grid, candidates and rates."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure

from refusalscope import canvas
from refusalscope.canvas import Band, End
from refusalscope.errors import MeasurementError

KL_LIMIT, LAYER_CUT, SHORT = 0.1, 0.8, 10  # of the selection rule
LABEL_INKS = {"restricted": canvas.ORANGE, "harmless": canvas.BLUE}
SCORES = {
    "bypass": "margin of restricted prompts,\ndirection ablated (nats)",
    "induce": "margin of harmless prompts,\ndirection added (nats)",
    "kl": "KL(base‖ablated) on harmless\nprompts (nats)",
}
RECOVERY = {
    "angle_degrees": ("angle to the planted\ndirection (degrees)", (0, 95)),
    "cosine": ("cosine with the\nplanted direction", (0, 1.05)),
}


def margins(
    frame: pd.DataFrame, *, title: str, placebo: Band | None = None, summary: pd.DataFrame | None = None
) -> Figure:
    """A strip of points for each condition and label: the refusal margin of every prompt; right of zero refuses.

    Args:
        frame: `condition`, `label` (restricted or harmless), `value` (nats); one row per prompt.
        placebo: lowest and highest margin under placebos.
        summary: `condition`, `label`, `value`, `low`, `high`: the estimate to draw and write beside each strip.

    Raises:
        MeasurementError: a column is missing, empty or has a nan, or a summary is not for these strips.
    """
    canvas.need(frame, "condition", "label", "value")
    strips = list(dict.fromkeys(zip(frame["condition"], frame["label"], strict=True)))
    inks = [LABEL_INKS.get(label, canvas.GREY) for _, label in strips]
    with canvas.panels(title, height=0.75 + 0.36 * len(strips)) as (figure, (axes,)):
        for y, ((condition, label), ink) in enumerate(zip(strips, inks, strict=True)):
            values = frame["value"][(frame["condition"] == condition) & (frame["label"] == label)]
            axes.scatter(values, y + canvas.scattered(len(values)), s=6, alpha=0.45, lw=0, color=ink)
        canvas.rows(axes, [f"{condition}, {label}" for condition, label in strips], inks=inks)
        axes.axvline(0, color=canvas.INK, ls="--", lw=0.8, zorder=1)
        axes.set_xlabel("refusal margin (nats per prompt)")
        canvas.placebo_band(axes, placebo, vertical=True)
        if summary is not None:
            _summary(axes, summary, strips)
    return figure


def layer_position_map(
    frame: pd.DataFrame, *, value: str, title: str, unit: str, mark: tuple[int, int] | None = None
) -> Figure:
    """A heat map of one value over layers and positions; cells that are nan or not in the frame are hatched.

    Args:
        frame: `layer`, `position` and the column `value`; one row per cell.
        unit: what the colour shows, with its unit.
        mark: (layer, position) of the cell to outline and name.

    Raises:
        MeasurementError: a column is missing or empty, a cell comes twice, or the marked cell is not there.
    """
    canvas.need(frame, "layer", "position", gaps=[value])
    if frame.duplicated(["layer", "position"]).any():
        raise MeasurementError(f"Column {value!r} has several rows for one layer and position. Give one per cell.")
    grid = frame.pivot(index="position", columns="layer", values=value)
    signed = bool((grid < 0).any(axis=None) and (grid > 0).any(axis=None))
    with canvas.panels(title, height=1.0 + 0.2 * len(grid)) as (figure, (axes,)):
        axes.patch.set(hatch="////", edgecolor=canvas.FAINT)
        norm, colormap = (CenteredNorm(), "RdBu_r") if signed else (Normalize(), "cividis")
        image = axes.imshow(grid.to_numpy(float), aspect="auto", norm=norm, cmap=colormap)
        figure.colorbar(image, ax=axes, label=unit, pad=0.02)
        step = math.ceil(len(grid.columns) / 12)
        axes.set_xticks(range(0, len(grid.columns), step), grid.columns[::step].map(str))
        axes.set_yticks(range(len(grid)), grid.index.map(canvas.minus))
        axes.set(xlabel="layer", ylabel="position")
        canvas.outline(axes, grid, mark)
        axes.set_title(f"□ layer {mark[0]}, position {canvas.minus(mark[1])}" if mark else "", loc="left")
    return figure


def selection_grid(
    cells: pd.DataFrame, *, title: str, baselines: Mapping[str, float], n_layers: int | None = None
) -> Figure:
    """The three scores of the selection rule by layer, a line per position, as in Arditi et al. 2024, appendix C.

    Wrong when the model has layers past the last one in the frame and `n_layers` does not say so: the cut moves.

    Args:
        cells: `layer`, `position`, `bypass`, `induce`, `kl`, with nan where a cell was not evaluated; `chosen` (bool);
            bands from columns such as `bypass_low` and `bypass_high`.
        baselines: score to its value without intervention, drawn dashed.
        n_layers: layers of the model; by default the frame has a row for every layer.

    Raises:
        MeasurementError: a column is missing or empty, or a baseline or n_layers does not fit the frame.
    """
    canvas.need(cells, "layer", "position", "chosen", gaps=SCORES)
    last = max(cells["layer"])
    depth = last + 1 if n_layers is None else n_layers
    if depth <= last or not set(baselines) <= set(SCORES):
        known = f"the column 'layer', up to {last}, and the scores {list(SCORES)}"
        raise MeasurementError(f"n_layers={depth} and baselines for {list(baselines)} do not fit {known}.")
    inks, chosen = canvas.colours(sorted(cells["position"].unique())), cells.loc[cells["chosen"].astype(bool)]
    with canvas.panels(title, width=canvas.PAGE, height=2.4, columns=len(SCORES)) as (figure, axes):
        for ax, (score, label) in zip(axes, SCORES.items(), strict=True):
            band = (f"{score}_low", f"{score}_high")
            ax.set(xlabel="layer", ylabel=label, xlim=(-0.5, depth - 0.5))
            ax.locator_params(axis="x", integer=True, nbins=6)
            ends = canvas.curves(ax, cells, x="layer", y=score, by="position", inks=inks, band=band)
            ax.plot(chosen["layer"], chosen[score], "o", mfc="none", mec=canvas.INK, mew=1.2, ms=8, zorder=5)
            shade_late(ax, first_late(cells, depth), depth)
            canvas.name_ends(
                ax, ends + _rule(ax, score, baselines, depth=depth), header="position" if ax is axes[-1] else ""
            )
        cells_named = zip(chosen["layer"], chosen["position"], strict=True)
        names = [f"layer {layer}, position {canvas.minus(position)}" for layer, position in cells_named]
        axes[0].set_title("○ " + "; ".join(names) if names else "no cell chosen", loc="left")
    return figure


def near_ties(frame: pd.DataFrame, *, title: str) -> Figure:
    """The cells tied with the best: how often resampling chooses each, and its margin with the interval.

    Args:
        frame: `layer`, `position`, `share` (of bootstrap resamples), `bypass`, `low`, `high` (nats), `chosen` (bool);
            drawn in the order given, from the top.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    canvas.need(frame, "layer", "position", "share", "bypass", "chosen", gaps=("low", "high"))
    inks = [canvas.ORANGE if chosen else canvas.GREY for chosen in frame["chosen"]]
    with canvas.panels(title, height=0.85 + 0.2 * len(frame), columns=2) as (figure, (left, right)):
        bars = left.barh(range(len(frame)), frame["share"], color=inks, height=0.65)
        left.bar_label(bars, ["chosen" if chosen else "" for chosen in frame["chosen"]], padding=2, color=canvas.ORANGE)
        left.margins(x=0.45)
        canvas.estimates(right, frame.rename(columns={"bypass": "value"}), range(len(frame)), inks=inks)
        cells = zip(frame["layer"], frame["position"], strict=True)
        canvas.rows(left, [f"layer {layer}, pos. {position}" for layer, position in cells], inks=inks)
        canvas.rows(right, [""] * len(frame))
        left.set_xlabel("share of resamples")
        right.set_xlabel("margin (nats)")
        right.locator_params(axis="x", nbins=3)
    return figure


def recovery(frame: pd.DataFrame, *, title: str, placebo: Band) -> Figure:
    """How near the located direction comes to the planted one, by layer: a line per position, placebos as a band.

    Args:
        frame: `layer`, `position`, `angle_degrees` or `cosine`; several lines per position with a column `organism`.
        placebo: the same number, lowest and highest, from random or label-shuffled directions.

    Raises:
        MeasurementError: a column is missing, empty or has a nan.
    """
    value = "cosine" if "cosine" in frame.columns and "angle_degrees" not in frame.columns else "angle_degrees"
    canvas.need(frame, "layer", "position", value)
    parts = [part for _, part in frame.groupby("organism", sort=False)] if "organism" in frame.columns else [frame]
    inks = canvas.colours(sorted(frame["position"].unique()))
    with canvas.panels(title, height=2.2) as (figure, (axes,)):
        label, limits = RECOVERY[value]
        axes.set(xlabel="layer", ylabel=label, ylim=limits)
        axes.locator_params(axis="x", integer=True)
        ends = [
            canvas.curves(axes, one, x="layer", y=value, by="position", inks=inks, band=("low", "high"))
            for one in parts
        ]
        canvas.name_ends(axes, ends[0] + canvas.placebo_band(axes, placebo), header="position")
    return figure


def rates(frame: pd.DataFrame, *, title: str) -> Figure:
    """Rates with their intervals: conditions and groups, the fewer of them side by side, the others as rows.

    Args:
        frame: `condition`, `group`, `value`, `low`, `high`, all in 0..1; a column `target` is drawn as ticks.

    Raises:
        MeasurementError: a column is missing or empty, or a rate is nan or outside 0..1.
    """
    canvas.need(frame, "condition", "group", "value", gaps=("low", "high"))
    if not frame["value"].between(0, 1).all():
        raise MeasurementError("Column 'value' has rates outside 0..1. Give shares, not percentages.")
    across, down = sorted(("group", "condition"), key=lambda column: frame[column].nunique())
    inks, names = canvas.colours(frame[across]), list(dict.fromkeys(frame[down]))
    frame = frame if "target" in frame.columns else frame.assign(target=math.nan)
    note = " (tick: target)" if pd.notna(frame["target"]).to_numpy().any() else ""
    width = canvas.COLUMN if len(inks) <= 3 else canvas.PAGE
    with canvas.panels(title, height=0.95 + 0.23 * len(names), columns=len(inks), width=width) as (figure, axes):
        for ax, (panel, ink) in zip(axes, inks.items(), strict=True):
            part = frame.loc[frame[across] == panel]
            at = [names.index(name) for name in part[down]]
            canvas.estimates(ax, part, at, inks=[ink] * len(part))
            ax.plot(part["target"].astype(float), at, "|", color=canvas.INK, ms=9, mew=1)
            canvas.rows(ax, names if ax is axes[0] else [""] * len(names))
            ax.set(xlim=(-0.06, 1.06), xticks=(0, 0.5, 1), xticklabels=("0", "½", "1"))
            ax.set_title(textwrap.fill(str(panel), round(12 * width / len(inks))), color=ink)
        figure.supxlabel("share of requests" + note, fontsize=7.5)
    return figure


def _summary(axes: Axes, summary: pd.DataFrame, strips: list[tuple[str, str]]) -> None:
    """The estimate on each strip, and its digits at the right."""
    canvas.need(summary, "condition", "label", "value", gaps=("low", "high"))
    keys = list(zip(summary["condition"], summary["label"], strict=True))
    if unknown := set(keys) - set(strips):
        raise MeasurementError(
            f"summary has 'condition' and 'label' {sorted(unknown)}, for which there are no prompts."
        )
    canvas.estimates(axes, summary, [strips.index(key) for key in keys], inks=[canvas.INK] * len(keys), digits=".2f")


def first_late(cells: pd.DataFrame, depth: int) -> int:
    """Returns the first layer that the rule left out: as `reason` says in the frame, else as the default rule cuts."""
    if "reason" in cells.columns:
        late = cells.loc[cells["reason"] == "late layer", "layer"]
        return int(late.min()) if len(late) else depth
    return int(LAYER_CUT * depth + 1e-9) if depth >= SHORT else math.ceil(LAYER_CUT * depth - 1e-9)


def shade_late(axes: Axes, first: int, depth: int) -> None:
    """Shades the layers that the rule leaves out, from the first on."""
    axes.axvspan(first - 0.5, depth - 0.5, color=canvas.FAINT, lw=0, zorder=0)


def _rule(axes: Axes, score: str, baselines: Mapping[str, float], *, depth: int) -> list[End]:
    """What the selection rule goes by: the baseline and the limit on KL; as named ends."""
    lines = {"baseline": baselines[score]} if score in baselines else {}
    if score == "kl":
        axes.set_yscale("symlog", linthresh=1e-3)
        lines["limit"] = KL_LIMIT
    for level in lines.values():
        axes.axhline(level, color=canvas.INK, ls="--", lw=0.8, zorder=1)
    if score == "kl":
        axes.set_ylim(bottom=-2e-4)  # with zero, but after the limit: this settles the top as well
    return [(name, canvas.INK, depth - 0.5, level) for name, level in lines.items()]
