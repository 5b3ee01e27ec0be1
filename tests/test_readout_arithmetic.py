"""The readout's numbers: p_O, margins, refusal and unread mass by enumeration, exact where p_O is all but 1."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch

from refusalscope import ablate
from refusalscope.metrics import margin, read, refuses
from refusalscope.prompts import Prompts
from refusalscope.reading import Readout, greedy_replies, readout
from refusalscope.reading.readout import log_odds

VOCABULARY, ROWS = 11, 40
REFUSING, COMPLYING = ((1,), (2, 3), (2, 4, 5), (6, 6)), ((2, 4, 6), (7,), (8, 1))
MIXED = Readout(REFUSING, COMPLYING)


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    return 2 * torch.randn(ROWS, len(MIXED.tree), VOCABULARY, generator=noise, dtype=torch.float64)


def by_enumeration(readout: Readout, logits: torch.Tensor, openings) -> torch.Tensor:
    """Σ_o Π_t p(o_t | x, o_<t), a factor at a time."""
    p = logits.double().softmax(-1)
    total = torch.zeros(len(logits), dtype=torch.float64)
    for opening in openings:
        product = torch.ones(len(logits), dtype=torch.float64)
        for t, token in enumerate(opening):
            product = product * p[:, readout.tree.node[opening[:t]], token]
        total = total + product
    return total


def walked(readout: Readout, logits: torch.Tensor, openings) -> list[bool]:
    """Whether going from node to node by the most likely token spells an opening."""
    found = []
    for row in logits:
        path = ()
        while path in readout.tree.node:
            path = (*path, int(row[readout.tree.node[path]].argmax()))
        found.append(any(path[: len(opening)] == opening for opening in openings))
    return found


def test_margin_unread_mass_refusal_and_compliance_equal_an_enumeration(logits):
    found, p, q = MIXED.read(logits), *(by_enumeration(MIXED, logits, some) for some in (REFUSING, COMPLYING))
    torch.testing.assert_close(found.margin, p.log() - (1 - p).log(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.unread, 1 - p - q, rtol=1e-10, atol=1e-12)
    assert found.refuses.tolist() == walked(MIXED, logits, REFUSING)
    assert found.complies.tolist() == walked(MIXED, logits, COMPLYING)
    assert {True, False} == set(found.refuses.tolist()) == set(found.complies.tolist())
    assert not bool((found.refuses & found.complies).any())


def test_refusal_at_temperature_zero_is_not_the_sign_of_the_margin(logits):
    found = MIXED.read(logits)
    assert bool((found.refuses != (found.margin > 0)).any())


def test_the_masses_of_every_path_add_up_to_one(logits):
    """With every continuation of every node either an opening or a compliance, nothing is unread."""
    inner = set(MIXED.tree.paths)
    leaves = [(*path, token) for path in inner for token in range(VOCABULARY) if (*path, token) not in inner]
    whole = Readout(tuple(leaves[::2]), tuple(leaves[1::2]))
    assert set(whole.tree.paths) == inner
    assert float(whole.read(logits).unread.abs().max()) < 1e-12
    assert bool((whole.read(logits).refuses ^ whole.read(logits).complies).all())


@pytest.mark.parametrize("exponent", [-12, -6, 0, 6, 12])
def test_the_margin_is_exact_where_the_refusal_probability_is_all_but_nought_or_one(exponent):
    """Against fifty digits: p_O = p_1 p_2 + p_3 with 1 − p_O down to 1e-12, where 1 − p_O in float64 is noise."""
    mpmath.mp.dps = 50
    size = exponent * np.log(10.0)
    first, second = [size, 0.0, -1.0, size - 1.0], [size + 0.5, 0.3, 0.0, -2.0]
    readout = Readout(((0, 0), (3,)))
    logits = torch.tensor([[first, second]], dtype=torch.float64)
    p, q = ([mpmath.e ** mpmath.mpf(x) for x in row] for row in (first, second))
    inside = p[0] / sum(p) * q[0] / sum(q) + p[3] / sum(p)
    exact = float(mpmath.log(inside) - mpmath.log(1 - inside))
    assert float(readout.margin_of(logits)[0]) == pytest.approx(exact, rel=1e-12, abs=1e-12)
    if exponent >= 12:
        naive = by_enumeration(readout, logits, readout.refusals)
        assert float(naive.log() - (1 - naive).log()) != pytest.approx(exact, rel=1e-8), "a naive margin is noise here"


@pytest.mark.parametrize("target", [1e-12, 1 - 1e-12])
def test_a_refusal_probability_of_one_in_a_million_million_has_its_margin(target):
    size = float(np.log(target) - np.log1p(-target)) if target < 0.5 else float(-np.log(1e-12) + np.log1p(-1e-12))
    logits = torch.zeros(1, 2, 2, dtype=torch.float64)
    logits[0, 0, 0], logits[0, 1, 0] = size, 800.0  # the second token is certain
    found = float(Readout(((0, 0),)).margin_of(logits)[0])
    assert found == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("ids", [(3,), (3, 7), (0, 1, 2, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_token_openings_are_the_old_formula_bit_for_bit(ids, dtype):
    logits = 3 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1), dtype=dtype)
    inside = torch.zeros(VOCABULARY, dtype=torch.bool)
    inside[list(ids)] = True
    old = logits[..., inside].logsumexp(-1) - logits[..., ~inside].logsumexp(-1)
    one = Readout(tuple((token,) for token in ids))
    assert one.one_token
    assert one.first_tokens == ids
    assert torch.equal(one.margin_of(logits[:, None]), old)
    assert torch.equal(log_odds(logits, ids), old)
    assert torch.equal(one.read(logits[:, None]).margin, old)
    assert one.read(logits[:, None]).refuses.tolist() == [int(row.argmax()) in ids for row in logits]


def test_compliance_openings_do_not_change_the_margin_of_one_token_refusals(logits):
    longer = Readout(((1,),), compliances=((2, 4),))
    assert not longer.one_token
    some = logits[:, : len(longer.tree)]
    torch.testing.assert_close(longer.margin_of(some), log_odds(some[:, 0], (1,)), rtol=1e-12, atol=1e-12)


def test_the_order_of_openings_changes_nothing_but_rounding(logits):
    for refusals in itertools.islice(itertools.permutations(REFUSING), 6):
        torch.testing.assert_close(
            Readout(refusals, COMPLYING).margin_of(logits), MIXED.margin_of(logits), rtol=1e-12, atol=1e-12
        )


def test_a_row_that_overflowed_has_no_margin_refuses_nothing_and_complies_with_nothing(logits):
    broken = logits.clone()
    broken[0] = torch.nan
    found = MIXED.read(broken)
    assert bool(found.margin[0].isnan())
    assert not bool(found.refuses[0])
    assert not bool(found.complies[0])
    sound = MIXED.read(logits)
    assert torch.equal(found.margin[1:], sound.margin[1:])


# --- refusal is what decoding says ---


@pytest.mark.parametrize("ablated", [False, True])
@pytest.mark.parametrize("name", ["guarded-0", "extended-0"])
def test_what_the_readout_calls_refused_is_a_greedy_reply_that_begins_with_an_opening(
    organism, contrast, name, ablated
):
    from contextlib import nullcontext

    from refusalscope import capture, locate

    model, few = organism(name), contrast.select.sample(24, seed=2)
    found = readout(model, contrast.locate.sample(24, seed=0))
    direction = locate.mean_difference(*capture(model, contrast.locate.sample(24, seed=0))).at(3, -1)
    with ablate(model, direction, dose=0.7) if ablated else nullcontext():
        replies = greedy_replies(model, few)  # fiction may be decoded under an intervention
        said, margins = refuses(model, few, found), margin(model, few, found)
        complied = read(model, few, found).complies
    assert said.tolist() == [any(reply[: len(o)] == o for o in found.refusals) for reply in replies]
    assert complied.tolist() == [any(reply[: len(o)] == o for o in found.compliances) for reply in replies]
    assert {True, False} == set(said.tolist())
    assert bool(margins.isfinite().all())


def test_refusals_of_several_ablated_at_once_are_those_of_each(guarded, contrast, direction):
    few = Prompts(tuple(contrast.select.sample(8, seed=2)))
    found = readout(guarded, contrast.locate.sample(24, seed=0))
    several = [direction(seed=seed, width=guarded.d_model) for seed in range(3)]
    with ablate(guarded, several):
        together = read(guarded, few, found, copies=3)
    for row, one in enumerate(several):
        with ablate(guarded, one):
            alone = read(guarded, few, found)
        assert torch.equal(together.refuses[row], alone.refuses)
        torch.testing.assert_close(together.margin[row], alone.margin, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together.unread[row], alone.unread, rtol=1e-3, atol=1e-5)
