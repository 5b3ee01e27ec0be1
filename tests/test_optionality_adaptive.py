"""The adaptive family: what it adds on the model that is measured, what it costs, and what each part reaches alone."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

import refusalscope.layered as layered_module
from refusalscope.attack import Attack, respond
from refusalscope.effect import baseline, effect
from refusalscope.errors import ContractError, MeasurementError
from refusalscope.instrument import Instrument
from refusalscope.interventions import ablate
from refusalscope.locators import gradient
from refusalscope.objective import GRADIENT_COST, rdo_objective
from refusalscope.optionality import (
    Menu,
    adaptive,
    answers,
    by_part,
    compare,
    measured,
    only,
    optionality,
    placebo_family,
    plain,
)
from refusalscope.optionality.declared import cells_and_spans, ground
from refusalscope.organisms.language import language
from refusalscope.outcomes import outcomes
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import readout
from refusalscope.report import PLANS, Plan, estimated_measure_cost, measure
from refusalscope.subspace import LayeredSubspace

MODULE = sys.modules["refusalscope.optionality.adaptive"]  # whose name the function took
PARTS = ("plain", "other locators", "rank k", "per layer", "response positions", "gradient")
SMALL, ONCE = Menu(best=2, doses=(1.0, 1.5)), Menu(best=None, doses=(1.0,))
ABOVE, BELOW = 0.9, 0.1


@pytest.fixture(scope="module", autouse=True)
def short_searches():
    """One search of each kind, a few steps long: the rest of a family takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        few = {"SEARCHED": (2,), "STEPS": 60, "CONES": (2,), "CONE_STEPS": 3, "SWAPPED": (1,), "FURTHER": ONCE}
        for name, value in few.items():
            patch.setattr(MODULE, name, value)
        yield


@pytest.fixture(scope="module")
def prompts(contrast):
    """64 of locate per label (from fewer, a search ends where nothing is answered), else one prompt per cluster."""
    located = [row for part in (contrast.locate.restricted, contrast.locate.harmless) for row in _each(part, 8)]
    few = (*located, *_one_each(contrast.select), *_one_each(contrast.report))
    return ContrastSet(Prompts(few), "few.jsonl")


@pytest.fixture(scope="module")
def few(contrast):
    """Sixteen of locate per label, and one prompt per cluster of the rest."""
    located = [row for part in (contrast.locate.restricted, contrast.locate.harmless) for row in _each(part, 2)]
    return ContrastSet(Prompts((*located, *_one_each(contrast.select), *_one_each(contrast.report))), "few.jsonl")


def _one_each(split: Prompts) -> list:
    return [row for part in (split.restricted, split.harmless) for row in {row.cluster: row for row in part}.values()]


def _each(part: Prompts, n: int) -> list:
    return [row for cluster in sorted(set(part.clusters)) for row in part.where(cluster=cluster)[:n]]


class Counted:
    """What a model ran: rows of its forwards, those with a graph three times, and the state before and after."""

    def __init__(self, model) -> None:
        self.core, self.pf = model.bridge.original_model, 0.0
        self.state = {name: value.clone() for name, value in self.core.state_dict().items()}

    def __enter__(self):
        def count(module, args, kwargs):
            tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self.pf += len(tokens) * (GRADIENT_COST if torch.is_grad_enabled() else 1)

        self.hook = self.core.register_forward_pre_hook(count, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    @property
    def unchanged(self) -> bool:
        return all(torch.equal(value, self.state[name]) for name, value in self.core.state_dict().items())


@pytest.fixture(scope="module")
def refusal(organism, prompts):
    return readout(organism("planted-4-0"), prompts.locate)


@pytest.fixture(scope="module")
def located(organism, prompts, refusal):
    """The family on an organism whose refusal was planted in four dimensions, and what was counted meanwhile."""
    model = organism("planted-4-0")
    with Counted(model) as counted:
        declared = adaptive(model, prompts, refusal, menu=SMALL)
    return declared, counted


@pytest.fixture(scope="module")
def answered(organism, prompts, refusal, located):
    return answers(organism("planted-4-0"), prompts, refusal, located[0], placebos=60, progress=False)


@pytest.fixture(scope="module")
def parts(answered):
    frame = by_part(*answered.splits, placebos=answered.placebos)
    return frame[frame["measure"] == "bypass"].set_index("part")


# --- what is declared, and what it takes ---


def test_the_plain_family_is_a_part_and_five_more_come_on_top(organism, prompts, refusal, located):
    declared, _ = located
    assert declared.parts == PARTS
    same = plain(organism("planted-4-0"), prompts, refusal, menu=SMALL)
    assert [attack.name for attack in same] == [one.name for one in declared if one.part == "plain"]
    for ours, theirs in zip(same, declared, strict=False):
        torch.testing.assert_close(ours.subspace.vectors, theirs.subspace.vectors)
    assert len({attack.name for attack in declared}) == len(declared)


def test_the_family_holds_ranks_layers_replies_and_searches(located):
    declared, _ = located
    found = {part: [one.subspace for one in declared if one.part == part] for part in declared.parts}
    assert {one.rank for one in found["rank k"]} == {2, 4, 8}
    assert all(isinstance(one, LayeredSubspace) for one in found["per layer"])
    assert {one.rank > 1 for one in found["per layer"]} == {False, True}
    assert {one.locator.split(" into ")[1] for one in found["response positions"]} == {
        "a refusal",
        "a compliant opening",
    }
    assert {one.locator for one in found["gradient"]} == {"gradient of RDO", "cone", "gradient of interchange"}


def test_the_prompt_forwards_of_locating_are_exact_and_no_weight_changes(located):
    declared, counted = located
    assert declared.pf == counted.pf
    assert counted.unchanged
    assert all(0 < attack.pf <= declared.pf for attack in declared)
    assert {attack.n_prompts for attack in declared} == {128}


def test_the_family_is_fixed_before_select_and_report_are_seen(organism, prompts, refusal, located, monkeypatch):
    """With other prompts in the other splits, the same is declared."""
    monkeypatch.setattr(MODULE, "SEARCHED", ())
    monkeypatch.setattr(MODULE, "CONES", ())
    others = [replace(row, pair=None) for part in (prompts.select, prompts.report) for row in _one_each(part)[::7]]
    alone = ContrastSet(Prompts((*prompts.locate, *others)), source="other.jsonl")
    again = adaptive(organism("planted-4-0"), alone, refusal, menu=SMALL)
    kept = [one for one in located[0] if one.subspace.locator not in ("gradient of RDO", "cone")]
    assert [one.name for one in again] == [one.name for one in kept]
    for ours, theirs in zip(again, kept, strict=True):
        assert torch.equal(ours.subspace.vectors, theirs.subspace.vectors)


def test_what_the_other_parts_can_cost_at_most_is_known_before(organism, prompts, refusal, located):
    declared, _ = located
    most, subspaces = MODULE.most_further(organism("planted-4-0"), len(prompts.locate))
    same = plain(organism("planted-4-0"), prompts, refusal, menu=SMALL)
    assert declared.pf - same.pf <= most
    assert len({id(one.subspace) for one in declared if one.part != "plain"}) == subspaces


def test_without_refusal_there_is_nothing_to_adapt_to(organism, prompts):
    model = organism("unguarded")
    words = [dialect.refusal.split()[0] for dialect in language().dialects]
    given = readout(model, prompts.locate, openings=words)
    with pytest.raises(MeasurementError, match=r"refuses 0 of 64 restricted prompts .* locating needs 3 of each"):
        adaptive(model, prompts, given)


def test_what_is_declared_and_answered_is_not_pickled(located, answered):
    for kept in (located[0], answered):
        with pytest.raises(ContractError, match="not exported"):
            pickle.dumps(kept)


# --- what it reaches ---


def test_where_four_dimensions_were_planted_single_directions_fail_and_adaptive_members_do_not(answered, parts):
    """The known answer, with its control: what the plain family cannot, a search and probes of higher rank can."""
    found = optionality(*answered.splits, placebos=answered.placebos)
    whole = found.members.query("dose == 1 and select_damage <= 0.1")
    single = found.members.query("dose == 1 and rank == 1 and part == 'plain'")  # at whatever damage
    assert len(single) == SMALL.best
    assert single["report_bypass"].max() <= BELOW
    assert whole.query("rank > 1 and part == 'gradient'")["report_bypass"].max() >= ABOVE
    assert parts.loc["every part", "value"] >= ABOVE
    assert found.members.loc[found.members["attack"] == found.worst, "part"].item() != "plain"


def test_a_search_from_few_prompts_takes_refusal_away_and_leaves_no_answer(organism, few):
    """Read by refusals alone this was a bypass of 1.00; its bounds and the decoded answers say degenerate."""
    model = organism("planted-4-0")
    known = readout(model, few.locate)
    on = ground(model, few.locate, known, keep_each=True)
    start = cells_and_spans(on, SMALL)[0].subspaces[0]
    found = gradient(start, rdo_objective(on.before, start, seed=0), rank=2, steps=16, seed=0)
    changed = effect(baseline(model, few.report, known), found)
    assert (changed.bypass.value, changed.bypass_lower.value, changed.degenerate) == (1, 0, True)
    with ablate(model, found):
        assert set(outcomes(model, few.report.restricted)) == {"degenerate"}


def test_a_row_per_part_is_the_optionality_of_that_part_alone(answered, parts):
    assert list(parts.index) == [*PARTS, "all but plain", "every part"]
    alone = optionality(*(only(one, "plain") for one in answered.splits), placebos=only(answered.placebos, "plain"))
    row = parts.loc["plain"]
    assert (row["value"], row["low"], row["high"]) == (alone.bypass.value, alone.bypass.low, alone.bypass.high)
    assert (row["placebo"], row["k"]) == (alone.placebo["bypass"].best, alone.placebo["bypass"].k)
    assert row["attacks"] == alone.n_attacks
    assert parts.loc[list(PARTS), "attacks"].sum() == parts.loc["every part", "attacks"]
    assert parts.loc[list(PARTS), "k"].sum() == parts.loc["every part", "k"] == 60


def test_what_the_other_parts_add_has_a_paired_interval_on_one_model(answered):
    plain_alone = tuple(only(one, "plain") for one in answered.splits)
    found = compare(answered.splits, plain_alone)
    every, part = optionality(*answered.splits), optionality(*plain_alone)
    assert found.bypass.value == pytest.approx(every.bypass.value - part.bypass.value)
    assert found.bypass.low <= found.bypass.value <= found.bypass.high
    assert compare(answered.splits, answered.splits).bypass.value == 0


def test_two_models_are_compared_each_under_its_own_family(organism, guarded, prompts, answered):
    tokens = readout(guarded, prompts.locate)
    other = answers(guarded, prompts, tokens, plain(guarded, prompts, tokens, menu=SMALL), placebos=1, progress=False)
    found = compare(other.splits, answered.splits)
    assert (found.first, found.second) == ("guarded-0", "planted-4-0")
    assert not found.problems


def test_a_family_without_parts_has_no_rows(answered):
    nameless = [
        type(one)(one.before, tuple(Attack(a.subspace, a.dose) for a in one.attacks), one.margins, one.kl)
        for one in answered.splits
    ]
    with pytest.raises(MeasurementError, match="no parts"):
        by_part(*nameless)


# --- placebos, and hooks that do not fire ---


def test_placebos_have_the_ranks_layers_and_parts_of_the_family(located):
    declared, _ = located

    def shape(attack: Attack):
        one = attack.subspace
        return attack.part, one.rank, one.layers if isinstance(one, LayeredSubspace) else None

    subspaces = {id(one.subspace): one for one in declared}
    drawn = placebo_family(declared, count=3 * len(subspaces), seed=0)
    assert Counter(map(shape, drawn)) == Counter(3 * [shape(one) for one in subspaces.values()])
    assert not {id(one.subspace) for one in drawn} & set(subspaces)
    for one in drawn:
        assert one.subspace.locator == "random placebo"


def test_the_searches_do_more_than_random_subspaces_of_their_ranks(parts):
    row = parts.loc["gradient"]
    assert row["placebo"] < row["value"]
    assert row["k"] > 0


def test_an_ablation_of_every_layer_that_does_not_happen_is_counted_and_never_chosen(
    organism, prompts, refusal, located, monkeypatch
):
    model = organism("planted-4-0")
    few = [one for one in located[0] if one.part in ("per layer", "rank k")]
    monkeypatch.setattr(layered_module.LayerByLayer, "_without", lambda self, x, vectors, removed: x)
    select, report = (respond(baseline(model, split, refusal), few) for split in (prompts.select, prompts.report))
    frame = by_part(select, report).query("measure == 'bypass'").set_index("part")
    broken = sum(one.part == "per layer" for one in few)
    assert frame.loc["per layer", "invalid"] == broken > 0
    assert frame.loc["rank k", "invalid"] == 0


# --- in one call ---


def test_the_menu_says_which_family_is_measured(organism, prompts, refusal, monkeypatch):
    for name in ("SEARCHED", "CONES", "SWAPPED"):
        monkeypatch.setattr(MODULE, name, ())
    monkeypatch.setattr(MODULE, "SINGLE", MODULE.SINGLE[-1:])
    monkeypatch.setattr(MODULE, "RANKS", (2,))
    monkeypatch.setattr(MODULE, "OPENINGS", 1)
    model = organism("planted-4-0")
    menu = Menu(best=1, doses=(1.0,), adaptive=True)
    with Counted(model) as counted:
        found = measured(model, prompts, refusal, placebos=5, menu=menu, progress=False)
    assert found.pf == counted.pf
    assert counted.unchanged
    assert set(found.members["part"]) == set(PARTS) - {"gradient"}
    attacks = measured(model, prompts, refusal, placebos=1, menu=replace(menu, adaptive=False), progress=False).members
    assert set(attacks["part"]) == {"plain"}


def test_an_adaptive_card_says_so_and_stays_within_what_was_announced(organism, prompts, monkeypatch):
    for name in ("SEARCHED", "CONES", "SWAPPED"):
        monkeypatch.setattr(MODULE, name, ())
    monkeypatch.setattr(MODULE, "SINGLE", MODULE.SINGLE[-1:])
    monkeypatch.setattr(MODULE, "RANKS", (2,))
    assert PLANS["adaptive"].menu.adaptive
    few = {"placebos": 3, "curve_placebos": 3, "curves": (), "transfer": False}
    plan = Plan("adaptive", Menu(best=1, doses=(1.0,), adaptive=True), **few)
    monkeypatch.setitem(PLANS, "adaptive", plan)
    model, passed = organism("planted-4-0"), Instrument("not run", "a test")
    card = measure(model, prompts, plan=plan, progress=False, instrument=passed)
    assert card.plan == "adaptive"
    assert "located on this model too" in card.attack_family[0]
    assert "located on this model too" not in PLANS["full"].family
    assert card.pf <= estimated_measure_cost(model, prompts, plan=plan)
    assert any("of every layer" in one.locator for one in card.optionality.attacks)
