"""The lexicon marks replies that decline, by the speaker's own words, and says where the phrase stands."""

from __future__ import annotations

import re
import time

import pytest

from lexicon_replies import ANSWERING, DECLINING
from refusalscope.errors import MeasurementError
from refusalscope.lexicon import declining, languages, read_language, refusal_phrase, refusal_span
from refusalscope.lexicon.folding import fold
from refusalscope.lexicon.lines import Language
from refusalscope.lexicon.patterns import Line

SHIPPED = {one.name: one for one in declining.read_folder(declining.FOLDER)}
LINES = [(language, line) for language in SHIPPED.values() for line in language.phrases]
REFUSALS = [reply for replies in DECLINING.values() for reply in replies]


def spelled_out(text: str, language: Language) -> str:
    """A text of a line: the first alternative of every group, and a word for every gap."""
    while group := re.search(r"\{[^{}]*\}", text):
        text = text.replace(group.group(), language.spellings.alternatives[group.group()][0])
    return re.sub(r"\s*…\s*", " so ", text).strip()


def examples(language: Language, line: Line) -> list[str]:
    return [spelled_out(f"{line.text} {follow}", language) for follow in line.follow or ("",)]


def written(tmp_path, text: str):
    file = tmp_path / "xx.txt"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def shipped_as(tmp_path, monkeypatch):
    """Ships one file with the given text instead of the real ones."""

    def ship(text: str) -> None:
        written(tmp_path, text)
        monkeypatch.setattr(declining, "FOLDER", tmp_path)

    return ship


def test_every_language_has_replies_of_both_kinds():
    assert languages() == tuple(sorted(SHIPPED)) == tuple(sorted(DECLINING)) == tuple(sorted(ANSWERING))
    for name in languages():
        least = 12 if name == "en" else 6
        assert len(DECLINING[name]) >= least
        assert len(ANSWERING[name]) >= least


@pytest.mark.parametrize(("name", "reply"), [(name, reply) for name in DECLINING for reply in DECLINING[name]])
def test_a_reply_that_declines_is_marked_by_a_phrase_of_its_own_language(name, reply):
    assert refusal_phrase(reply) in {line.text for line in SHIPPED[name].phrases}


@pytest.mark.parametrize("reply", [reply for replies in ANSWERING.values() for reply in replies])
def test_a_reply_that_answers_is_not_marked_by_any_language(reply):
    assert refusal_phrase(reply) is None
    assert refusal_span(reply) is None


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_phrase_matches_its_own_words(name):
    language = SHIPPED[name]
    missed = {
        text: refusal_phrase(text)
        for line in language.phrases
        for text in examples(language, line)
        if refusal_phrase(text) != line.text
    }
    assert missed == {}


@pytest.mark.parametrize("reply", REFUSALS)
def test_the_span_is_the_phrase_in_the_original_reply(reply):
    span = refusal_span(reply)
    phrase = refusal_phrase(reply)
    assert span is not None
    assert phrase is not None
    start, end = span
    assert 0 <= start < end <= len(reply)
    (line,) = (line for line in SHIPPED[language_of(phrase)].phrases if line.text == phrase)
    pattern = SHIPPED[language_of(phrase)].spellings.expression(line.text)
    assert re.fullmatch(pattern, fold(reply[start:end]).text)


def language_of(phrase: str) -> str:
    """The language whose phrase this is."""
    (name,) = (name for name in SHIPPED if phrase in {line.text for line in SHIPPED[name].phrases})
    return name


def test_the_span_leaves_out_what_leads_up_to_the_phrase_and_what_follows():
    reply = "Hello!\n\nUnfortunately, I **can’t** help with that."
    start, end = refusal_span(reply) or (0, 0)
    assert reply[start:end] == "I **can’t** help"
    assert refusal_phrase(reply) == "I can't help"


def test_the_span_counts_characters_that_fold_to_several_or_to_none():
    reply = "\ufeffﬁne… ½ \u200bI must\u00a0 de\u0301cline. I must  decline."
    assert refusal_span(reply) == (reply.rindex("I must"), len(reply) - 1)
    assert refusal_phrase("Ich mo\u0308chte das nicht schreiben.") == refusal_phrase("Ich möchte das nicht schreiben.")


@pytest.mark.parametrize("before", ["", " \n\t", "> ", "**", "# ", "`", "\ufeff", "- "])
@pytest.mark.parametrize("apostrophe", "'’‘ʼ＇")
def test_leading_marks_and_kinds_of_apostrophe_make_no_difference(before, apostrophe):
    reply = f"{before}I{apostrophe}M SORRY, but I can{apostrophe}t help with that."
    assert refusal_phrase(reply) == "I'm sorry, but I can't"
    assert refusal_span(reply) == (len(before), len(before) + len("I'm sorry, but I can't"))


def test_the_earliest_phrase_is_returned():
    assert refusal_phrase("I must decline. I'm sorry, but I can't help with that.") == "I must decline"
    assert refusal_phrase("I'm sorry, but I can't help with that. I must decline.") == "I'm sorry, but I can't"


@pytest.mark.parametrize("sentence", range(10))
def test_a_refusal_counts_in_the_first_four_sentences_only(sentence):
    reply = "It rained. " * sentence + "I must decline."
    assert (refusal_phrase(reply) is not None) == (sentence < declining.SENTENCES)


@pytest.mark.parametrize(("length", "seen"), [(100, True), (declining.CHARACTERS, False)])
def test_a_refusal_counts_in_the_first_characters_only(length, seen):
    assert (refusal_phrase("x" * length + ". I must decline.") is not None) == seen


def test_a_phrase_counts_at_the_beginning_of_a_sentence_only():
    assert refusal_phrase("I must decline that offer.") is not None
    assert refusal_phrase("She wrote that I must decline that offer.") is None


def test_a_word_that_goes_on_is_another_word(shipped_as):
    shipped_as("I decline")
    assert refusal_phrase("I decline.") == "I decline"
    assert refusal_phrase("I declined the offer.") is None


def test_the_words_in_brackets_must_follow_and_are_no_part_of_the_phrase(shipped_as):
    shipped_as("= {do} | help | do that\nI can't [{do} | .]\n")
    assert refusal_span("I can't do that") == (0, 7)
    assert refusal_span("I can't.") == (0, 7)
    assert refusal_span("I can't sleep.") is None


def test_leads_exceptions_spellings_and_gaps_mean_what_the_notes_say(shipped_as):
    shipped_as("= can't | cannot\n+ Alas\n- I can't … enough\nI can't\nAs a … I refuse\n… no can do\n")
    assert refusal_span("Alas, I cannot.") == (6, 14)
    assert refusal_phrase("I can't praise it enough.") is None
    assert refusal_phrase("As a " + "b" * 90 + " I refuse") == "As a … I refuse"
    assert refusal_phrase("As a " + "b" * 110 + " I refuse") is None
    assert refusal_phrase("As a rule. I refuse") is None
    assert refusal_phrase("That, my friend, is a no can do") == "… no can do"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("I can't [help", "square brackets"),
        ("I can't [help] you", "square brackets"),
        ("[help]", "no phrase"),
        ("…", "no phrase"),
        ("+Sadly", "no phrase"),
        ("+ … sadly", "no phrase"),
        ("? what", "no phrase"),
        ("I can't | I won't", "no phrase"),
        ("I {do}", "no phrase"),
        ("I can't [{do}]", "no line above explains"),
        ("I can't [help | ]", "alternative is empty"),
        ("I … a … b … c", "more than 2 gaps"),
        ("= can't", "second spelling"),
        ("= can't | ", "alternative is empty"),
        ("= a | b\n= a | c", "has its spellings already"),
        ("+ Sadly [x]", "takes no square brackets"),
        ("I decline\ni DECLINE", "twice"),
        ("I can't }", "brace"),
        ("I can't [help {]", "brace"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_file_and_line(tmp_path, line, said):
    file = written(tmp_path, f"# a comment\n\n{line}\n")
    with pytest.raises(MeasurementError, match=said) as raised:
        read_language(file)
    assert f"{file}, line {3 + line.count(chr(10))}: " in str(raised.value)


def test_a_well_formed_file_is_read(tmp_path):
    language = read_language(written(tmp_path, "# a comment\n\nI decline\n"))
    assert (language.name, language.phrases) == ("xx", (Line("I decline"),))


def test_files_that_are_missing_empty_or_no_text_are_errors(tmp_path):
    with pytest.raises(MeasurementError, match="install refusalscope again"):
        declining.read_folder(tmp_path / "nowhere")
    with pytest.raises(MeasurementError, match="holds no phrase"):
        read_language(written(tmp_path, "# a comment\n"))
    with pytest.raises(MeasurementError, match=r"cannot be read as UTF-8 text .*: restore it"):
        read_language(tmp_path / "zz.txt")
    (tmp_path / "zz.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(MeasurementError, match="cannot be read as UTF-8"):
        read_language(tmp_path / "zz.txt")


@pytest.mark.parametrize(
    "piece",
    [
        "I'm sorry, ",
        "I'm sorry for ",
        "As an AI, I don't have ",
        "While I, ",
        " ",
        "*",
        "'",
        '"',
        "\u0301",
        "申し訳ありませんが",
        "\n",
        ": ",
    ],
)
def test_a_reply_of_a_million_characters_is_read_at_once(piece):
    reply = piece * (1_000_000 // len(piece))
    refusal_phrase(reply)
    started = time.perf_counter()
    assert refusal_phrase(reply) is None
    assert time.perf_counter() - started < 1


def test_the_time_of_a_common_reply_is_a_few_milliseconds_at_most():
    reply = "Use warm water and a little soap. Then rinse it and let it dry. It takes an hour. Do it twice if you can. "
    refusal_phrase(reply)
    started = time.perf_counter()
    for _ in range(20):
        refusal_phrase(reply)
    assert (time.perf_counter() - started) / 20 < 0.02
