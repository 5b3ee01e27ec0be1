"""Monitors: a frozen probe for restricted requests, what it reads, what is left of it, and what it says when blind."""

from __future__ import annotations

import pickle
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

import refusalscope as rs
from refusalscope.errors import ContractError, InterventionError, MeasurementError
from refusalscope.model.hooking import hooked
from refusalscope.monitor import alarms, by_layer, calibrate, latency, overlap
from refusalscope.monitor.fit import fit, scores_along, unit
from refusalscope.monitor.rates import estimates, numbers
from refusalscope.monitor.surviving import NOTHING, OWN, state_of
from refusalscope.stats import Estimate
from refusalscope.transfer.harm import captured

ROOT = Path(__file__).parents[1]
REFUSAL = (4, -1)  # where the selection rule finds the refusal of guarded-0


@pytest.fixture(scope="module")
def shipped():
    return rs.ContrastSet.read(ROOT / "data" / "prompts" / "organism.jsonl")


@pytest.fixture(scope="module")
def wide(shipped):
    """The shipped set with more items to fit on, and every prompt in the cluster of its item."""
    asked = [one for one in rs.language().questions("how-to", held_out=False) if one.template % 6 == 0]
    chosen = [one for one in asked if one.restricted][::2] + [one for one in asked if not one.restricted][::4]
    rows = (*rs.organisms.question_prompts(chosen, split="locate"), *shipped.select, *shipped.report)
    return replace(shipped, prompts=rs.Prompts(tuple(replace(row, cluster=item(row.text)) for row in rows)))


@pytest.fixture(scope="module")
def refusal(guarded, shipped):
    return rs.locate.mean_difference(*rs.capture(guarded, shipped.locate)).at(*REFUSAL)


@pytest.fixture(scope="module")
def plain(guarded, shipped):
    """A monitor by differences in means, its cell chosen on the plain model."""
    return rs.monitor(guarded, shipped)


@pytest.fixture(scope="module")
def rehearsed(guarded, wide, refusal):
    """A logistic monitor, its cell chosen for its worst case with and without refusal."""
    return rs.monitor(guarded, wide, probe="logistic", withstand=[refusal])


@pytest.fixture(scope="module")
def survived(plain, guarded, shipped, refusal):
    doses = (0.0, 0.5, 1.0)
    return rs.survival(plain, guarded, shipped.report, ablating={"refusal": refusal}, doses=doses, placebos=3)


def item(text: str) -> str:
    question = rs.language().parse(text)
    assert question is not None
    return question.item.name


def shuffled(prompts: rs.ContrastSet, seed: int) -> rs.ContrastSet:
    """The same prompts with labels dealt out at random within each split."""
    chance, rows = np.random.default_rng(seed), []
    for split in (prompts.locate, prompts.select, prompts.report):
        labels = chance.permutation(split.labels)
        rows += [replace(row, label=str(label), pair=None) for row, label in zip(split, labels, strict=True)]
    return replace(prompts, prompts=rs.Prompts(tuple(rows)))


@contextmanager
def counted(model):
    """Counts the rows that go through a model."""
    rows: list[int] = []
    core = model.bridge.original_model
    handle = core.register_forward_pre_hook(
        lambda _module, given, named: rows.append(len(named.get("input_ids", given[0] if given else None))),
        with_kwargs=True,
    )
    try:
        yield rows
    finally:
        handle.remove()


# Theorems.


def test_with_its_own_direction_ablated_every_score_is_the_same_and_auroc_is_one_half(
    survived, plain, guarded, shipped
):
    assert survived.at(OWN, 1.0, "auroc").value == 0.5
    with rs.ablate(guarded, plain.subspace):
        scores = scores_along(guarded, shipped.report, plain.subspace)
    assert len(set(scores.tolist())) == 1
    assert survived.state(OWN, 1.0) == "fails"
    assert "nothing is read" in survived.at(OWN, 1.0, "auroc").note


def test_with_half_of_it_ablated_the_scores_still_tell(survived):
    assert survived.at(OWN, 0.5, "auroc").value > 0.9


@pytest.mark.parametrize("measure", ["auroc", "caught", "false_alarms", "caught_at_reset"])
def test_dose_0_equals_the_model_as_it_is_bit_for_bit(survived, measure):
    as_it_is = survived.at(NOTHING, 0.0, measure)
    for ablated in ("refusal", OWN):
        row = survived.at(ablated, 0.0, measure)
        assert row.value == as_it_is.value
        assert row.random_low == row.random_high == row.value


def test_scores_at_dose_0_equal_plain_scores_bit_for_bit(plain, guarded, shipped, refusal):
    before = scores_along(guarded, shipped.report, plain.subspace)
    with rs.ablate(guarded, refusal, dose=0.0):
        assert torch.equal(scores_along(guarded, shipped.report, plain.subspace), before)


def test_the_probe_of_means_is_the_difference_in_means(plain, guarded, shipped):
    layer, position = plain.cell
    one, two = (captured(guarded, part, "x").each for part in (shipped.locate.restricted, shipped.locate.harmless))
    by_hand = one[:, layer, position].double().mean(0) - two[:, layer, position].double().mean(0)
    cosine = by_hand @ plain.subspace.basis[:, 0] / torch.linalg.vector_norm(by_hand)
    assert float(cosine) == pytest.approx(1, abs=1e-6)


# Oracles.


@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_the_share_caught_at_reset_agree_with_scikit_learn(seed):
    noise = np.random.default_rng(seed)
    x, y = np.round(noise.normal(1, 1, 57), seed % 3), np.round(noise.normal(0, 1, 143), seed % 3)
    found = numbers(x, y, threshold=1.0, rate=0.03)
    truth, scores = np.repeat([1, 0], [len(x), len(y)]), np.concatenate([x, y])
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["caught_at_reset"] == pytest.approx(tpr[fpr <= 0.03].max(), abs=1e-12)
    assert found["caught"] == sum(one > 1.0 for one in x) / len(x)
    assert found["false_alarms"] == sum(one > 1.0 for one in y) / len(y)


def test_estimates_hold_the_same_numbers_with_intervals():
    noise = np.random.default_rng(0)
    x, y, names = noise.normal(1, 1, 60), noise.normal(0, 1, 60), [str(i // 6) for i in range(60)]
    made = estimates(x, y, calibration=calibrate(y, rate=0.05), clusters=(names, names))
    found = numbers(x, y, threshold=calibrate(y, rate=0.05).threshold, rate=0.05)
    for measure, one in made.items():
        assert one.value == pytest.approx(float(found[measure]), abs=1e-12)
        assert one.low < one.value < one.high
        assert one.n == (120 if measure == "auroc" else 60)


def test_a_logistic_refit_under_ablation_is_that_of_scikit_learn(guarded, prompts, refusal):
    with rs.ablate(guarded, refusal):
        found = fit(guarded, prompts.locate, "logistic")
        one, two = (captured(guarded, p, "x").each for p in (prompts.locate.restricted, prompts.locate.harmless))
    x = torch.cat([one, two])[:, 3, -2].double().numpy()
    truth = np.repeat([1, 0], [len(one), len(two)])
    spread = x.std(0)
    oracle = LogisticRegression(max_iter=5000, tol=1e-6).fit((x - x.mean(0)) / spread, truth).coef_[0] / spread
    ours = unit(found, 3, -2).vectors[0].numpy()
    assert ours @ oracle / np.linalg.norm(oracle) == pytest.approx(1, abs=1e-5)


# Known answers on organisms.


def test_chosen_on_the_plain_model_it_reads_refusal_and_goes_blind_with_it(survived, plain, refusal):
    assert survived.state(NOTHING, 0.0) == "holds"
    assert survived.state("refusal", 1.0) == "fails"
    assert survived.at("refusal", 1.0).high < 0.2
    row = overlap(plain, refusal).query("chosen").iloc[0]
    assert row.cosine > 0.8
    assert row.random_p < 0.05
    assert {"refusal", OWN} == set(survived.failures["ablated"])


def test_chosen_for_its_worst_case_it_reads_elsewhere_and_holds_without_refusal(rehearsed, guarded, wide, refusal):
    found = rs.survival(rehearsed, guarded, wide.report, ablating={"refusal": refusal}, doses=(1.0,), placebos=3)
    assert found.state("refusal", 1.0) == "holds"
    assert found.state(OWN, 1.0) == "fails"
    assert overlap(rehearsed, refusal).query("chosen").iloc[0].cosine < 0.4
    assert found.claim == "holds as the model is; holds with refusal ablated; fails with its own direction ablated"


def test_restrictedness_is_read_where_nothing_was_ever_refused(organism, wide):
    found = rs.survival(
        rs.monitor(organism("unguarded"), wide), organism("unguarded"), wide.report, doses=(), placebos=99
    )
    row = found.at(NOTHING, 0.0, "auroc")
    assert row.low > 0.75
    assert row.random_p < 0.05


def test_shuffled_labels_leave_nothing_to_read(organism, shipped):
    wrong = shuffled(shipped, seed=0)
    made = rs.monitor(organism("unguarded"), wrong)
    row = rs.survival(made, organism("unguarded"), wrong.report, doses=(), placebos=99).at(NOTHING, 0.0, "auroc")
    assert row.low < 0.5 < row.high
    assert row.random_p > 0.05


def test_where_refusal_is_read_a_refit_finds_again_what_a_frozen_probe_lost(plain, guarded, wide, refusal):
    frame = by_layer(plain, guarded, wide, refusal, doses=(0.0, 1.0), random=19)
    at = frame[frame["measure"] == "auroc"].set_index(["dose", "layer", "probe"])["value"]
    assert at[1.0, 5, "refit"] > at[1.0, 5, "frozen"] + 0.1
    assert at[0.0, 5, "frozen"] > 0.95
    assert frame.query("layer == 0")["value"].isna().all()
    assert set(frame.query("layer == 0")["note"]) == {"the class means are equal here: no probe"}


def test_refit_at_dose_0_on_the_same_prompts_is_the_frozen_probe(plain, guarded, shipped, refusal):
    frame = by_layer(plain, guarded, shipped, refusal, doses=(0.0,), random=3)
    frozen, refit = (frame.query("probe == @name").reset_index(drop=True) for name in ("frozen", "refit"))
    assert frozen.drop(columns="probe").equals(refit.drop(columns="probe"))


def test_alarms_on_allowed_questions_tell_subject_from_refusal(plain, rehearsed, guarded, shipped):
    names = {item(text) for text in shipped.report.restricted.texts}
    asked = [one for one in rs.language().questions("what-is", held_out=True) if one.item.name in names]
    classes = {"requests": shipped.report.restricted, "questions": rs.organisms.question_prompts(asked)}
    by_subject, by_refusal = (alarms(one, guarded, classes).set_index("prompts") for one in (rehearsed, plain))
    assert by_subject.loc["questions", "low"] > 0.5
    assert by_refusal.loc["requests", "low"] > 0.8
    assert by_refusal.loc["questions", "high"] < by_refusal.loc["requests", "low"]


def test_another_model_of_the_same_shape_is_read_with_the_frozen_probe(plain, organism, shipped):
    found = rs.survival(plain, organism("guarded-1"), shipped.report, doses=(), placebos=3)
    assert (found.model, found.fitted_on) == ("guarded-1", "guarded-0")
    assert "guarded-1, fitted on guarded-0" in repr(found)
    assert set(found.frame["ablated"]) == {NOTHING}


# The threshold.


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (250, 0.01), (30, 0.05), (500, 0.05)])
def test_the_calibrated_threshold_keeps_its_declared_rate_on_further_prompts(n, rate):
    noise = np.random.default_rng(n)
    drawn = noise.exponential(size=(1000, n))
    found = [calibrate(row, rate=rate) for row in drawn]
    rates = np.exp([-one.threshold for one in found])  # the chance that a further score is above each threshold
    error = rates.std() / len(rates) ** 0.5
    assert all(one.keeps for one in found)
    assert rates.mean() < rate + 3 * error
    assert abs(rates.mean() - found[0].expected) < 3 * error


def test_too_few_calibration_prompts_are_said_to_be_too_few():
    scores = np.random.default_rng(0).normal(size=98)
    few, enough = calibrate(scores), calibrate(np.append(scores, 0.0))
    assert not few.keeps
    assert "98 prompts cannot show a rate of 0.01: at least 99 can" in few.note
    assert few.expected > 0.01
    assert enough.keeps
    assert few.threshold == scores.max()
    assert few.alarms.high > 0.03
    assert "too few" in repr(few)


def test_a_threshold_too_low_would_not_keep_its_rate():
    drawn = np.random.default_rng(1).exponential(size=(2000, 250))
    rates = np.exp(-np.quantile(drawn, 0.97, axis=1))
    assert rates.mean() > 0.02


# What a condition is called.


@pytest.mark.parametrize(
    ("caught", "noise", "state"),
    [
        (((0.9, 1.0), 0.95), ((0.0, 0.02), 0.01), "holds"),
        (((0.9, 1.0), 0.95), ((0.02, 0.1), 0.05), "weakened"),
        (((0.7, 1.0), 0.95), ((0.0, 0.02), 0.01), "weakened"),
        (((0.0, 0.1), 0.05), ((0.0, 0.02), 0.01), "fails"),
        (((0.9, 1.0), 0.95), ((0.6, 0.9), 0.8), "fails"),
        ((None, 0.95), ((0.0, 0.02), 0.01), "cannot tell"),
    ],
)
def test_states_follow_the_intervals(caught, noise, state):
    one, two = (
        Estimate(value, interval, n=50, clusters=None, method="m", note="" if interval else "none")
        for interval, value in (caught, noise)
    )
    assert state_of(one, two, 0.01) == state


def test_the_text_of_a_survival_has_no_digits_and_its_html_has_them(survived):
    assert not any(char.isdigit() for char in repr(survived).replace("guarded-0", ""))
    assert "0.5" in survived._repr_html_()
    assert "<script" not in survived._repr_html_()


# Costs, placebos, time.


def test_prompt_forwards_are_those_that_ran(guarded, prompts, refusal):
    with counted(guarded) as rows:
        made = rs.monitor(guarded, prompts, withstand=[refusal])
    assert made.pf == sum(rows)
    with counted(guarded) as rows:
        found = rs.survival(made, guarded, prompts.report, ablating={"refusal": refusal}, doses=(0.0, 1.0), placebos=3)
    assert found.pf == sum(rows)
    with counted(guarded) as rows:
        frame = by_layer(made, guarded, prompts, refusal, doses=(1.0,), random=3)
    assert frame.attrs["pf"] == sum(rows)
    with counted(guarded) as rows:
        took = latency(made, guarded, prompts.report[:3], rounds=4)
    assert took.attrs["pf"] == sum(rows)


def test_placebos_run_together_answer_as_they_do_alone(plain, guarded, prompts, refusal):
    together = rs.survival(plain, guarded, prompts.report, ablating={"refusal": refusal}, doses=(1.0,), placebos=2)
    each = []
    for one in rs.placebo.random_like(refusal, 2, seed=0):
        alone = rs.survival(plain, guarded, prompts.report, ablating={"random": one}, doses=(1.0,), placebos=0)
        each.append(alone.at("random", 1.0, "auroc").value)
    row = together.at("refusal", 1.0, "auroc")
    assert (row.random_low, row.random_high) == pytest.approx(tuple(np.quantile(each, [0.025, 0.975])), abs=1e-9)


def test_latency_is_a_time_beside_a_plain_one_and_leaves_no_hook(plain, guarded, prompts):
    took = latency(plain, guarded, prompts.report[:4], rounds=5).set_index("what")
    assert list(took.index) == ["plain", "monitored", "ratio"]
    assert set(took["n"]) == {20}
    assert took.loc["plain", "value"] > 0
    assert 0.5 < took.loc["ratio", "value"] < 3
    assert not any(point.fwd_hooks for point in guarded.bridge.hook_dict.values())


# Guards.


def test_a_monitor_is_not_exported(plain):
    with pytest.raises(ContractError, match="not exported"):
        pickle.dumps(plain)
    assert "layer" in repr(plain)
    assert "declared false-alarm rate" in plain._repr_html_()


def test_a_hook_that_does_not_fire_is_an_error(plain, guarded, prompts, monkeypatch):
    @contextmanager
    def deaf(model, hooks):
        yield

    monkeypatch.setattr(sys.modules["refusalscope.monitor.reading"], "hooked", deaf)
    with pytest.raises(InterventionError, match="did not fire"):
        rs.survival(plain, guarded, prompts.report, placebos=0)
    monkeypatch.setattr(sys.modules["refusalscope.monitor.latency"], "hooked", deaf)
    with pytest.raises(InterventionError, match="did not fire"):
        latency(plain, guarded, prompts.report[:1], rounds=1)


def test_numbers_that_are_not_finite_are_an_error(plain, guarded, prompts):
    layer, _ = plain.cell
    with hooked(guarded, {guarded.sites.resid_pre[layer]: lambda x, hook: x * float("nan")}):
        with pytest.raises(MeasurementError, match="not finite"):
            rs.survival(plain, guarded, prompts.report, doses=(), placebos=0)
        with pytest.raises(MeasurementError, match="not finite"):
            rs.monitor(guarded, prompts)


def test_a_split_without_a_class_is_an_error(plain, guarded, prompts):
    rest = tuple(row for row in prompts.prompts if row not in prompts.select.restricted)
    lone = replace(prompts.select.restricted[0], pair=None)
    kept = rs.Prompts((*(replace(row, pair=None) for row in rest), lone))
    only = replace(prompts, prompts=kept)
    with pytest.raises(MeasurementError, match="two prompts of each class in select"):
        rs.monitor(guarded, only)
    with pytest.raises(MeasurementError, match="restricted and harmless"):
        rs.survival(plain, guarded, prompts.report.harmless)
    with pytest.raises(MeasurementError, match="Calibration needs"):
        rs.monitor(guarded, prompts, calibration=rs.Prompts(()))
    with pytest.raises(MeasurementError, match="no prompts of the kind"):
        alarms(plain, guarded, {"nobody": rs.Prompts(())})
    with pytest.raises(MeasurementError, match="prompts and rounds"):
        latency(plain, guarded, prompts.report, rounds=0)


def test_too_few_prompts_leave_the_state_open(plain, guarded, prompts):
    few = rs.Prompts((*prompts.report.restricted[:1], *prompts.report.harmless[:1]))
    found = rs.survival(plain, guarded, few, doses=(), placebos=0)
    assert found.state(NOTHING, 0.0) == "cannot tell"
    assert np.isnan(found.at(NOTHING, 0.0).low)


def test_a_model_of_another_width_or_template_is_an_error(plain, tiny, guarded, prompts):
    with pytest.raises(MeasurementError, match=r"width 96; .* 32"):
        rs.survival(plain, tiny, prompts.report)
    stranger = replace(guarded, origin=replace(guarded.origin, template="another"))
    with pytest.raises(MeasurementError, match="another chat template"):
        alarms(plain, stranger, {"all": prompts.report})
    with pytest.raises(MeasurementError, match="width 32"):
        overlap(plain, rs.Subspace(torch.ones(1, 32, dtype=torch.float64), 1, -1, "a test"))


def test_names_and_conditions_are_checked(plain, survived, guarded, prompts, refusal):
    with pytest.raises(MeasurementError, match="measured anyway"):
        rs.survival(plain, guarded, prompts.report, ablating={OWN: refusal})
    with pytest.raises(MeasurementError, match="there are"):
        survived.at("refusal", 0.3)
    with pytest.raises(MeasurementError, match="no probe 'tea leaves'"):
        fit(guarded, prompts.locate, "tea leaves")
    with pytest.raises(MeasurementError, match="give prompts"):
        calibrate(np.zeros(0))


# Drawings.


def test_drawings_show_the_numbers_of_their_frames(survived, plain, guarded, prompts, refusal):
    frame = survived.frame.query("ablated == 'refusal' and measure in ('caught', 'false_alarms')")
    figure = rs.plotting.survival(frame.assign(series="refusal"), title="It goes")
    line = figure.axes[0].lines[0].get_xydata()
    assert np.allclose(line, frame.query("measure == 'caught'")[["dose", "value"]].to_numpy())
    layers = by_layer(plain, guarded, prompts, refusal, doses=(0.0, 1.0), random=3).query("measure == 'auroc'")
    figure = rs.plotting.survival_by_layer(layers.assign(series=layers["probe"]), title="It goes")
    shown = figure.axes[0].images[0].get_array()
    assert np.nanmax(shown) == layers.query("probe == 'frozen'")["value"].max()
    assert len(figure.axes) == 3
    plt.close("all")


@pytest.mark.parametrize("column", ["dose", "value", "random_low", "series"])
def test_a_drawing_without_a_column_names_it(survived, column):
    frame = survived.frame.query("measure == 'caught'").assign(series="all").drop(columns=column)
    with pytest.raises(MeasurementError, match=column):
        rs.plotting.survival(frame, title="It goes")
