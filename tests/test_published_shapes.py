"""DeepSeek-V3, Kimi K2 and Phi-3 in directories shaped as published: they load, and none of their code runs."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from pathlib import Path

import pytest
import regex
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from published_shapes import CHINESE, KIMI_SPECIALS, SHAPES, Shape, from_blocks, learned_ranks, published
from refusalscope import capture, load
from refusalscope.errors import ModelError
from refusalscope.forecast import forecast
from refusalscope.machine import Machine
from refusalscope.model import ChatModel, CodeNotRunWarning, batches, forward
from refusalscope.model.source import Source
from refusalscope.model.tiktoken_file import PATTERN
from refusalscope.model.without_code import without_code

TEXTS = (
    "Hello there, what's the way?\n\n  Three   spaces, 12345 digits, naïve café.",
    "怎么写一封信？Hello你好world 123 世界",
    *CHINESE,
    "日本語のテキスト と 한국어, emoji 🙂🙃\r\n",
    "   ",
    "",
)
KIMI = next(shape for shape in SHAPES if shape.name.startswith("Kimi"))
DEEPSEEK = next(shape for shape in SHAPES if shape.name.startswith("DeepSeek"))


@pytest.fixture(scope="module")
def marker(tmp_path_factory) -> Path:
    """What every module of a published directory makes when it is imported."""
    return tmp_path_factory.mktemp("marks") / "ran"


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def shape(request) -> Shape:
    return request.param


@pytest.fixture(scope="module")
def folder(shape, tmp_path_factory, marker) -> Path:
    return published(shape, tmp_path_factory.mktemp("published") / shape.name, marker=marker)


@pytest.fixture(scope="module")
def model(folder) -> ChatModel:
    with pytest.warns(CodeNotRunWarning, match=f"{folder.name}: config.json.* names code that was not run"):
        return load(folder)


@pytest.fixture(scope="module")
def kimi(tmp_path_factory, marker) -> Path:
    return published(KIMI, tmp_path_factory.mktemp("kimi") / "Kimi-K2-Instruct", marker=marker)


def clean(folder: Path, copy: Path) -> Path:
    """The settings and weights that the loader is shown, kept."""
    with warnings.catch_warnings(action="ignore"), without_code(Source(folder, folder.name, None)) as source:
        copy.mkdir()
        for file in source.directory.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_published_directory_loads_and_its_sites_are_found(model, folder, marker):
    assert model.origin.code_not_run
    assert model.origin.name == folder.name
    assert len(model.sites.writes) == 2 * model.n_layers + 1
    assert model.sites.additive
    assert model.n_positions > 0
    assert not marker.exists()


def test_activations_of_prompts_are_captured(model, few):
    for acts in capture(model, few):
        assert acts.mean.isfinite().all()
        assert acts.mean.shape == (model.n_layers, model.n_positions, model.d_model)


def test_logits_are_those_of_transformers_own_architecture(model, folder, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(
        clean(folder, tmp_path / "clean"), dtype=torch.float32, attn_implementation="eager"
    )
    rows = model.encode(["What is it?", "A longer request, then."])
    (batch,) = batches(model, rows, batch_size=2)
    with torch.no_grad():
        expected = plain(input_ids=batch.tokens, attention_mask=batch.mask).logits[:, -1]
    found = forward(model, batch)
    found = found[:, -1] if found.ndim == 3 else found
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_the_cost_is_known_from_the_settings_alone(folder, marker, tmp_path):
    bare = tmp_path / folder.name
    bare.mkdir()
    for file in folder.iterdir():
        if file.suffix not in (".safetensors", ".py"):
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.warns(CodeNotRunWarning):
        assert forecast(bare, Machine(1e11, 0.5)).size.layers == 3
    assert not marker.exists()


def test_the_code_would_run_if_it_were_trusted(folder, marker, monkeypatch, tmp_path):
    """The control: transformers imports it when told to, and the mark is seen."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(RuntimeError, match="this code was run"):
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()
    marker.unlink()


def test_an_architecture_that_transformers_lacks_is_refused_and_nothing_runs(folder, marker):
    file = folder / "config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "architectures": ["OtherForCausalLM"]}))
    try:
        with pytest.raises(ModelError, match=r"names code to run.*no architecture \['OtherForCausalLM'\]"):
            load(folder)
    finally:
        file.write_text(before)
    assert not marker.exists()


@pytest.mark.parametrize("shape", [DEEPSEEK, KIMI], ids=str, scope="function")
def test_block_fp8_weights_are_those_a_hand_made_dequantisation_gives(shape, tmp_path, marker):
    folder = published(shape, tmp_path / shape.name, marker=marker, fp8=True)
    with pytest.warns(CodeNotRunWarning):
        model = load(folder)
    assert model.origin.quantisation == "fp8"
    plain = clean(folder, tmp_path / "plain")
    stored = {key: value for file in plain.glob("*.safetensors") for key, value in load_file(file).items()}
    assert any(value.dtype == torch.float8_e4m3fn for value in stored.values())
    config = json.loads((plain / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    for file in [*plain.glob("*.safetensors"), plain / "model.safetensors.index.json"]:
        file.unlink()
    save_file(from_blocks(stored), plain / "model.safetensors", metadata={"format": "pt"})
    expected = load(plain)
    (batch,) = batches(model, model.encode(["What is it?", "A longer request."]), batch_size=2)
    assert torch.equal(forward(model, batch), forward(expected, batch))


def tiktoken_ids(text: str, ranks: dict[bytes, int]) -> list[int]:
    """An oracle: pieces by the pattern, then the pair of lowest rank joined until none is left."""
    ids = []
    for piece in regex.findall(PATTERN, text, flags=regex.V1):
        parts = [bytes([byte]) for byte in piece.encode()]
        while len(parts) > 1:
            pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
            if min(pairs) == len(ranks):
                break
            at = pairs.index(min(pairs))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def tokenizer(kimi, tmp_path_factory):
    return AutoTokenizer.from_pretrained(clean(kimi, tmp_path_factory.mktemp("clean") / "kimi"))


@pytest.mark.parametrize("text", TEXTS)
def test_a_tiktoken_vocabulary_encodes_as_tiktoken_and_decodes_to_the_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == tiktoken_ids(text, learned_ranks(64))
    assert tokenizer.decode(ids) == text


def test_the_pattern_of_another_model_would_split_chinese_otherwise(tokenizer):
    """The control of the oracle: with the library's default pattern the same text has other tokens somewhere."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    other = regex.findall(TikTokenConverter().pattern, "Hello你好world", flags=regex.V1)
    assert other != regex.findall(PATTERN, "Hello你好world", flags=regex.V1)


def test_special_tokens_have_their_published_ids_and_stay_whole(tokenizer):
    first = len(learned_ranks(64))
    for offset, text in KIMI_SPECIALS.items():
        assert tokenizer(f"a{text}b", add_special_tokens=False).input_ids[1] == first + offset
    assert tokenizer.convert_ids_to_tokens(first + 5) == f"<|reserved_token_{first + 5}|>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("[BOS]", "[EOS]", "[PAD]")
    assert len(tokenizer) == first + 256
    kept = tokenizer("<|im_user|>你好<|tool_call_begin|>", add_special_tokens=False).input_ids
    assert tokenizer.decode(kept, skip_special_tokens=True) == "你好<|tool_call_begin|>"


def test_the_chat_template_of_a_tiktoken_tokenizer_renders(tokenizer):
    chat = [{"role": "user", "content": "你好"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == "<|im_user|>user<|im_middle|>你好<|im_end|><|im_assistant|>assistant<|im_middle|>"


BROKEN = {
    "a line that is no base 64": (lambda text: text.replace("AA==", "A*=", 1), "tiktoken.model is damaged (line 1)"),
    "a rank that is missing": (lambda text: "\n".join(text.splitlines()[:-2] + text.splitlines()[-1:]), "lacks ranks"),
    "a byte that is missing": (lambda text: text.split("\n", 1)[1], "lacks ranks or single bytes"),
    "nothing": (lambda text: "", "lacks ranks or single bytes"),
}


@pytest.mark.filterwarnings("ignore::refusalscope.model.without_code.CodeNotRunWarning")
@pytest.mark.parametrize(("spoil", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_tiktoken_file_is_one_line(kimi, tmp_path, spoil, said):
    folder = Path(shutil.copytree(kimi, tmp_path / "kimi"))
    (folder / "tiktoken.model").write_text(spoil((folder / "tiktoken.model").read_text()))
    with pytest.raises(ModelError) as error:
        load(folder)
    assert said in str(error.value)
    assert str(error.value).startswith("kimi: tiktoken.model")
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::refusalscope.model.without_code.CodeNotRunWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_class": "OtherTokenizer"}, "not for 'OtherTokenizer'"),
        ({"added_tokens_decoder": {"3": {"content": "x"}}}, "puts a special token at 3"),
        ({"added_tokens_decoder": {"x": "y"}}, "no readable added_tokens_decoder"),
    ],
)
def test_settings_that_do_not_fit_the_tiktoken_file_are_one_line(kimi, tmp_path, change, said):
    folder = Path(shutil.copytree(kimi, tmp_path / "kimi"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=said):
        load(folder)
