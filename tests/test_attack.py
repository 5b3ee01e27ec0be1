"""Attacks: batched responses equal single ones, whatever they share; a broken hook is invalid, and alone so."""

from __future__ import annotations

import pytest
import torch

from refusalscope.attack import Attack, respond
from refusalscope.effect import placebo_effects
from refusalscope.errors import MeasurementError


@pytest.fixture
def attacks(direction):
    ranks, doses, scopes = (1, 2, 1, 1, 2), (1.0, 1.0, 0.5, 1.0, 1.0), (None, None, None, (0, 1), None)
    each = enumerate(zip(ranks, doses, scopes, strict=True))
    return [Attack(direction(rank=rank, seed=i), dose, layers) for i, (rank, dose, layers) in each]


def test_responses_do_not_depend_on_what_runs_beside_them(before, attacks):
    together = respond(before, attacks)
    for row, attack in enumerate(attacks):
        alone = respond(before, [attack])
        torch.testing.assert_close(together.margins[row], alone.margins[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.kl[row], alone.kl[0], rtol=1e-4, atol=1e-6)
    assert together.pf == len(attacks) * len(before.prompts)
    assert bool(together.valid.all())


def test_responses_average_to_the_placebo_table(before, direction):
    subspaces = [direction(seed=i) for i in range(3)]
    table, found = placebo_effects(before, subspaces), respond(before, [Attack(one) for one in subspaces])
    assert table["kl"].tolist() == pytest.approx(found.damage.tolist())
    assert table["margin"].tolist() == pytest.approx(found.margins.mean(1).tolist())


def test_an_attack_at_fault_is_invalid_and_the_others_are_measured(before, attacks, monkeypatch):
    import refusalscope.attack as module
    from refusalscope.errors import InterventionError

    real, culprit = module.ablate, attacks[4].subspace

    def failing(model, subspaces, **how):
        if any(one is culprit for one in subspaces):
            raise InterventionError("a hook did not fire")
        return real(model, subspaces, **how)

    monkeypatch.setattr(module, "ablate", failing)
    found = respond(before, attacks)
    assert found.valid.tolist() == [True, True, True, True, False]


def test_an_empty_family_is_refused(before):
    with pytest.raises(MeasurementError, match="no attack"):
        respond(before, [])
