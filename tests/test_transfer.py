"""Transfer: groups and their twins, contrasts against oracles, and mechanisms that must and must not transfer."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from refusalscope import baseline, language, readout
from refusalscope.activations import ContrastActivations, Moments
from refusalscope.errors import ContractError, InterventionError, MeasurementError
from refusalscope.placebo import label_shuffled
from refusalscope.prompts import Prompts
from refusalscope.subspace import Subspace
from refusalscope.transfer import (
    Group,
    Sources,
    balanced_shuffles,
    by_category,
    by_dialect,
    by_template,
    cosines,
    direction,
    groups,
    matrices,
    reliability,
    sources,
)
from refusalscope.transfer.contrasts import auroc, difference, placebo_columns

D = 32


# --- groups ---


@pytest.mark.parametrize(
    ("grouping", "count", "each"), [(by_category, 4, 24), (by_template, 8, 12), (by_dialect, 2, 48)]
)
def test_a_group_holds_its_restricted_prompts_and_their_twins(contrast, grouping, count, each):
    found = groups(contrast.locate, grouping)
    assert [(len(group.restricted), len(group.harmless)) for group in found] == [(each, each)] * count
    for group in found:
        twins = {contrast.locate.restricted[index].pair for index in group.restricted}
        assert twins == {contrast.locate.harmless[index].id for index in group.harmless}
        assert group.reason == ""


def test_without_twins_a_group_is_given_the_harmless_prompts_of_its_templates(contrast):
    alone = Prompts(tuple(dataclasses.replace(row, pair=None) for row in contrast.locate))
    found = groups(alone, by_category)
    assert [len(group.harmless) for group in found] == [len(alone.harmless)] * 4
    assert [len(group.harmless) for group in groups(alone, by_dialect)] == [48, 48]


def test_a_group_of_one_class_is_kept_with_its_reason(contrast):
    rows = [dataclasses.replace(row, pair=None) for row in contrast.locate]
    stranger = dataclasses.replace(rows[1], id="x", label="harmless", category="weather", cluster="elsewhere")
    cut = [row for row in rows if row.label == "restricted" or not row.cluster.startswith("ostari")]
    found = {group.name: group.reason for group in groups(Prompts((*cut, stranger)), by_dialect)}
    assert found["ostari"] == "group 'ostari' has no harmless prompts"
    assert found["elsewhere"] == "group 'elsewhere' has no restricted prompts"
    assert found["velune"] == ""


# --- contrasts ---


@pytest.fixture
def scores():
    chance = np.random.default_rng(0)
    return chance.normal(1, 2, 60), chance.normal(0, 1, 40)


def alone(*parts):
    return [str(index) for index in range(sum(map(len, parts)))]


def test_a_difference_of_independent_prompts_has_welchs_interval(scores):
    found = difference(*scores, clusters=alone(*scores))
    welch = scipy_stats.ttest_ind(*scores, equal_var=False).confidence_interval()
    assert found.value == pytest.approx(scores[0].mean() - scores[1].mean())
    assert found.interval == pytest.approx((welch.low, welch.high), rel=0.05)


def test_an_auroc_is_scikit_learns_with_delongs_interval(scores):
    x, y = (np.round(part, 1) for part in scores)  # ties
    found = auroc(x, y, clusters=alone(x, y))
    assert found.value == pytest.approx(roc_auc_score([1] * len(x) + [0] * len(y), [*x, *y]))
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    error = math.sqrt(wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y))
    assert found.high - found.low == pytest.approx(2 * 1.98 * error, rel=0.05)


def test_prompts_that_repeat_one_another_widen_the_interval(scores):
    once = difference(*scores, clusters=alone(*scores))
    repeated = [np.repeat(part, 5) for part in scores]
    labels = [str(index // 5) for index in range(500)]
    assert difference(*repeated, clusters=labels).interval == pytest.approx(once.interval, rel=0.05)
    naive = difference(*repeated, clusters=alone(*repeated))
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_a_contrast_without_one_class_is_refused_and_a_perfect_one_has_no_interval():
    with pytest.raises(MeasurementError, match="both classes"):
        auroc([1.0], [], clusters=["a"])
    found = auroc(np.ones(8), np.zeros(8), clusters=alone(range(16)))
    assert (found.value, found.interval) == (1.0, None)


def test_a_placebo_that_was_not_measured_leaves_no_rank():
    assert placebo_columns(1.0, [0.0] * 19, name="x")["x_p"] == pytest.approx(0.05)
    assert placebo_columns(0.0, [1.0] * 19, name="x", larger_is_stronger=False)["x_p"] == pytest.approx(0.05)
    for value, placebos in ((1.0, [0.0, math.nan]), (math.nan, [0.0])):
        columns = placebo_columns(value, placebos, name="x")
        assert columns.pop("x_n") == len(placebos)
        assert len(columns) == 3
        assert all(math.isnan(found) for found in columns.values())


# --- mechanisms made by hand ---


def made(prompts: Prompts, mechanism: dict[str, int], *, noise: float = 0.1, size: float = 3.0) -> Sources:
    """Activations in which each dialect's restricted prompts move along one coordinate, named by ``mechanism``."""
    chance, parts = torch.Generator().manual_seed(0), []
    for label, part in (("restricted", prompts.restricted), ("harmless", prompts.harmless)):
        each = noise * torch.randn(len(part), 1, 1, D, generator=chance)
        for row, prompt in enumerate(part):
            each[row, 0, 0, mechanism[by_dialect(prompt)]] += size * (label == "restricted")
        moments = Moments()
        moments.add(each)
        parts.append(moments.activations(label, each=each))
    return Sources(prompts, ContrastActivations(*parts))


def off_diagonal(frame):
    return frame[frame["source"] != frame["target"]]


def test_one_shared_mechanism_reaches_the_ceiling_and_two_orthogonal_ones_do_not_leave_chance(contrast):
    dialects, cell = {"dialect": by_dialect}, (0, -1)
    shared = off_diagonal(cosines(made(contrast.locate, {"ostari": 0, "velune": 0}), dialects, cell=cell))
    apart = off_diagonal(cosines(made(contrast.locate, {"ostari": 0, "velune": 1}), dialects, cell=cell))
    assert (shared["value"] > 0.95).all()
    assert (shared["random_p"] == 1 / 200).all()
    assert (apart["value"].abs() < 0.1).all()
    assert apart["value"].between(apart["random_low"], apart["random_high"]).all()
    assert (apart["ceiling"] > 0.95).all()


def test_projecting_out_one_groups_direction_takes_only_what_it_shares_with_another(contrast):
    """Transfer at the level of values: orthogonal mean differences lose nothing, equal ones everything."""
    for mechanism, left in (({"ostari": 0, "velune": 1}, 1.0), ({"ostari": 0, "velune": 0}, 0.0)):
        located = made(contrast.locate, mechanism)
        ostari, velune = groups(contrast.locate, by_dialect)
        source = direction(located, ostari, cell=(0, -1))
        target = direction(located, velune, cell=(0, -1))
        assert isinstance(source, Subspace)
        assert isinstance(target, Subspace)
        vector = target.vectors[0]
        kept = vector - source.basis[:, 0] * (vector @ source.basis[:, 0])
        assert float(kept.norm() / vector.norm()) == pytest.approx(left, abs=0.1)


def test_balanced_shuffles_hold_none_of_the_direction_and_plain_shuffles_do(contrast):
    located = made(contrast.locate, {"ostari": 0, "velune": 0}, noise=0.01)
    (everyone,) = groups(contrast.locate, lambda prompt: "all")
    plain = [one.at(0, -1).vectors[0] for one in label_shuffled(*located.activations, 39, seed=0)]
    balanced = [one.vectors[0] for one in balanced_shuffles(located, everyone, 39, cell=(0, -1), seed=0)]
    share = {
        name: torch.stack([v[0].abs() / v.norm() for v in vs]).mean()
        for name, vs in {"plain": plain, "balanced": balanced}.items()
    }
    assert share["plain"] > 0.9
    assert share["balanced"] < 0.35


def test_nothing_to_shuffle_gives_no_placebo_rather_than_an_empty_one(contrast):
    located = made(contrast.locate, {"ostari": 0, "velune": 0}, noise=0.0)
    (everyone,) = groups(contrast.locate, lambda prompt: "all")
    assert balanced_shuffles(located, everyone, 9, cell=(0, -1), seed=0) == []
    assert balanced_shuffles(located, Group("one", (0,), (0,)), 9, cell=(0, -1), seed=0) == []


def test_a_steady_direction_is_reliable_and_noise_is_not(contrast):
    (everyone,) = groups(contrast.locate, lambda prompt: "all")
    found = [
        reliability(made(contrast.locate, {"ostari": 0, "velune": 0}, size=size), everyone, cell=(0, -1), seed=0)
        for size in (3.0, 0.0)
    ]
    assert found[0] > 0.99
    assert found[1] < 0.3
    one = Group("one", (0,), (0,))
    located = made(contrast.locate, {"ostari": 0, "velune": 0})
    assert math.isnan(reliability(located, one, cell=(0, -1), seed=0))


def test_equal_means_give_a_reason_and_a_row(contrast):
    located = made(contrast.locate, {"ostari": 0, "velune": 0}, noise=0.0, size=0.0)
    frame = cosines(located, {"dialect": by_dialect}, cell=(0, -1))
    assert len(frame) == 4
    assert frame["value"].isna().all()
    assert frame["note"].str.contains("means of group").all()


# --- a model ---


@pytest.fixture(scope="module")
def planted(organism, contrast):
    model, asked = organism("planted-1"), contrast.report.sample(32, seed=0)
    refusal = readout(model, asked, openings=[d.refusal.split()[0] for d in language().dialects])
    return baseline(model, asked, refusal), sources(model, contrast.locate)


def test_a_planted_guardrail_transfers_between_dialects_and_templates(planted):
    before, located = planted
    frame = matrices(
        before, located, {"dialect": by_dialect, "template": by_template}, cell=(3, -1), random=19, shuffled=1
    )
    assert frame.attrs["pf"] == (10 * 2 + 19) * len(before.prompts)
    dialect, bypass = frame["grouping"] == "dialect", frame["metric"] == "bypass"
    assert (dialect.sum(), (~dialect).sum()) == (3 * 2 * 2, 3 * 8 * 8)
    found = frame[dialect & bypass]
    assert (found["value"] >= 0.98).all()
    assert (found["random_high"] <= 0.05).all()
    assert (found["random_p"] == 1 / 20).all()
    assert found["low"].isna().all()
    assert found["note"].str.contains("4 clusters, an interval needs at least 5").all()
    assert (frame[dialect & (frame["metric"] == "kl")]["value"] <= 0.1).all()
    assert (frame[~dialect & bypass]["value"] >= 0.98).all()


@pytest.fixture
def located(tiny, contrast):
    return sources(tiny, contrast.locate.sample(8, seed=0))


def test_a_source_of_one_class_keeps_its_rows_with_the_reason(before, tiny, contrast):
    rows = [dataclasses.replace(row, pair=None) for row in contrast.locate.sample(8, seed=0)]
    cut = [row for row in rows if row.label == "restricted" or not row.cluster.startswith("ostari")]
    frame = matrices(before, sources(tiny, Prompts(tuple(cut))), {"d": by_dialect}, cell=(1, -1), random=3, shuffled=2)
    lost = frame[frame["source"] == "ostari"]
    assert len(lost) == 3 * frame["target"].nunique()
    assert lost["value"].isna().all()
    assert set(lost["note"]) == {"group 'ostari' has no harmless prompts"}
    assert frame[frame["source"] == "velune"]["value"].notna().any()


def test_no_direction_at_all_is_a_frame_of_reasons(before, located):
    frame = matrices(before, located, {"d": by_dialect}, cell=(0, -1), random=3, shuffled=2)
    assert len(frame) > 0
    assert frame["value"].isna().all()
    assert frame["note"].str.contains("are equal at this cell").all()


def test_a_target_that_nothing_refuses_has_no_bypass_rate(before, located):
    open_ = dataclasses.replace(before, restricted=-before.restricted.abs() - 1, refused=None)
    frame = matrices(open_, located, {"all": lambda prompt: "all"}, cell=(1, -1), random=3, shuffled=2)
    bypass = frame[frame["metric"] == "bypass"]
    assert bypass["value"].isna().all()
    assert bypass["note"].str.contains("is refused at baseline").all()
    assert frame[frame["metric"] == "kl"]["value"].notna().all()


def test_an_invalid_ablation_is_counted_and_named(before, located, monkeypatch):
    import refusalscope.attack as module

    def failing(*_args, **_how):
        raise InterventionError("a hook did not fire")

    monkeypatch.setattr(module, "ablate", failing)
    frame = matrices(before, located, {"d": by_dialect}, cell=(1, -1), random=3, shuffled=2)
    measured = frame[frame["note"] == "invalid: the ablation did not happen as declared"]
    assert len(measured) > 0
    assert frame["value"].isna().all()


def test_a_matrix_equals_one_effect_at_a_time(before, tiny, few, located):
    from refusalscope import effect

    frame = matrices(before, located, {"all": lambda prompt: "all"}, cell=(2, -1), random=3, shuffled=2)
    (everyone,) = groups(located.prompts, lambda prompt: "all")
    one = direction(located, everyone, cell=(2, -1))
    assert isinstance(one, Subspace)
    alone = effect(before, one)
    found = dict(zip(frame["metric"], frame["value"], strict=True))
    assert found["bypass"] == pytest.approx(alone.bypass.value)
    assert found["suppression"] == pytest.approx(alone.suppression.value, abs=1e-4)
    assert found["kl"] == pytest.approx(alone.kl.value, rel=1e-3, abs=1e-6)


def test_sources_are_not_exported(located):
    with pytest.raises(ContractError):
        pickle.dumps(located)
