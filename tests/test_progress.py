"""Progress bars: one place makes them, one is shown at a time, each ends with its work, and ``quiet`` means none."""

from __future__ import annotations

import ast
import inspect
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

import refusalscope as rs
from refusalscope import progress
from refusalscope.locators import gradient
from refusalscope.optionality import answers, measured

report_card, optionality_measured, recovery_scores = map(
    import_module,
    ("refusalscope.report.card", "refusalscope.optionality.measured", "refusalscope.recovery.scores"),
)
PACKAGE = Path(rs.__file__).parent


@pytest.fixture
def bars(monkeypatch) -> list:
    """The bars that are made, in order; nothing counts as quick."""
    made = []

    class Kept(progress.tqdm):
        def __init__(self, **how):
            super().__init__(**how)
            made.append(self)

    monkeypatch.setattr(progress, "tqdm", Kept)
    monkeypatch.setattr(progress, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    return made


def ended(bar) -> bool:
    """Whether a bar was closed; tqdm switches a closed bar off."""
    return bool(bar.disable)


def test_only_one_module_makes_bars():
    makers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and "tqdm" in ast.unparse(node)
    }
    assert makers == {"progress.py"}


def test_a_bar_is_text_on_stderr_and_ends_with_its_block(bars, capsys):
    with progress.bar(2, "counting", after=0) as shown:
        shown.update()
        assert not ended(bars[0])
        shown.update()
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting: 100%" in err
    assert err.endswith("\n")
    assert ended(bars[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_bar_ends_when_its_work_breaks_off_and_the_next_one_is_shown_again(bars, error):
    with pytest.raises(error), progress.bar(2, "outer", after=0), progress.bar(2, "inner"):
        raise error
    with progress.bar(1, "next", after=0):
        pass
    assert [bar.desc for bar in bars] == ["outer", "next"]
    assert all(map(ended, bars))


def test_what_is_quick_shows_nothing(capsys):
    with progress.bar(1, "quick") as shown:
        shown.update()
    assert capsys.readouterr().err == ""


def test_what_runs_inside_a_bar_is_told_at_its_end(bars, capsys):
    with (
        progress.bar(3, "outer", after=0) as outer,
        progress.bar(4, "middle") as middle,
        progress.bar(5, "inner") as inner,
    ):
        outer.stage("second")
        middle.update()
        inner.update(2)
    assert len(bars) == 1
    err = capsys.readouterr().err
    assert "middle 1/4, inner 2/5" in err
    assert "second: " in err


def test_a_bar_seen_only_for_what_ran_inside_it_ends_its_line_too(bars, capsys):
    with pytest.raises(KeyboardInterrupt), progress.bar(2, "outer", after=0.01), progress.bar(4, "inner") as inner:  # noqa: PT012
        time.sleep(0.05)
        inner.update()
        raise KeyboardInterrupt
    err = capsys.readouterr().err
    assert "inner 1/4" in err
    assert err.endswith("\n")


def test_what_ran_inside_is_forgotten_when_its_stage_is_over(bars, capsys):
    with progress.bar(1, "outer", after=0) as outer:
        with progress.bar(4, "inner") as inner:
            inner.update()
        outer.update()
    assert "inner" not in capsys.readouterr().err.rsplit("\r", 1)[1]


def test_quiet_silences_every_bar_inside_it_and_none_after_it(bars, capsys):
    with rs.quiet(), progress.bar(2, "outer", after=0) as shown, progress.bar(2, "inner", after=0) as inner:
        shown.update(2)
        inner.update()
        assert (shown.n, inner.n) == (2, 1)
    assert (bars, capsys.readouterr().err) == ([], "")
    with progress.quiet(progress=True), progress.bar(1, "after", after=0):
        pass
    assert len(bars) == 1


@pytest.fixture(scope="module")
def located(tiny, few):
    return rs.locate.mean_difference(*rs.capture(tiny, few))


CALLS = {
    "capture": lambda of: rs.capture(of["model"], of["prompts"]),
    "margin": lambda of: rs.margin(of["model"], of["prompts"], of["before"].readout),
    "next_token": lambda of: rs.next_token(of["model"], of["prompts"]),
    "kl": lambda of: rs.kl(of["model"], of["before"].prompts.harmless, of["before"].harmless_base),
    "opening_margin": lambda of: rs.opening_margin(of["model"], of["prompts"], rs.Openings(("no",), ("yes",))),
    "cross_entropy": lambda of: rs.cross_entropy(of["model"], list(of["prompts"].texts)),
    "baseline": lambda of: rs.baseline(of["model"], of["prompts"], of["before"].readout),
    "effect": lambda of: rs.effect(of["before"], of["direction"]),
    "placebo_effects": lambda of: rs.placebo_effects(of["before"], [of["direction"]]),
    "respond": lambda of: rs.respond(of["before"], [rs.Attack(of["direction"])]),
    "cosmic": lambda of: rs.cosmic(of["model"], of["located"], of["prompts"]),
    "outcomes": lambda of: rs.outcomes(of["model"], of["prompts"]),
    "gradient": lambda of: gradient(of["direction"], lambda rows: (rows * rows).sum() * rows.sum(), steps=2),
    "mean_writes": lambda of: rs.attribution.mean_writes(of["model"], of["prompts"]),
    "attribution": lambda of: rs.attribution.attribution(of["model"], of["direction"], of["prompts"], random=3),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_that_may_take_long_has_a_bar_that_ends_and_quiet_silences(
    call, tiny, few, before, direction, located, bars
):
    of = {"model": tiny, "prompts": few, "before": before, "direction": direction(), "located": located}
    CALLS[call](of)
    assert bars
    assert all(map(ended, bars))
    assert all(bar.n == bar.total for bar in bars), [(bar.desc, bar.n, bar.total) for bar in bars]
    bars.clear()
    with rs.quiet():
        CALLS[call](of)
    assert bars == []


def busy(*_args, **_kwargs):
    """Work with a bar of its own, which then stops."""
    with progress.bar(1, "inner", after=0):
        raise InterruptedError


WITH_A_SWITCH = {
    "measure": (report_card, "measure_all", lambda m, p, r, on: rs.measure(m, p, plan="quick", progress=on)),
    "answers": (optionality_measured, "baseline", lambda m, p, r, on: answers(m, p, r, [], progress=on)),
    "measured": (optionality_measured, "ground", lambda m, p, r, on: measured(m, p, r, progress=on)),
    "recovered": (
        recovery_scores,
        "bench_of",
        lambda m, p, r, on: rs.recovered(m, rs.Subspace(torch.eye(1, m.d_model).double(), 1, -1, "x"), p, progress=on),
    ),
}


@pytest.mark.parametrize("shows", [True, False])
@pytest.mark.parametrize("name", WITH_A_SWITCH)
def test_progress_false_silences_inner_bars_too(name, shows, tiny, contrast, tiny_readout, monkeypatch, bars):
    module, inner, call = WITH_A_SWITCH[name]
    monkeypatch.setattr(module, inner, busy)
    with pytest.raises(InterruptedError):
        call(tiny, contrast, tiny_readout, shows)
    assert bool(bars) is shows
    assert all(map(ended, bars))


def test_every_public_switch_is_tested():
    switches = {name for name in rs.__all__ if callable(getattr(rs, name)) and "progress" in _options(name)}
    assert {name for name in switches if _options(name)["progress"].default is True} <= set(WITH_A_SWITCH)


def _options(name: str):
    found = getattr(rs, name)
    return {} if isinstance(found, type) else inspect.signature(found).parameters
