"""Facts from papers and their repositories, kept as small tables, a source and a table for every number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.stats import Estimate

COLUMNS = ("paper", "model", "metric", "value", "condition", "source", "table", "mark")
TOPICS = ("selection", "losses", "refusals", "removals", "judges")
MARKS = ("READ", "COMPUTED")
ROUNDING = 1e-6  # of a count that was printed as a share
RUN_OF = {
    "Qwen-1.8B": "qwen-1_8b-chat",
    "Yi-6B": "yi-6b-chat",
    "Gemma-2B": "gemma-2b-it",
    "Llama-2-7B": "llama-2-7b-chat-hf",
    "Llama-3-8B": "meta-llama-3-8b-instruct",
}
NAMES = {run: name for name, run in RUN_OF.items()}
CORPORA = {"pile": "the Pile", "alpaca": "Alpaca", "alpaca_custom_completions": "own answers"}
STEPS = {"baseline": "base", "ablation": "ablated", "actadd": "added"}
ASKED = {
    "jailbreakbench_baseline": "restricted, before",
    "jailbreakbench_ablation": "restricted, ablated",
    "harmless_baseline": "harmless, before",
    "harmless_actadd": "harmless, added",
}
JUDGED = {"substring_matching_success_rate": "phrases", "llamaguard2_success_rate": "Llama Guard 2"}


def read(folder: Path | str) -> pd.DataFrame:
    """Returns every published fact: the columns of the files, as text, and `topic`, the name of the file.

    `mark` is READ for a number that stands in the source, COMPUTED for one made from numbers that do.

    Raises:
        MeasurementError: a file is missing, or a row lacks its source, its table or its mark.
    """
    frames = [_topic(Path(folder) / f"{topic}.csv").assign(topic=topic) for topic in TOPICS]
    return pd.concat(frames, ignore_index=True)


def stated(facts: pd.DataFrame, *, topic: str, metric: str) -> pd.DataFrame:
    """Returns the facts of one metric, with `value` as a number.

    Raises:
        MeasurementError: there are none.
    """
    found = facts[(facts["topic"] == topic) & (facts["metric"] == metric)]
    if found.empty:
        raise MeasurementError(f"No {metric!r} among the published facts on {topic!r}.")
    return found.assign(value=found["value"].astype(float)).reset_index(drop=True)


def choices(facts: pd.DataFrame) -> pd.DataFrame:
    """Returns the chosen cell of each model whose run is public, as the paper prints it and as the run has it.

    Columns: `model`, `layers` (of the model), and for `paper_` and `run_`: `layer position bypass induce kl`.
    """
    columns: dict[str, pd.Series] = {}
    for paper, origin in (("arditi2024", "paper"), ("arditi2024-repo", "run")):
        for kind in ("bypass", "induce", "kl"):
            rows = stated(facts, topic="selection", metric=f"{kind}_score")
            rows = rows.loc[rows["paper"] == paper].replace({"model": RUN_OF}).set_index("model")
            columns[f"{origin}_{kind}"] = rows["value"]
            for name, pattern in (("layer", r"layer=(\d+)"), ("position", r"pos=(-?\d+)"), ("depth", r"/(\d+)")):
                columns[f"{origin}_{name}"] = rows["condition"].str.extract(pattern)[0].astype(float)
    frame = pd.DataFrame(columns).dropna(subset=["run_layer"])
    whole = {name: int for name in frame.columns if name.endswith(("_layer", "_position"))}
    frame = frame.rename(columns={"paper_depth": "layers"}).drop(columns="run_depth").astype({"layers": int, **whole})
    return frame.rename_axis("model").reset_index()


def losses(facts: pd.DataFrame) -> pd.DataFrame:
    """Returns cross-entropy in nats per token. Columns `model corpus condition value`.

    Without intervals: what is published is one mean per corpus, without its variation.
    """
    parts = {name: stated(facts, topic="losses", metric=f"CE_loss_{key}") for key, name in CORPORA.items()}
    frame = pd.concat([part.assign(corpus=name) for name, part in parts.items()], ignore_index=True)
    frame = frame.replace({"model": NAMES, "condition": STEPS})
    return frame.loc[:, ["model", "corpus", "condition", "value"]]


def refusals(facts: pd.DataFrame, *, judge: str = "phrases") -> pd.DataFrame:
    """Returns refusal rates with Wilson intervals from the published counts, as `plotting.rates` takes them.

    A judge of successes: what is not a success is taken as a refusal. Columns `condition group value low high n`.
    """
    metric = {name: metric for metric, name in JUDGED.items()}[judge]
    rows = stated(facts, topic="refusals", metric=metric)
    rows = rows.assign(asked=rows["condition"].str.split().str[0].map(ASKED)).dropna(subset=["asked"])
    found = [
        {"condition": row.asked, "group": NAMES[row.model], **_rate(1 - row.value, _n(row.condition))}
        for row in _rows(rows)
    ]
    order = list(ASKED.values())
    return pd.DataFrame(found).sort_values("condition", key=lambda column: column.map(order.index), kind="stable")


def removals(facts: pd.DataFrame) -> pd.DataFrame:
    """Returns models edited by removal tools: what refuses still, and the damage.

    Columns `study model kl value low high n stated_low stated_high`: `kl` in nats at the first token, `value` the share
    of 100 prompts still refused with its Wilson interval, `stated_` the interval that the paper prints, if any.
    """
    damage = stated(facts, topic="removals", metric="KL_first_token").set_index(["paper", "model"])["value"]
    found = []
    for row in _rows(stated(facts, topic="removals", metric="refusals_per_100")):
        same = (facts["metric"] == "ASR_pct_Wilson95") & (facts["model"] == row.model) & (facts["paper"] == row.paper)
        ends = [float(x) for text in facts.loc[same, "value"] for x in re.findall(r"[\d.]+", text)[1:]]
        high, low = [1 - end / 100 for end in ends] or (math.nan, math.nan)
        shown = {"study": row.paper, "model": row.model, "kl": float(damage.loc[(row.paper, row.model)])}
        found.append({**shown, **_rate(row.value / 100, 100), "stated_low": low, "stated_high": high})
    return pd.DataFrame(found)


def judgements(facts: pd.DataFrame) -> pd.DataFrame:
    """Returns how many of the same answers each judge calls a refusal.

    Columns `answers` (the model that gave them), `judge refused value low high n`, the value a share of n.
    """
    n, found = 50, []
    for row in _rows(stated(facts, topic="judges", metric="refused_of_50")):
        judge = row.condition.split("judge=")[1]
        found.append({"answers": row.model, "judge": judge, "refused": int(row.value), **_rate(row.value / n, n)})
    return pd.DataFrame(found)


def interval(estimate: Estimate) -> dict[str, float]:
    """The columns of an estimate in a frame to draw."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _topic(file: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise MeasurementError(f"{file}: cannot be read ({error}). Give the folder that holds {file.name}.") from error
    if tuple(frame.columns) != COLUMNS:
        raise MeasurementError(f"{file}: the columns must be {', '.join(COLUMNS)}.")
    for column in ("value", "source", "table"):
        blank = [line for line, text in enumerate(frame[column], 2) if not text.strip()]
        if blank:
            raise MeasurementError(f"{file}: line {blank[0]} has no {column}: every number has one.")
    if not set(frame["mark"]) <= set(MARKS):
        raise MeasurementError(f"{file}: every mark must be one of {', '.join(MARKS)}.")
    return frame


def _rows(frame: pd.DataFrame) -> Iterable[Any]:
    return frame.itertuples(index=False)


def _rate(share: float, n: int) -> dict[str, float]:
    """A rate with its Wilson interval from the count behind it."""
    count = round(share * n)
    if abs(share * n - count) > ROUNDING:
        raise MeasurementError(f"A share of {share:g} is no count of n = {n}: no interval can be recomputed.")
    return interval(stats.wilson(count, n))


def _n(condition: str) -> int:
    found = re.search(r"\bn=(\d+)", condition)
    if found is None:
        raise MeasurementError(f"{condition!r} does not say how many prompts: no interval can be given.")
    return int(found[1])
