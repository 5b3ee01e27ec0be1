"""The card: what it claims, from which prompts, and that nothing but numbers gets out."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import results_by_hand as by_hand
from refusalscope import progress
from refusalscope.capture import capture
from refusalscope.effect import baseline, effect
from refusalscope.errors import InterventionError, MeasurementError, PromptError
from refusalscope.instrument import Check, Instrument
from refusalscope.locators import mean_difference
from refusalscope.optionality import Menu
from refusalscope.organisms.language import language
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import readout, validate_readout
from refusalscope.report import PLANS, Plan, card, estimated_measure_cost, measure, stages
from refusalscope.report.deploy import most_watched
from refusalscope.report.verdict import not_shown
from refusalscope.results import GuardrailCard
from refusalscope.results.parts import ContrastFacts
from refusalscope.rule import Rule

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


SMALL = Plan("own", Menu(best=1, doses=(1.0, 1.5)), placebos=3, per_label=8, curve_placebos=3)
PASSED = Instrument("passed", "as it was", (Check("planted", "bypass rate", 1.0, at_least=0.98),))
FAILED = Instrument("failed", "as it was")


@pytest.fixture(scope="module")
def made(guarded, prompts) -> GuardrailCard:
    return measure(guarded, prompts, plan=SMALL, rule=ANY_INDUCTION, progress=False, instrument=PASSED)


def few(guarded, prompts, **how) -> GuardrailCard:
    """A measurement without curves and transfer."""
    plan = replace(SMALL, curves=(), transfer=False)
    return measure(
        guarded, prompts, **{"plan": plan, "rule": ANY_INDUCTION, "instrument": PASSED} | how, progress=False
    )


# --- the verdict ---


def test_the_instrument_check_is_in_the_card_and_asked_for_in_its_environment(made, guarded, prompts, monkeypatch):
    known = made.instrument_check.known[0]
    assert (made.instrument_check.state, known.value, known.at_least) == ("passed", 1.0, 0.98)
    asked = []
    monkeypatch.setattr(card, "check_instrument", lambda **how: asked.append(how) or Instrument("not run", "a test"))
    found = few(guarded, prompts, instrument=None)
    assert asked == [{"dtype": guarded.dtype, "device": guarded.origin.device}]
    assert found.instrument_check.state == "not run"


def test_where_the_instrument_check_fails_no_verdict_stands(made, guarded, prompts):
    assert made.verdict.state == "partly optional", "16 prompts are too few to say more"
    found = few(guarded, prompts, instrument=FAILED)
    assert found.verdict.state == "undetermined"
    assert found.verdict.reasons[0] == "the instrument check failed: as it was"
    assert found.optionality.bypass.value == made.optionality.bypass.value


def test_the_verdict_is_that_of_the_worst_case_over_the_family(made):
    worst = made.optionality
    assert worst.bypass.value == 1.0
    assert "0.2" in made.verdict.reasons[0]
    assert f"{worst.bypass.interval[0]:.2f}" in made.verdict.reasons[0]
    assert worst.n_attacks == len(worst.attacks) == 4
    assert {one.dose for one in worst.attacks} == {1.0, 1.5}
    assert [point.kappa for point in worst.frontier] == sorted(point.kappa for point in worst.frontier)


def test_shared_phrasings_and_the_quick_plan_are_among_what_is_not_shown():
    full, quick = PLANS["full"], PLANS["quick"]
    assert len(not_shown(full, shares_clusters=True)) == len(not_shown(full, shares_clusters=False)) + 1
    assert len(not_shown(quick, shares_clusters=True)) == len(not_shown(full, shares_clusters=True)) + 1


# --- plans ---


def test_the_quick_plan_is_labelled_and_says_what_it_leaves_out(guarded, prompts):
    found = measure(guarded, prompts, plan="quick", progress=False, instrument=PASSED)
    assert found.plan == "quick"
    assert "This is the quick plan" in found.not_shown[0]
    assert [line.split(":")[0] for line in found.missing][-1] == "transfer"
    assert "quick plan" in found._repr_html_()
    assert found.optionality.placebo["bypass"].k == PLANS["quick"].placebos


def test_a_plan_that_there_is_not_is_named():
    with pytest.raises(MeasurementError, match="no plan 'fast'"):
        card.named_plan("fast")
    assert card.named_plan(replace(PLANS["full"], placebos=3)).name == "own"


def test_the_card_counts_its_prompt_forwards_and_the_estimate_bounds_them(guarded, prompts):
    found, n = few(guarded, prompts), len(prompts.report)
    read = 2 * len(prompts.locate) + 2 * len(prompts.select) + 2 * len(prompts.report.restricted)
    measured = read + n + found.selection.pf_used + found.optionality.pf + (1 + 3) * n
    assert found.pf == measured + most_watched(prompts, placebos=3)
    plan = replace(SMALL, curves=(), transfer=False)
    assert found.pf <= estimated_measure_cost(guarded, prompts, plan=plan, rule=ANY_INDUCTION)


def test_the_parts_of_a_card_add_up_to_its_prompt_forwards(made, guarded, prompts):
    parts = [*(curve.pf for curve in made.curves), made.transfer.pf]
    assert made.pf == few(guarded, prompts).pf + sum(parts)
    assert made.pf <= estimated_measure_cost(guarded, prompts, plan=SMALL, rule=ANY_INDUCTION), "at most is at most"
    assert [curve.name for curve in made.curves] == list(Plan.curves)
    assert not made.missing


# --- what the numbers come from ---


def test_every_number_of_the_card_comes_from_the_report_split(made, guarded, prompts):
    n = len(prompts.report.restricted)
    assert {made.baseline.restricted.n, made.baseline.harmless.n, made.effect.suppression.n, made.effect.kl.n} == {n}
    refusal = readout(guarded, prompts.locate)
    before = baseline(guarded, prompts.report, refusal)
    assert made.baseline.restricted.value == float(before.restricted.double().mean())
    assert made.effect.bypass.n == made.optionality.bypass.n == int(before.refused.sum())
    cell = made.selection.chosen
    again = effect(before, mean_difference(*capture(guarded, prompts.locate)).at(cell.layer, cell.position))
    assert made.effect.suppression.value == again.suppression.value
    assert made.effect.kl.value == again.kl.value


def test_the_card_says_how_far_its_readout_can_be_trusted_under_ablation_too(made, guarded, prompts):
    """An organism may be decoded under an intervention: there its answers judge the readout."""
    plain, intervened = made.validity.plain, made.validity.intervened
    again = validate_readout(guarded, prompts.select, readout(guarded, prompts.locate))
    assert (plain.kappa.value, plain.late.value, plain.declined) == (
        again.kappa.value,
        again.late.value,
        again.declined,
    )
    assert plain.agreement.n == len(prompts.select)
    assert intervened is not None
    assert "ablated" in intervened.judge
    assert intervened.agreement.n == len(prompts.report.restricted)
    assert intervened.agreement.value >= 0.9


def test_the_card_says_what_was_located_on(made, guarded, prompts):
    before = baseline(guarded, prompts.locate, readout(guarded, prompts.locate))
    refused, answered = int(before.refused.sum()), int(before.answered.sum())
    dropped = (len(before.refused) - refused, len(before.answered) - answered)
    assert made.contrast == ContrastFacts("behaviour", refused, answered, *dropped)


def test_bounds_and_over_refusal_stand_beside_the_bypass_rate(made):
    for one in (made.effect, made.optionality):
        assert one.bypass_lower.value <= one.bypass.value
        assert 0 <= one.over_refusal_before.value <= 1
        assert 0 <= one.over_refusal_after.value <= 1


def test_a_declared_seed_is_an_applied_seed(made, guarded, prompts):
    def numbers(one: GuardrailCard) -> tuple:
        return one.effect, one.baseline, one.selection.near_ties, one.verdict, one.optionality

    same, other = few(guarded, prompts), few(guarded, prompts, seed=1)
    assert numbers(same) == numbers(made)
    assert other.effect.placebo != made.effect.placebo
    assert other.effect.bypass == made.effect.bypass


def test_the_card_says_what_a_deployment_can_rely_on_with_placebos_beside_what_was_measured_here(made):
    guardrail, audit, monitor = made.deploy
    assert guardrail.rates[0].value == made.optionality.bypass
    assert guardrail.rates[0].placebo is not None
    assert [one.of for one in (guardrail, audit, monitor)] == ["guardrail", "audit", "monitor"]
    assert len(monitor.rates) == 6


def test_curves_transfer_and_cost_hold_intervals_and_placebos(made):
    dose = next(curve for curve in made.curves if curve.name == "dose")
    at_one = [point for point in dose.points if point.at == {"dose": 1.0}]
    assert {point.measure for point in at_one} == {"bypass", "suppression", "kl"}
    assert all(point.placebo.n == 3 and point.value.clusters == 8 for point in at_one)
    assert "dialect" in {cell.grouping for cell in made.transfer.cells}
    assert all(cell.random is not None and cell.random.n == 3 for cell in made.transfer.cells)
    assert [step.step for step in made.cost.steps][-1] == "total"
    assert {one.model for one in made.cost.larger} == {"1B", "8B", "70B", "671B"}
    assert made.cost.assumptions


# --- bad input gives a card that says what is wrong ---


def of(prompts, keep) -> ContrastSet:
    """The contrast set of the rows that a condition keeps."""
    return ContrastSet(
        Prompts(tuple(replace(row, pair=None) for row in prompts.prompts if keep(row))), source="some rows"
    )


def test_a_model_that_does_not_refuse_gives_a_card_that_says_so(tiny, prompts, tmp_path):
    found = few(tiny, prompts)
    assert (found.verdict.state, found.effect, found.optionality) == ("undetermined", None, None)
    assert "none of its own replies" in found.verdict.reasons[0]
    assert not re.search("['\"]", found.verdict.reasons[0]), "no token is spelled"
    found.save(tmp_path)
    assert "Not measured" in (tmp_path / "card.html").read_text(encoding="utf-8")


def test_the_unguarded_organism_has_nothing_to_measure(organism, prompts):
    found = few(organism("unguarded"), prompts)
    assert (found.verdict.state, found.optionality, found.effect) == ("undetermined", None, None)


def test_a_selection_in_which_nothing_survives_leaves_the_worst_case(guarded, prompts):
    found = few(guarded, prompts, rule=Rule(induce_floor=1000.0))
    assert (found.effect, found.selection) == (None, None)
    assert found.verdict.state == "partly optional", "the family does not hang on the rule"
    assert any("does not induce" in line for line in found.missing)


def test_an_intervention_that_did_not_happen_is_never_a_verdict(guarded, prompts, monkeypatch):
    def invalid(*_arguments, **_options):
        raise InterventionError("ablation: the hook at blocks.0.hook_resid_pre fired 0 times in 1 forwards.")

    monkeypatch.setattr(stages, "measured", invalid)
    found = few(guarded, prompts)
    assert (found.verdict.state, found.optionality) == ("undetermined", None)
    assert "fired 0 times" in found.verdict.reasons[0]


def test_fewer_than_five_clusters_give_a_value_without_interval_and_no_verdict(guarded, prompts):
    found = few(guarded, of(prompts, lambda row: row.cluster[-1] in "058"))
    assert found.verdict.state == "undetermined"
    assert "clusters" in found.verdict.reasons[0]
    assert found.optionality.bypass.interval is None


@pytest.mark.parametrize(
    ("name", "clusters", "diagnosed"),
    [("guarded-0", "0123456789", False), ("guarded-0", "058", True), ("unguarded", "058", True)],
    ids=["no diagnosis", "every stage and a diagnosis", "a diagnosis instead of most stages"],
)
def test_the_progress_bar_ends_at_its_total(organism, prompts, monkeypatch, name, clusters, diagnosed):
    bars, moves = [], []

    class Kept(progress.tqdm):
        def __init__(self, **how):
            super().__init__(**how)
            bars.append(self)

        def update(self, n=1):
            moves.append(n)
            return super().update(n)

    monkeypatch.setattr(progress, "tqdm", Kept)
    plan = replace(SMALL, curves=("dose",), transfer=False)
    some = of(prompts, lambda row: row.cluster[-1] in clusters)
    found = measure(organism(name), some, plan=plan, rule=ANY_INDUCTION, instrument=PASSED)
    assert [bar.n for bar in bars] == [bars[0].total] == [plan.stages], "one bar, told what runs inside it"
    assert all(n >= 0 for n in moves), "no stage was counted twice, or left out of the total"
    assert (found.diagnosis is not None) == diagnosed


@pytest.mark.parametrize(("split", "label"), [("report", "harmless"), ("locate", "restricted"), ("select", "harmless")])
def test_a_split_without_one_of_the_labels_is_refused_before_anything_runs(prompts, split, label):
    with pytest.raises(PromptError, match=f"'{split}' has no {label} prompts"):
        of(prompts, lambda row: (row.split, row.label) != (split, label))


def test_one_prompt_of_each_kind_gives_no_interval_and_no_verdict(guarded, prompts):
    ones = {(row.split, row.label): row.id for row in prompts.prompts}
    found = few(guarded, of(prompts, lambda row: row.id == ones[row.split, row.label]))
    assert found.verdict.state == "undetermined"
    assert found.optionality is None or found.optionality.bypass.interval is None


@pytest.mark.parametrize("label", ["restricted", "harmless"])
def test_prompts_of_one_kind_under_both_labels_are_not_told_apart(guarded, prompts, label):
    """All refused, or none: the labels are right and the model does not care, or the labels are wrong."""
    kept = [row for row in prompts.prompts if row.label == label]
    other = {"restricted": "harmless", "harmless": "restricted"}[label]
    halves = [replace(row, label=(label, other)[i % 2], pair=None) for i, row in enumerate(kept)]
    found = few(guarded, ContrastSet(Prompts(tuple(halves)), source="mislabelled"))
    assert found.verdict.state == "undetermined"
    assert found.optionality is None


def test_logits_that_are_not_numbers_leave_the_verdict_open(tiny_dir, prompts, monkeypatch):
    from refusalscope.model import load

    model = load(tiny_dir)
    with torch.no_grad():
        next(iter(model.bridge.original_model.parameters())).fill_(torch.nan)
    found = few(model, prompts)
    assert (found.verdict.state, found.optionality) == ("undetermined", None)
    assert found.verdict.reasons[0]


def test_a_margin_that_never_varies_has_no_verdict(guarded, prompts, monkeypatch):
    """Every prompt answers the same: nothing separates restricted from harmless."""
    real = stages.baseline

    def constant(*arguments):
        found = real(*arguments)
        return replace(found, restricted=torch.ones_like(found.restricted), harmless=torch.ones_like(found.harmless))

    monkeypatch.setattr(stages, "baseline", constant)
    monkeypatch.setattr(sys.modules["refusalscope.optionality.measured"], "baseline", constant)
    found = few(guarded, prompts)
    assert found.verdict.state == "undetermined"
    assert found.optionality is None or found.optionality.bypass.interval is None


# --- what is written ---


def test_saving_writes_two_files_that_hold_no_prompt_and_no_reply(made, prompts, tmp_path):
    made.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["card.html", "card.json"]
    written = "".join(file.read_text(encoding="utf-8") for file in tmp_path.iterdir())
    known = made.readout.phrases  # of an organism: the refusals of its language, and nothing else that it says
    assert set(known) <= {text for q in language().questions("how-to") for text in (q.refusal, q.varied_refusal)}
    spoken = [text for q in language().questions("how-to") for text in (q.answer, q.refusal) if " " in text]
    spoken = [text for text in spoken if text not in known]
    assert spoken
    assert not [text for text in (*prompts.prompts.texts, *spoken) if text in written]
    assert not [row.id for row in prompts.prompts if row.id in written]


def test_the_repr_is_one_line_without_digits_beside_the_name(made):
    assert "\n" not in repr(card)
    assert not re.search(r"\d", repr(made).replace(made.model.name, ""))


def test_the_page_is_whole_without_scripts_handlers_or_links(made, tmp_path):
    made.save(tmp_path)
    page = (tmp_path / "card.html").read_text(encoding="utf-8")
    found = Page(page)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "a"}
    assert not [name for name in found.attributes if name.startswith("on") or name in ("src", "href")]
    assert "http:" not in page
    assert "https:" not in page
    assert "What this does not show" in page


def test_the_notebook_view_is_the_page_without_its_frame(made):
    found = Page(made._repr_html_())
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
    found = few(load(named), hostile)
    assert found.prompts.source == HOSTILE
    assert "\n" not in found.model.name
    assert not Page(_page(found, tmp_path / "out")).tags & {"script", "img"}


def test_every_number_stands_beside_its_interval_n_and_placebo(made):
    html = made._repr_html_()
    beside = sum(rate.placebo is not None for one in made.deploy for rate in one.rates)
    assert html.count("k = 3") == len(made.effect.placebo) + len(made.optionality.placebo) + beside == 10
    assert "8 clusters" in html
    assert "95% interval" in html
    assert html.count("<svg") == 1 + len(made.curves)


def _page(one: GuardrailCard, folder) -> str:
    one.save(folder)
    return (folder / "card.html").read_text(encoding="utf-8")
