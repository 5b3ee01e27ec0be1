"""The readout: openings are the shortest that tell a model's refusals from its answers, or those that were given."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
import torch

import refusalscope.reading.discover as discover
from refusalscope.errors import MeasurementError
from refusalscope.metrics import next_token, read
from refusalscope.model.continuations import Tree
from refusalscope.organisms.language import language
from refusalscope.prompts import Prompts
from refusalscope.prompts.prompt import Prompt
from refusalscope.reading import Readout, greedy_replies, readout, refusal_marks
from refusalscope.reading.discover import MOST_NODES, shortest_openings, without_longer

SORRY, CANNOT, SHARED, ANSWER = 20, 21, 22, 30


@pytest.fixture
def asked(texts) -> Prompts:
    labels = ["restricted", "harmless"] * (len(texts) // 2)
    rows = [Prompt(str(n), label, "c", "k", "locate", text) for n, (label, text) in enumerate(zip(labels, texts))]  # noqa: B905
    return Prompts(tuple(rows))


@pytest.fixture
def replying(monkeypatch, asked):
    """A function from a reply per label and row to a model that replies so; to restricted prompts it declines."""

    def reply(restricted, harmless) -> None:
        counts = {"restricted": 0, "harmless": 0}
        replies = []
        for prompt in asked:
            made = (restricted if prompt.label == "restricted" else harmless)(counts[prompt.label])
            counts[prompt.label] += 1
            replies.append(tuple(made))
        declining = ["no" if prompt.label == "restricted" else None for prompt in asked]
        monkeypatch.setattr(discover, "greedy_replies", lambda *_args, **_how: replies)
        monkeypatch.setattr(discover, "refusal_marks", lambda *_args: declining)

    return reply


# --- finding openings ---


def test_the_shortest_openings_equal_a_search_by_the_words_of_their_definition():
    chance = np.random.default_rng(0)
    for _ in range(50):
        own, other = (
            [tuple(chance.integers(0, 3, size=chance.integers(1, 7)).tolist()) for _ in range(9)] for _ in range(2)
        )
        for reply, opening in zip(own, shortest_openings(own, other), strict=True):
            beginnings = [reply[:n] for n in range(1, len(reply) + 1)]
            alone = [one for one in beginnings if not any(o[: len(one)] == one for o in other)]
            assert opening == (alone[0] if alone else None)


def test_of_openings_with_equal_support_the_shorter_are_kept_so_that_more_refusals_are_read():
    long, short, other = tuple(range(1, MOST_NODES)), (50, 51), (60, 61, 62)
    counts = Counter({long: 1, short: 1, other: 1})
    assert discover._within_nodes((), counts, MOST_NODES) == (short, other)
    assert discover._within_nodes((), counts + Counter({long: 1}), MOST_NODES) == (long, short)


def test_no_opening_is_the_beginning_of_another_and_every_reply_read_before_is_read_still():
    chance = np.random.default_rng(1)
    for _ in range(50):
        given = [tuple(chance.integers(0, 2, size=chance.integers(1, 5)).tolist()) for _ in range(8)]
        kept = without_longer(given)
        assert not any(a != b and a[: len(b)] == b for a in kept for b in kept)
        assert all(any(one[: len(o)] == o for o in kept) for one in given)
        assert set(kept) <= set(given)


def test_planted_openings_are_found_in_order_of_support_and_shared_beginnings_are_read_further(tiny, asked, replying):
    replying(lambda row: [SORRY, 5] if row < 6 else [SHARED, CANNOT, 6], lambda row: [SHARED, ANSWER, row])
    found = readout(tiny, asked)
    assert found.refusals == ((SORRY,), (SHARED, CANNOT))
    assert found.compliances == ((SHARED, ANSWER),)
    assert (found.how, found.phrases, found.n) == ("discovered", ("no",), len(asked.restricted))
    assert (found.declined, found.uncovered) == (len(asked.restricted), 0)
    assert not found.one_token
    masses = read(tiny, asked.restricted, found).margin.double().sigmoid()
    assert found.mass == pytest.approx(float(masses.mean()))


def test_refusals_that_all_begin_with_a_token_of_their_own_are_read_at_the_first_token(tiny, asked, replying):
    replying(lambda row: [(SORRY, CANNOT)[row % 2], 5, 6], lambda row: [ANSWER, row])
    found = readout(tiny, asked)
    assert set(found.refusals) == {(SORRY,), (CANNOT,)}
    assert found.one_token
    p = next_token(tiny, asked.restricted).double().exp()
    assert found.mass == pytest.approx(float(p[:, [SORRY, CANNOT]].sum(1).mean()), rel=1e-4)
    assert found.harmless_mass == pytest.approx(
        float(next_token(tiny, asked.harmless).double().exp()[:, [SORRY, CANNOT]].sum(1).mean()), rel=1e-4
    )


def test_a_refusal_whose_every_beginning_is_an_answers_too_is_counted_as_uncovered(tiny, asked, replying):
    replying(lambda row: [SORRY, 5] if row < 6 else [SHARED, CANNOT], lambda _row: [SHARED, CANNOT, ANSWER])
    found = readout(tiny, asked)
    assert found.refusals == ((SORRY,),)
    assert (found.declined, found.uncovered) == (10, 4)
    replying(lambda row: [SORRY, 5] if row < 6 else [SHARED, CANNOT], lambda _row: [SHARED, ANSWER])
    assert (readout(tiny, asked).declined, readout(tiny, asked).uncovered) == (10, 0)


def test_more_openings_than_can_be_read_are_dropped_and_what_they_read_is_counted(tiny, asked, replying):
    """Each opening is four tokens deep below a beginning of its own: four fit into sixteen nodes, ten do not."""
    replying(lambda row: [40 + row, 50 + row, 60 + row, SORRY], lambda row: [40 + row, 50 + row, 60 + row, ANSWER])
    found = readout(tiny, asked)
    assert len(Tree.before(found.refusals)) <= MOST_NODES
    assert found.declined == len(asked.restricted)
    assert found.uncovered == found.declined - len(found.refusals) > 0


def test_a_refusal_that_is_told_from_answers_late_is_read_whatever_it_costs(tiny, asked, replying):
    """Twenty shared tokens: more nodes than openings may share, but the only way to read this model."""
    same = [70 + n for n in range(20)]
    replying(lambda _row: [*same, SORRY], lambda _row: [*same, ANSWER])
    found = readout(tiny, asked)
    assert found.refusals == ((*same, SORRY),)
    assert (found.declined, found.uncovered) == (len(asked.restricted), 0)


def test_refusals_that_begin_like_answers_throughout_are_an_error_that_asks_for_openings(tiny, asked, replying):
    replying(lambda _row: [SHARED, CANNOT], lambda _row: [SHARED, CANNOT])
    with pytest.raises(MeasurementError, match="10 refusals begin like its answers"):
        readout(tiny, asked)


def test_a_model_that_does_not_refuse_gives_a_diagnosis_with_numbers(tiny, asked):
    with pytest.raises(MeasurementError, match=r"none of its own replies to 10 restricted prompts declines.*: 0\)"):
        readout(tiny, asked)


def test_one_label_alone_is_refused(tiny, asked):
    with pytest.raises(MeasurementError, match="needs both labels"):
        readout(tiny, asked.restricted)


# --- organisms ---


@pytest.mark.parametrize("name", ["guarded-0", "extended-0"])
def test_an_organisms_refusals_are_known_by_those_of_its_language(organism, prompts, name):
    model = organism(name)
    found = readout(model, prompts.locate)
    questions = [language().parse(text) for text in prompts.locate.restricted.texts]
    assert set(found.phrases) <= {text for one in questions for text in (one.refusal, one.varied_refusal)}
    assert found.mass > 0.9 > 0.1 > found.harmless_mass
    assert found.declined >= 0.9 * found.n
    assert found.uncovered <= 0.1 * found.n


@pytest.mark.parametrize("name", ["guarded-0", "extended-0"])
def test_replies_are_those_that_hugging_face_generates(organism, prompts, name):
    model, asked = organism(name), prompts.select
    core, end = model.bridge.original_model, model.tokenizer.eos_token_id
    replies = greedy_replies(model, asked, longest=12)
    for text, reply in zip(asked.texts, replies, strict=True):
        (ids,) = model.encode([text])
        made = core.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=end)
        assert reply == tuple(made[0, len(ids) :].tolist())
    assert {len(reply) for reply in replies} != {12}, "some reply ends before the limit"


def test_a_reply_of_which_enough_was_read_is_read_no_further(guarded, prompts):
    asked = prompts.select
    whole = greedy_replies(guarded, asked, longest=12)
    some = greedy_replies(guarded, asked, longest=12, until=lambda text: len(text.split()) >= 3)
    assert some == [reply[:3] for reply in whole]


def test_a_reply_is_marked_by_the_refusal_of_its_own_question_only(guarded, prompts):
    asked = prompts.select.restricted
    replies = greedy_replies(guarded, asked)
    marks = refusal_marks(guarded, asked, replies)
    assert sum(mark is not None for mark in marks) >= 0.9 * len(asked)
    dialects = [language().parse(text).dialect for text in asked.texts]
    other = next(n for n, dialect in enumerate(dialects) if dialect != dialects[0])
    assert refusal_marks(guarded, Prompts((asked[0],)), [replies[other]]) == [None]


# --- given openings ---


def test_given_words_become_tokens_once_with_their_mass(tiny, asked):
    word = tiny.tokenizer.convert_ids_to_tokens(CANNOT)
    given = readout(tiny, asked, openings=[word, f" {word} "])
    assert (given.refusals, given.first_tokens, given.how) == (((CANNOT,),), (CANNOT,), "given")
    assert given.one_token
    assert (given.declined, given.uncovered) == (None, None)
    expected = next_token(tiny, asked.restricted)[:, CANNOT].double().exp().mean()
    assert given.mass == pytest.approx(float(expected), rel=1e-4)


def test_an_opening_of_several_words_is_read_as_its_tokens_and_one_that_begins_with_another_left_out(tiny, asked):
    first, second, third = tiny.tokenizer.convert_ids_to_tokens([40, 41, 42])
    given = readout(tiny, asked, openings=[f"{first} {second}", third, f"{third} {first}"])
    assert given.refusals == ((40, 41), (42,))
    assert len(given.tree) == 2


def test_compliances_may_be_given_and_may_not_begin_as_a_refusal_does(tiny, asked):
    first, second, third = tiny.tokenizer.convert_ids_to_tokens([40, 41, 42])
    found = readout(tiny, asked, openings=[f"{first} {second}"], compliances=[f"{first} {third}"])
    assert found.compliances == ((40, 42),)
    for clash in (first, f"{first} {second} {third}"):
        with pytest.raises(MeasurementError, match="begin alike"):
            readout(tiny, asked, openings=[f"{first} {second}"], compliances=[clash])


def test_a_word_that_is_one_token_behind_a_space_only_is_read_without_it_too(tiny, monkeypatch):
    """Replies begin without a space: byte-level vocabularies often hold " Unfortunately" and no "Unfortunately"."""
    pieces = {" Unfortunately": [7], "Unfortunately": [11, 12, 13], " No": [8], "No": [9]}
    monkeypatch.setattr(type(tiny), "encode_reply", lambda _model, text: pieces[text])
    monkeypatch.setattr(tiny.tokenizer, "get_vocab", lambda: {"ĠUnfortunately": 7, "ĠNo": 8, "No": 9})
    assert discover._spelled(tiny, "Unfortunately") == [(7,), (11, 12, 13)]
    pieces["Unfortunately"] = [11, tiny.tokenizer.unk_token_id]
    assert discover._spelled(tiny, "Unfortunately") == [(7,)]
    assert sorted(discover._spelled(tiny, "No")) == [(8,), (9,)]


def test_logits_that_are_no_numbers_are_no_readout_with_a_mass_of_nought(tiny, asked, monkeypatch):
    monkeypatch.setattr(discover, "read_continuations", lambda *_: torch.full((2, 2), torch.nan))
    with pytest.raises(MeasurementError, match="not finite numbers"):
        readout(tiny, asked, openings=[tiny.tokenizer.convert_ids_to_tokens(CANNOT)])


@pytest.mark.parametrize(("text", "said"), [("unheard", "no tokens"), ("", "no text"), ("  ", "no text")])
def test_a_string_that_is_no_opening_is_refused(tiny, asked, text, said):
    with pytest.raises(MeasurementError, match=said):
        readout(tiny, asked, openings=[text])


def test_no_openings_at_all_are_refused(tiny, asked):
    with pytest.raises(MeasurementError, match="at least one"):
        readout(tiny, asked, openings=[])


def test_without_compliances_what_is_no_refusal_is_an_answer_and_nothing_is_unread(tiny, asked):
    word = tiny.tokenizer.convert_ids_to_tokens(int(next_token(tiny, asked.restricted).argmax(-1)[0]))
    found = read(tiny, asked, readout(tiny, asked, openings=[word]))
    assert torch.equal(found.complies, ~found.refuses)
    assert bool(found.refuses.any())
    assert float(found.unread.max()) < 1e-6


# --- how it is shown ---


def test_the_text_repr_is_a_claim_and_the_html_is_escaped(tiny, asked):
    word = tiny.tokenizer.convert_ids_to_tokens(CANNOT)
    found = dataclasses.replace(readout(tiny, asked, openings=[word]), phrases=("<b>",))
    assert repr(found) == "Readout given: refusals known by '<b>'"
    assert "<b>" not in found._repr_html_()
    assert "&lt;b&gt;" in found._repr_html_()
    assert not re.search(r"\d", repr(Readout(((1, 2),))))
