"""Refusal tokens: the ones planted are found, the ones shared with answers are not, and none is an error."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from refusalscope.errors import MeasurementError
from refusalscope.model import ChatModel, given_refusal_tokens, refusal_tokens
from refusalscope.prompts import Prompts
from refusalscope.prompts.prompt import Prompt

SORRY, CANNOT, SHARED = 20, 21, 22


@pytest.fixture
def prompts(texts) -> Prompts:
    labels = ["restricted", "harmless"] * (len(texts) // 2)
    rows = [Prompt(str(n), label, "c", "k", "locate", text) for n, (label, text) in enumerate(zip(labels, texts))]  # noqa: B905
    return Prompts(tuple(rows))


@pytest.fixture
def refusing(tiny, prompts, monkeypatch):
    """First-token probabilities as of a model that refuses: 0.6, 0.2 and 0.1 on planted tokens, the last one always."""
    restricted = {tuple(ids) for ids in tiny.encode(prompts.restricted.texts)}

    def forward(model, batch):
        probabilities = torch.full((len(batch), 1, model.bridge.cfg.d_vocab), 1e-6)
        for row, (tokens, mask) in enumerate(zip(batch.tokens, batch.mask, strict=True)):
            refuses = tuple(tokens[mask.bool()].tolist()) in restricted
            planted = {SORRY: 0.6, CANNOT: 0.2, SHARED: 0.1} if refuses else {SORRY: 0.01, SHARED: 0.1, 30: 0.8}
            for token, probability in planted.items():
                probabilities[row, 0, token] = probability
        return probabilities.log()

    monkeypatch.setattr(refusal_tokens, "forward", forward)


@pytest.mark.usefixtures("refusing")
def test_planted_refusal_tokens_are_found_in_order_and_shared_ones_are_not(tiny, prompts):
    found = readout(tiny, prompts)
    assert found.ids == (SORRY, CANNOT)
    assert found.tokens == tuple(tiny.tokenizer.convert_ids_to_tokens([SORRY, CANNOT]))
    assert found.mass == pytest.approx(0.8 / 0.9, rel=0.01)
    assert found.harmless_mass == pytest.approx(0.01 / 0.91, rel=0.05)
    assert found.n == len(prompts.restricted)
    assert readout(tiny, prompts, most=1).ids == (SORRY,)


def test_a_model_that_does_not_refuse_gives_a_diagnosis_with_numbers(tiny, prompts):
    with pytest.raises(MeasurementError, match=r"no first token has at least 0\.02.*Nearest.*: '.* and 0\.0"):
        readout(tiny, prompts)


def test_the_diagnosis_spells_reply_tokens_of_organisms_only(tiny, prompts, monkeypatch):
    restricted = refusal_tokens._mean_first(tiny, prompts.restricted) - refusal_tokens._mean_first(
        tiny, prompts.harmless
    )
    nearest = tiny.tokenizer.convert_ids_to_tokens([int(restricted.argmax())])[0]
    with pytest.raises(MeasurementError, match=re.escape(f"{nearest!r} 0.")):
        readout(tiny, prompts)
    monkeypatch.setattr(ChatModel, "is_organism", False)
    other = dataclasses.replace(tiny)  # the property was cached on the shared one
    with pytest.raises(MeasurementError, match=r"mass\): 0\.\d{3} and 0\.\d{3}, ") as caught:
        readout(other, prompts)
    assert not any(repr(token) in str(caught.value) for token in tiny.tokenizer.get_vocab())


@pytest.mark.usefixtures("refusing")
def test_given_strings_become_tokens_once_with_their_mass(tiny, prompts):
    word = tiny.tokenizer.convert_ids_to_tokens(CANNOT)
    given = given_refusal_tokens(tiny, [word, f" {word} "], prompts)
    assert (given.ids, given.how) == ((CANNOT,), "given")
    assert given.mass == pytest.approx(0.2 / 0.9, rel=0.01)


@pytest.mark.parametrize("text", ["two words", "unheard", ""])
def test_a_string_that_is_no_single_token_is_refused(tiny, prompts, text):
    with pytest.raises(MeasurementError, match="is no single token"):
        given_refusal_tokens(tiny, [text], prompts)


def test_one_label_alone_is_refused(tiny, prompts):
    with pytest.raises(MeasurementError, match="need both labels"):
        readout(tiny, prompts.restricted)


@pytest.mark.usefixtures("refusing")
def test_the_text_repr_is_a_claim_and_the_html_is_escaped(tiny, prompts):
    found = dataclasses.replace(readout(tiny, prompts), tokens=("<b>",))
    assert repr(found) == "RefusalTokens discovered: '<b>'"
    assert "<b>" not in found._repr_html_()
