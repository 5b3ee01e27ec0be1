"""Cost: FLOPs are the hand-computed ones, counts come from the choice, and assumptions are written out."""

from __future__ import annotations

import math

import pytest

from refusalscope import capture, curves, locate, readout, select
from refusalscope.curves.cost import CONTROL, STEPS, parameters
from refusalscope.errors import MeasurementError


def test_flops_are_two_per_parameter_and_token(tiny):
    frame = curves.table(tiny, [curves.Step("capture", 10.0, 7.0, 2.0)]).set_index("step")
    size = sum(p.numel() for p in tiny.bridge.original_model.parameters())
    made = frame.loc["capture"]
    assert (made["pf"], made["tokens"], made["seconds"]) == (10.0, 70.0, 2.0)
    assert made["flops"] == 2 * size * 70
    assert made["attention_flops"] == 2 * 3 * 7 * 32 * 70  # 3 layers, 7 tokens, 4 heads of width 8
    assert made["flops_per_second"] == made["flops"] / 2


def test_parameters_are_counted_by_hand(tiny):
    """Embedding (tied); per layer q, o of 32², k, v of 32·16, two norms of heads, three MLP matrices, two norms."""
    vocab = len(tiny.tokenizer)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 2 * 8 + 3 * 32 * 64 + 2 * 32
    assert parameters(tiny) == vocab * 32 + 3 * layer + 32


def test_steps_take_counts_from_prompts_and_choice(guarded, prompts):
    refusal = readout(guarded, prompts.locate)
    choice = select(guarded, locate.mean_difference(*capture(guarded, prompts.locate)), prompts.select, refusal)
    made = curves.steps(guarded, prompts, choice, seconds={"capture": 0.5}, placebos=3)
    assert [step.name for step in made] == [*STEPS, CONTROL]
    assert [step.pf for step in made] == [64.0, 32.0, choice.pf_used, 64.0, 96.0]
    assert made[2].seconds == choice.seconds
    assert made[1].seconds == 0.5
    assert math.isnan(made[0].seconds)
    lengths = [len(tokens) for tokens in guarded.encode(prompts.report.texts)]
    assert made[3].tokens_per_prompt == sum(lengths) / len(lengths)


def test_the_total_leaves_the_control_out(guarded, prompts):
    steps = curves.steps(guarded, prompts, 100.0, seconds=dict.fromkeys(STEPS, 1.0), placebos=3)
    frame = curves.table(guarded, steps).set_index("step")
    assert frame.loc["total", "pf"] == 64 + 32 + 100 + 64
    assert frame.loc["total", "seconds"] == 4.0
    assert frame.loc["total", "flops"] == frame.loc[list(STEPS), "flops"].sum()
    untimed = curves.table(guarded, curves.steps(guarded, prompts, 100.0)).set_index("step")
    assert math.isnan(untimed.loc["total", "seconds"])


def test_seconds_for_a_step_that_is_not_there_are_refused(guarded, prompts):
    with pytest.raises(MeasurementError, match=r"'remove'.*no steps"):
        curves.steps(guarded, prompts, 1.0, seconds={"remove": 1.0})


def test_extrapolation_is_the_arithmetic_of_its_assumptions():
    assumed = curves.Assumptions(1e12, locate=10, select=5, report=20, tokens_per_prompt=8, positions=3)
    frame = curves.extrapolated(assumed)
    rows = frame[frame["step"] == "total"].set_index("model")
    assert list(rows.index) == ["1B", "8B", "70B", "671B"]
    for name, active, layers in (("1B", 1e9, 16), ("8B", 8e9, 32), ("70B", 70e9, 80), ("671B", 37e9, 61)):
        pf = 40 + 20 + 3 * 5 * (1 + 3 * layers) + 80
        assert rows.loc[name, "pf"] == pf
        assert rows.loc[name, "flops"] == 2 * active * pf * 8
        assert rows.loc[name, "minutes"] == pytest.approx(2 * active * pf * 8 / 1e12 / 60)
    assert rows.loc["671B", "parameters"] == 671e9


def test_assumptions_stand_below_the_numbers_in_words():
    said = " ".join(curves.extrapolated()["assumption"])
    for fact in ("2 × active parameters", "1e+14 FLOP/s", "40 tokens per prompt", "37B", "128 prompts", "not counted"):
        assert fact in said


@pytest.mark.parametrize("wrong", [{"flops_per_second": 0.0}, {"tokens_per_prompt": math.nan}, {"select": -1}])
def test_assumptions_are_positive_numbers(wrong):
    with pytest.raises(MeasurementError, match="positive number"):
        curves.Assumptions(**wrong)
