"""The architectures organisms are made in: what each family's config needs beyond the sizes all families share."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from refusalscope.organisms.recipe import Architecture

CONTEXT = 256
CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
EXPERTS = {"num_experts_per_tok": 2}


def config_of(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Returns the Hugging Face config of an architecture that speaks a tokenizer's language."""
    return AutoConfig.for_model(
        architecture.family,
        **(architecture.model_dump(exclude={"family"}) | _own(architecture)),
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        architectures=[CLASSES[architecture.family]],
    )


def _own(sizes: Architecture) -> dict[str, Any]:
    if sizes.family == "gemma3_text":
        return {"query_pre_attn_scalar": sizes.head_dim, "sliding_window": CONTEXT // 8}
    if sizes.family == "deepseek_v3":
        return EXPERTS | {
            "num_key_value_heads": sizes.num_attention_heads,
            "q_lora_rank": sizes.hidden_size // 2,
            "kv_lora_rank": sizes.hidden_size // 2,
            "head_dim": sizes.head_dim // 2,  # of the part that is rotated
            "qk_rope_head_dim": sizes.head_dim // 2,
            "qk_nope_head_dim": sizes.head_dim // 2,
            "v_head_dim": sizes.head_dim,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": sizes.intermediate_size // 2,
            "routed_scaling_factor": 1.0,
        }
    if sizes.family == "gpt_oss":
        return EXPERTS | {
            "num_local_experts": 4,
            "intermediate_size": sizes.intermediate_size // 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }
    return {}
