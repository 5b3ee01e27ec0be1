"""GGUF files: loaded as transformers dequantises them, described by their own header, and refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from gguf_models import LAYERS, TEMPLATE, dequantised, gguf, original, real_file, tokens, written
from refusalscope import capture, cli, load
from refusalscope.audit import audit
from refusalscope.errors import ModelError
from refusalscope.forecast import forecast
from refusalscope.machine import Machine
from refusalscope.model import Chat, ChatModel, batches, forward
from refusalscope.model.gguf_files import open_gguf
from refusalscope.model.unloaded import unloaded
from refusalscope.prompts.prompt import LABELS, SPLITS
from refusalscope.results.facts import model_facts
from refusalscope.results.parts import ModelFacts

PROMPTS = Path(__file__).parents[1] / "data" / "prompts" / "organism.jsonl"
REQUESTS = ["What is it?", "A longer request, which needs some padding on the left of the other one."]
KINDS = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(file) -> ChatModel:
    return load(file)


def logits(model: ChatModel) -> torch.Tensor:
    (batch,) = batches(model, model.encode(REQUESTS), batch_size=2)
    return forward(model, batch)


def plain_logits(module, model: ChatModel) -> torch.Tensor:
    """The same batch through transformers alone."""
    (batch,) = batches(model, model.encode(REQUESTS), batch_size=2)
    assert not bool(batch.mask.all()), "no row is padded"
    with torch.no_grad():
        found = module(input_ids=batch.tokens, attention_mask=batch.mask).logits
    return found[:, -1]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """To 32 roundings of float32 at the size of the largest logit."""
    found = found[:, -1] if found.ndim == 3 else found
    return float((found - expected).abs().max()) <= 32 * torch.finfo(torch.float32).eps * float(expected.abs().max())


@pytest.mark.parametrize("kind", [KINDS.Q8_0, KINDS.Q4_0, KINDS.Q5_0, KINDS.F16, KINDS.F32], ids=lambda kind: kind.name)
def test_logits_are_those_of_the_dequantised_original(tmp_path, kind):
    model = load(written(tmp_path / "a.gguf", kind=kind))
    expected = plain_logits(dequantised(original(attn_implementation="eager"), kind), model)
    assert close(logits(model), expected)


def test_quantisation_changes_logits(model):
    """The control: the comparison above would notice other weights."""
    assert not close(logits(model), plain_logits(original(attn_implementation="eager"), model))


def test_the_origin_names_the_file_its_digest_and_its_quantisation(model, file):
    assert model.origin.name == "tiny.gguf"
    assert model.origin.weights == hashlib.sha256(file.read_bytes()).hexdigest()
    assert model.origin.quantisation == "Q8_0"
    assert (model.origin.commit, model.origin.code_not_run) == (None, False)
    assert model.origin.architecture == "LlamaForCausalLM"
    assert "Q8_0" in model._repr_html_()


def test_its_sites_are_found_and_activations_captured(model, few):
    assert model.sites.additive
    assert model.can_resume
    for acts in capture(model, few):
        assert acts.mean.shape == (LAYERS, model.n_positions, model.d_model)


def test_its_tokenizer_keeps_special_tokens_whole_and_decodes_what_it_encodes(model):
    (ids,) = model.encode(["a 你好"])
    assert ids[0] == 1
    assert model.tokenizer.decode(ids) == "<|im_start|>user\na 你好<|im_end|>\n<|im_start|>assistant\n"
    assert len(model.tokenizer) == len(tokens())


def test_quantisation_is_the_declared_file_type_or_else_that_of_most_weights(tmp_path):
    declared = open_gguf(written(tmp_path / "a.gguf", file_type=15), name="a.gguf")
    assert declared.quantisation == "Q4_K_M"
    assert open_gguf(written(tmp_path / "b.gguf", file_type=1024 + 3), name="b").quantisation == "Q4_1"
    assert open_gguf(written(tmp_path / "c.gguf", file_type=None), name="c").quantisation == "Q8_0"
    assert open_gguf(written(tmp_path / "d.gguf", file_type=999), name="d").quantisation == "Q8_0"


def test_a_card_stores_the_quantisation_and_reads_what_was_stored_without_one(model, tiny):
    facts = model_facts(model)
    assert facts.quantisation == "Q8_0"
    assert model_facts(tiny).quantisation is None
    old = {
        key: value for key, value in dataclasses.asdict(facts).items() if key not in ("quantisation", "code_not_run")
    }
    assert ModelFacts(**old) == dataclasses.replace(facts, quantisation=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_loads_in_the_number_format_that_is_asked_for(file, dtype):
    model = load(file, dtype=dtype)
    assert {parameter.dtype for parameter in model.bridge.original_model.parameters()} == {dtype}
    assert model.dtype == dtype


def test_settings_beside_the_file_are_not_read(file, tmp_path, model):
    copy = tmp_path / "tiny.gguf"
    copy.write_bytes(file.read_bytes())
    trap = tmp_path / "evil.py"
    trap.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        named = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
        (tmp_path / name).write_text(json.dumps({"auto_map": named, "chat_template": "other", "model_type": "x"}))
    found = load(copy)
    assert (found.origin.tokenizer, found.origin.template) == (model.origin.tokenizer, model.origin.template)
    assert not (tmp_path / "ran").exists()


def test_loading_prints_nothing_and_leaves_gguf_as_it_was(file, capfd):
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    load(file)
    assert capfd.readouterr() == ("", "")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_the_quick_reader_reads_what_gguf_reads(file):
    quick, slow = open_gguf(file, name="a").reader, gguf.GGUFReader(file)
    assert list(quick.fields) == list(slow.fields)
    for key, field in slow.fields.items():
        assert quick.fields[key].types == field.types, key
        parts = [np.array(list(quick.fields[key].parts[place])).tolist() for place in quick.fields[key].data]
        assert parts == [field.parts[place].tolist() for place in field.data], key
    for one, other in zip(quick.tensors, slow.tensors, strict=True):
        assert (one.name, one.tensor_type, one.data_offset) == (other.name, other.tensor_type, other.data_offset)
        assert np.array_equal(one.data, other.data)


def test_rope_factors_stored_as_a_tensor_are_applied(tmp_path):
    """As llama.cpp writes the rope scaling of Llama 3.1 and later, which transformers does not read."""
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings = {"original_max_position_embeddings": 32, "rope_theta": 10000.0}
    made = original(attn_implementation="eager", rope_parameters={**scaled, **settings})
    factors = original().model.rotary_emb.inv_freq / made.model.rotary_emb.inv_freq
    assert float(factors.max()) > 1
    file = written(tmp_path / "a.gguf", made, kind=KINDS.F32, extra={"rope_freqs.weight": factors.numpy()})
    model = load(file)
    assert close(logits(model), plain_logits(made, model))
    without = load(written(tmp_path / "b.gguf", made, kind=KINDS.F32))
    assert not close(logits(without), plain_logits(made, without)), "the control: they matter"
    wrong = written(tmp_path / "c.gguf", extra={"rope_freqs.weight": np.ones(3, dtype=np.float32)})
    with pytest.raises(ModelError, match=r"c\.gguf: its tensor rope_freqs\.weight fits no rotary embedding"):
        load(wrong)


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


SPOILED = {
    "empty": (lambda file: file.write_bytes(b""), "the file is empty"),
    "another format": (lambda file: file.write_bytes(b"PK\3\4" + bytes(100)), "no GGUF file, whatever its name says"),
    "a few bytes": (lambda file: cut(file, 0.0002), "damaged or cut off"),
    "cut off in its header": (lambda file: cut(file, 0.01), "damaged or cut off"),
    "cut off in its tensors": (lambda file: cut(file, 0.7), "damaged or cut off"),
    "cut off at its end": (lambda file: cut(file, 0.999), "damaged or cut off"),
    "a version from before": (
        lambda file: file.write_bytes(b"GGUF\1\0\0\0" + bytes(100)),
        "GGUF version 1 is not read",
    ),
    "a header of noise": (lambda file: file.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 500), "damaged or cut off"),
    "no key": (lambda file: file.write_bytes(b"GGUF\3\0\0\0" + bytes(500)), "names no architecture"),
    "an architecture nobody knows": (
        lambda file: written(file, architecture="nonsense"),
        "architecture 'nonsense' that transformers",
    ),
    "a tensor that is missing": (
        lambda file: written(file, without="blk.1.ffn_up.weight"),
        "do not belong together (missing: model.layers.1.mlp.up_proj.weight)",
    ),
    "a merge into no token": (lambda file: written(file, merge="b c"), "Token `bc` out of vocabulary"),
    "one part of several, by its header": (lambda file: written(file, split=3), "one of 3 parts of a split file"),
    "linear rope scaling": (
        lambda file: written(file, settings={"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
        "its rotary positions are scaled (linear, factor 8), which transformers",
    ),
    "YaRN": (
        lambda file: written(file, settings={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
        "its rotary positions are scaled (yarn, factor 4)",
    ),
    "rope scaling as older files spell it": (
        lambda file: written(file, settings={"rope.scale_linear": 2.0}),
        "its rotary positions are scaled (linear, factor 2)",
    ),
    "long and short rope factors": (
        lambda file: written(file, extra={"rope_factors_long.weight": np.ones(4, dtype=np.float32)}),
        "its rotary positions are scaled (rope_factors_long.weight)",
    ),
    "no chat template": (lambda file: written(file, template=None), "has no chat template. Pass one: load(..., chat="),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.values(), ids=SPOILED.keys())
def test_a_file_that_cannot_be_loaded_is_one_line_that_names_it(file, tmp_path, spoil, said):
    copy = tmp_path / "bad.gguf"
    copy.write_bytes(file.read_bytes())
    spoil(copy)
    with pytest.raises(ModelError) as error:
        load(copy)
    assert str(error.value).startswith("bad.gguf: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_part_of_a_split_file_is_known_by_its_name(file, tmp_path):
    part = tmp_path / "big-00001-of-00003.gguf"
    part.write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"one of 3 parts of a split file\. Merge them first: llama-gguf-split"):
        load(part)


@pytest.mark.parametrize(
    "settings", [{"rope.scaling.type": "none"}, {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}]
)
def test_rope_scaling_that_scales_nothing_is_no_hindrance(tmp_path, settings):
    assert load(written(tmp_path / "plain.gguf", settings=settings)).n_layers > 0


def test_one_part_of_one_is_a_whole_file(file, tmp_path):
    whole = tmp_path / "tiny-00001-of-00001.gguf"
    whole.write_bytes(file.read_bytes())
    assert load(whole).n_layers > 0


def test_a_reply_ends_with_the_turn_that_the_file_says_and_with_the_text(tmp_path):
    from refusalscope.reading.replies import _ends

    plain, turning = (written(tmp_path / f"{n}.gguf", end_of_turn=n) for n in (None, 3))
    assert _ends(load(turning)) == _ends(load(plain)) | {3}


@pytest.mark.parametrize("asked", [str, Path])
def test_a_file_that_does_not_exist_names_the_nearest_one(file, asked):
    with pytest.raises(ModelError, match=r"tinny\.gguf: no such file\. Did you mean '.*tiny\.gguf'"):
        load(asked(file.with_name("tinny.gguf")))


def test_a_directory_that_holds_only_a_gguf_file_says_to_give_the_file(file):
    with pytest.raises(ModelError, match=r"no config.json in this directory. To load a GGUF file, .*tiny\.gguf"):
        load(file.parent)


def test_without_the_package_the_command_that_installs_it_is_said(file, monkeypatch):
    monkeypatch.setattr("refusalscope.model.gguf_files.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"tiny\.gguf: .* needs the package 'gguf'\. Run: pip install gguf\."):
        load(file)


def test_a_revision_and_a_tokenizer_are_not_for_a_file(file, model):
    with pytest.raises(ModelError, match="revision='main' given for a file"):
        load(file, revision="main")
    with pytest.raises(ModelError, match="tokenizer= is for a model in memory"):
        load(file, tokenizer=model.tokenizer)


def test_a_template_that_is_given_takes_the_place_of_one_that_is_missing(tmp_path, model):
    file = written(tmp_path / "base.gguf", template=None)
    assert load(file, chat=Chat(template=TEMPLATE)).origin.template == model.origin.template


def test_an_audit_says_that_it_needs_safetensors(file):
    with pytest.raises(ModelError, match=r"tiny\.gguf: an audit reads safetensors .* Give the model's directory"):
        audit(file, file)


def test_the_cost_of_a_file_is_known_without_its_weights(file, model, monkeypatch):
    def dequantize(*_args):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(gguf, "dequantize", dequantize)
    bare = unloaded(file)
    assert (bare.n_layers, bare.d_model, bare.n_positions) == (model.n_layers, model.d_model, model.n_positions)
    assert bare.origin.quantisation == "Q8_0"
    assert bare.origin.architecture == "LlamaForCausalLM"
    count = sum(parameter.numel() for parameter in original().parameters())
    assert forecast(str(file), Machine(1e11, 0.5)).size.parameters == count
    with pytest.raises(AssertionError, match="a weight was read"):  # the control: loading reads them
        load(file)


COMMANDS = {
    "estimate": ("--flops", "1e11"),
    "select": ("--dtype", "bfloat16"),
    "diagnose": ("--dtype", "bfloat16"),
    "card": ("--quick",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_takes_a_file_and_says_in_one_line_what_is_wrong_with_it(file, tmp_path, command):
    copy = tmp_path / "bad.gguf"
    copy.write_bytes(file.read_bytes()[:-1000])
    out = () if command in ("estimate", "diagnose") else ("--out", str(tmp_path / "out"))
    words = [command, str(copy), "--prompts", str(PROMPTS), *out, *COMMANDS[command]]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("refusalscope: bad.gguf: damaged or cut off")


def test_the_command_line_estimates_a_file(file):
    result = CliRunner().invoke(cli.app, ["estimate", str(file), "--flops", "1e11", "--dtype", "bfloat16"])
    assert result.exit_code == 0, result.stderr
    assert "3 layers of width 64" in result.stdout
    assert "memory in bfloat16" in result.stdout


def test_the_command_line_diagnoses_a_file_in_bfloat16(file, tmp_path):
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    kept = [[row for row in rows if (row["split"], row["label"]) == part] for part in product(SPLITS, LABELS)]
    few = (json.dumps({**row, "pair": None}) for part in kept for row in part[:: max(1, len(part) // 8)])
    (tmp_path / "few.jsonl").write_text("\n".join(few))
    words = ["diagnose", str(file), "--prompts", str(tmp_path / "few.jsonl"), "--dtype", "bfloat16"]
    result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, SystemExit | None), "an error nobody anticipated shows its traceback"
    assert "tiny.gguf" in result.output


def test_loading_a_directory_does_not_import_gguf(tiny_dir):
    code = f"import sys, refusalscope as rs; rs.load({str(tiny_dir)!r}); print('gguf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


REAL = {
    "smollm2-135m-instruct": ("LlamaForCausalLM", "Q4_1", 30),
    "qwen2.5-coder-0.5b-instruct": ("Qwen2ForCausalLM", "Q4_K_M", 24),
}


def test_a_real_file_has_the_logits_of_plain_transformers():
    file = real_file("smollm2-135m-instruct")
    model = load(file)
    module = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    chats = [[{"role": "user", "content": text}] for text in REQUESTS]
    rendered = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    assert model.encode(REQUESTS) == rendered
    assert close(logits(model), plain_logits(module, model))


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_is_described_by_its_header(name):
    bare = unloaded(real_file(name))
    assert (bare.origin.architecture, bare.origin.quantisation, bare.n_layers) == REAL[name]
    assert bare.n_positions > 0


def test_a_real_base_model_has_no_chat_template():
    with pytest.raises(ModelError, match=r"gemma-3-270m\.gguf: its tokenizer has no chat template\. Pass one"):
        load(real_file("gemma-3-270m"))
