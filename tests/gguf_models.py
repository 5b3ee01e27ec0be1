"""A tiny GGUF file, written with the gguf package as llama.cpp's converter does, and the model it was made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

gguf = pytest.importorskip("gguf", reason="the package gguf is optional (pip install 'refusalscope[gguf]')")

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS, WIDTH, HEADS, PAIRS = 3, 64, 4, 2
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tokens() -> list[str]:
    """Returns a byte-level vocabulary with one merge: special tokens, the 256 bytes as GPT-2 spells them, and " a"."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*SPECIALS, *bytes_to_unicode().values(), "Ġa"]


def original(**settings: Any) -> LlamaForCausalLM:
    """Returns a Llama with random weights of seed 0, in the sizes of the file."""
    config = LlamaConfig(
        vocab_size=len(tokens()),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=PAIRS,
        max_position_embeddings=256,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def written(
    file: Path,
    model: LlamaForCausalLM | None = None,
    *,
    kind: Any = gguf.GGMLQuantizationType.Q8_0,
    template: str | None = TEMPLATE,
    architecture: str = "llama",
    file_type: int | None = 7,
    without: str = "",
    extra: dict[str, np.ndarray] | None = None,
    split: int = 0,
    merge: str = "Ġ a",
    settings: dict[str, str | float] | None = None,
    end_of_turn: int | None = None,
) -> Path:
    """Writes a model as a GGUF file, matrices in Q8_0 unless ``kind`` says otherwise; returns the file.

    ``without`` leaves out a tensor by its GGUF name; ``extra`` adds tensors, ``settings`` keys of the architecture.
    """
    model = model or original()
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    if file_type is not None:
        writer.add_file_type(file_type)
    if split:
        writer.add_uint16("split.count", split)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens())
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens()) - len(SPECIALS)))
    writer.add_token_merges([merge])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    if end_of_turn is not None:
        writer.add_uint32("tokenizer.ggml.eot_token_id", end_of_turn)
    for key, value in (settings or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"{architecture}.{key}", value)
    for name, tensor in sorted(model.state_dict().items()):
        called = gguf_name(name)
        if called != without:
            _add(writer, called, permuted(name, tensor, config).numpy(), kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_name(name: str) -> str:
    """Returns what llama.cpp calls a tensor of Hugging Face's Llama."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def permuted(name: str, tensor: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """Returns query and key matrices with the rows of a head interleaved, as llama.cpp stores them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()


def dequantised(model: LlamaForCausalLM, kind: Any) -> LlamaForCausalLM:
    """Returns the model with every matrix replaced by what its quantisation holds: the oracle of loading."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                packed = gguf.quants.quantize(parameter.detach().numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    return model


def _add(writer: Any, name: str, values: np.ndarray, kind: Any) -> None:
    if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def real_file(name: str) -> Path:
    """Returns a real GGUF file from the folder in REFUSALSCOPE_REAL, or from build/real; skips where there is none."""
    folder = Path(os.environ.get("REFUSALSCOPE_REAL") or Path(__file__).parents[1] / "build" / "real")
    if not (folder / f"{name}.gguf").is_file():
        pytest.skip(f"no {name}.gguf in {folder}: set REFUSALSCOPE_REAL to a folder with real GGUF files")
    return folder / f"{name}.gguf"
