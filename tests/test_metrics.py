"""Metrics: each equals a few lines of float64 on Hugging Face's own model, and stays right where probabilities end."""

from __future__ import annotations

import math

import pytest
import torch

import oracle
from refusalscope import Openings, ablate, add, cross_entropy, kl, margin, next_token, opening_margin
from refusalscope.errors import MeasurementError
from refusalscope.metrics import opening_logprob
from refusalscope.organisms.language import language
from refusalscope.organisms.prompt_set import neutral_sentences
from refusalscope.reading.readout import log_odds

CLOSE = 1e-4


@pytest.fixture(scope="module")
def plain(tiny_dir):
    return oracle.float64_model(tiny_dir)


def naive_margin(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    p = logits.double().softmax(-1)
    return (p[..., ids].sum(-1) / (1 - p[..., ids].sum(-1))).log()


def test_the_margin_equals_its_definition():
    logits = 3 * torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(log_odds(logits, (3, 7)), naive_margin(logits, [3, 7]), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [50.0, 300.0, 3e4])
def test_the_margin_stays_right_where_a_probability_is_all_but_one(size):
    """Two tokens: the margin is the difference of their logits, whatever the softmax rounds to."""
    for sign in (1.0, -1.0):
        logits = torch.tensor([[sign * size, 0.0]])
        assert float(log_odds(logits, (0,))) == sign * size
    assert not bool(torch.isfinite(naive_margin(torch.tensor([[size, 0.0]]), [0])))


def test_a_prompt_whose_refusal_is_more_likely_than_not_has_a_positive_margin():
    logits = torch.tensor([[math.log(0.6), math.log(0.4)], [math.log(0.4), math.log(0.6)]])
    first, second = log_odds(logits, (0,)).tolist()
    assert first == pytest.approx(math.log(0.6 / 0.4), rel=1e-5)
    assert second == pytest.approx(-first, rel=1e-5)


def test_margins_equal_the_oracles(tiny, plain, few, tiny_readout):
    expected = oracle.margins(oracle.last_logits(plain, tiny.encode(few.texts)), tiny_readout.first_tokens)
    torch.testing.assert_close(margin(tiny, few, tiny_readout).double(), expected, atol=CLOSE, rtol=CLOSE)


def test_next_tokens_are_log_probabilities_in_the_prompts_order(tiny, plain, few):
    found = next_token(tiny, few)
    expected = oracle.last_logits(plain, tiny.encode(few.texts)).log_softmax(-1)
    torch.testing.assert_close(found.double(), expected, atol=CLOSE, rtol=CLOSE)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(few)), atol=1e-5, rtol=0)


def test_kl_is_zero_at_baseline_and_positive_after_and_equals_the_oracles(tiny, plain, few, direction):
    base, rows, subspace = next_token(tiny, few), tiny.encode(few.texts), direction(layer=2)
    assert kl(tiny, few, base).abs().max() < 1e-6
    with add(tiny, subspace, dose=3.0):
        found = kl(tiny, few, base)
    before = oracle.last_logits(plain, rows).log_softmax(-1)
    with oracle.added(plain, 2, 3.0 * subspace.vectors[0]):
        after = oracle.last_logits(plain, rows).log_softmax(-1)
    expected = (before.exp() * (before - after)).sum(-1)
    assert found.min() > 0
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-3)
    reverse = (after.exp() * (after - before)).sum(-1)
    assert (expected - reverse).abs().max() > 100 * (found.double() - expected).abs().max()  # the direction of KL


def test_kl_against_the_base_of_other_prompts_is_refused(tiny, few):
    with pytest.raises(MeasurementError, match="same prompts"):
        kl(tiny, few, next_token(tiny, few.harmless))


def test_copies_give_one_block_per_subspace(tiny, few, tiny_readout, direction):
    several, base = [direction(seed=seed) for seed in range(3)], next_token(tiny, few)
    with ablate(tiny, several):
        margins, damage = margin(tiny, few, tiny_readout, copies=3), kl(tiny, few, base, copies=3)
    assert margins.shape == damage.shape == (3, len(few))
    for row, one in enumerate(several):
        with ablate(tiny, one):
            torch.testing.assert_close(margins[row], margin(tiny, few, tiny_readout), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(damage[row], kl(tiny, few, base), atol=1e-6, rtol=1e-3)


@torch.no_grad()
def naive_opening(plain, tiny, text: str, opening: str) -> torch.Tensor:
    """Teacher-forced: the mean over the opening's tokens of log p(token | everything before it)."""
    (asked,), reply = tiny.encode([text]), tiny.encode_reply(opening)
    logits = plain(torch.tensor([[*asked, *reply]])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(asked) + i - 1, token] for i, token in enumerate(reply)]).mean()


def test_the_opening_margin_equals_the_teacher_forced_oracle(tiny, plain, few):
    first, second = language().dialects
    refusals = (first.refusal, " ".join(second.refusal.split()[:3]))
    compliances = (first.openings[0], f"{second.openings[0]} {second.categories[5]}")

    def mean(openings):
        each = [[naive_opening(plain, tiny, text, opening) for text in few.texts] for opening in openings]
        return torch.tensor(each, dtype=torch.float64).mean(0)

    found = opening_margin(tiny, few, Openings(refusals, compliances))
    torch.testing.assert_close(found.double(), mean(refusals) - mean(compliances), atol=CLOSE, rtol=CLOSE)
    swapped = opening_margin(tiny, few, Openings(compliances, refusals))
    torch.testing.assert_close(swapped, -found)


def test_openings_that_say_nothing_are_refused(tiny, few):
    with pytest.raises(MeasurementError, match="at least one token"):
        opening_logprob(tiny, few, "")
    with pytest.raises(MeasurementError, match="at least one refusal"):
        opening_margin(tiny, few, Openings((), ("ja",)))


@torch.no_grad()
def test_cross_entropy_equals_hugging_faces_loss(tiny, plain):
    texts = [" ".join(text.split()[: 3 + i % 4]) for i, text in enumerate(neutral_sentences()[:9])]
    found = cross_entropy(tiny, texts)
    rows = [torch.tensor([tiny.tokenizer(text, add_special_tokens=False).input_ids]) for text in texts]
    assert len({len(row[0]) for row in rows}) > 1
    expected = torch.stack([plain(row, labels=row).loss for row in rows])
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)


def test_texts_too_short_for_a_next_token_are_refused(tiny):
    for texts in ([], [language().items[0].name], [""]):
        with pytest.raises(MeasurementError, match="two tokens"):
            cross_entropy(tiny, texts)
