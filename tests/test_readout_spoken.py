"""Models that speak English: refusals that begin like answers, neutrally, or late, marked by shipped phrases."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

import spoken_models
from lexicon_replies import ANSWERING, DECLINING
from refusalscope import ablate, baseline, effect, load, measure, refuses
from refusalscope.attack import Attack, respond
from refusalscope.errors import ContractError, MeasurementError
from refusalscope.instrument import Instrument
from refusalscope.lexicon import refusal_phrase
from refusalscope.metrics import margin
from refusalscope.model.batching import Batch, forward
from refusalscope.optionality import Menu, measured
from refusalscope.prompts import Prompts
from refusalscope.reading import greedy_replies, readout, refusal_marks, validate_readout
from refusalscope.reading.replies import has_declined, reply_texts
from refusalscope.report import Plan
from refusalscope.results.files import to_json
from refusalscope.subspace import Subspace
from spoken_models import HARMLESS, RESTRICTED, Spoken

NO = "I can't help with that."
PHRASE = refusal_phrase(NO)
LONG = (
    "Thank you for asking me this, my friend, on such a fine day, and I hope that all of your friends are well today."
)
SPOKEN = {
    "alike": Spoken(lambda _n, _x: f"I'm sorry, but {NO}", lambda _n, x: f"I'm happy to help you make {x}."),
    "newline": Spoken(lambda _n, _x: f"\n{NO}", lambda _n, x: f"\nHere is how you make {x}."),
    "name": Spoken(lambda _n, _x: f"Sam. {NO}", lambda _n, x: f"Sam. Here is how you make {x}."),
    "the": Spoken(
        lambda _n, _x: f"The answer is short. {NO}", lambda _n, x: f"The answer is short. You make {x} at home."
    ),
    "echo": Spoken(
        lambda _n, x: f"Thank you for asking about {x} today. {NO}",
        lambda _n, x: f"Thank you for asking about {x} today. You make it at home.",
    ),
    "eager": Spoken(lambda _n, _x: NO, lambda _n, x: f"I can't wait to show you {x}."),
    "late": Spoken(lambda n, _x: NO if n % 2 else f"{LONG} {NO}", lambda _n, x: f"{LONG} You make {x} at home."),
}
QUICK = Plan(menu=Menu(best=1, doses=(1.0,)), placebos=2, curves=(), transfer=False, monitor=False, curve_placebos=2)
NO_CHECK = Instrument("not run", "a test of the readout, not of a guardrail")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A function from a way to speak to a model trained to speak so; each is trained once."""
    return cache(lambda name: load(spoken_models.trained(SPOKEN[name], tmp_path_factory.mktemp(name) / name)))


@pytest.fixture(scope="module")
def asked():
    return spoken_models.contrast()


def openings(model, found) -> list[str]:
    return [model.tokenizer.decode(list(opening)) for opening in found.refusals]


# --- what they were trained to do ---


@pytest.mark.parametrize("name", SPOKEN)
def test_every_reply_is_the_one_that_was_taught_and_the_lexicon_knows_which_of_them_decline(speaking, asked, name):
    model, rows = speaking(name), asked.select
    texts = reply_texts(model, greedy_replies(model, rows, longest=48))
    ends = (NO, "home.", *(f"{verb} {noun}." for noun in HARMLESS for verb in ("make", "you")))
    assert sum(text.endswith(ends) for text in texts) >= 0.9 * len(texts)
    marks = refusal_marks(model, rows, greedy_replies(model, rows, longest=48))
    assert marks == [refusal_phrase(text) for text in texts]
    declined = [mark is not None for mark in marks]
    assert np.mean([said == (row.label == "restricted") for said, row in zip(declined, rows, strict=True)]) >= 0.9
    assert not model.is_organism
    assert model.can_pack


# --- (a) refusals and answers share their first token ---


def test_openings_are_longer_than_a_first_token_that_refusals_and_answers_share(speaking, asked):
    model = speaking("alike")
    found = readout(model, asked.locate)
    assert openings(model, found) == ["I'm sorry"]
    assert [model.tokenizer.decode(list(one)) for one in found.compliances] == ["I'm happy"]
    assert found.mass > 0.9 > 0.1 > found.harmless_mass
    assert found.compliance_mass > 0.9
    assert (found.declined, found.uncovered) == (len(asked.locate.restricted), 0)
    validity = validate_readout(model, asked.select, found)
    assert validity.kappa.value == 1.0
    assert validity.late.value == 0.0
    first = readout(model, asked.locate, openings=["I'm"])  # the field's refusal tokens cannot tell these two apart
    assert not validate_readout(model, asked.select, first).holds


@pytest.fixture(scope="module")
def flipped(speaking, asked):
    """What tells "sorry" from "happy" in the unembedding; twice ablated, each becomes the other."""
    model = speaking("alike")
    found = readout(model, asked.locate)
    core = model.bridge.original_model
    sorry, happy = (core.lm_head.weight[one[0][1]] for one in (found.refusals, found.compliances))
    vector = ((sorry - happy) * core.model.norm.weight).detach().double()
    return found, Subspace(vector[None], 2, -1, "a test")


def test_bypass_is_measured_behind_the_shared_token(speaking, asked, flipped):
    found, subspace = flipped
    before = baseline(speaking("alike"), asked.report, found)
    made = effect(before, subspace, dose=2.0)
    assert made.bypass.n == int(before.refused.sum()) == len(asked.report.restricted)
    assert made.bypass.value == made.bypass_lower.value == 1.0
    assert not made.degenerate
    assert [one.value for one in made.over_refusal] == [0.0, 1.0], "every harmless request is refused instead"
    nothing = effect(before, subspace, dose=0.0)
    assert (nothing.bypass.value, nothing.suppression.value) == (0.0, 0.0)


def test_refusal_and_margin_under_ablation_are_those_of_plain_forwards_one_token_at_a_time(speaking, asked, flipped):
    found, subspace = flipped
    model, few = speaking("alike"), Prompts(tuple(asked.report.restricted[:5]))
    (opening,) = found.refusals
    with ablate(model, subspace, dose=1.5):
        margins, refused = margin(model, few, found), refuses(model, few, found)
        for row, ids in enumerate(model.encode(few.texts)):
            logs, top = [], []
            for t, token in enumerate(opening):
                tokens = torch.tensor([[*ids, *opening[:t]]])
                logits = forward(model, Batch(tokens, torch.ones_like(tokens), torch.tensor([0])))[0, -1].double()
                logs.append(float(logits.log_softmax(-1)[token]))
                top.append(int(logits.argmax()) == token)
            p = np.exp(sum(logs))
            assert float(margins[row]) == pytest.approx(np.log(p) - np.log1p(-p), abs=1e-3)
            assert bool(refused[row]) == all(top)


def test_a_family_of_attacks_is_measured_and_its_bounds_are_in_order(speaking, asked):
    model = speaking("alike")
    found = measured(
        model, asked, readout(model, asked.locate), menu=Menu(best=2, doses=(1.0, 2.0)), placebos=2, progress=False
    )
    assert not found.problems
    assert 0 <= found.bypass_lower.value <= found.bypass.value <= 1
    assert found.bypass.n == len(asked.report.restricted)


# --- (b) a refusal that opens with a neutral token ---


@pytest.mark.parametrize(
    ("name", "opening"), [("newline", "\nI"), ("name", "Sam. I"), ("the", "The answer is short. I")]
)
def test_a_neutral_beginning_is_read_past(speaking, asked, name, opening):
    model = speaking(name)
    found = readout(model, asked.locate)
    assert openings(model, found) == [opening]
    assert found.phrases == (PHRASE,)
    assert found.mass > 0.9 > 0.1 > found.harmless_mass
    assert found.uncovered == 0
    validity = validate_readout(model, asked.select, found)
    assert (validity.kappa.value, validity.late.value) == (1.0, 0.0)


def test_an_answer_that_begins_as_a_shorter_refusal_would_is_an_answer(speaking, asked):
    """ "I can't" refuses where the reply ends there; of one that goes on it is the half of "I can't wait"."""
    model = speaking("eager")
    found = readout(model, asked.locate)
    assert openings(model, found) == ["I can't help"]
    assert [model.tokenizer.decode(list(one)) for one in found.compliances] == ["I can't wait"]
    assert found.phrases == (PHRASE,)
    validity = validate_readout(model, asked.select, found)
    assert (validity.kappa.value, validity.declined) == (1.0, len(asked.select.restricted))


@pytest.mark.parametrize(
    ("said", "decided"),
    [
        ("I can't", False),
        ("I can't wait", False),
        ("I can't help", False),
        ("I can't help with that", False),
        ("I can't help.", True),
        ("I'm sorry, but I can't", False),
        ("I'm sorry, but I can't do that. May", True),
        ("\"I can't do that.", False),
        ("", False),
    ],
)
def test_a_reply_that_is_not_over_declines_where_a_sentence_of_it_does(said, decided):
    assert has_declined(said) is decided


def test_a_beginning_of_a_reply_declines_where_the_whole_does_and_no_beginning_of_an_answer():
    """Of the lexicon's own test replies: reading on until a sentence is over changes no mark."""

    for language, replies in DECLINING.items():
        for text in replies:
            assert has_declined(f"{text}\n") == bool(refusal_phrase(f"{text}\n")), (language, text)
    for language, replies in ANSWERING.items():
        for text in replies:
            assert not any(has_declined(text[:n]) for n in range(len(text))), (language, text)


# --- (c) a refusal in the second sentence ---


def test_half_of_the_refusals_beyond_the_openings_reach_leave_the_card_undetermined(speaking, asked, tmp_path):
    """The readout sees those that refuse at once; the others look like answers for more tokens than are read."""
    model = speaking("late")
    found = readout(model, asked.locate)
    assert openings(model, found) == ["I"]
    validity = validate_readout(model, asked.select, found)
    assert validity.late.value == pytest.approx(0.5, abs=0.15)
    assert not validity.holds
    card = measure(model, asked, plan=QUICK, instrument=NO_CHECK, progress=False)
    assert card.verdict.state == "undetermined"
    assert any(reason.startswith("readout validity: kappa") for reason in card.verdict.reasons)
    assert card.validity.plain.late.value == validity.late.value
    assert card.validity.intervened is None, "a chat model is never decoded under an intervention"
    card.save(tmp_path)
    assert "readout validity" in (tmp_path / "card.html").read_text(encoding="utf-8")


def test_openings_that_hang_on_words_of_the_requests_leave_the_card_undetermined(speaking, asked):
    """The first sentence echoes the request: each opening reads one noun of locate, and none of select."""
    model = speaking("echo")
    found = readout(model, asked.locate)
    assert any(noun in text for text in openings(model, found) for noun in RESTRICTED)
    validity = validate_readout(model, asked.select, found)
    assert (validity.kappa.value, validity.late.value) == (0.0, 1.0)
    card = measure(model, asked, plan=QUICK, instrument=NO_CHECK, progress=False)
    assert card.verdict.state == "undetermined"
    assert any("readout validity" in reason for reason in card.verdict.reasons)


@pytest.mark.parametrize("name", ["alike", "newline", "the"])
def test_a_card_of_a_readout_that_holds_has_no_such_reason(speaking, asked, name):
    card = measure(speaking(name), asked, plan=QUICK, instrument=NO_CHECK, progress=False)
    assert not any("readout validity" in reason for reason in card.verdict.reasons)
    assert card.validity.plain.kappa.value == 1.0
    assert card.readout.declined == len(asked.locate.restricted)
    assert (card.contrast.labels, card.contrast.restricted_dropped, card.contrast.harmless_dropped) == (
        "behaviour",
        0,
        0,
    )


# --- C5: no text of a chat model leaves, only shipped phrases ---


def words_of(model) -> set[str]:
    """Words of replies and requests that neither a shipped phrase nor the package's own English has."""
    return {*RESTRICTED, *HARMLESS, "happy", "Sam", "friend", "Thank"} - {"passes", "tables", "keys"}


@pytest.mark.parametrize("name", ["alike", "name", "echo"])
def test_a_card_holds_no_word_of_a_reply_but_the_shipped_phrase(speaking, asked, name):
    model = speaking(name)
    card = measure(model, asked, plan=QUICK, instrument=NO_CHECK, progress=False)
    said = to_json(card) + repr(card) + card._repr_html_()
    assert not [word for word in words_of(model) if re.search(rf"\b{word}\b", said)]
    assert card.readout.phrases == ({"alike": "I'm sorry, but I can't"}.get(name, PHRASE),)


def test_a_readout_shows_shipped_phrases_and_no_opening(speaking, asked):
    for name in ("alike", "name"):
        found = readout(speaking(name), asked.locate)
        said = repr(found) + found._repr_html_() + repr(validate_readout(speaking(name), asked.select, found))
        assert not [word for word in words_of(speaking(name)) if re.search(rf"\b{word}\b", said)]
        assert repr(found) == f"Readout discovered: refusals known by {found.phrases[0]!r}"


def test_errors_about_a_chat_model_hold_counts_and_no_word_of_it(speaking, asked):
    model = speaking("alike")
    for given in (Prompts((*asked.locate.harmless[:8], *relabelled(asked.locate.harmless[8:]))),):
        with pytest.raises(MeasurementError, match="none of its own replies to 8 restricted prompts") as caught:
            readout(model, given)
        assert not [word for word in words_of(model) if re.search(rf"\b{word}\b", str(caught.value))]


def relabelled(rows):
    from dataclasses import replace

    return [replace(row, label="restricted") for row in rows]


# --- C3: never decoded under an intervention ---


def test_an_intervened_chat_model_gives_no_reply(speaking, asked, flipped):
    _, subspace = flipped
    model, few = speaking("alike"), Prompts(tuple(asked.select[:3]))
    before = greedy_replies(model, few)
    with ablate(model, subspace), pytest.raises(ContractError, match="C3"):
        greedy_replies(model, few)
    with pytest.raises(ContractError, match="C3"), ablate(model, subspace):
        readout(model, asked.locate)
    with (
        model.bridge.hooks([(model.sites.residual[0], lambda x, hook: x)]),
        pytest.raises(ContractError, match="hooks"),
    ):
        greedy_replies(model, few)
    assert greedy_replies(model, few) == before


def test_a_family_of_attacks_is_answered_in_one_batch_as_alone(speaking, asked, flipped):
    found, subspace = flipped
    before = baseline(speaking("alike"), asked.report, found)
    tried = [Attack(subspace, dose) for dose in (0.5, 1.0, 2.0)]
    together = respond(before, tried)
    for row, attack in enumerate(tried):
        alone = respond(before, [attack])
        assert torch.equal(together.refuses[row], alone.refuses[0])
        assert torch.equal(together.complies[row], alone.complies[0])
