"""Number formats, devices and memory: what a measurement may depend on, and what it must say when it cannot."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import refusalscope
from refusalscope.capture import capture
from refusalscope.effect import baseline, effect
from refusalscope.errors import InterventionError, MeasurementError, ModelError
from refusalscope.instrument import Instrument
from refusalscope.interventions import ablate
from refusalscope.locators import mean_difference
from refusalscope.metrics import Openings, cross_entropy, kl, margin, next_token, opening_margin
from refusalscope.model import SmallerBatchWarning, batches, forward, load, map_rows, placement
from refusalscope.model import batching as memory
from refusalscope.organisms.language import language
from refusalscope.prompts import Prompts
from refusalscope.reading import Readout, readout
from refusalscope.report import measure
from refusalscope.rule import default_rule
from refusalscope.selection import select

NARROW = (torch.bfloat16, torch.float16)
PACKAGE = Path(refusalscope.__file__).parent
ORGANISM = Path(__file__).parents[1] / "data" / "organisms" / "guarded-0"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def changed(directory: Path, target: Path, change, config: dict | None = None) -> Path:
    """A copy of a model directory with other weights and settings."""
    shutil.copytree(directory, target)
    weights = {name: value.float() for name, value in load_file(target / "model.safetensors").items()}
    save_file(change(weights), target / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((target / "config.json").read_text()) | (config or {})
    (target / "config.json").write_text(json.dumps(settings))
    return target


@pytest.fixture(scope="module")
def narrow():
    """The organism in a narrow format, loaded once each."""
    loaded = {dtype: load(ORGANISM, dtype=dtype) for dtype in NARROW}
    return loaded.__getitem__


@pytest.fixture(scope="module")
def asked(prompts) -> Prompts:
    return prompts.select


@pytest.fixture(scope="module")
def refusal(guarded, prompts) -> Readout:
    """The first words of its refusals: openings of one token, whose margin is the difference of two log-sum-exps."""
    words = sorted({dialect.refusal.split()[0] for dialect in language().dialects})
    return readout(guarded, prompts.locate, openings=words)


def own_logits(model, prompts: Prompts) -> torch.Tensor:
    """A model's last logits in its own format, straight from Hugging Face's module, one prompt at a time."""
    rows = []
    for ids in model.encode(prompts.texts):
        with torch.no_grad():
            rows.append(model.bridge.original_model(torch.tensor([ids])).logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_every_format_is_accepted_recorded_and_what_the_residual_stream_is_in(dtype, guarded, narrow, asked):
    model = guarded if dtype == torch.float32 else narrow(dtype)
    assert {value.dtype for value in model.bridge.original_model.parameters()} == {dtype}
    assert (model.dtype, model.origin.dtype) == (dtype, str(dtype).removeprefix("torch."))
    seen = []
    with model.bridge.hooks(fwd_hooks=[(model.sites.embed, lambda x, hook: seen.append(x.dtype))]):
        (batch,) = batches(model, model.encode(asked.texts[:2]))
        assert forward(model, batch).dtype == torch.float32
    assert seen == [dtype]
    assert model.can_resume
    assert model.sites.additive


@pytest.mark.parametrize("dtype", NARROW)
def test_a_margin_moves_by_at_most_twice_its_logits_and_those_by_the_rounding_of_the_format(
    dtype, guarded, narrow, asked, refusal
):
    """Log-sum-exp is 1-Lipschitz in the largest logit, and a margin is the difference of two."""
    model = narrow(dtype)
    exact, rounded = (next_token_logits(one, asked) for one in (guarded, model))
    difference = (exact - rounded).abs().amax(-1)
    gap = (margin(guarded, asked, refusal) - margin(model, asked, refusal)).abs()
    assert bool((gap <= 2 * difference + 1e-4).all())
    rounding = 16 * torch.finfo(dtype).eps * (2 * guarded.n_layers + 1) ** 0.5
    assert float(difference.max()) <= rounding * float(exact.abs().max())
    assert float(gap.max()) > 1e-3  # the format does matter


def next_token_logits(model, prompts: Prompts) -> torch.Tensor:
    return memory.map_rows(model, model.encode(prompts.texts), lambda batch: forward(model, batch)[:, -1])


def exact_margin(logits: torch.Tensor, ids) -> torch.Tensor:
    p = logits.double().softmax(-1)
    inside = p[:, list(ids)].sum(-1)
    return inside.log() - (1 - inside).log()


@pytest.mark.parametrize("dtype", NARROW)
def test_margins_and_kl_of_a_narrow_model_are_reduced_in_float32(dtype, narrow, asked, refusal, monkeypatch):
    """They equal the float64 formula on logits rounded once, which a reduction in the narrow format misses by far."""
    model, few = narrow(dtype), Prompts(asked.rows[:12])
    one_by_one = own_logits(model, few)
    assert one_by_one.dtype == dtype
    exact = exact_margin(one_by_one, refusal.first_tokens)
    monkeypatch.setattr(memory, "_longest_first", lambda _model, lists: list(range(len(lists))))
    alone = torch.cat([margin(model, Prompts((row,)), refusal) for row in few])
    torch.testing.assert_close(alone.double(), exact, rtol=1e-5, atol=1e-4)
    base = torch.cat([next_token(model, Prompts((row,))) for row in few])
    torch.testing.assert_close(base.double(), one_by_one.double().log_softmax(-1), rtol=1e-5, atol=1e-5)
    other = base.flip(0)
    now = one_by_one.double().log_softmax(-1)
    true_kl = (other.double().exp() * (other.double() - now)).sum(-1)
    made = torch.cat([kl(model, Prompts((row,)), other[i : i + 1]) for i, row in enumerate(few)])
    torch.testing.assert_close(made.double(), true_kl, rtol=1e-4, atol=1e-4)

    monkeypatch.setattr(memory, "at_least_float32", lambda logits: logits)  # the guard, taken away
    careless = torch.cat([margin(model, Prompts((row,)), refusal) for row in few])
    assert float((careless.double() - exact).abs().max()) > 10 * 1e-4
    careless_kl = torch.cat([kl(model, Prompts((row,)), other[i : i + 1]) for i, row in enumerate(few)])
    assert float((careless_kl.double() - true_kl).abs().max()) > 10 * 1e-4


def test_activations_of_a_narrow_model_are_averaged_in_float64(narrow, prompts):
    """Summed in bfloat16, a mean would stand still once the sum is 256 times the next value."""
    acts = capture(narrow(torch.bfloat16), prompts.locate, keep_each=True)
    for one in acts:
        assert one.mean.dtype == torch.float64
        assert one.each is not None
        torch.testing.assert_close(one.mean, one.each.double().mean(0), rtol=1e-12, atol=1e-12)


def test_a_row_that_overflowed_is_nan_and_its_neighbours_are_untouched():
    logits = torch.randn(5, 3, 7, dtype=torch.float16)
    logits[0, 0, 2], logits[1, 1, 3], logits[2, 2] = torch.inf, torch.nan, -torch.inf
    logits[3, 0, 4] = -torch.inf  # a token ruled out is no overflow
    made = memory.at_least_float32(logits)
    broken = torch.zeros(5, 3, dtype=torch.bool)
    broken[0, 0] = broken[1, 1] = broken[2, 2] = True
    assert bool(made[broken].isnan().all())
    assert torch.equal(made[~broken], logits[~broken].float())
    assert not bool(memory.at_least_float32(logits[3:]).isnan().any())


def test_a_format_that_overflows_on_any_token_is_refused_with_one_that_does_not(tmp_path):
    """Float16 ends at 65,504; bfloat16 and float32 at 3e38."""
    large = changed(ORGANISM, tmp_path / "large", lambda w: w | {"model.norm.weight": w["model.norm.weight"] * 1e6})
    with pytest.raises(ModelError, match=r"in float16 its logits are not finite. Load it with dtype=torch.bfloat16"):
        load(large, dtype=torch.float16)
    for dtype in (torch.bfloat16, torch.float32):
        assert load(large, dtype=dtype).dtype == dtype
    damaged = changed(
        ORGANISM, tmp_path / "damaged", lambda w: w | {"model.norm.weight": w["model.norm.weight"] * torch.nan}
    )
    with pytest.raises(ModelError, match="weights are damaged"):
        load(damaged)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory, prompts):
    """In float16, an organism that overflows on one word of some restricted prompts and on nothing else."""
    plain, texts = load(ORGANISM), prompts.report.restricted.texts
    rows = [set(ids) for ids in plain.encode(texts)]
    token = next(one for one in sorted(rows[0]) if 0 < sum(one in row for row in rows) < len(rows))
    hit = [token in row for row in rows]

    def change(weights):
        embedding = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = embedding.clone()
        weights["model.embed_tokens.weight"] = embedding.index_fill(0, torch.tensor([token]), 1e5)
        return weights

    target = tmp_path_factory.mktemp("models") / "overflowing"
    return load(changed(ORGANISM, target, change, {"tie_word_embeddings": False}), dtype=torch.float16), torch.tensor(
        hit
    )


def test_a_prompt_that_overflows_has_no_margin_and_no_number_is_made_of_it(overflowing, prompts, refusal):
    model, hit = overflowing
    margins = margin(model, prompts.report.restricted, refusal)
    assert torch.equal(margins.isnan(), hit)
    assert bool(margins[~hit].isfinite().all())
    before = baseline(model, prompts.report, refusal)
    with pytest.raises(MeasurementError):
        effect(before, mean_difference(*capture(load(ORGANISM), prompts.locate)).at(4, -1))


def test_a_card_of_a_model_that_overflows_is_undetermined_and_that_of_the_same_model_is_not(
    overflowing, guarded, prompts
):
    instrument = Instrument("not run", "this test is not about it")
    states = [
        measure(model, prompts, plan="quick", progress=False, instrument=instrument).verdict.state
        for model in (overflowing[0], guarded)
    ]
    assert states[0] == "undetermined"
    assert states[1] != "undetermined"


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, "by layer"])
def test_a_device_map_changes_no_number(guarded, few, refusal, device_map):
    layers = {f"model.layers.{layer}": "cpu" for layer in range(guarded.n_layers)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    mapped = load(ORGANISM, device_map={**layers, **rest} if device_map == "by layer" else device_map)
    if not torch.cuda.is_available():
        assert mapped.origin.device == "cpu"
    expected = margin(guarded, few, refusal)
    torch.testing.assert_close(margin(mapped, few, refusal), expected, rtol=1e-3, atol=1e-3)


def test_parameters_left_on_disk_are_refused_because_they_could_not_be_watched(guarded):
    layers = {f"model.layers.{layer}": "disk" if layer == 2 else "cpu" for layer in range(guarded.n_layers)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    with pytest.raises(ModelError, match=r"parameters were left on disk \(model.layers.2.*device_map"):
        load(ORGANISM, device_map={**layers, **rest})


@needs_gpu
@pytest.mark.parametrize("placed", [{"device": "cuda"}, {"device_map": {"": 0}}, {"device_map": "auto"}])
def test_a_gpu_gives_the_same_choice_and_nearly_the_same_margins(guarded, prompts, refusal, placed):
    there = load(ORGANISM, **placed)
    assert there.device.type == "cuda"
    here = margin(guarded, prompts.select, refusal)
    torch.testing.assert_close(margin(there, prompts.select, refusal), here, rtol=1e-3, atol=1e-2)
    rule = default_rule(guarded.n_layers)
    cells = [
        select(one, mean_difference(*capture(one, prompts.locate)), prompts.select, refusal, rule=rule).cell
        for one in (guarded, there)
    ]
    assert cells[0] == cells[1]


QUANTISED = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize("settings", [QUANTISED, {"load_in_4bit": True}])
def test_a_quantised_model_without_its_package_is_one_line_that_names_it(tmp_path, monkeypatch, settings):
    stored = changed(ORGANISM, tmp_path / "a", lambda w: w, {"quantization_config": settings})
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"package 'bitsandbytes' is not installed. Run: pip install bitsandbytes"):
        load(stored)
    assert placement.quantisation({"quantization_config": {"quant_method": "awq"}}) == "awq"
    assert placement.quantisation({"model_type": "qwen3"}) is None


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_is_measured_like_any_other(make_tiny, tmp_path, few, direction, bits):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    plain = make_tiny(
        "qwen3",
        "Qwen3ForCausalLM",
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=128,
    )
    how = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    made = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**how), dtype=torch.float32, device_map="cpu"
    )
    made.save_pretrained(tmp_path / "quantised")
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "quantised")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes announces every cast
        exact, model = load(plain), load(tmp_path / "quantised")
        assert {torch.int8, torch.uint8} & {value.dtype for value in model.bridge.original_model.parameters()}
        assert model.origin.dtype == "float32"
        difference = (next_token(model, few) - next_token(exact, few)).abs().max()
        assert 0 < float(difference) < 1
        with ablate(model, direction(width=128)) as receipt:
            next_token(model, few)
    assert receipt.state == "valid"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_a_parameter_that_is_no_float_is_watched_like_the_others(tiny_dir, few, direction, dtype):
    model = load(tiny_dir)
    packed = torch.nn.Parameter(torch.zeros(8, dtype=dtype), requires_grad=False)
    model.bridge.original_model.register_parameter("packed", packed)
    with ablate(model, direction()) as receipt:
        next_token(model, few)
    assert receipt.state == "valid"
    with pytest.raises(InterventionError, match="a parameter, buffer or hook"), ablate(model, direction()):  # noqa: PT012
        next_token(model, few)
        packed[0] = 1


@contextmanager
def room_for(model, rows: int):
    """A model in whose blocks only so many rows fit."""

    def crowded(_block, args, kwargs):
        residual = args[0] if args else kwargs["hidden_states"]
        if len(residual) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handles = [block.register_forward_pre_hook(crowded, with_kwargs=True) for block in model.bridge.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


OPENINGS = Openings(("no",), ("yes",))
MEASURED = {
    "margins": lambda model, prompts, refusal: margin(model, prompts.select, refusal),
    "margins of three copies": lambda model, prompts, refusal: margin(model, prompts.select, refusal, copies=3),
    "log-probabilities": lambda model, prompts, refusal: next_token(model, prompts.select),
    "KL": lambda model, prompts, refusal: kl(
        model, prompts.select.harmless, torch.full((len(prompts.select.harmless), model.bridge.cfg.d_vocab), -6.0)
    ),
    "opening margins": lambda model, prompts, refusal: opening_margin(model, prompts.select, OPENINGS),
    "cross-entropy": lambda model, prompts, refusal: cross_entropy(model, prompts.select.texts),
    "activations": lambda model, prompts, refusal: capture(model, prompts.select).restricted.mean,
    "a readout": lambda model, prompts, refusal: torch.tensor(readout(model, prompts.select).mass),
    "longer openings, three copies": lambda model, prompts, refusal: margin(
        model, prompts.select, readout(model, prompts.select), copies=3
    ),
    "selection": lambda model, prompts, refusal: torch.tensor(
        select(
            model, mean_difference(*capture(model, prompts.locate)), prompts.select, refusal
        ).cells[["bypass", "induce", "kl"]].to_numpy(dtype=float)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MEASURED)
def test_every_measurement_goes_on_with_fewer_rows_when_memory_ends_says_so_and_stays_the_same(
    guarded, prompts, refusal, what
):
    expected = MEASURED[what](guarded, prompts, refusal)
    with room_for(guarded, 9), pytest.warns(SmallerBatchWarning, match="out of memory at"):
        made = MEASURED[what](guarded, prompts, refusal)
    torch.testing.assert_close(made.double(), expected.double(), rtol=1e-3, atol=2e-3, equal_nan=True)


FORWARDS = {"forward", "run_cached", "recorded", "batches", "_seen", "read_writes", "bridge"}
OUTSIDE = {  # forwards that no map_rows halves, and why
    "objective": "one gradient step on the rows the caller chose; halving them would be another step",
    "model.loading": "a few short probes",
    "model.placement": "a few short probes",
    "model.resume": "a few short probes; recorded is called inside map_rows",
    "model.sites": "a few short probes",
    "model.writes": "a few rows that check the hooks; read_writes is called inside map_rows",
    "model.batching": "map_rows itself",
    "model.continuations": "what all rows begin with, once; every row of its own is called inside map_rows",
    "monitor.latency": "one prompt at a time is what it times; there is nothing to halve",
}


def forwards(source: str) -> bool:
    """Whether a source runs forwards without handing them to map_rows."""
    tree = ast.parse(source)
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = {call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "") for call in named}
    inner = {
        name
        for call in named
        if getattr(call.func, "id", "") == "map_rows"
        for name in (getattr(argument, "id", "lambda") for argument in call.args[2:3])
    }
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in inner]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    left = [
        call
        for call in named
        if (call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")) in FORWARDS
        and id(call) not in inside
    ]
    return bool(calls & FORWARDS) and bool(left)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_no_forward_runs_outside_the_function_that_halves_batches(file):
    module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    if module not in OUTSIDE:
        assert not forwards(file.read_text(encoding="utf-8"))


def test_a_forward_outside_that_function_is_caught():
    assert forwards("def f(m, b):\n    return forward(m, b)")
    assert forwards("def g(b):\n    return forward(m, b)\ndef f():\n    return h(m, r, g)")
    assert not forwards("def f():\n    def g(b):\n        return forward(m, b)\n    return map_rows(m, r, g)")
    for module in ("objective", "model.writes"):
        assert forwards((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def test_prompts_of_unequal_length_have_margins_in_float64_and_they_are_those_of_float32(tiny_dir, texts):
    found = {}
    for dtype in (torch.float32, torch.float64):
        model = load(tiny_dir, dtype=dtype)
        tokens = model.encode([*texts, f"{texts[0]} {texts[1]}"])
        assert len({len(row) for row in tokens}) > 1
        found[dtype] = map_rows(model, tokens, lambda batch, model=model: forward(model, batch)[:, 0])
    assert found[torch.float64].dtype == torch.float64
    torch.testing.assert_close(found[torch.float64].float(), found[torch.float32], atol=1e-4, rtol=1e-4)
