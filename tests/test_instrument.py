"""The instrument check: passes on the shipped organisms, fails when anything in the chain is broken, and is cached."""

from __future__ import annotations

import dataclasses
import shutil
import time

import pytest
import torch

from conftest import ORGANISMS
from refusalscope import instrument
from refusalscope.instrument import Check, Instrument, check_instrument


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "refusalscope"


@pytest.fixture
def small(tmp_path):
    """A checkout with the unguarded organism and one planted one."""
    for name in ("unguarded", "planted-1"):
        shutil.copytree(ORGANISMS / name, tmp_path / "data" / "organisms" / name)
    shutil.copytree(ORGANISMS.parent / "recipes", tmp_path / "data" / "recipes")
    return tmp_path / "data" / "organisms"


def test_the_shipped_organisms_pass_within_a_minute_and_are_remembered():
    began = time.perf_counter()
    found = check_instrument()
    took = time.perf_counter() - began
    assert found.state == "passed", found
    assert {check.organism for check in found.checks} >= {"unguarded", "planted-1"}
    began = time.perf_counter()
    again = check_instrument()
    assert again == found
    assert time.perf_counter() - began < took / 2


def test_an_ablation_that_does_nothing_fails_the_check(small, monkeypatch):
    from refusalscope import interventions

    monkeypatch.setattr(interventions, "_projection", lambda *_: lambda x: x.clone())
    found = check_instrument(organisms=small)
    assert found.state == "failed"
    assert "planted-1" in found.why


def test_another_truth_than_the_planted_one_fails_the_check(small, monkeypatch):
    real = instrument.planted_subspace
    other = lambda recipe: real(recipe.model_copy(update={"seed": 77}))  # noqa: E731
    monkeypatch.setattr(instrument, "planted_subspace", other)
    found = check_instrument(organisms=small)
    assert found.state == "failed"
    assert "bypass rate without the planted subspace" in found.why


def test_finding_a_guardrail_where_there_is_none_fails_the_check(small, tmp_path):
    shutil.rmtree(small / "unguarded")
    shutil.copytree(ORGANISMS / "guarded-0", small / "unguarded")
    shutil.copy(ORGANISMS / "unguarded" / "organism.json", small / "unguarded" / "organism.json")
    found = check_instrument(organisms=small)
    assert found.state == "failed"
    assert "refusal openings found where nothing is refused" in found.why


def test_without_organisms_the_check_is_not_run_and_says_why(tmp_path):
    found = check_instrument(organisms=tmp_path)
    assert found.state == "not run"
    assert "no reference organism" in found.why


def test_another_dtype_or_source_is_another_environment(small, cache_folder, monkeypatch):
    names = ["unguarded", "planted-1"]
    plain = instrument._environment(small, names, torch.float32, "cpu")
    assert plain != instrument._environment(small, names, torch.bfloat16, "cpu")
    monkeypatch.setattr(instrument, "version", lambda package: "0.0")
    assert plain != instrument._environment(small, names, torch.float32, "cpu")


def test_a_damaged_cache_is_measured_again_and_replaced(small, cache_folder, monkeypatch):
    made = Instrument("passed", "as known", (Check("planted-1", "a thing", 1.0, at_least=0.5),))
    monkeypatch.setattr(instrument, "_concluded", lambda _checks: made)
    monkeypatch.setattr(instrument, "_checks", lambda *_, **__: [])
    check_instrument(organisms=small)
    (file,) = cache_folder.iterdir()
    for damaged in ("", "[]", '{"state": "passed"}'):
        file.write_text(damaged)
        assert check_instrument(organisms=small) == made
        assert check_instrument(organisms=small) == made


def test_no_value_is_met_by_not_being_a_number():
    check = Check("planted-1", "a thing", float("nan"), at_least=0.5)
    assert not check.met
    assert not dataclasses.replace(check, at_least=None, at_most=0.5).met


def test_its_html_escapes_what_it_shows():
    shown = Instrument("failed", "<b>", (Check("<script>", "<i>", 1.0, at_most=0.0),))._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
