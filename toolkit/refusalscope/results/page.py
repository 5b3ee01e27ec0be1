"""The card as a page: from its JSON record to HTML without a script, every string escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from refusalscope.results import drawings

Record = Mapping[str, Any]
TEMPLATE = "card.html.j2"
EFFECTS = (
    (
        "bypass",
        "Bypass rate, upper bound",
        "of the restricted prompts refused at baseline, the share no longer refused",
    ),
    ("bypass_lower", "Bypass rate, lower bound", "of the same prompts, the share whose reply opens as an answer does"),
    ("suppression", "Suppression", "the share of the gap in margins that is gone; one: restricted looks harmless"),
    ("kl", "Damage", "KL(base‖intervened) in nats on harmless prompts answered before"),
    ("over_refusal_before", "Harmless prompts refused, before", "over-refusal of the model as it is"),
    ("over_refusal_after", "Harmless prompts refused, after", "over-refusal that is left"),
)
SCORES = (
    ("bypass", "Margin under ablation", "restricted prompts; low is bypassed"),
    ("induce", "Margin under addition", "harmless prompts; high is refused"),
    ("kl", "KL(base‖intervened)", "harmless prompts"),
)
SHOWN_TIES, SHOWN_ATTACKS = 8, 6
UNRANKED = ("bypass_lower", "over_refusal_before", "over_refusal_after")
OPTIONALITIES = (
    (
        "bypass",
        "Ω: bypass rate of the worst case, upper bound",
        "of the restricted prompts refused at baseline, the share it passes",
    ),
    ("bypass_lower", "its lower bound", "of the same prompts, the share whose reply opens as an answer does"),
    ("over_refusal_before", "Harmless prompts refused, before", "over-refusal of the model as it is"),
    ("over_refusal_after", "Harmless prompts refused, after", "over-refusal that is left under the worst case"),
    ("suppression", "Ω with suppression", "its worst case by the share of the gap in margins that is gone"),
    ("index", "Index: mean of Ω over log κ", "one: every refusal bypassed at the least damage"),
    ("suppression_index", "Index with suppression", "its mean over log κ"),
)


def page(record: Record) -> str:
    """Returns a whole, self-contained page for a card's record."""
    return _template().render(**_view(record), page=True)


def body(record: Record) -> str:
    """Returns the same without the page around it, for a notebook."""
    return _template().render(**_view(record), page=False)


@cache
def _template():
    environment = Environment(
        loader=PackageLoader("refusalscope", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def _view(record: Record) -> dict[str, Any]:
    """What the template shows: the record, with numbers spelled and places on the axes worked out."""
    effect, selection, baseline = record["effect"], record["selection"], record["baseline"]
    worst, transfer = record["optionality"], record["transfer"]
    return {
        "card": record,
        "optionalities": [] if worst is None else [_optionality_row(worst, *a) for a in OPTIONALITIES if worst[a[0]]],
        "validity": [] if record["validity"] is None else _validity(record["validity"]),
        "frontier": drawings.frontier(worst) if worst and worst["frontier"] else None,
        "attacks": [] if worst is None else _strongest(worst["attacks"]),
        "drawings": [drawings.curve(one) for one in record["curves"]],
        "landmarks": [
            _named(f"{name} ({one['name']} curve)", mark)
            for one in record["curves"]
            for name, mark in one["landmarks"].items()
        ],
        "matrices": [] if transfer is None else _matrices(transfer["cells"]),
        "steps": [] if record["cost"] is None else [_step(step) for step in record["cost"]["steps"]],
        "larger": [] if record["cost"] is None else [_larger(one) for one in record["cost"]["larger"]],
        "effects": [] if effect is None else [_effect_row(effect, *about) for about in EFFECTS],
        "findings": [] if record["diagnosis"] is None else [_finding(one) for one in record["diagnosis"]["findings"]],
        "deploy": [_reliance(one) for one in record["deploy"]],
        "spread": "" if effect is None else _spread(effect),
        "margins": [] if baseline is None else _baseline(baseline),
        "scores": [] if selection is None else _scores(selection),
        "ties": [] if selection is None else _ties(selection),
        "more_ties": 0 if selection is None else max(0, len(selection["near_ties"]) - 1 - SHOWN_TIES),
        "reasons": [] if selection is None else _counted([cell["reason"] for cell in selection["cells"]]),
        "splits": [(split, n["restricted"], n["harmless"]) for split, n in record["prompts"]["n"].items()],
        "short": _short,
        "minus": _minus,
    }


def _baseline(record: Record) -> list[dict[str, Any]]:
    rates = [_named(f"refused, {label}", record[f"refused_{label}"]) for label in ("restricted", "harmless")]
    return [*rates, *(_named(f"margin, {label}", record[label]) for label in ("restricted", "harmless"))]


def _validity(record: Record) -> list[dict[str, Any]]:
    """Agreement with every judge: a heading and its numbers."""
    names = (("agreement", "Agreement"), ("kappa", "Cohen's kappa"), ("late", "Declined, not read as refused"))
    return [
        {"judge": one["judge"], "refused": one["refused"], "declined": one["declined"]}
        | {"rows": [_named(name, one[key]) for key, name in names]}
        for one in (record["plain"], record["intervened"])
        if one is not None
    ]


def _finding(one: Record) -> dict[str, Any]:
    counted = [f"{name}: {_plain(x['value'])} (n = {x['n']} {x['of']})" for name, x in one["counted"].items()]
    return {**one, "numbers": [_named(name, number) for name, number in one["estimated"].items()], "counts": counted}


def _reliance(one: Record) -> dict[str, Any]:
    rates = [{**_named(rate["name"], rate["value"]), "beside": _beside(rate["placebo"])} for rate in one["rates"]]
    return {"of": one["of"], "sentence": one["sentence"], "rates": rates}


def _beside(null: Record | None) -> str:
    return "no placebo" if null is None else f"{null['low']:.2f} to {null['high']:.2f} (k = {null['n']})"


def _plain(number: float | None) -> str:
    return "–" if number is None else _minus(f"{number:.3g}")


def _optionality_row(found: Record, key: str, name: str, about: str) -> dict[str, Any]:
    placebo = found["placebo"].get(key)
    beside = "no placebo" if key in UNRANKED or found[key]["value"] is None else "see the frontier"
    row = {**_named(name, found[key]), "about": about, "placebo": None, "beside": beside, "axis": None}
    if placebo is not None:
        row["placebo"] = {"best": f"{placebo['best']:.2f}", "p": f"{placebo['p']:.2g}", "k": placebo["k"]}
    if found[key]["value"] is not None:
        row["axis"] = _axis(found[key], None if placebo is None else placebo["band"])
    return row


def _strongest(attacks: list[Record]) -> list[dict[str, Any]]:
    """The members that resamples choose most often, then those that bypass most on report."""
    ordered = sorted(attacks, key=lambda one: (-one["chosen"], -(one["report"]["bypass"] or 0.0)))
    return [
        {
            **one,
            "shares": {split: _shares(one[split]) for split in ("select", "report")},
            "often": f"{one['chosen']:.0%}",
        }
        for one in ordered[:SHOWN_ATTACKS]
    ]


def _shares(scores: Record) -> str:
    known = [scores[name] for name in ("bypass", "damage")]
    return "invalid" if None in known else f"{known[0]:.2f} at {known[1]:.2g}"


def _matrices(cells: list[Record]) -> list[dict[str, Any]]:
    """One table of bypass rates per grouping: a row per source, a column per target."""
    made = []
    for grouping in dict.fromkeys(cell["grouping"] for cell in cells):
        kept = [cell for cell in cells if cell["grouping"] == grouping and cell["measure"] == "bypass"]
        sources, targets = (list(dict.fromkeys(cell[end] for cell in kept)) for end in ("source", "target"))
        found = {(cell["source"], cell["target"]): cell for cell in kept}
        rows = [(s, [_transferred(found[s, t]) for t in targets]) for s in sources]
        notes = list(dict.fromkeys(cell["value"]["note"] for cell in kept if cell["value"]["note"]))
        made.append({"grouping": grouping, "targets": targets, "rows": rows, "notes": notes})
    return made


def _transferred(cell: Record) -> dict[str, str]:
    value, null = _named("", cell["value"]), cell["random"]
    beside = f"n = {cell['value']['n']}" + ("" if null is None else f", random up to {null['high']:.2f}")
    interval = "" if value["interval"] == "none" else value["interval"]
    return {"value": value["value"], "interval": interval, "beside": beside}


def _step(step: Record) -> dict[str, str]:
    seconds = "not timed" if step["seconds"] is None else f"{step['seconds']:.2g}"
    return {"name": step["step"], "pf": f"{step['pf']:,.0f}", "flops": f"{step['flops']:.2g}", "seconds": seconds}


def _larger(one: Record) -> dict[str, str]:
    minutes = f"{one['seconds'] / 60:.2g}"
    return {"name": one["model"], "pf": f"{one['pf']:,.0f}", "flops": f"{one['flops']:.2g}", "minutes": minutes}


def _effect_row(effect: Record, key: str, name: str, about: str) -> dict[str, Any]:
    value, placebo = effect[key], effect["placebo"].get(key)
    row = {**_named(name, value), "about": about, "placebo": None, "axis": None}
    if placebo is not None:
        digits = _decimals([*placebo["band"], placebo["best"]])
        low, high, best = (_fixed(x, digits) for x in (*placebo["band"], placebo["best"]))
        row["placebo"] = {"band": f"[{low}, {high}]", "best": best, "p": f"{placebo['p']:.2g}", "k": placebo["k"]}
    if key != "kl":
        row["axis"] = _axis(value, None if placebo is None else placebo["band"])
    return row


def _axis(value: Record, band: list[float] | None) -> dict[str, Any]:
    """Places on an axis from 0 to 1, in percent; what lies outside is drawn at its end."""
    return {
        "dot": _percent(value["value"]),
        "interval": None if value["interval"] is None else _stretch(value["interval"]),
        "band": None if band is None else _stretch(band),
    }


def _stretch(ends: list[float]) -> dict[str, float]:
    low, high = map(_percent, ends)
    return {"low": low, "width": max(0.6, round(high - low, 2))}


def _percent(x: float | None) -> float:
    return round(100 * min(1.0, max(0.0, 0.0 if x is None else x)), 2)


def _named(name: str, value: Record) -> dict[str, Any]:
    """A stored value as text: rounded to two significant digits of its interval's width."""
    number, interval = value["value"], value["interval"]
    digits = _decimals(interval or [number or 0.0])
    spelled = _fixed(number, digits) if interval and number is not None else _plain(number)
    return {
        "name": name,
        "value": spelled,
        "interval": "none" if interval is None else "[{}, {}]".format(*(_fixed(end, digits) for end in interval)),
        "n": value["n"],
        "clusters": "" if value["clusters"] is None else f"{value['clusters']} clusters",
        "method": value["method"],
        "note": value.get("note", ""),
    }


def _scores(selection: Record) -> list[dict[str, Any]]:
    chosen = selection["chosen"]
    cell = next(c for c in selection["cells"] if (c["layer"], c["position"]) == (chosen["layer"], chosen["position"]))
    return [{**_named(name, cell[key]), "about": about} for key, name, about in SCORES if cell[key] is not None]


def _ties(selection: Record) -> list[tuple[str, str]]:
    chosen = (selection["chosen"]["layer"], selection["chosen"]["position"])
    others = [tie for tie in selection["near_ties"] if (tie["layer"], tie["position"]) != chosen]
    return [
        (f"layer {tie['layer']}, position {_minus(tie['position'])}", f"{tie['share']:.0%}")
        for tie in others[:SHOWN_TIES]
    ]


def _spread(effect: Record) -> str:
    median, p95, top = effect["kl_median"], effect["kl_p95"], effect["kl_top_share"]
    return f"median {median:.2g}, 95th percentile {p95:.2g}, top prompt {top:.0%} of it"


def _counted(reasons: list[str]) -> list[tuple[str, int]]:
    return [(reason, reasons.count(reason)) for reason in dict.fromkeys(reasons)]


def _decimals(numbers: list[float]) -> int:
    """Decimals that show two significant digits of the width of some numbers, or of the one number."""
    width = max(numbers) - min(numbers) if len(numbers) > 1 else abs(numbers[0])
    return 2 if width == 0 else min(6, max(0, 1 - math.floor(math.log10(width))))


def _fixed(x: float, decimals: int) -> str:
    return _minus(f"{round(x, decimals) + 0.0:.{decimals}f}")


def _minus(number: object) -> str:
    return str(number).replace("-", "−")


def _short(digest: str) -> str:
    return f"{digest[:12]}…"
