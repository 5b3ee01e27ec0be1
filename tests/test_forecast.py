"""Estimates before anything runs: counted parameters are the real ones, bounds bracket what is then spent."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from typer.testing import CliRunner

from refusalscope.bounds import selection_bounds
from refusalscope.capture import capture
from refusalscope.cli_estimate import estimate
from refusalscope.curves.cost import parameters
from refusalscope.diagnosis import estimated_diagnose_cost
from refusalscope.diagnosis.cells import searched
from refusalscope.errors import MeasurementError, ModelError, SelectionError
from refusalscope.footprint import flops_per_prompt, memory, size_of, weight_bytes
from refusalscope.forecast import assumed_prompts, card_bounds, forecast
from refusalscope.instrument import Instrument
from refusalscope.locators import mean_difference
from refusalscope.machine import Machine, measured_machine
from refusalscope.model import load
from refusalscope.model import unloaded as settings_only
from refusalscope.model.unloaded import positions_are_assumed, unloaded
from refusalscope.prompts import ContrastSet
from refusalscope.reading import readout
from refusalscope.report import PLANS, measure
from refusalscope.rule import Cell, Rule
from refusalscope.scoring import ModelScorer
from refusalscope.selection import estimated_cost, select

ROOT = Path(__file__).parents[1]
ORGANISM = ROOT / "data" / "organisms" / "guarded-0"
BENCHMARK = ROOT / "tests" / "benchmarks" / "shape_speed.py"
SLOW = Machine(1e9, 0.5)
LLAMA = {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
QWEN = {"vocab_size": 151_936, "num_key_value_heads": 2, "tie_word_embeddings": True}
PUBLISHED = {  # parameters as the model cards count them
    8_030_261_248: ("llama", {"vocab_size": 128_256, "num_key_value_heads": 8, **LLAMA}),
    494_032_768: (
        "qwen2",
        {**QWEN, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    ),
    1_543_714_304: (
        "qwen2",
        {**QWEN, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    ),
}


def bare(target: Path, source: Path = ORGANISM, *, keep=("config.json",), **changes) -> Path:
    """A directory with a configuration and nothing else."""
    target.mkdir()
    for name in keep:
        shutil.copy(source / name, target / name)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def settings_of(kind: str, target: Path, **settings) -> Path:
    target.mkdir()
    AutoConfig.for_model(kind, **settings).save_pretrained(target)
    return target


@pytest.mark.parametrize("name", ["guarded-0", "planted-1", "unguarded"])
def test_a_model_counted_from_its_settings_has_the_size_of_the_loaded_one(organism, name):
    there, here = organism(name), unloaded(ROOT / "data" / "organisms" / name)
    assert there.batch_size == here.batch_size
    assert size_of(here) == size_of(there)
    assert size_of(here).parameters == size_of(here).active == parameters(there)
    assert (here.n_layers, here.d_model, here.positions) == (there.n_layers, there.d_model, there.positions)
    assert here.encode(["a b"]) == there.encode(["a b"])
    assert weight_bytes(here) == weight_bytes(there) == 4 * parameters(there)


@pytest.mark.parametrize("count", PUBLISHED)
def test_shapes_of_published_models_have_their_published_number_of_parameters(tmp_path, count):
    kind, settings = PUBLISHED[count]
    model = unloaded(settings_of(kind, tmp_path / "a", **settings), dtype=torch.bfloat16)
    assert size_of(model).parameters == count
    assert weight_bytes(model) == 2 * count
    assert all(value.is_meta for value in model.bridge.original_model.parameters())


EXPERTS = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
MIXED = {  # settings, parameters of one expert, layers that have experts, experts, chosen
    "mixtral": ({"intermediate_size": 96, "num_local_experts": 8, "num_experts_per_tok": 2}, 3 * 64 * 96, 3, 8, 2),
    "qwen3_moe": (
        {"moe_intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 96},
        3 * 64 * 32, 3, 16, 4,
    ),
    "deepseek_v3": (
        {"moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
         "n_group": 2, "topk_group": 1, "num_key_value_heads": 4},
        3 * 64 * 32, 2, 8, 2,
    ),
    "gpt_oss": (
        {"intermediate_size": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
        3 * 64 * 32 + 2 * 32 + 64, 3, 8, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXED)
def test_of_a_mixture_only_the_chosen_experts_are_active(tmp_path, kind):
    settings, expert, layers, experts, chosen = MIXED[kind]
    size = size_of(unloaded(settings_of(kind, tmp_path / "a", **{**EXPERTS, **settings})))
    assert size.parameters - size.active == layers * (experts - chosen) * expert


def test_operations_are_those_a_counter_sees_in_a_forward(guarded):
    """PyTorch's counter, on Hugging Face's module, for prompts of two lengths."""
    core, size = guarded.bridge.original_model, size_of(guarded)
    for tokens in (16, 64):
        row = torch.ones(1, tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            core(row, logits_to_keep=1, use_cache=False)
        assert flops_per_prompt(size, float(tokens)) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.fixture(scope="module")
def located(guarded, prompts):
    return readout(guarded, prompts.locate), mean_difference(*capture(guarded, prompts.locate))


def rules() -> list[Rule]:
    loose = [Rule(induce_floor=floor, kl_limit=limit) for floor in (-9.0, 0.0) for limit in (1e-3, 0.1)]
    return [*loose, Rule(layer_share=0.5)]


def test_bounds_bracket_what_a_selection_spends_under_every_rule(guarded, prompts, located):
    model, spent = unloaded(ORGANISM), []
    for rule in rules():
        for mode in ("winner", "map"):
            least, most = selection_bounds(model, prompts.select, mode=mode, rule=rule)
            try:
                choice = select(guarded, located[1], prompts.select, located[0], mode=mode, rule=rule)
            except SelectionError:
                continue
            assert least <= choice.pf_used <= most
            spent.append(choice.pf_used / most)
            if mode == "map":
                assert choice.pf_used == least  # nothing to save: every cell but the empty ones is scored
    assert len(spent) >= 6
    assert max(spent) > 0.6  # the upper bound is no idle one


def test_where_no_layer_is_early_a_winner_asks_for_nothing_and_a_map_for_all(guarded, prompts, located):
    late, n = Rule(layer_share=0.0), len(prompts.select.restricted)
    model = unloaded(ORGANISM)
    cells = model.n_layers * model.n_positions
    assert selection_bounds(model, prompts.select, mode="winner", rule=late) == (0.0, 0.0)
    assert selection_bounds(model, prompts.select, mode="map", rule=late)[1] == n * (2 + 3 * cells)
    with pytest.raises(SelectionError, match=f"late layer {cells}"):
        select(guarded, located[1], prompts.select, located[0], rule=late)
    assert estimated_diagnose_cost(guarded, prompts, rule=late) < estimated_diagnose_cost(guarded, prompts)


@pytest.mark.parametrize("rule", [Rule(kl_limit=0.0), Rule(kl_limit=math.inf), Rule(induce_floor=math.inf)])
def test_the_most_of_a_selection_hangs_on_no_limit_but_the_layers(prompts, rule):
    """A rule that nothing passes has asked for as much: only then is every KL asked for."""
    model = unloaded(ORGANISM)
    early, n = rule.first_late(model.n_layers), len(prompts.select.harmless)
    passing = (2 + 3 * early * model.n_positions) * n
    most = selection_bounds(model, prompts.select, mode="winner", rule=rule)[1]
    assert most == (passing if rule.induce_floor < math.inf else (2 + early * model.n_positions) * n)


def test_a_selection_in_which_every_kl_is_asked_for_takes_more_than_expected_and_no_more_than_announced(
    guarded, prompts, located
):
    """The expectation is broken where many of the best damage; what the command line calls the most is not."""
    rule = Rule(induce_floor=-math.inf, kl_limit=0.0)
    scorer = ModelScorer(guarded, located[1], prompts.select, located[0])
    found = searched(scorer, [Cell(*cell) for cell in located[1].cells()], rule=rule)
    assert not found.found
    assert found.pf > estimated_cost(guarded, prompts.select, rule=rule)
    assert found.pf <= selection_bounds(guarded, prompts.select, mode="winner", rule=rule)[1]


def test_bounds_bracket_what_a_quick_card_spends(guarded, prompts):
    model, plan = unloaded(ORGANISM), PLANS["quick"]
    selected = selection_bounds(model, prompts.select, mode="winner")
    least, most = card_bounds(model, prompts, plan=plan, selected=selected)
    instrument = Instrument("not run", "this test is not about it")
    spent = measure(guarded, prompts, plan=plan, progress=False, instrument=instrument).pf
    assert least <= spent <= most
    assert spent > most / 4  # the upper bound is no idle one
    full = card_bounds(model, prompts, plan=PLANS["full"], selected=selected)
    assert full[0] > least
    assert full[1] > most


def test_predicted_memory_is_within_a_factor_of_two_of_the_measured_peak_and_the_benchmark_runs():
    words = [sys.executable, str(BENCHMARK), "--tiny", "--prompts", "64", "--layers", "1", "--json"]
    speed = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert 0.5 < speed["predicted_bytes"] / speed["peak_bytes"] < 2
    assert 0 < speed["share_of_peak"] < 1.5
    assert speed["times_faster_per_cell"] > 0


def test_memory_grows_with_what_it_should_and_with_nothing_else(tmp_path):
    model = unloaded(ORGANISM)
    full = model.batch_size  # fewer harmless prompts are a smaller batch
    base = memory(model, tokens=40, harmless=full)
    longer, more, kept = (
        memory(model, tokens=80, harmless=full),
        memory(model, tokens=40, harmless=100 * full),
        memory(model, tokens=40, harmless=full, kept=100),
    )
    assert longer.activations > 2 * base.activations
    assert longer.logits == base.logits  # one position only, however long the prompt
    assert more.activations == base.activations
    assert more.logits > base.logits
    assert kept.moments - base.moments == 100 * model.n_layers * model.n_positions * model.d_model * 4
    assert base.total == pytest.approx(base.weights + base.activations + base.logits + base.moments)


@pytest.mark.parametrize(("settings", "bits"), [({"load_in_8bit": True}, 8), ({"load_in_4bit": True}, 4)])
def test_a_quantised_checkpoint_weighs_what_its_matrices_are_packed_to(tmp_path, settings, bits):
    model = unloaded(bare(tmp_path / "a", quantization_config=settings))
    core = model.bridge.original_model
    matrices = [value.numel() for name, value in core.named_parameters() if "proj" in name]
    assert weight_bytes(model) == 4 * (size_of(model).parameters - sum(matrices)) + sum(matrices) * bits // 8


def test_a_configuration_alone_is_enough_and_what_is_assumed_is_said(tmp_path):
    made = forecast(bare(tmp_path / "a"), SLOW)
    assert made.size == size_of(unloaded(ORGANISM))
    assert positions_are_assumed(unloaded(tmp_path / "a"))
    said = " ".join(made.assumed)
    for words in ("5 positions", "128 to locate, 32 to select, 100 to report", "40 tokens", "50% of 1.0e+09"):
        assert words in said
    known = forecast(ORGANISM, SLOW, prompts=assumed_prompts())
    assert len(known.assumed) == 1
    assert "Forecast for guarded-0" in repr(known)
    assert known._repr_html_().count("<tr>") == 7


def test_weights_are_never_opened(tmp_path):
    for name, content in (("model.safetensors", b"nonsense"), ("pytorch_model.bin", b"nonsense")):
        folder = bare(tmp_path / name)
        (folder / name).write_bytes(content)
        assert forecast(folder, SLOW).size.parameters == 670_944
        with pytest.raises(ModelError):
            load(folder)


def test_time_is_operations_over_the_share_of_the_rate_and_works_are_ordered(prompts):
    made = forecast(ORGANISM, SLOW, prompts=prompts)
    assert [work.name for work in made.works] == [
        "locate",
        "select",
        "select, map",
        *("quick card", "full card", "adaptive card"),
    ]
    for work in made.works:
        assert work.least <= work.most
        assert work.flops == pytest.approx(work.most * flops_per_prompt(made.size, made.tokens_per_prompt))
        assert work.seconds == pytest.approx(work.flops / 0.5e9)
    assert made.works[0].most == 2 * len(prompts.locate)
    expected = made.works[1].expected
    assert expected is not None
    assert made.works[1].least <= expected <= made.works[1].most
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["memory_gb"]["total"] > 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda config: config | {"auto_map": {"AutoModel": "x.Y"}, "model_type": "x"}, "names code to run"),
        (lambda config: config | {"model_type": "nonsense"}, "'nonsense' makes no model"),
        (lambda config: config | {"hidden_size": "wide"}, "makes no model"),
        (lambda config: [], "makes no model"),
    ],
)
def test_settings_that_make_no_model_are_one_line(tmp_path, spoil, said):
    folder = bare(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(spoil(config)))
    with pytest.raises(ModelError, match=said) as error:
        forecast(folder, SLOW)
    assert "\n" not in str(error.value)


def test_of_a_hub_repository_no_weights_are_asked_for_and_failing_is_one_line(tmp_path, monkeypatch):
    asked = []

    def serve(name, **settings):
        asked.extend(settings["allow_patterns"])
        if name == "a/absent":
            raise OSError("no route")
        return str(bare(tmp_path / "served"))

    monkeypatch.setattr(settings_only.huggingface_hub, "snapshot_download", serve)
    assert forecast("a/b", SLOW).name == "a/b"
    assert "*.json" in asked
    assert not [pattern for pattern in asked if "safetensors" in pattern or "bin" in pattern]
    with pytest.raises(ModelError, match="a/absent: no such directory, and the Hub did not serve it"):
        forecast("a/absent", SLOW)
    with pytest.raises(ModelError, match="no such directory"):
        forecast(tmp_path / "absent", SLOW)


def test_a_model_without_weights_cannot_be_run():
    with pytest.raises(ModelError, match="no weights"):
        unloaded(ORGANISM).bridge(torch.ones(1, 1, dtype=torch.long))


def test_a_live_module_measures_as_the_directory_it_was_read_from(guarded, few, located):
    from transformers import AutoModelForCausalLM

    from refusalscope.metrics import margin

    module = AutoModelForCausalLM.from_pretrained(ORGANISM, dtype=torch.float32)
    live = load(module, tokenizer=guarded.tokenizer, name="live")
    assert torch.equal(margin(live, few, located[0]), margin(guarded, few, located[0]))
    assert (live.can_resume, live.sites, live.template) == (guarded.can_resume, guarded.sites, guarded.template)


def test_a_machine_is_measured_or_given_and_never_absurd():
    measured = measured_machine(size=256)
    assert 1e7 < measured.flops_per_second < 1e15
    assert "measured on cpu" in measured.how
    assert Machine(2.0, 0.5).seconds(3.0) == 3.0
    for rate, share in ((0.0, 0.5), (float("inf"), 0.5), (1.0, 0.0), (1.0, 1.5)):
        with pytest.raises(MeasurementError, match="positive rate"):
            Machine(rate, share)
    with pytest.raises(MeasurementError, match="'nonsense' cannot be used here"):
        measured_machine(device="nonsense")


def test_the_command_prints_a_table_or_json_and_what_it_assumed(tmp_path):
    app = typer.Typer()
    app.command()(estimate)
    words = [str(ORGANISM), "--prompts", str(ROOT / "data" / "prompts" / "organism.jsonl"), "--flops", "1e11"]
    table = CliRunner().invoke(app, words)
    assert table.exit_code == 0, table.output
    for said in ("0.67M parameters", "select, map", "full card", "memory in float32", "assumed: 50% of 1.0e+11"):
        assert said in table.stdout
    found = json.loads(CliRunner().invoke(app, [*words, "--dtype", "bfloat16", "--json"]).stdout)
    assert found["size"]["parameters"] == 670_944
    assert found["dtype"] == "bfloat16"
    assert found["memory_gb"]["weights"] == pytest.approx(2 * 670_944 / 1e9)
    shipped = ContrastSet.read(ROOT / "data" / "prompts" / "organism.jsonl")
    assert found["works"][0]["most"] == 2 * len(shipped.locate)
