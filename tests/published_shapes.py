"""Tiny models in directories shaped as published: file names, JSON keys and code beside the weights, random numbers.

The code is a trap: each module leaves a mark when it is imported. Keys and file names are those of
deepseek-ai/DeepSeek-V3, moonshotai/Kimi-K2-Instruct and microsoft/Phi-3-mini-4k-instruct.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from family_models import CASES, corpus, wrapped

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
BLOCK, LARGEST = 128, 448.0
TINY = {
    "hidden_size": 32,
    "initializer_range": 0.2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
}
TINY_EXPERTS = {
    "kv_lora_rank": 16,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "model_type": "deepseek_v3",
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    **TINY,
    **TINY_EXPERTS,
}
KIMI = {
    **DEEPSEEK,
    "aux_loss_alpha": 0.001,
    "model_type": "kimi_k2",
    "n_group": 1,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "rope_scaling": {**DEEPSEEK["rope_scaling"], "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "seq_aux": True,
    "transformers_version": "4.48.3",
}
PHI = {
    "_name_or_path": "Phi-3-mini-4k-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "model_type": "phi3",
    "original_max_position_embeddings": 512,
    "pad_token_id": 2,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2",
    "use_cache": True,
    **TINY,
}
FIRST_SPECIAL = 64  # merges behind the 256 bytes, so that special tokens begin at 320
KIMI_SPECIALS = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    254: "[UNK]",
    255: "[PAD]",
}
KIMI_TEMPLATE = (
    "{%- for turn in messages -%}"
    "{{- '<|im_' + turn['role'] + '|>' + turn['role'] + '<|im_middle|>' + turn['content'] + '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_assistant|>assistant<|im_middle|>' -}}{%- endif -%}"
)
CHINESE = ("怎么写一封信", "你好，世界", "请问今天天气如何？")


@dataclass(frozen=True)
class Shape:
    """How one model is published: settings, code beside the weights, and how its tokenizer is written."""

    name: str
    config: dict[str, Any]
    modules: tuple[str, ...]
    tokenizer: Callable[[Path, dict[str, Any]], int]

    def __str__(self) -> str:
        return self.name


def published(shape: Shape, directory: Path, *, marker: Path, fp8: bool = False) -> Path:
    """Writes a shape to a directory; ``marker`` is what its modules make when they are imported."""
    directory.mkdir(parents=True)
    config = {**shape.config, "vocab_size": shape.tokenizer(directory, shape.config)}
    if fp8:
        config["quantization_config"] = FP8
    _write_weights(directory, config, fp8=fp8)
    (directory / "config.json").write_text(json.dumps(config))
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (directory / "generation_config.json").write_text(json.dumps({"_from_model_config": True, **ids}))
    for module in shape.modules:
        trap = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nraise RuntimeError('this code was run')\n"
        (directory / module).write_text(trap)
    return directory


def _write_weights(directory: Path, config: dict[str, Any], *, fp8: bool) -> None:
    """Random weights of seed 0 in two shards, an expert a tensor, as published."""
    foreign = ("auto_map", "quantization_config", "model_type", "torch_dtype", "transformers_version")
    kind = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])
    made = AutoConfig.for_model(kind, **{key: value for key, value in config.items() if key not in foreign})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(made).save_pretrained(directory / "whole")
    from safetensors.torch import load_file

    weights = load_file(directory / "whole" / "model.safetensors")
    for file in (directory / "whole").iterdir():
        file.unlink()
    (directory / "whole").rmdir()
    weights = in_blocks(weights) if fp8 else weights
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: weights[name].contiguous() for name in members}, directory / shard, metadata={"format": "pt"})
    table = {name: shard for shard, members in shards.items() for name in members}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def in_blocks(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns projections as block FP8 with an inverse scale per 128 by 128 block; the rest as it is."""
    made: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if weight.ndim != 2 or "proj" not in name:
            made[name] = weight
            continue
        rows, columns = (-(-length // BLOCK) for length in weight.shape)
        padded = torch.zeros(rows * BLOCK, columns * BLOCK)
        padded[: weight.shape[0], : weight.shape[1]] = weight
        blocks = padded.view(rows, BLOCK, columns, BLOCK)
        scale = blocks.abs().amax((1, 3)) / LARGEST
        small = (blocks / scale[:, None, :, None]).reshape(padded.shape)[: weight.shape[0], : weight.shape[1]]
        made |= {name: small.to(torch.float8_e4m3fn).contiguous(), f"{name}_scale_inv": scale}
    return made


def from_blocks(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what ``in_blocks`` made in float32: the oracle of what loading must give."""
    made = {}
    for name, weight in weights.items():
        if (scale := weights.get(f"{name}_scale_inv")) is not None:
            wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            made[name] = weight.float() * wide[: weight.shape[0], : weight.shape[1]]
        elif not name.endswith("_scale_inv"):
            made[name] = weight
    return made


def fast_tokenizer(family: str, **settings: Any) -> Callable[[Path, dict[str, Any]], int]:
    """A writer of ``tokenizer.json`` and settings as published, their chat template inside."""

    def write(directory: Path, config: dict[str, Any]) -> int:
        case = next(case for case in CASES if case.family == family)
        made = wrapped(replace(case))
        made.save_pretrained(directory)
        (directory / "chat_template.jinja").unlink()
        old = json.loads((directory / "tokenizer_config.json").read_text())
        old |= {"chat_template": case.template, "tokenizer_class": "LlamaTokenizerFast", **settings}
        (directory / "tokenizer_config.json").write_text(json.dumps(old))
        return len(made)

    return write


def tiktoken_tokenizer(directory: Path, config: dict[str, Any]) -> int:
    """Writes ``tiktoken.model`` and settings that name the publisher's own class; no ``tokenizer.json``."""
    ranks = learned_ranks(FIRST_SPECIAL)
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items())
    (directory / "tiktoken.model").write_text("\n".join(lines) + "\n")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(len(ranks) + offset): {"content": text, "special": "tool" not in text, **flags}
        for offset, text in KIMI_SPECIALS.items()
    }
    settings = {
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_end|>", "<|im_user|>", "<|im_assistant|>", "[EOT]", "<|im_system|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "chat_template": KIMI_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "extra_special_tokens": {},
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    config |= {"bos_token_id": len(ranks), "eos_token_id": len(ranks) + 1}
    return len(ranks) + 256


def learned_ranks(merges: int) -> dict[bytes, int]:
    """Returns all single bytes and so many merges of frequent pairs of the corpus, English and Chinese, by rank."""
    ranks = {bytes([value]): value for value in range(256)}
    words = [[bytes([byte]) for byte in word.encode()] for text in (*corpus()[::40], *CHINESE) for word in text.split()]
    for _ in range(merges):
        counts: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + (4 if max(pair[0]) > 127 else 1)
        best = max(sorted(pair for pair in counts if pair[0] + pair[1] not in ranks), key=lambda pair: counts[pair])
        ranks[best[0] + best[1]] = len(ranks)
        words = [joined(word, best) for word in words]
    return ranks


def joined(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Returns a word with every occurrence of a pair as one token."""
    made: list[bytes] = []
    for token in word:
        if made and (made[-1], token) == pair:
            made[-1] += token
        else:
            made.append(token)
    return made


SHAPES = (
    Shape(
        "DeepSeek-V3",
        DEEPSEEK,
        ("configuration_deepseek.py", "modeling_deepseek.py"),
        fast_tokenizer("DeepSeek-V3", add_bos_token=True, add_eos_token=False, legacy=True),
    ),
    Shape(
        "Kimi-K2-Instruct",
        KIMI,
        ("configuration_deepseek.py", "modeling_deepseek.py", "tokenization_kimi.py"),
        tiktoken_tokenizer,
    ),
    Shape(
        "Phi-3-mini-4k-instruct",
        PHI,
        ("configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py"),
        fast_tokenizer("Phi-3", legacy=False, tokenizer_class="LlamaTokenizer"),
    ),
)
