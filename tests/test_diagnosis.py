"""Diagnosis: each of the six fires where it is so and not where it is not; what went wrong never passes as fine."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from conftest import ORGANISMS
from refusalscope import baseline, capture, cli, interventions, locate, metrics, placebo_effects, select, stats
from refusalscope.activations import ContrastActivations, Moments
from refusalscope.diagnosis import Diagnosis, Exact, Finding, diagnose, estimated_diagnose_cost
from refusalscope.diagnosis import watching as watching_module
from refusalscope.diagnosis.channels import loud_channel
from refusalscope.diagnosis.collapse import KL, ablation
from refusalscope.diagnosis.findings import side
from refusalscope.diagnosis.margins import baseline_margin
from refusalscope.diagnosis.openings import AFTER, openings
from refusalscope.diagnosis.replies import (
    REFUSALS,
    Replies,
    baseline_of,
    default_neutral,
    default_openings,
    first_words,
    replies,
)
from refusalscope.diagnosis.resampled import auroc, rank_correlation
from refusalscope.errors import InterventionError, SelectionError
from refusalscope.locators.standardised import standardised
from refusalscope.metrics import Openings
from refusalscope.model import load
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.prompts.prompt import LABELS
from refusalscope.reading import Readout, readout
from refusalscope.rule import Cell, Rule
from refusalscope.stats import Estimate

NAMES = ("baseline margin", "readout", "loud channel", "selection", "ablation", "openings")
LOUD_CHANNEL, LOUDER = 79, 6.0  # of guarded-0: much of the refusal direction, little of the stream


@pytest.fixture(scope="module")
def whole() -> ContrastSet:
    return ContrastSet.read(ORGANISMS.parent / "prompts" / "organism.jsonl")


@pytest.fixture(scope="module")
def shipped(whole) -> ContrastSet:
    """Of the shipped set, eight prompts of each label, cluster and split, from all categories; all those to locate."""
    parts = [getattr(split, label) for split in (whole.select, whole.report) for label in LABELS]
    kept = [row for part in parts for name in sorted(set(part.clusters)) for row in spread(part.where(cluster=name), 8)]
    return ContrastSet(Prompts((*whole.locate, *kept)), source="some.jsonl")


def spread(prompts: Prompts, n: int) -> list:
    """n prompts at even distances: those of one category stand together."""
    return list(prompts)[:: len(prompts) // n][:n]


@pytest.fixture(scope="module")
def diagnosed(organism, shipped):
    """A function from an organism's name to its diagnosis on the shipped prompts; each is made once."""
    return cache(lambda name: diagnose(organism(name), shipped))


@pytest.fixture(scope="module")
def filtered(organism, whole) -> Diagnosis:
    """planted-4-1, whose refusal takes four dimensions: no single one survives the rule on the shipped prompts."""
    return diagnose(organism("planted-4-1"), whole)


@pytest.fixture(scope="module")
def loud_dir(tmp_path_factory) -> Path:
    """guarded-0 with every write to one channel louder and every read of it as much softer: only the norms notice."""
    folder = copied("guarded-0", tmp_path_factory.mktemp("loud") / "louder-0")

    def louder(name: str, weights: torch.Tensor) -> torch.Tensor:
        made = weights.float()
        if "embed_tokens" in name:
            made[:, LOUD_CHANNEL] *= LOUDER
        elif "o_proj" in name or "down_proj" in name:
            made[LOUD_CHANNEL] *= LOUDER
        elif name == "model.norm.weight":
            made[LOUD_CHANNEL] /= LOUDER**2  # the unembedding is the embedding, and louder too
        elif name.endswith("layernorm.weight"):
            made[LOUD_CHANNEL] /= LOUDER
        return made

    return rewritten(folder, louder)


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(ORGANISMS / name, folder))


def rewritten(folder: Path, change) -> Path:
    file = folder / "model.safetensors"
    save_file({name: change(name, x) for name, x in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def first_tokens(model, found: Readout) -> list[str]:
    """What the refusals of a readout begin with, as the tokenizer spells it."""
    return model.tokenizer.convert_ids_to_tokens([opening[0] for opening in found.refusals])


def states(found: Diagnosis) -> dict[str, str]:
    return {one.name: one.state for one in found.findings}


def relabelled(prompts: ContrastSet, given: str) -> ContrastSet:
    """The prompts of one label only, every other one under the other label."""
    rows = [row for split in (prompts.locate, prompts.select, prompts.report) for row in getattr(split, given)]
    labels = ("restricted", "harmless")
    kept = [dataclasses.replace(row, label=labels[i % 2], pair=None) for i, row in enumerate(rows)]
    return ContrastSet(Prompts(tuple(kept)), source="one-label.jsonl")


# --- the picture ---


@pytest.mark.parametrize("name", ["guarded-0", "planted-1"])
def test_a_guarded_organism_fits_the_picture(diagnosed, name):
    found = diagnosed(name)
    assert states(found) == dict.fromkeys(NAMES, "clear")
    assert found.fits
    assert repr(found) == f"Diagnosis of {name}: fits the picture"


def test_every_number_stands_with_its_n_and_every_estimate_with_an_interval_or_a_note(diagnosed):
    for one in diagnosed("guarded-0").findings:
        assert one.numbers
        for number in one.numbers.values():
            assert number.n > 0
            assert isinstance(number, Exact) or number.interval is not None or number.note


def test_margins_and_choice_are_those_measured_elsewhere(diagnosed, guarded, shipped):
    found = diagnosed("guarded-0")
    refusal = readout(guarded, shipped.locate)
    acts = capture(guarded, shipped.locate)
    choice = select(guarded, locate.mean_difference(*acts), shipped.select, refusal)
    assert found.cell == choice.cell
    numbers = found["selection"].numbers
    assert numbers["chosen cell, KL(base‖ablated)"].value == pytest.approx(choice.estimates["kl"][choice.cell].value)
    assert numbers["cells: kept"].value == (choice.cells["reason"] == "kept").sum()
    unread = metrics.read(guarded, shipped.report.restricted, refusal).unread
    assert found["readout"].numbers["mass on the openings"].value == pytest.approx(float(1 - unread.mean()), abs=1e-6)


def test_the_prompt_forwards_are_those_that_ran_and_no_more_than_announced(guarded, prompts):
    """A reply that is read costs its prompt; the tokens after it, one at a time, are no prompt-forwards."""
    rows = []

    def note(_module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        rows.append(len(hidden) if hidden.shape[1] > 1 else 0)

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in guarded.bridge.blocks]
    found = diagnose(guarded, prompts)
    for handle in handles:
        handle.remove()
    assert sum(rows) / guarded.n_layers == pytest.approx(found.pf)
    assert found.pf <= estimated_diagnose_cost(guarded, prompts)


def test_a_guardrail_that_resists_is_none_of_the_six_and_does_not_fit_all_the_same(diagnosed):
    """In planted-2-1 one direction of two passes the rule and bypasses about half, in hardened-1 nothing."""
    resisting = diagnosed("planted-2-1")
    assert not resisting.fired
    assert not resisting.fits
    rate = diagnosed("hardened-1")["ablation"].numbers["bypass rate"]
    assert rate.high < 0.5
    found = diagnosed("guarded-0")
    numbers = {**found["ablation"].numbers, "bypass rate": rate}
    held = [dataclasses.replace(one, numbers=numbers) if one.name == "ablation" else one for one in found.findings]
    assert "does not carry its refusals" in repr(dataclasses.replace(found, findings=tuple(held)))
    assert not dataclasses.replace(found, findings=tuple(held)).fits


# --- one: the baseline margin is not separated ---


def test_a_model_that_does_not_refuse_is_said_to_and_nothing_is_located_in_it(diagnosed):
    found = diagnosed("unguarded")
    assert found["baseline margin"].fired
    assert "unguarded does not refuse" in repr(found)
    rate = found["baseline margin"].numbers["refusal rate, restricted"]
    assert rate.high < 0.5
    assert "Wilson" in rate.method
    for name in ("loud channel", "selection", "ablation"):
        assert found[name].state == "cannot tell"
        assert "no refusal to locate" in found[name].reason
    assert found.cell is None


def test_a_model_that_refuses_everything_is_said_to(guarded, shipped):
    found = diagnose(guarded, relabelled(shipped, "restricted"))
    assert found["baseline margin"].fired
    assert "refuses everything" in repr(found)
    assert found["baseline margin"].numbers["refusal rate, harmless"].low > 0.5
    separation = found["baseline margin"].numbers["AUROC of the margin"]
    assert separation.low < 0.5 < separation.high


def test_harmless_prompts_alone_are_no_refusal(guarded, shipped):
    found = diagnose(guarded, relabelled(shipped, "harmless"))
    assert "does not refuse" in found["baseline margin"].sentence


def test_auroc_and_rank_correlation_are_the_libraries():
    chance = np.random.default_rng(0)
    x, y, positive = chance.integers(0, 9, 60), chance.normal(size=60), chance.random(60) < 0.4
    assert auroc(x, positive) == pytest.approx(roc_auc_score(positive, x))
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert math.isnan(auroc(x, np.ones(60, bool)))
    assert math.isnan(rank_correlation(np.ones(60), y))


# --- two: the openings hold too little ---


@pytest.fixture(scope="module")
def mistaken(guarded, shipped) -> Diagnosis:
    """guarded-0 with a refusal token that no refusal begins with."""
    return diagnose(guarded, shipped, readout=readout(guarded, shipped.locate, openings=["?"]))


def test_tokens_that_capture_little_are_said_to_and_the_openings_tell_that_the_model_refuses(mistaken):
    """With the wrong tokens a guarded model looks unguarded; the openings know better."""
    found = mistaken
    assert found["readout"].fired
    numbers = found["readout"].numbers
    assert numbers["mass on the openings"].high < 0.5
    assert numbers["other first tokens with 2% of the mass"].value == 2  # one opening per dialect
    assert found["openings"].fired


def test_where_else_the_mass_is_is_said_in_counts_and_never_in_words(guarded, shipped, mistaken):
    said = json.dumps(mistaken.to_dict(), ensure_ascii=False)
    refusals = first_tokens(guarded, readout(guarded, shipped.locate))
    assert not any(token in said for token in refusals)


def test_tokens_that_capture_half_in_one_dialect_and_none_in_the_other_leave_it_open(guarded, prompts):
    one = first_tokens(guarded, readout(guarded, prompts.locate))[0]
    found = diagnose(guarded, prompts, readout=readout(guarded, prompts.locate, openings=[one]))
    assert found["readout"].state == "cannot tell"
    assert "hold the limits" in found["readout"].reason


# --- three: a loud channel owns the direction ---


def fictional(strength: float, truth: torch.Tensor, *, n: int = 64, seed: int = 0):
    """Activations of one layer and position, and prompts of eight clusters for them: one channel is louder."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, 1, 1, len(truth), generator=noise, dtype=torch.float64)
    x[:n, 0, 0] += truth
    x[..., 3] *= strength
    moments = (Moments(), Moments())
    for moment, part in zip(moments, (x[:n], x[n:]), strict=True):
        moment.add(part)
    names, parts = ("restricted", "harmless"), (x[:n].float(), x[n:].float())
    made = [m.activations(name, each=part) for m, name, part in zip(moments, names, parts, strict=True)]
    return ContrastActivations(*made), some_prompts(n)


def some_prompts(n: int) -> Prompts:
    rows = ContrastSet.read(ORGANISMS.parent / "prompts" / "organism.jsonl").prompts
    return Prompts(tuple(row for label in (rows.restricted, rows.harmless) for row in label[:n]))


def spread_out(width: int = 24) -> torch.Tensor:
    truth = torch.ones(width, dtype=torch.float64)
    return 4 * truth / truth.norm()


def test_a_planted_loud_channel_fires_and_a_channel_like_any_other_does_not():
    acts, prompts = fictional(400.0, spread_out())
    found = loud_channel(acts, Cell(0, -1), prompts, seed=0)
    assert found.fired
    assert found.numbers["top channel's share of the difference in means"].low > 0.5
    assert found.numbers["that channel's share of the residual stream"].low > 0.5
    assert found.numbers["standardised: top share"].value < 0.5
    assert found.numbers["winsorised over channels: top share"].value < 0.5
    quiet = loud_channel(*swapped(fictional(1.0, spread_out())), seed=0)
    assert quiet.state == "clear"


def swapped(made):
    acts, prompts = made
    return acts, Cell(0, -1), prompts


def test_one_channel_that_tells_the_classes_apart_without_being_loud_is_nothing_wrong():
    axis = torch.zeros(24, dtype=torch.float64)
    axis[3] = 6.0
    found = loud_channel(*swapped(fictional(1.0, axis)), seed=0)
    assert found.numbers["top channel's share of the difference in means"].low > 0.5
    assert found.state == "clear"
    assert "in its own spread as well" in found.sentence


def test_a_louder_copy_of_an_organism_fires_and_standardising_finds_what_the_mean_difference_misses(loud_dir, whole):
    louder = load(loud_dir)
    found = diagnose(louder, whole)
    assert found["baseline margin"].state == "clear"
    assert found["loud channel"].fired
    assert found["loud channel"].numbers["cells owned by one channel"].value > 0
    acts = capture(louder, whole.locate)
    assert found.cell is not None
    plain, tamed = (made(*acts).at(*found.cell) for made in (locate.mean_difference, standardised))
    before = baseline(louder, whole.report, readout(louder, whole.locate))
    done = placebo_effects(before, [plain, tamed])
    assert done["bypass"][1] > done["bypass"][0] + 0.2
    assert done["kl"][1] < done["kl"][0] / 2


# --- four: every cell is filtered ---


def test_where_no_cell_survives_the_best_one_and_what_it_fails_by_are_named(filtered):
    assert filtered["selection"].fired
    assert "changes how harmless prompts are answered" in filtered["selection"].sentence
    numbers = filtered["selection"].numbers
    kl = numbers["best rejected cell, KL(base‖ablated)"].value
    assert numbers["best rejected cell, fails by, nats"].value == pytest.approx(kl - Rule().kl_limit)
    removed = {name: number.value for name, number in numbers.items() if name.startswith("cells: ")}
    assert sum(removed.values()) == numbers["cells: damages"].n == 30


@pytest.mark.parametrize("rule", [Rule(kl_limit=1e-9), Rule(induce_floor=1e6)])
def test_counts_and_the_nearest_cell_are_those_of_the_rules_own_message(guarded, prompts, rule):
    refusal = readout(guarded, prompts.locate)
    with pytest.raises(SelectionError) as caught:
        select(guarded, locate.mean_difference(*capture(guarded, prompts.locate)), prompts.select, refusal, rule=rule)
    said = re.search(r"Removed: (.*?)\. (.*): layer (\d+), position (-\d+) \(", str(caught.value))
    assert said is not None
    found = diagnose(guarded, prompts, rule=rule)
    expected = {name: int(count) for name, count in re.findall(r"([a-z][a-z ]*) (\d+)", said[1])}
    numbers = found["selection"].numbers.items()
    assert expected == {name.removeprefix("cells: "): one.value for name, one in numbers if name.startswith("cells: ")}
    assert found.cell == Cell(int(said[3]), int(said[4]))


def test_a_rule_that_nothing_meets_names_its_filter(guarded, prompts):
    found = diagnose(guarded, prompts, rule=Rule(induce_floor=1e6))
    assert found["selection"].fired
    assert "does not make the model refuse" in found["selection"].sentence
    assert found["selection"].numbers["best rejected cell, fails by, nats"].value > 1e5
    late = diagnose(guarded, prompts, rule=Rule(layer_share=0.0))
    assert late["selection"].state == "invalid"
    assert not late.fits


# --- five: degenerate under ablation ---


@pytest.fixture(scope="module")
def read(guarded, shipped):
    """guarded-0 at baseline: the baseline, and how its replies begin."""
    refusal = readout(guarded, shipped.locate)
    base = replies(guarded, shipped.report, refusal, default_openings(guarded), ("banubu guva zari ?",) * 8)
    return baseline_of(guarded, shipped.report, refusal, base), base


def beginning(base: Replies, **logp: torch.Tensor) -> Replies:
    """The same replies with other log-probabilities of their first token, by label."""
    return dataclasses.replace(
        base,
        **{
            f"read_{name}": dataclasses.replace(getattr(base, f"read_{name}"), base=value)
            for name, value in logp.items()
        },
    )


def test_an_ablation_that_damages_makes_the_bypass_rate_mean_nothing(filtered):
    found = filtered["ablation"]
    assert found.fired
    assert "means nothing" in found.sentence
    assert found.numbers[KL].low > 0.1


def test_a_model_that_begins_every_reply_alike_is_degenerate_whatever_its_damage(read):
    before, base = read
    one = torch.full_like(base.harmless[:1], -20.0)
    one[:, 5] = 0.0
    one = one.log_softmax(-1)
    same = beginning(base, restricted=one.expand_as(base.restricted), harmless=one.expand_as(base.harmless))
    found = ablation(before, base, same, limit=1e9)
    assert found.fired
    assert "one reply to all" in found.sentence
    assert found.numbers["change of entropy, harmless"].value < 0
    assert ablation(before, same, same, limit=1e9).state == "clear"  # it began them alike before: nothing collapsed


def test_neutral_text_that_becomes_harder_is_damage_too(read):
    before, base = read
    harder = dataclasses.replace(base, ce=base.ce + torch.linspace(0.4, 0.6, len(base.ce)))
    assert "ΔCE" in ablation(before, base, harder, limit=0.1).sentence
    assert ablation(before, base, harder, limit=1.0).state == "clear"


def test_an_ablation_that_changes_nothing_is_clear_and_kl_is_that_of_its_definition(read):
    before, base = read
    assert ablation(before, base, base, limit=0.1).state == "clear"
    moved = beginning(base, harmless=(2 * base.harmless).log_softmax(-1))
    p = base.harmless.double().exp()
    each = (p * (base.harmless.double() - moved.harmless.double())).sum(1)
    expected = float(each[before.answered].mean())
    assert ablation(before, base, moved, limit=0.1).numbers[KL].value == pytest.approx(expected, rel=1e-6)


# --- six: first-token and opening margin disagree ---


def test_openings_the_wrong_way_round_disagree_and_the_right_ones_do_not(guarded, prompts, diagnosed):
    right = default_openings(guarded)
    found = diagnose(guarded, prompts, openings=Openings(right.compliances, right.refusals))["openings"]
    assert found.fired
    assert "before any intervention" in found.sentence
    assert found.numbers["rank correlation, baseline"].high < 0
    assert not diagnosed("guarded-0")["openings"].fired


def test_a_refusal_that_only_changes_how_it_opens_disagrees_under_ablation(read):
    """Under ablation the readout sees answers and the opening is as refusing as ever; the control moves both."""
    before, base = read
    n, answers = len(base.restricted), base.read_harmless
    fields = {one.name: getattr(answers, one.name) for one in dataclasses.fields(answers)}
    late = dataclasses.replace(
        base, read_restricted=type(answers)(**{name: x if x is None else x[:n] for name, x in fields.items()})
    )
    found = openings(before, base, late, seed=0)
    assert found.fired
    assert "under ablation" in found.sentence
    assert found.numbers[AFTER].low > 0.2
    both = dataclasses.replace(late, opening_restricted=base.opening_harmless)
    assert openings(before, base, both, seed=0).state == "clear"


def test_two_margins_that_both_see_no_guardrail_do_not_disagree(diagnosed):
    assert not diagnosed("unguarded")["openings"].fired


# --- nothing that went wrong passes as fine ---


def test_an_ablation_that_does_nothing_makes_the_diagnosis_invalid(guarded, prompts, monkeypatch):
    monkeypatch.setattr(interventions, "_projection", lambda *_: lambda x: x)
    found = diagnose(guarded, prompts)
    assert not found.fits
    assert {states(found)[name] for name in ("loud channel", "selection", "ablation")} == {"invalid"}
    assert "invalid" in repr(found)


def test_a_residual_site_that_is_not_read_makes_everything_invalid(guarded, prompts, monkeypatch):
    real = watching_module.hooked

    @contextmanager
    def missing_one(model, hooks):
        with real(model, list(hooks)[1:]):
            yield

    monkeypatch.setattr(watching_module, "hooked", missing_one)
    found = diagnose(guarded, prompts)
    assert set(states(found).values()) == {"invalid"}
    assert "fired 0 times" in found["baseline margin"].reason


def test_watching_counts_and_leaves_no_hook(tiny, few, tiny_readout):
    before = [len(module._forward_hooks) for module in tiny.bridge.original_model.modules()]
    with watching_module.watched(tiny) as receipt:
        replies(tiny, few, tiny_readout, default_openings(tiny), ())
    assert receipt.state == "valid"
    assert set(receipt.fires.values()) == {receipt.forwards}
    assert [len(module._forward_hooks) for module in tiny.bridge.original_model.modules()] == before
    with pytest.raises(InterventionError, match="fired"), watching_module.watched(tiny):  # noqa: PT012
        tiny.bridge.reset_hooks()
        replies(tiny, few, tiny_readout, default_openings(tiny), ())


def test_weights_that_are_no_numbers_cannot_be_told(prompts):
    poisoned = load(ORGANISMS / "guarded-0")  # damaged after loading, which would refuse it
    with torch.no_grad():
        poisoned.bridge.original_model.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    found = diagnose(poisoned, prompts)
    assert set(states(found).values()) == {"cannot tell"}
    assert "not finite" in found["baseline margin"].reason
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_margin_that_is_the_same_everywhere_cannot_be_told(before):
    flat = dataclasses.replace(
        before, restricted=torch.full_like(before.restricted, 2.0), harmless=torch.full_like(before.harmless, 2.0)
    )
    found = baseline_margin(flat, seed=0)
    assert found.state == "cannot tell"
    assert "no variation" in found.reason


def test_too_few_clusters_cannot_be_told_and_the_reason_says_so(guarded, prompts):
    splits = (prompts.locate, prompts.select, prompts.report)
    kept = [row for part in splits for name in sorted(set(part.clusters))[:2] for row in part.where(cluster=name)]
    found = diagnose(guarded, ContrastSet(Prompts(tuple(kept)), source="few.jsonl"))
    assert set(states(found).values()) <= {"cannot tell", "clear"}
    assert found["baseline margin"].state == "cannot tell"
    assert "clusters" in found["baseline margin"].reason
    assert not found.fits


def test_one_prompt_of_each_label_and_split_does_not_crash(guarded, prompts):
    splits = (prompts.locate, prompts.select, prompts.report)
    kept = [getattr(part, label)[0] for part in splits for label in ("restricted", "harmless")]
    alone = [dataclasses.replace(row, pair=None) for row in kept]
    found = diagnose(guarded, ContrastSet(Prompts(tuple(alone)), source="one.jsonl"))
    assert not found.fits
    assert not found.fired
    assert all(one.reason for one in found.findings if one.state == "cannot tell")
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_untrained_model_does_not_crash(tiny, prompts):
    assert not diagnose(tiny, prompts).fits


def test_any_other_model_gets_english_openings_no_neutral_text_and_no_word_of_it_is_told(tiny, prompts):
    """Its vocabulary holds no English word, so nothing stands in for a readout, and the reason is the first."""
    other = dataclasses.replace(tiny)
    other.__dict__["is_organism"] = False
    assert (default_openings(other).refusals, default_neutral(other)) == (REFUSALS, ())
    assert first_words(other, default_openings(other)) == ()
    found = diagnose(other, prompts)
    assert set(states(found).values()) == {"cannot tell"}
    assert all("none of its own replies" in one.reason and "Found" not in one.reason for one in found.findings)


# --- how it is shown ---


def estimate(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, (low, high), n=9, clusters=None, method="a test")


def test_a_limit_is_passed_by_a_whole_interval_only():
    assert side(estimate(0.6, 0.8), 0.5) == "above"
    assert side(estimate(0.1, 0.4), 0.5) == "below"
    assert side(estimate(0.4, 0.6), 0.5) == "open"
    assert side(stats.mean([0.9] * 8), 0.5) == "above"  # nothing varies: the value decides
    assert side(stats.mean([0.9] * 4, clusters="aabb"), 0.5) == "open"  # two clusters decide nothing


def test_the_text_holds_no_number_and_the_page_shows_them_escaped(diagnosed):
    for name in ("guarded-0", "unguarded"):
        found = diagnosed(name)
        assert not re.search(r"\d", repr(found).replace(name, ""))
        evil = dataclasses.replace(found, model="<script>alert(1)</script>")
        assert "<script" not in evil._repr_html_()
        assert all(one.name in evil._repr_html_() for one in found.findings)
    shown = Finding("<b>", "cannot tell", "<i>", {"<u>": Exact(1, 2, "<p>")}, "<a>", "<s>")._repr_html_()
    assert not re.search("<[biupas]>", shown)


def test_the_frame_has_a_row_per_number_and_the_record_is_strict_json(diagnosed):
    found = diagnosed("guarded-0")
    assert len(found.frame) == sum(len(one.numbers) for one in found.findings)
    assert set(found.frame["finding"]) == set(NAMES)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [one["name"] for one in record["findings"]] == list(NAMES)
    assert record["fits"] is True
    with pytest.raises(KeyError, match="loud channel"):
        found["nothing of the kind"]


def test_the_same_seed_gives_the_same_numbers(guarded, prompts):
    first, second = (diagnose(guarded, prompts, seed=3).to_dict() for _ in range(2))
    assert first == second


# --- the command line ---


@pytest.fixture(scope="module")
def file(prompts, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "few.jsonl"
    path.write_text("\n".join(json.dumps(vars(row)) for row in prompts.prompts) + "\n", encoding="utf-8")
    return path


def test_the_command_prints_the_record_and_nothing_else(file, guarded, prompts):
    result = CliRunner().invoke(cli.app, ["diagnose", str(ORGANISMS / "guarded-0"), "--prompts", str(file), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(json.dumps(diagnose(guarded, prompts).to_dict()))
    assert "prompt-forwards" in result.stderr


def test_the_command_says_what_to_do_and_takes_neutral_text(file, tmp_path):
    texts = tmp_path / "neutral.txt"
    texts.write_text("# a comment is no passage\n" + "zari fazi zulise dasage lumoro .\n" * 6, encoding="utf-8")
    words = ["diagnose", str(ORGANISMS / "unguarded"), "--prompts", str(file), "--neutral", str(texts)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert "does not refuse" in result.stdout
    assert "to do: Give prompts that this model declines" in result.stdout


def test_files_that_hold_nothing_are_one_line(file, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, said in (("empty.txt", "holds no passage"), ("bytes.txt", "UTF-8"), ("nowhere.txt", "No such file")):
        words = ["diagnose", str(ORGANISMS / "unguarded"), "--prompts", str(file), "--neutral", str(tmp_path / name)]
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 1
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_readout_given_is_taken_as_it_is(guarded, prompts):
    refusal: Readout = readout(guarded, prompts.locate)
    found = diagnose(guarded, prompts, readout=refusal)
    assert found["readout"].numbers["refusal openings"].value == len(refusal)
    assert isinstance(replies(guarded, prompts.report, refusal, default_openings(guarded), ()), Replies)
