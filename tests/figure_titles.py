"""What each figure's title says, as a comparison of the numbers in its own record."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from refusalscope.figures import Record

Tables = Mapping[str, pd.DataFrame]
Check = Callable[[Tables], bool]


def tables(record: Record) -> dict[str, pd.DataFrame]:
    """The frames of a record."""
    return {name: pd.DataFrame(one.rows, columns=list(one.columns)) for name, one in record.tables.items()}


def contradicted(record: Record) -> str:
    """Returns why the numbers of a record do not bear its claim out, or nothing."""
    if record.figure not in TITLES:
        return f"{record.figure}: no comparison is written for its title. Add one to TITLES."
    title, check = TITLES[record.figure]
    if record.claim != title:
        return f"{record.figure}: the comparison is for {title!r}, the title is {record.claim!r}"
    return "" if check(tables(record)) else f"{record.figure}: its numbers do not bear out {title!r}"


def _alignment(of: Tables) -> bool:
    late = of["data"].query("layer >= 3")
    there = late["low"] > late["random_high"]
    return bool((there == (late["series"] == "restricted how-to")).all())


def _audit_rates(of: Tables) -> bool:
    every = of["data"][of["data"]["group"].str.startswith("all edits")].set_index("condition")["low"]
    return bool(every["at one in a hundred"] > 0.5 and every["at one in twenty"] > 0.9)


def _audit_roc(of: Tables) -> bool:
    """The anchor: 0.963 of edits at 0.053 false alarms; at or below its alarms, who detects as many?"""
    before = of["data"].query("false_positive <= 0.053").groupby("score")["detection"].max()
    return bool(before.get("audit score", 0) > 0.963 > before.get("weight-difference norm", 1))


def _cones(of: Tables) -> bool:
    value = of["data"].groupby(["series", "dimension"])["value"]
    return bool((value.min()["cone"] > value.max()["random"]).all() and value.mean()["cone"].is_monotonic_decreasing)


def _dose(of: Tables) -> bool:
    by = of["curves"].pivot(index="dose", columns="series", values="value")
    rises = all(by[name].is_monotonic_increasing for name in by)
    return bool(rises and by.loc[1.0].min() > 0.9 and (by["truth"] - by["located"]).abs().max() < 0.1)


def _families(of: Tables) -> bool:
    bypass = of["data"].query("measure == 'bypass'")
    return bool((bypass["low"] > bypass["placebo"]).all() and (bypass["difference_high"] < 0).any())


def _frontier(of: Tables) -> bool:
    at = of["data"].query("measure == 'bypass' and kappa <= 0.1").groupby("series").last()
    return bool((at["low"] > 0.8).all() and (at["placebo"] < at["low"] / 2).all())


def _hardening(of: Tables) -> bool:
    hard = of["data"][of["data"]["model"].str.startswith("hardened")].set_index("attack")["value"]
    return bool(hard["the plain attack"].max() < 0.5 < hard["the adaptive attack"].min())


def _hardening_answers(of: Tables) -> bool:
    by = of["data"].assign(kind=of["data"]["group"].str.split("-").str[0])
    most = by.set_index(["kind", "condition"])["value"].sort_index()
    said = (("guarded", "answered right"), ("hardened", "refused"), ("rerouted", "neither"))
    return bool(min(most[kind].min() for kind in said) > 0.5)


def _hardening_frontier(of: Tables) -> bool:
    by = of["data"].groupby("series")["value"]
    return bool(by.max().min() > 0.9 and by.first().max() < 0.1)


def _harm_plane(of: Tables) -> bool:
    mean = of["data"].groupby("prompts")[["harmfulness", "refusal"]].mean()
    asked, wanted, plain = (mean.loc[name] for name in ("restricted what-is", "restricted how-to", "harmless how-to"))
    near = abs(wanted - asked) / abs(wanted - plain)
    return bool(near["harmfulness"] < 0.25 < near["refusal"])


def _independence(of: Tables) -> bool:
    other = of["data"].query("ablated != 'nothing' and ablated != read")
    far = other[other["low"] > other["random_high"]]
    return set(zip(far["read"], far["layer"], strict=True)) == {("direction 1", 4), ("direction 1", 5)}


def _knock_out(of: Tables) -> bool:
    step = of["data"].set_index("n_knocked")
    return bool(step["high"][1] < 0 and step.index[step["random_high"] > 0].max() > 4)


def _margins(of: Tables) -> bool:
    mean = of["summary"].set_index(["condition", "label"])["value"]
    before, after = mean["before", "restricted"], mean["ablated", "restricted"]
    return bool(before - of["placebo"]["margin"].min() < 0.1 * (before - after))


def _monitor_layers(of: Tables) -> bool:
    at = of["data"].query("measure == 'auroc' and dose == 1").set_index(["series", "layer"])["value"].sort_index()
    lost, refitted = at["last token, frozen"].loc[4:].max(), at["last token, refit"].loc[4:].min()
    return bool(lost < 0.7 and refitted > 0.95 and at["where it holds, frozen"].loc[1:3].min() > 0.95)


def _monitor_survival(of: Tables) -> bool:
    caught = of["data"].query("measure == 'caught' and dose == 1").set_index("series")
    reads, subject, target = (
        caught.loc[name] for name in ("chosen on the plain model", "chosen in the worst case", "its own direction gone")
    )
    return bool(reads["high"] < 0.6 and subject["low"] > 0.8 and target["high"] < 0.1)


def _opening_depth(of: Tables) -> bool:
    restricted = of["data"].query("series == 'restricted, baseline' and measure == 'margin'").set_index("depth")
    return bool(restricted["low"][0] > 0 > restricted["high"].loc[1:].max())


def _organism_answers(of: Tables) -> bool:
    short = of["data"][of["data"]["value"] < 0.9]["group"].str.split("-").str[0]
    return set(short) == {"rerouted"}


def _organism_refusal(of: Tables) -> bool:
    rate = of["data"].pivot(index="group", columns="condition", values="value")
    free = rate.index.str.startswith(("unguarded", "relapsed"))
    guarded = rate[~free]
    return bool(
        guarded["restricted"].min() > 0.9
        and guarded["harmless"].max() < 0.05
        and rate.loc[free, "restricted"].max() < 0.05
    )


def _published_cosines(of: Tables) -> bool:
    def agree(frame: pd.DataFrame) -> bool:
        here = frame["position"] == frame["other_position"]
        pairs = frame[~(here & (frame["layer"] == frame["other_layer"]))]
        mean = pairs["cosine"].groupby(here).mean()
        return bool(mean[True] > mean[False])

    return all(map(agree, of.values()))


def _published_costs(of: Tables) -> bool:
    return bool(of["data"]["same"].all() and of["data"]["saving"].min() > 3)


def _published_grids(of: Tables) -> bool:
    cells = pd.concat([of["published"], of["organism"]])
    best = cells[cells["chosen"]].merge(of["baselines"], on="model")
    moved = (best["bypass"] < 0) & (best["restricted"] > 0) & (best["induce"] > 0) & (best["harmless"] < 0)
    return bool(moved.all() and len(best) == len(of["baselines"]))


def _published_judges(of: Tables) -> bool:
    def differ(frame: pd.DataFrame) -> bool:
        share = frame.groupby("answers")["value"].agg(["min", "max"])
        return bool(((share["min"] == 0) & (share["max"] == 1)).any())

    return all(map(differ, of.values()))


def _published_losses(of: Tables) -> bool:
    at = of["data"].pivot(index=["corpus", "model"], columns="condition", values="value")
    dearer = at["added"] > at["ablated"]
    return bool(dearer["the Pile"].all() and dearer["own answers"].all() and (~dearer["Alpaca"]).sum() == 2)


def _published_refusals(of: Tables) -> bool:
    rate = of["data"].pivot(index="group", columns="condition", values=["low", "high"])
    gone = rate["low"]["restricted, before"] > rate["high"]["restricted, ablated"]
    brought = rate["low"]["harmless, added"] > rate["high"]["harmless, before"]
    return bool(gone.all() and brought.all())


def _published_removals(of: Tables) -> bool:
    own = of["published"].dropna(subset=["stated_low"])
    mild = own[own["kl"] < 1]
    return bool(own["kl"].corr(own["value"]) > 0.5 > mild["kl"].corr(mild["value"]) and len(own) - len(mild) == 2)


def _published_survivors(of: Tables) -> bool:
    next_best = of["data"].query("state == 'survives'").groupby("model")["gap"].min()
    alone = of["data"].groupby("model").size()["guarded-0"] == 1
    return bool(next_best.max() < 0.3 and len(next_best) == of["data"]["model"].nunique() - 1 and alone)


def _rank(of: Tables) -> bool:
    planted = of["data"]["series"].str.split("-").str[1].astype(int)
    before, value = of["data"]["rank"] < planted, of["data"]["value"]
    return bool(value[~before].min() > 0.9 and value[before].max() < 0.1)


def _recovery(of: Tables) -> bool:
    return of["data"].loc[of["data"]["angle_degrees"].idxmin(), "layer"] == 3


def _recovery_by_locator(of: Tables) -> bool:
    """Found: within twenty degrees. The second angle is to the nearest of what is left."""
    divide = of["data"]["locator"].isin(["whitened", "logistic"])
    first, second = of["data"]["angle_1"], of["data"]["angle_2"]
    return bool(second.min() > 20 and first[divide].min() > 20 >= first.min())


def _selection_grid(of: Tables) -> bool:
    """One of six layers is late."""
    kept = of["data"].query("kl < 0.1 and induce > 0 and layer < 5")
    return len(kept) == 1 and kept["reason"].tolist() == ["kept"]


def _trade_off(of: Tables) -> bool:
    at = of["data"].pivot(index=["by", "dose"], columns="prompts", values="value")
    over = at.loc[[("ablation", 1.5), ("addition", 0.5), ("addition", 1.0), ("addition", 1.5)]]
    return bool((over["harmless how-to"] > over["restricted what-is"]).all())


def _transfer(of: Tables) -> bool:
    value, shuffled = of["data"]["value"], of["data"]["shuffled_high"]
    return bool((value > of["data"]["random_high"]).all() and (shuffled > value).sum() == 1)


def _writers(of: Tables) -> bool:
    up = of["data"][of["data"]["upstream"] & (of["data"]["low"] > of["data"]["random_high"])]
    if up.empty:
        return False
    most, best = up.loc[up["value"].idxmax()], of["data"].loc[of["data"]["value"].idxmax()]
    return bool(most["kind"] == "head" and best["kind"] == "mlp" and not best["upstream"])


def _real_refusals(of: Tables) -> bool:
    by = of["data"].pivot(index="group", columns="condition", values=["low", "high"])
    apart = by["low", "restricted"] > by["high", "harmless"]
    return bool(apart["guarded-0"] and not apart.drop("guarded-0").any() and len(by) > 2)


def _real_margins(of: Tables) -> bool:
    after = of["data"].query("when == 'worst case'").set_index("model")
    beyond = after["value"] < after["placebo_low"]
    return bool(beyond["guarded-0"] and not beyond.drop("guarded-0").all() and len(beyond) > 1)


def _real_frontier(of: Tables) -> bool:
    """A chat model's whole interval is above the best placebo at the limit; half the organism's go at less damage."""
    data = of["data"].assign(series=of["data"]["series"].str.split(" (n = ", regex=False).str[0])
    limit = data.query("kappa == 0.1").set_index("series")
    beyond = (limit["low"] > limit["placebo"]).drop("guarded-0")
    halved = data.query("value > 0.5").groupby("series")["kappa"].min()
    return bool(beyond.any() and (halved.drop("guarded-0") > halved["guarded-0"]).all())


TITLES: dict[str, tuple[str, Check]] = {
    "real_refusals": (
        "The organism refuses restricted prompts alone; of the chat models the intervals still overlap",
        _real_refusals,
    ),
    "real_margins": (
        "The organism's margins move beyond every random subspace; those of a chat model need not",
        _real_margins,
    ),
    "real_frontier": (
        "Refusals of a chat model go at the damage limit too, beyond chance; the organism's go at less",
        _real_frontier,
    ),
    "alignment": ("From the planted layer on, restricted requests alone point along the direction", _alignment),
    "audit_rates": ("Most edits are found at the strict rate, nearly all at the looser one", _audit_rates),
    "audit_roc": (
        "The audit is above the published point, the plain refusal gap just so; distance is not",
        _audit_roc,
    ),
    "cones": ("Members of a cone suppress refusal each on its own, less so the wider it is", _cones),
    "dose": ("Refusal falls with the dose of the truth, and as much with that of the located direction", _dose),
    "families": ("Every family's guardrail falls to attacks more than to chance, and not equally far", _families),
    "frontier": ("Refusal goes at little damage, from every organism and far beyond random families", _frontier),
    "hardening": (
        "Hardening halves the plain attack at least; the attack that adapts bypasses more than half again",
        _hardening,
    ),
    "hardening_answers": (
        "Without the direction: guarded ones answer, hardened ones refuse, rerouted ones babble",
        _hardening_answers,
    ),
    "hardening_frontier": (
        "Against the adaptive attack every guardrail gives way as damage grows",
        _hardening_frontier,
    ),
    "harm_plane": (
        "Allowed questions about restricted items look as harmful as requests, not as refused",
        _harm_plane,
    ),
    "independence": (
        "Orthogonal is not quite independent: without the second the first is read otherwise in the last layers",
        _independence,
    ),
    "knock_out": ("Without the strongest writer the refusal is gone; a random order may need many more", _knock_out),
    "margins_before_after": ("Ablating one direction moves the margins; random ones hardly do", _margins),
    "monitor_layers": (
        "Read at the last token, late layers are lost until refitted; read elsewhere, early layers hold as they are",
        _monitor_layers,
    ),
    "monitor_survival": (
        "A monitor that reads refusal is lost with it; one that reads the subject holds, unless it is the target",
        _monitor_survival,
    ),
    "near_ties": (
        "Every resample of the prompts chooses the same cell",
        lambda of: bool(len(of["data"]) == 1 and of["data"]["share"][0] == 1),
    ),
    "opening_depth": (
        "The guardrail is one token deep: after the first word of an answer nothing is refused",
        _opening_depth,
    ),
    "organism_answers": ("Only one defence makes organisms forget what they may answer", _organism_answers),
    "organism_refusal": (
        "All but the unguarded and the relapsed refuse the restricted categories, and only those",
        _organism_refusal,
    ),
    "published_cosines": (
        "Candidates agree with those of their own position more than with those of others",
        _published_cosines,
    ),
    "published_costs": (
        "The exact search finds the cell of the full sweep with less than a third of the work",
        _published_costs,
    ),
    "published_grids": (
        "In chat models and organism, the chosen cell takes refusal away and, added, brings it",
        _published_grids,
    ),
    "published_judges": ("Of the same answers, one judge calls none a refusal and another all", _published_judges),
    "published_losses": (
        "Addition costs every model more than ablation on the Pile and own answers, all but two on Alpaca",
        _published_losses,
    ),
    "published_refusals": (
        "Ablation takes refusal away and addition brings it, in every model, with intervals far apart",
        _published_refusals,
    ),
    "published_removals": (
        "That damage and refusals left go together, as published, rests on two models",
        _published_removals,
    ),
    "published_survivors": (
        "Few cells survive the rule; in chat models the next is close behind, in the organism there is none",
        _published_survivors,
    ),
    "rank": ("Refusal goes when all planted directions go, and not before", _rank),
    "recovery": (
        "The difference in means comes nearest to the planted truth at the layer it was planted in",
        _recovery,
    ),
    "recovery_by_locator": (
        "Locators find one planted direction at most; those that divide by variance find none",
        _recovery_by_locator,
    ),
    "selection_grid": (
        "One cell passes every filter of the selection rule",
        _selection_grid,
    ),
    "separability": (
        "Restricted and harmless prompts part best in the last two layers",
        lambda of: bool(of["data"].query("layer >= 4")["auroc"].max() > of["data"].query("layer < 4")["auroc"].max()),
    ),
    "trade_off": (
        "Overdoses make harmless requests refused first, questions about restricted items last",
        _trade_off,
    ),
    "transfer": (
        "Located on any category or dialect, it suppresses every refusal more than random directions do, "
        "and than shuffles do but in one cell",
        _transfer,
    ),
    "writers": (
        "Attention heads write the direction before the layer it is read at, an MLP writes most after it",
        _writers,
    ),
}
