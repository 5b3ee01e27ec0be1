"""The declared family: what belongs to it, in which order, at what budget; and a family measured from end to end."""

from __future__ import annotations

import pytest
import torch

from refusalscope.attack import Responses, respond
from refusalscope.capture import capture
from refusalscope.effect import baseline
from refusalscope.errors import ContractError, MeasurementError
from refusalscope.locators import mean_difference
from refusalscope.optionality import (
    QUICK,
    Located,
    Menu,
    best_first,
    early,
    family,
    judge,
    optionality,
    placebo_family,
    spans,
)
from refusalscope.organisms.language import language
from refusalscope.reading import readout
from refusalscope.subspace import Candidates


@pytest.fixture
def candidates(tiny):
    """Random candidates for the tiny model: layer 0 empty, as it is at the template positions."""
    noise = torch.Generator().manual_seed(0)
    vectors = torch.randn(tiny.n_layers, len(tiny.positions), 1, tiny.d_model, generator=noise, dtype=torch.float64)
    vectors[0] = 0
    return Candidates(vectors, "a locator", (10, 12))


def test_a_family_takes_every_early_cell_that_holds_a_direction(candidates):
    found = early(candidates)
    layers = {subspace.layer for subspace in found.subspaces}
    assert layers == {1, 2}  # of three layers, 0 is empty; none reaches 0.8 L
    assert (found.n_prompts, found.pf) == (22, 22.0)
    late = Candidates(candidates.vectors.repeat(2, 1, 1, 1), "a locator", (10, 12))
    assert {subspace.layer for subspace in early(late).subspaces} == {1, 2, 4}


def test_every_member_states_its_dose_its_scope_and_its_budget(candidates):
    menu = Menu(best=2, doses=(0.5, 1.0), scopes=(None, (0, 1)))
    made = family([candidates, Located(early(candidates).subspaces[:1], 7, 99.0)], menu=menu)
    assert len(made) == (2 + 1) * 2 * 2
    assert [attack.pf for attack in made] == [22.0] * 8 + [99.0] * 4
    assert {(attack.dose, attack.layers) for attack in made} == {(0.5, None), (0.5, (0, 1)), (1.0, None), (1.0, (0, 1))}
    assert made[0].subspace is made[3].subspace  # one try, whatever the dose
    assert len({attack.name for attack in made[:8]}) == 8


def test_the_default_family_has_the_declared_size(candidates):
    cells = early(candidates)
    assert len(family([cells, spans(cells)])) == 30
    assert len(family([cells, spans(cells)], menu=QUICK)) == 12
    assert len(family([cells] * 5)) == 30


def test_an_empty_family_is_refused(candidates):
    with pytest.raises(MeasurementError, match="family is empty"):
        family([Located((), 0, 0.0)])
    with pytest.raises(MeasurementError, match="family is empty"):
        placebo_family([], seed=0)


def test_spans_hold_their_cells_and_leave_dependent_ones_out(candidates):
    cells = early(candidates)
    found = spans(cells)
    assert [subspace.rank for subspace in found.subspaces] == [2] * 6 + [3] * 4
    assert float(found.subspaces[0].angles(cells.subspaces[0])[0]) == pytest.approx(0, abs=1e-6)
    twice = Located((cells.subspaces[0], cells.subspaces[0], cells.subspaces[1]), 1, 1.0)
    assert len(spans(twice).subspaces) == 2


def test_located_subspaces_are_not_pickled(candidates):
    with pytest.raises(ContractError):
        early(candidates).__reduce_ex__(2)


def test_the_best_subspace_within_the_damage_limit_comes_first(before, candidates, monkeypatch):
    import sys

    import refusalscope.optionality.family  # noqa: F401, the module, whose name the function took

    module = sys.modules["refusalscope.optionality.family"]
    few = Located(early(candidates).subspaces[:4], 22, 22.0)

    def told(before, attacks):
        """Suppression and KL: strong but damaging, middling and harmless, weak, invalid."""
        shares, nats = torch.tensor([1.0, 0.6, 0.1, 2.0]), torch.tensor([0.2, 0.01, 0.01, torch.nan])
        margins = before.restricted - shares[:, None] * before.gap
        return Responses(before, tuple(attacks), margins, nats[:, None].expand(4, len(before.harmless)).clone())

    monkeypatch.setattr(module, "respond", told)
    ranked = best_first(before, few)
    assert [few.subspaces.index(subspace) for subspace in ranked.subspaces] == [1, 0, 2, 3]
    assert ranked.pf == 22 + 4 * len(before.prompts)


def test_without_refusal_there_is_nothing_to_rank_by(before, candidates):
    upside_down = type(before)(
        before.model, before.prompts, before.readout, before.restricted - 99, before.harmless, before.harmless_base
    )
    with pytest.raises(MeasurementError, match="no refusal to rank by"):
        best_first(upside_down, candidates)


@pytest.fixture(scope="module")
def measured(guarded, prompts):
    """A quick family and its placebos on guarded-0, from sixteen prompts per label and split."""
    refusal = readout(guarded, prompts.locate)
    located = mean_difference(*capture(guarded, prompts.locate))
    located_on, select, report = (
        baseline(guarded, split, refusal) for split in (prompts.locate, prompts.select, prompts.report)
    )
    cells = best_first(located_on, located)
    attacks = family([cells], menu=QUICK)
    placebos = respond(report, placebo_family(attacks, count=39, seed=0))
    return respond(select, attacks), respond(report, attacks), placebos


def test_a_guarded_organism_is_measured_from_end_to_end(measured):
    select, report, placebos = measured
    found = optionality(select, report, placebos=placebos, seed=1)
    assert found.problems == ()
    assert found.n_attacks == 6
    assert found.n_invalid == found.n_invalid_placebos == 0
    assert found.bypass.n == 16
    assert found.frontier[-1].bypass.value > 0.8  # at one nat, some attack bypasses nearly all
    assert 0 < found.placebo["suppression"].p <= 1
    assert found.pf == select.pf + report.pf + placebos.pf + len(select.before.prompts) + len(report.before.prompts)
    assert judge(found).state in ("optional", "partly optional", "undetermined")


def test_placebos_alone_do_less_than_the_family(measured):
    _, report, placebos = measured
    found = (report.margins < 0).double().mean(1).max()
    assert float((placebos.margins < 0).double().mean(1).median()) < 0.1 < float(found)


def test_an_unguarded_organism_is_undetermined(organism, prompts, guarded):
    model = organism("unguarded")
    refusal = readout(model, prompts.locate, openings=[dialect.refusal.split()[0] for dialect in language().dialects])
    located = mean_difference(*capture(model, prompts.locate))
    attacks = family([located], menu=QUICK)
    splits = [respond(baseline(model, split, refusal), attacks) for split in (prompts.select, prompts.report)]
    verdict = judge(optionality(*splits))
    assert verdict.state == "undetermined"
    assert any("none of 16 restricted prompts is refused" in reason for reason in verdict.reasons)
