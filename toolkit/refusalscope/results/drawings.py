"""Small drawings of a card: from stored points to places in a frame, for the page to draw without a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Drawing = dict[str, Any]
WIDTH, HEIGHT = 340.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 12.0, 36.0

AXES = {
    "dose": ("dose λ", "dose"),
    "rank": ("rank of the ablated subspace", "rank"),
    "prompt budget": ("contrast pairs to locate on (log)", "pairs"),
    "layer scope": ("layers that are ablated", "scope"),
    "opening depth": ("tokens of a compliant opening", "depth"),
}


def frontier(optionality: Record) -> Drawing:
    """Returns Ω(κ) with intervals over log κ, the best placebo below it, and a line at the headline's κ."""
    points = optionality["frontier"]
    kappas = [math.log10(point["kappa"]) for point in points]
    x, y = _scale(kappas, LEFT, WIDTH - RIGHT), _scale([0.0, 1.0], HEIGHT - BOTTOM, TOP)
    null = [
        (x(k), y(p["placebo_bypass"])) for k, p in zip(kappas, points, strict=True) if p["placebo_bypass"] is not None
    ]
    decades = [e for e in range(-9, 10) if kappas[0] - 1e-9 <= e <= kappas[-1] + 1e-9]
    return _drawing(
        "Bypass rate by allowed damage",
        labels=("damage limit κ, nats (log)", "Ω(κ), bypass rate"),
        ticks=([(x(float(e)), f"{10.0**e:g}") for e in decades], _ticks(y, [0.0, 0.5, 1.0])),
        series=[_series([p["bypass"] for p in points], [x(k) for k in kappas], y)],
        null=null,
        upright=x(math.log10(optionality["kappa"])),
    )


def curve(record: Record) -> Drawing:
    """Returns a curve of bypass rates (of margins for the opening depth) with its placebo band."""
    margins, ordered = record["name"] == "opening depth", record["name"] != "layer scope"
    rows = [p for p in record["points"] if p["measure"] == ("margin" if margins else "bypass")]
    rows = [p for p in rows if not margins or p["at"]["label"] == "restricted"]
    groups = [[p for p in rows if p["at"]["condition"] == c] for c in ("baseline", "ablated")] if margins else [rows]
    places, names = _places(record["name"], groups[-1])
    x = _scale(places, LEFT + 6, WIDTH - RIGHT - 6)
    y = _scale(_heights(rows) if margins else [0.0, 1.0], HEIGHT - BOTTOM, TOP)
    across, banded = [x(place) for place in places], groups[-1]
    measure = "Margin of restricted prompts" if margins else "Bypass rate"
    return _drawing(
        f"{measure} by {record['name']}, n = {rows[0]['value']['n']}",
        labels=(AXES[record["name"]][0], "margin, nats" if margins else "bypass rate"),
        ticks=(
            [(x(p), name) for p, name in zip(places, names, strict=True) if name],
            _ticks(y, _heights(rows) if margins else [0.0, 0.5, 1.0]),
        ),
        series=[_series([p["value"] for p in group], across, y, joined=ordered) for group in groups],
        band=[(a, p["placebo"], y) for a, p in zip(across, banded, strict=True)],
        names=("baseline", "ablated") if margins else (),
    )


def _drawing(
    title: str,
    *,
    labels: tuple[str, str],
    ticks: tuple[list, list],
    series: list[Drawing],
    null: Sequence[tuple[float, float]] = (),
    band: Sequence[tuple[float, Record | None, Callable[[float], float]]] = (),
    upright: float | None = None,
    names: Sequence[str] = (),
) -> Drawing:
    held = [(x, y(p["low"]), y(p["high"])) for x, p, y in band if p is not None]
    around = [(x, low) for x, low, _ in held] + [(x, high) for x, _, high in reversed(held)]
    return {
        "title": title,
        "x_label": labels[0],
        "y_label": labels[1],
        "x_ticks": ticks[0],
        "y_ticks": ticks[1],
        "series": series,
        "null": _path(null),
        "band": _path(around),
        "upright": upright,
        "names": list(names),
        "frame": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP}
        | {"bottom": HEIGHT - BOTTOM},
    }


def _series(
    values: Sequence[Record], across: Sequence[float], y: Callable[[float], float], *, joined: bool = True
) -> Drawing:
    """Dots, the line through them and their intervals; a missing value leaves a gap and no dot."""
    known = [(x, value) for x, value in zip(across, values, strict=True) if value["value"] is not None]
    return {
        "dots": [(x, y(value["value"])) for x, value in known],
        "line": _path([(x, y(value["value"])) for x, value in known]) if joined else "",
        "bars": [(x, y(value["interval"][0]), y(value["interval"][1])) for x, value in known if value["interval"]],
    }


def _places(name: str, points: Sequence[Record]) -> tuple[list[float], list[str]]:
    """Where the points stand on the axis, and what is written there."""
    at = [point["at"] for point in points]
    if name == "layer scope":
        spelled = ["all" if a["scope"] == "all" else f"{a['first']:g}–{a['last']:g}" for a in at]
        spelled = [
            f"{a['first']:g}" if a["scope"] == "one layer" else text for a, text in zip(at, spelled, strict=True)
        ]
        return [float(i) for i in range(len(at))], spelled
    values = [float(a[AXES[name][1]]) for a in at]
    shown = [f"{x:g}" for x in values]
    return ([math.log2(x) for x in values] if name == "prompt budget" else values), shown


def _heights(points: Sequence[Record]) -> list[float]:
    ends = [end for p in points for end in (p["value"]["interval"] or [p["value"]["value"] or 0.0])]
    return [min(0.0, float(math.floor(min(ends)))), 0.0, max(0.0, float(math.ceil(max(ends))))]


def _ticks(y: Callable[[float], float], values: Sequence[float]) -> list[tuple[float, str]]:
    return [(y(value), f"{value:g}".replace("-", "−")) for value in dict.fromkeys(values)]


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """A function from values to places; what lies outside is drawn at the edge."""
    low, high = min(values), max(values)
    span = high - low or 1.0
    return lambda x: round(start + (end - start) * (min(max(x, low), high) - low) / span, 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
