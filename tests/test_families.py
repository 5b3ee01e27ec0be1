"""Every family of the table, from its directory to a card: against Hugging Face and a naive sweep in float64."""

from __future__ import annotations

import dataclasses
import gc
import json
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import family_oracle
import oracle
from family_models import CASES, written
from refusalscope import ablate, capture, load, locate, measure, select
from refusalscope.errors import InterventionError, ModelError
from refusalscope.instrument import Instrument
from refusalscope.metrics import next_token
from refusalscope.model import Families, batches, families, forward
from refusalscope.model.hooking import hooked
from refusalscope.model.writes import find_writers
from refusalscope.optionality import Menu
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.reading import Readout, readout
from refusalscope.report import Plan, stages
from refusalscope.rule import KINDS, Rule
from refusalscope.subspace import Subspace

EPS = torch.finfo(torch.float32).eps
SHARES = 1e-5  # ten times the largest difference between float32 and the sweep in float64
UNKNOWN = dataclasses.replace(CASES[0], family="Helium", model_type="helium", architecture="HeliumForCausalLM")
SMALLEST = Plan(menu=Menu(best=1, doses=(1.0,)), placebos=2, curves=("dose",), per_label=8, curve_placebos=2)
SMALLEST = dataclasses.replace(SMALLEST, transfer=False)
NO_CHECK = Instrument("not run", "a test of the path, not of a guardrail")


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    return written(case, tmp_path_factory.mktemp("families") / case.model_type)


@pytest.fixture(scope="module")
def model(folder):
    yield load(folder)
    gc.collect()


@pytest.fixture(scope="module")
def plain(folder):
    made = oracle.float64_model(folder)
    made.set_experts_implementation("eager")  # the fast one knows no float64
    return made


@pytest.fixture(scope="module")
def rows(model, texts):
    """Six requests, of different lengths in every vocabulary."""
    encoded = model.encode([" ".join(texts[n : 2 * n + 1]) for n in range(6)])
    assert len({len(ids) for ids in encoded}) > 2
    return encoded


@pytest.fixture(scope="module")
def batch(model, rows):
    (made,) = batches(model, rows, batch_size=len(rows))
    return made


@pytest.fixture(scope="module")
def small(contrast):
    """Of the organisms' contrast set, eight prompts of each label and split."""
    parts = (contrast.locate, contrast.select, contrast.report)
    few = (dataclasses.replace(row, pair=None) for part in parts for row in part.sample(8, seed=0))
    return ContrastSet(Prompts(tuple(few)), source="small.jsonl")


def drawn(model, rank: int, layer: int | None = 1) -> Subspace:
    noise = torch.Generator().manual_seed(rank)
    return Subspace(torch.randn(rank, model.d_model, generator=noise, dtype=torch.float64), layer, -1, "a test")


def read(model, batch, names) -> dict[str, torch.Tensor]:
    """What is at the named sites in a forward, behind whatever hooks are already there."""
    seen = {}

    def note(site):
        return lambda x, hook: seen.update({site: x.detach().double()})

    with hooked(model, [(name, note(name)) for name in names]):
        forward(model, batch)
    return seen


def share(x: torch.Tensor, subspace: Subspace, mask: torch.Tensor) -> float:
    """The largest part of a token's vector inside a subspace, relative to the largest norm."""
    tokens = x[mask.bool()]
    return float((tokens @ subspace.basis).norm(dim=-1).max() / tokens.norm(dim=-1).max())


def rounding(model) -> float:
    """Of a sum of 2L + 1 terms in float32."""
    return 16 * EPS * (2 * model.n_layers + 1)


def test_the_table_has_a_row_for_every_family_tested_here_and_no_other():
    rows = [(row.family, row.model_type, row.architecture) for row in families()]
    assert rows == [(case.family, case.model_type, case.architecture) for case in CASES]
    assert len({row.architecture for row in families()}) == len(families())


def test_the_cases_cover_tokenizers_with_and_without_pad_and_bos_and_every_way_of_thinking():
    assert {case.specials.pad is None for case in CASES} == {True, False}
    assert {case.specials.bos is None for case in CASES} == {True, False}
    assert {case.mode for case in CASES} == {"absent", "off", "closed"}


def test_the_table_was_checked_with_the_versions_installed_here():
    for row in families():
        assert (row.transformers, row.transformer_lens) == (version("transformers"), version("transformer-lens"))


def test_the_tables_columns_are_what_loading_finds(case, model, rows):
    (row,) = [row for row in families() if row.family == case.family]
    assert model.origin.architecture == row.architecture
    assert model.sites.writes == row.sites(model.n_layers)
    assert model.can_resume == row.resumes
    assert bool(find_writers(model, rows).n_heads) == row.heads
    assert ("its template takes no system message" in row.limits) == (case.system == "refused")
    assert model.template.thinking == case.mode


def test_logits_of_a_padded_batch_equal_hugging_faces(model, folder, plain, batch, rows):
    """Whatever float32 costs Hugging Face's own forward of the same rows, the bridge may cost four times as much."""
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    exact = oracle.last_logits(plain, rows)[batch.rows]
    with torch.no_grad():
        padded = own(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits[:, -1]
    allowed = max(4 * float((padded - exact).abs().max()), 64 * EPS * float(exact.abs().max()))
    made = forward(model, batch)[:, -1]
    assert bool((batch.mask == 0).any())
    assert float((made - padded).abs().max()) <= allowed
    assert float((made - exact).abs().max()) <= allowed
    unmasked = forward(model, dataclasses.replace(batch, mask=torch.ones_like(batch.mask)))[:, -1]
    assert float((unmasked - exact).abs().max()) > 100 * allowed


def test_writes_sum_to_the_residual_stream_and_each_is_needed(model, batch):
    assert model.sites.additive
    seen = read(model, batch, {*model.sites.writes, *model.sites.residual})
    last, mask = seen[model.sites.residual[-1]], batch.mask.bool()
    total = sum(seen[name] for name in model.sites.writes)
    assert float((total - last)[mask].norm()) <= rounding(model) * float(last[mask].norm())
    for name in model.sites.writes:
        assert float((total - seen[name] - last)[mask].norm()) > 100 * rounding(model) * float(last[mask].norm())


def test_a_write_is_all_that_the_layer_adds_experts_and_shared_experts_included(case, model, plain, rows):
    """Against the outputs of Hugging Face's own modules, in float64; without one kind of expert they are others."""
    (one,) = batches(model, rows[:1])
    seen = read(model, one, model.sites.writes)
    made = [seen[site] for site in model.sites.writes[1:]]
    for site, whole in zip(made, module_outputs(plain, case.writers, one.tokens), strict=True):
        torch.testing.assert_close(site, whole, atol=SHARES, rtol=SHARES)
    for kind in case.experts:
        without = module_outputs(plain, case.writers, one.tokens, missing=kind)
        assert max(float((site - part).abs().max()) for site, part in zip(made, without, strict=True)) > 1e-2, kind


@torch.no_grad()
def module_outputs(plain, writers, tokens, missing: str = "") -> list[torch.Tensor]:
    """What each layer's writers hand on, in order; with a part of every MLP that has one silenced."""
    outputs = []
    parts = [getattr(layer, name) for layer in plain.model.layers for name in writers]
    handles = [part.register_forward_hook(lambda _m, _i, out: outputs.append(first(out))) for part in parts]
    silent = [getattr(layer.mlp, missing) for layer in plain.model.layers if missing and hasattr(layer.mlp, missing)]
    handles += [part.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out)) for part in silent]
    assert bool(silent) == bool(missing)
    try:
        plain(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("rank", [1, 2])
def test_after_ablation_nothing_of_the_subspace_is_left_at_any_site(model, batch, rank):
    subspace = drawn(model, rank)
    everywhere = {*model.sites.writes, *model.sites.residual, *model.sites.resid_mid, *model.sites.resid_post}
    before = read(model, batch, everywhere)
    with ablate(model, subspace):
        after = read(model, batch, everywhere)
    for site in everywhere:
        assert share(before[site], subspace, batch.mask) > 0.01, site
        assert share(after[site], subspace, batch.mask) < rounding(model), site


def test_a_write_that_is_left_out_is_noticed(model, batch):
    subspace = drawn(model, 1)
    for layer in range(model.n_layers):
        for kind in ("attn_out", "mlp_out"):
            held = list(getattr(model.sites, kind))
            held[layer] = held[layer - 1]  # projected twice, so that one of the 2L+1 writes is not
            blind = dataclasses.replace(model, sites=dataclasses.replace(model.sites, **{kind: tuple(held)}))
            with pytest.raises(InterventionError, match="residual"), ablate(blind, subspace):
                forward(blind, batch)


@pytest.fixture(scope="module")
def swept(case, model, plain, small):
    """The oracle's sweep, and what is needed to select on the same prompts; R is of an untrained model."""
    locating, selecting = small.locate, small.select
    refusal = untrained_refusal(model, locating)
    parts = {"lr": locating.restricted, "lh": locating.harmless, "sr": selecting.restricted, "sh": selecting.harmless}
    ids = {name: model.encode(part.texts) for name, part in parts.items()}
    vectors = family_oracle.directions(plain, ids["lr"], ids["lh"], model.n_positions)
    tokens = list(refusal.first_tokens)
    harmless = family_oracle.answered(plain, ids["sh"], tokens)
    found = family_oracle.sweep(plain, case.writers, vectors, ids["sr"], harmless, tokens)
    kl_limit, floor = family_oracle.limits_that_bite(found)
    return SimpleNamespace(
        found=found,
        refusal=refusal,
        rule=Rule(kl_limit=kl_limit, induce_floor=floor, layer_cut="printed"),
        acts=capture(model, locating),
    )


def untrained_refusal(model, prompts) -> Readout:
    """Whatever tokens an untrained model gives more often to restricted prompts: then there is something to lose."""
    restricted, harmless = (next_token(model, part).exp().mean(0) for part in (prompts.restricted, prompts.harmless))
    ids = tuple((restricted - harmless).argsort(descending=True)[:64].tolist())  # as many as a card can name
    return Readout(tuple((one,) for one in ids), phrases=("many",), n=len(prompts.restricted))


def test_select_chooses_the_naive_sweeps_cell_with_its_scores(model, swept, small):
    found, rule = swept.found, swept.rule
    expected, ahead = family_oracle.chosen(found, model.n_layers, rule.kl_limit, rule.induce_floor)
    assert ahead > 10 * SHARES, "the sweep's own choice is a tie: draw other weights"
    choice = select(model, locate.mean_difference(*swept.acts), small.select, swept.refusal, rule=rule, mode="winner")
    assert tuple(choice.cell) == expected
    both = choice.cells.merge(found, on=["layer", "position"], suffixes=("", "_oracle"))
    assert len(both) == len(found) == model.n_layers * model.n_positions
    for kind in KINDS:
        known = both[both[kind].notna()]
        assert len(known)
        np.testing.assert_allclose(known[kind], known[f"{kind}_oracle"], atol=SHARES, rtol=SHARES)


def test_an_untrained_model_gives_a_card_that_says_why_nothing_is_known(model, small):
    card = measure(model, small, plan=SMALLEST, instrument=NO_CHECK, progress=False)
    assert card.verdict.state == "undetermined"
    assert card.verdict.reasons
    assert all("Nearest" not in reason for reason in card.verdict.reasons)


def test_the_whole_path_to_a_card_runs_with_given_tokens(model, small, swept, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "readout", lambda *_, **__: swept.refusal)
    how = {"plan": SMALLEST, "rule": swept.rule, "labels": "asked"}  # an untrained model behaves as no label says
    card = measure(model, small, **how, instrument=NO_CHECK, progress=False)
    assert card.verdict.state == "undetermined"
    assert card.verdict.reasons
    assert card.baseline is not None
    assert card.selection is not None
    card.save(tmp_path)


def test_a_refusal_word_counts_with_and_without_a_leading_space(model, small):
    found = readout(model, small.locate, openings=["I"])
    spelled = {token.lstrip("Ġ▁") for token in model.tokenizer.convert_ids_to_tokens(list(found.first_tokens))}
    assert spelled == {"I"}
    assert len(found) == 2


def test_an_architecture_without_an_adapter_is_named_with_what_transformer_lens_lacks(tmp_path):
    said = rf"model_type 'helium'.*'HeliumForCausalLM'.*TransformerLens {version('transformer-lens')} has no adapter"
    with pytest.raises(ModelError, match=said):
        load(written(UNKNOWN, tmp_path / "helium"))


@pytest.fixture
def command():
    import typer

    from refusalscope.cli_families import families as listed

    app = typer.Typer()
    app.command()(listed)
    return lambda *words: CliRunner().invoke(app, words)


def test_the_command_prints_every_row_with_its_sites_and_limits(command):
    said = command()
    assert said.exit_code == 0
    for row in families():
        for part in (row.family, row.architecture, *row.writes, *row.limits):
            assert part in said.output
    assert version("transformer-lens") in said.output


def test_the_command_prints_json_that_holds_the_rows(command):
    printed = json.loads(command("--json").output)
    assert printed == json.loads(json.dumps([row.to_dict() for row in families()]))
    assert {"family", "architecture", "writes", "limits", "transformers", "transformer_lens"} <= set(printed[0])


def test_the_table_reads_as_one_line_and_as_an_escaped_table():
    rows = families()
    assert repr(rows) == f"Families: {', '.join(case.family for case in CASES)}"
    assert rows[-1] in rows[1:]
    odd = Families((dataclasses.replace(rows[0], limits=("<b>",)),))
    assert "&lt;b&gt;" in odd._repr_html_()
    assert "<b>" not in odd._repr_html_()
