"""Every public noun shows itself: a claim on one line as text, and digits in a small escaped table as HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from nouns_by_hand import MAKERS, instances
from public_nouns import HOSTILE, public_nouns
from refusalscope import reprs
from refusalscope.reprs import Shown, facts_of, one_line
from refusalscope.stats import Estimate, placebo_rank, wilson

NOUNS = public_nouns()
VOID = {"img", "br", "hr", "col", "input", "meta", "link"}


class Markup(HTMLParser):
    """What a browser would see: tags, attributes, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag == "script" or any(name.startswith("on") or (name == "src" and value == "x") for name, value in attrs):
            self.problems.append(f"<{tag}> with {attrs} would run")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.text += data


def faults(noun: object) -> list[str]:
    """What is wrong with how a noun shows itself, in words."""
    text, found = repr(noun), []
    if "\n" in text:
        found.append("its text has several lines")
    if re.search(r"\d\.\d|\de-\d", text):
        found.append("its text has digits that can wobble")
    if re.search(r"0x[0-9a-f]{4}|tensor\(|<refusalscope", text):
        found.append("its text shows an address or a tensor")
    if not hasattr(noun, "_repr_html_"):
        return [*found, "it has no HTML"]
    html = noun._repr_html_()
    seen = Markup()
    seen.feed(html)
    seen.close()
    if seen.open:
        seen.problems.append(f"<{seen.open[-1]}> is not closed")
    if re.search(r"0x[0-9a-f]{4}|tensor\(", html):
        found.append("its HTML shows an address or a tensor")
    return [*found, *seen.problems]


def is_shown(noun: object) -> bool:
    """Whether the hostile words a noun holds can be read in its table, as text."""
    seen = Markup()
    seen.feed(noun._repr_html_())
    return any(words in seen.text for words in (HOSTILE, one_line(HOSTILE), HOSTILE.replace("\n", " ")))


@pytest.fixture(scope="module")
def nouns(tiny):
    return instances(tiny)


@pytest.mark.parametrize("name", NOUNS)
def test_every_public_noun_shows_a_claim_and_an_escaped_table(name, nouns):
    assert type(nouns[name]) is NOUNS[name]
    assert faults(nouns[name]) == []


def test_what_a_noun_is_called_can_be_read_in_its_table(nouns):
    named = {name for name, noun in nouns.items() if any(value is HOSTILE for value in facts_of(noun).values())}
    assert len(named) > 40
    assert {name for name in named if not is_shown(nouns[name])} == set()


def test_the_nouns_are_found_by_what_exports_returns_or_holds_them():
    expected = {"estimate.Estimate", "receipt.Receipt", "results.parts.Verdict", "diagnosis.findings.Finding"}
    expected |= {"selection.Choice", "model.chat.Origin", "attribution.knockout.MeanWrites", "truth.Measured"}
    assert expected <= set(NOUNS)
    assert len(NOUNS) > 100
    assert set(MAKERS) <= set(NOUNS)


@dataclass(frozen=True)
class Wordy:
    """A noun with the repr that every dataclass is born with, and no table."""

    value: float = 0.5


class Loose(Shown):
    """A noun that forgot to escape."""

    def _repr_html_(self) -> str:
        return f"<table><tr><td>{HOSTILE}</td></tr></table>"


class Unclosed(Shown):
    """A noun whose table does not end."""

    def _repr_html_(self) -> str:
        return "<table><tr></table>"


class Dumping(Shown):
    """A noun that shows its tensor and its address."""

    def __repr__(self) -> str:
        return f"{torch.zeros(1)!r} at {object()!r}"


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        (Wordy(), "no HTML"),
        (Wordy(), "digits that can wobble"),
        (Loose(), "would run"),
        (Unclosed(), "closes nothing"),
        (Dumping(), "a tensor"),
        (np.zeros((2, 2)), "several lines"),
    ],
)
def test_a_noun_that_shows_itself_badly_is_reported(noun, said):
    assert any(said in one for one in faults(noun)), faults(noun)


def test_a_name_that_is_not_shown_is_noticed():
    assert is_shown(NOUNS["claims.Claim"](HOSTILE, True, {}))
    assert not is_shown(NOUNS["claims.Claim"]("quiet", True, {}))


def test_names_from_outside_stay_on_one_line_with_their_control_characters_spelled():
    class Named(Shown):
        def __repr__(self) -> str:
            return "two\nlines\x1b[0m"

    assert repr(Named()) == str(Named()) == r"two\nlines\x1b[0m"


def test_a_cell_rounds_numbers_counts_what_is_long_and_never_dumps():
    assert [reprs.spelled(x) for x in (None, True, 0.123456, 12, np.float32(0.5), np.int64(7))] == [
        *("–", "yes", "0.123", "12", "0.5", "7")
    ]
    assert reprs.spelled(torch.zeros(2, 3)) == "Tensor of 2 × 3"
    assert reprs.spelled(pd.DataFrame({"a": [1, 2]})) == "DataFrame of 2 × 1"
    assert reprs.spelled(range(100)).endswith("; 11; and 88 more")
    assert reprs.spelled({"a": 0.25}) == "a: 0.25"
    assert reprs.spelled(()) == "none"
    assert reprs.spelled(object()) == "object"


def test_a_table_escapes_its_names_values_head_and_caption():
    html = reprs.table([(HOSTILE, HOSTILE)], caption=HOSTILE, head=(HOSTILE, HOSTILE))
    assert "<img" not in html
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 5


def test_an_estimate_claims_where_it_lies_and_prints_its_digits():
    above, none = wilson(40, 50), Estimate(0.5, None, n=3, clusters=1, method="none", note="too few")
    assert repr(above) == "Estimate: the interval is above zero"
    assert repr(none) == "Estimate: there is no interval"
    assert str(above).startswith("0.80 [0.67, 0.89] rate (Wilson 95%, n = 50")
    assert all(part in above._repr_html_() for part in ("0.80", "[0.67, 0.89]", "<td>50</td>"))
    assert repr(placebo_rank(1.0, np.zeros(39))) == "PlaceboRank: no placebo does as much"
    assert repr(placebo_rank(0.0, np.zeros(39))) == "PlaceboRank: some placebos do as much"
