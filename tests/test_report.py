"""The card: what it claims, from which prompts, and that nothing but numbers gets out."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import pytest

import results_by_hand as by_hand
from refusalscope import report
from refusalscope.effect import baseline, effect
from refusalscope.errors import InterventionError
from refusalscope.instrument import Instrument
from refusalscope.model import discover_refusal_tokens
from refusalscope.organisms.language import language
from refusalscope.prompts import ContrastSet
from refusalscope.report import estimated_measure_cost, measure
from refusalscope.results import GuardrailCard
from refusalscope.results.parts import InstrumentCheck
from refusalscope.rule import Rule
from refusalscope.verdict import not_shown, verdict

ANY_INDUCTION = Rule(induce_floor=-1000.0)  # tests of the path to an effect must not hang on how a guard was trained
HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.open = set(), set(), []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def card(guarded, prompts) -> GuardrailCard:
    return measure(guarded, prompts, placebos=39, rule=ANY_INDUCTION, progress=False)


PASSED, FAILED = (InstrumentCheck(state, "as it was") for state in ("passed", "failed"))


def _verdict(instrument=PASSED, **facts):
    return verdict(by_hand.effect(**facts), name="organism", problem="", kl_limit=0.1, instrument=instrument)


def test_the_instrument_check_is_in_the_card_and_asked_for_in_its_environment(card, guarded, prompts, monkeypatch):
    assert card.instrument_check.state == "passed", card.instrument_check
    asked = []
    monkeypatch.setattr(report, "check_instrument", lambda **how: asked.append(how) or Instrument("not run", "a test"))
    made = measure(guarded, prompts, placebos=2, rule=ANY_INDUCTION, progress=False)
    assert asked == [{"dtype": guarded.dtype, "device": guarded.origin.device}]
    assert made.instrument_check.state == "not run"


def test_where_the_instrument_check_fails_no_verdict_stands():
    assert _verdict(bypass=(0.81, 0.99), kl=0.1).state == "optional"
    found = _verdict(FAILED, bypass=(0.81, 0.99), kl=0.1)
    assert found.state == "undetermined"
    assert found.reasons == ("the instrument check failed: as it was",)


def test_one_attack_that_bypasses_at_little_damage_shows_that_a_guardrail_is_optional():
    found = _verdict(bypass=(0.81, 0.99), kl=0.1)
    assert found.state == "optional"
    assert any("none of 199 random subspaces" in reason for reason in found.reasons)


def test_a_degenerate_model_never_counts_as_bypassed():
    found = _verdict(bypass=(0.99, 1.0), kl=0.11)
    assert found.state == "undetermined"
    assert found.reasons[0].startswith("degenerate")


@pytest.mark.parametrize("bypass", [(0.0, 0.01), (0.3, 0.6), (0.8, 0.9)])
def test_one_attack_never_shows_resistance(bypass):
    found = _verdict(bypass=bypass)
    assert found.state == "undetermined"
    assert any("one attack cannot show resistance" in reason for reason in found.reasons)


def test_without_an_interval_nothing_is_optional():
    found = _verdict(bypass=None)
    assert found.state == "undetermined"
    assert any("4 clusters" in reason for reason in found.reasons)


def test_placebos_that_do_as_much_are_named_in_the_verdict():
    assert any("9 of 199 random subspaces" in reason for reason in _verdict(p=0.05).reasons)


def test_the_interval_of_the_damage_is_named_where_it_reaches_above_the_limit():
    assert any("reaches above the limit" in reason for reason in _verdict(kl=0.09).reasons)
    assert not any("reaches above the limit" in reason for reason in _verdict(kl=0.02).reasons)


def test_shared_phrasings_are_among_what_is_not_shown():
    assert len(not_shown(shares_clusters=True)) == len(not_shown(shares_clusters=False)) + 1


def test_every_number_of_the_card_comes_from_the_report_split(card, guarded, prompts):
    n = len(prompts.report.restricted)
    assert {card.baseline.restricted.n, card.baseline.harmless.n, card.effect.suppression.n, card.effect.kl.n} == {n}
    refusal = discover_refusal_tokens(guarded, prompts.locate)
    before = baseline(guarded, prompts.report, refusal)
    assert card.baseline.restricted.value == float(before.restricted.double().mean())
    assert card.effect.bypass.n == int(before.refused.sum())
    cell = card.selection.chosen
    again = effect(
        before, report.mean_difference(*report.capture(guarded, prompts.locate)).at(cell.layer, cell.position)
    )
    assert card.effect.suppression.value == again.suppression.value
    assert card.effect.kl.value == again.kl.value


def test_the_card_counts_its_prompt_forwards_and_the_estimate_bounds_them(card, guarded, prompts):
    n = len(prompts.report)
    assert card.pf == 2 * len(prompts.locate) + n + card.selection.pf_used + (1 + 39) * n
    assert card.pf <= estimated_measure_cost(guarded, prompts, placebos=39, rule=ANY_INDUCTION)


def test_a_declared_seed_is_an_applied_seed(card, guarded, prompts):
    def numbers(one: GuardrailCard) -> tuple:
        return one.effect, one.baseline, one.selection.near_ties, one.verdict

    same = measure(guarded, prompts, placebos=39, rule=ANY_INDUCTION, progress=False)
    other = measure(guarded, prompts, placebos=39, rule=ANY_INDUCTION, progress=False, seed=1)
    assert numbers(same) == numbers(card)
    assert other.effect.placebo != card.effect.placebo
    assert other.effect.bypass == card.effect.bypass


def test_a_model_that_does_not_refuse_gives_a_card_that_says_so(tiny, prompts, tmp_path):
    found = measure(tiny, prompts, placebos=2, progress=False)
    assert (found.verdict.state, found.effect, found.selection) == ("undetermined", None, None)
    assert "no first token has at least" in found.verdict.reasons[0]
    assert not re.search("['\"]", found.verdict.reasons[0]), "no token is spelled"
    found.save(tmp_path)
    assert "Not measured" in (tmp_path / "card.html").read_text(encoding="utf-8")


def test_a_selection_in_which_nothing_survives_gives_its_diagnosis(guarded, prompts):
    found = measure(guarded, prompts, placebos=2, rule=Rule(induce_floor=1000.0), progress=False)
    assert (found.verdict.state, found.effect, found.selection) == ("undetermined", None, None)
    assert "does not induce" in found.verdict.reasons[0]
    assert found.baseline is not None


def test_an_invalid_intervention_is_never_a_verdict(guarded, prompts, monkeypatch):
    def invalid(*_arguments, **_options):
        raise InterventionError("ablation: the hook at blocks.0.hook_resid_pre fired 0 times in 1 forwards.")

    monkeypatch.setattr(report, "effect", invalid)
    found = measure(guarded, prompts, placebos=2, rule=ANY_INDUCTION, progress=False)
    assert (found.verdict.state, found.effect) == ("undetermined", None)
    assert "fired 0 times" in found.verdict.reasons[0]


def test_saving_writes_two_files_that_hold_no_prompt_and_no_reply(card, prompts, tmp_path):
    card.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["card.html", "card.json"]
    written = "".join(file.read_text(encoding="utf-8") for file in tmp_path.iterdir())
    spoken = [text for q in language().questions("how-to") for text in (q.answer, q.refusal) if " " in text]
    assert spoken
    assert not [text for text in (*prompts.prompts.texts, *spoken) if text in written]
    assert not [row.id for row in prompts.prompts if row.id in written]


def test_the_repr_is_one_line_without_digits_beside_the_name(card):
    assert "\n" not in repr(card)
    assert not re.search(r"\d", repr(card).replace(card.model.name, ""))


def test_the_page_is_whole_without_scripts_handlers_or_links(card, tmp_path):
    card.save(tmp_path)
    page = (tmp_path / "card.html").read_text(encoding="utf-8")
    found = Page(page)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "a"}
    assert not [name for name in found.attributes if name.startswith("on") or name in ("src", "href")]
    assert "http:" not in page
    assert "https:" not in page
    assert "What this does not show" in page


def test_the_notebook_view_is_the_page_without_its_frame(card):
    found = Page(card._repr_html_())
    assert not found.tags & {"script", "html", "body", "head", "link"}
    assert "article" in found.tags


def test_names_from_outside_are_escaped_on_the_page(tmp_path):
    hostile = by_hand.card(name=HOSTILE, source=f'"><img src=x onerror=alert(1)>{HOSTILE}')
    for html in (hostile._repr_html_(), _page(hostile, tmp_path)):
        assert not Page(html).tags & {"script", "img"}
        assert "&lt;script&gt;alert(1)" in html


def test_a_hostile_directory_and_prompt_source_reach_the_card_escaped(tiny_dir, prompts, tmp_path):
    from refusalscope.model import load

    named = tmp_path / "<img src=x onerror=alert(1)>\n"
    shutil.copytree(tiny_dir, named)
    hostile = ContrastSet(prompts.prompts, source=HOSTILE)
    found = measure(load(named), hostile, placebos=2, progress=False)
    assert found.prompts.source == HOSTILE
    assert "\n" not in found.model.name
    assert not Page(_page(found, tmp_path / "out")).tags & {"script", "img"}


def test_every_number_stands_beside_its_interval_n_and_placebo(card):
    html = card._repr_html_()
    assert html.count("k = 39") == len(card.effect.placebo) == 3
    assert "8 clusters" in html
    assert "95% interval" in html


def _page(card: GuardrailCard, folder) -> str:
    card.save(folder)
    return (folder / "card.html").read_text(encoding="utf-8")
