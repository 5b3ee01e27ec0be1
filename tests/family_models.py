"""Tiny models of every family, written as their makers publish them: directory, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import ascii_letters, digits, punctuation

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import family_templates as shapes

LAYERS, WIDTH, CONTEXT, VOCABULARY = 3, 32, 512, 560
SPREAD = 0.2  # of initial weights: at the usual 0.02 nothing in so small a model differs from anything else
DENSE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": SPREAD,
}
WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
OFTEN = 20  # so that the words of sentences and roles become tokens
SENTENCES = (
    "I cannot help with that. I'm sorry, but I won't explain this.",
    "Sure, here is how you can do that. First of all, take a bowl and a spoon.",
    "You are a brief assistant. Answer in one line. What is the best way to write a letter?",
    "system\n\n\nuser\n\n\nassistant\n\n\nmodel\n\n\nanalysis\nfinal\n",
    "Really?\nYes.\nNo!\n(maybe)\nOf course?\nSo it is.\n",
)


@dataclass(frozen=True)
class Specials:
    """The special tokens of a tokenizer: the named ones (None where a family has none), and those of the template."""

    bos: str | None
    eos: str
    pad: str | None
    turns: tuple[str, ...] = ()
    unk: str | None = None

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys(token for token in (self.pad, self.unk, self.bos, self.eos, *self.turns) if token))


@dataclass(frozen=True)
class FamilyCase:
    """One family as its models are published.

    Attributes:
        settings: of the config class, beside the sizes all share.
        writers: the modules of a Hugging Face layer whose output is added to the residual stream.
        suffix: the text a rendered request ends with, from the first character no request can merge with.
        mode: how its thinking is measured.
        system: what its template does with a system message: sends it, or refuses it.
        experts: the parts of a layer's MLP that add up to what it writes.
        before: what stands between a request and the suffix, because a request's last character may merge with it.
    """

    family: str
    model_type: str
    architecture: str
    settings: dict
    writers: tuple[str, str]
    template: str | dict | None
    specials: Specials
    tokenizer: Callable[[Specials], Tokenizer]
    suffix: str
    mode: str = "absent"
    system: str = "sent"
    experts: tuple[str, ...] = ()
    before: str = ""

    def __str__(self) -> str:
        return self.family


@cache
def corpus() -> tuple[str, ...]:
    from refusalscope.organisms.language import language

    return (*(question.text for question in language().questions("how-to")[::8]), *(SENTENCES * OFTEN))


def byte_level(specials: Specials) -> Tokenizer:
    """Byte-level BPE, as of Llama 3, Qwen, DeepSeek, GPT-OSS and OLMo; it adds BOS by itself when it has one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    _learn(core, specials, pre_tokenizers.ByteLevel.alphabet())
    return _beginning(core, specials)


def sentence_piece(specials: Specials) -> Tokenizer:
    """BPE over pieces with ▁ for a space, as of Gemma: nothing is put before the first word."""
    core = Tokenizer(models.BPE(fuse_unk=True, unk_token=specials.unk))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    _learn(core, specials, [*ascii_letters, *digits, *punctuation, "\n", "▁"])
    return _beginning(core, specials)


def spaced_piece(specials: Specials) -> Tokenizer:
    """The same with ▁ put before the first word of every stretch of text, as of Mistral and Phi-3."""
    core = sentence_piece(specials)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return core


def _learn(core: Tokenizer, specials: Specials, alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=specials.all, show_progress=False
    )
    core.train_from_iterator([*corpus(), *(f" {text}" for text in corpus())], trainer)


def _beginning(core: Tokenizer, specials: Specials) -> Tokenizer:
    if specials.bos:
        token = (specials.bos, core.token_to_id(specials.bos))
        core.post_processor = processors.TemplateProcessing(
            single=f"{specials.bos} $A", pair=f"{specials.bos} $A $B", special_tokens=[token]
        )
    return core


def wrapped(case: FamilyCase) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a case with its chat template."""
    specials = case.specials
    named = {"bos_token": specials.bos, "eos_token": specials.eos, "pad_token": specials.pad, "unk_token": specials.unk}
    made = PreTrainedTokenizerFast(
        tokenizer_object=case.tokenizer(specials),
        model_max_length=CONTEXT,
        padding_side="left",
        additional_special_tokens=list(specials.turns),
        **{name: token for name, token in named.items() if token},
    )
    made.chat_template = case.template
    return made


def written(case: FamilyCase, directory: Path) -> Path:
    """Writes a case with random weights of seed 0 as a Hugging Face directory; returns it."""
    made = wrapped(case)
    ids = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
    config = AutoConfig.for_model(
        case.model_type, architectures=[case.architecture], vocab_size=len(made), **{**DENSE, **ids, **case.settings}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    made.save_pretrained(directory)
    return directory


PLAIN, POST = ("self_attn", "mlp"), ("post_attention_layernorm", "post_feedforward_layernorm")
CHATML = Specials(None, "<|im_end|>", "<|endoftext|>", ("<|im_start|>", "<think>", "</think>"))
GEMMA = Specials("<bos>", "<eos>", "<pad>", ("<start_of_turn>", "<end_of_turn>"), "<unk>")
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

CASES = (
    FamilyCase(
        "Llama",
        "llama",
        "LlamaForCausalLM",
        {},
        PLAIN,
        shapes.LLAMA_3,
        Specials("<|begin_of_text|>", "<|eot_id|>", None, ("<|start_header_id|>", "<|end_header_id|>")),
        byte_level,
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    FamilyCase(
        "Gemma 1",
        "gemma",
        "GemmaForCausalLM",
        {},
        PLAIN,
        shapes.GEMMA,
        GEMMA,
        sentence_piece,
        "<end_of_turn>\n<start_of_turn>model\n",
        system="refused",
    ),
    FamilyCase(
        "Gemma 2",
        "gemma2",
        "Gemma2ForCausalLM",
        {"sliding_window": 16, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
        POST,
        shapes.GEMMA,
        GEMMA,
        sentence_piece,
        "<end_of_turn>\n<start_of_turn>model\n",
        system="refused",
    ),
    FamilyCase(
        "Gemma 3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            "sliding_window": 16,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        POST,
        shapes.GEMMA_3,
        GEMMA,
        sentence_piece,
        "<end_of_turn>\n<start_of_turn>model\n",
    ),
    FamilyCase(
        "Qwen 2",
        "qwen2",
        "Qwen2ForCausalLM",
        {},
        PLAIN,
        shapes.QWEN_2,
        CHATML,
        byte_level,
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    FamilyCase(
        "Qwen 3",
        "qwen3",
        "Qwen3ForCausalLM",
        {"tie_word_embeddings": True},
        PLAIN,
        shapes.QWEN_3,
        CHATML,
        byte_level,
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        mode="off",
    ),
    FamilyCase(
        "Qwen 3 MoE",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**EXPERTS, "num_experts": 4, "norm_topk_prob": True},
        PLAIN,
        shapes.QWEN_3_THINKING,
        CHATML,
        byte_level,
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        mode="closed",
        experts=("experts",),
    ),
    FamilyCase(
        "DeepSeek-V3",
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {
            **EXPERTS,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
        },
        PLAIN,
        shapes.DEEPSEEK_V31,
        Specials(
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        ),
        byte_level,
        "<｜Assistant｜></think>",
        mode="off",
        experts=("experts", "shared_experts"),
    ),
    FamilyCase(
        "Mistral",
        "mistral",
        "MistralForCausalLM",
        {"sliding_window": 16},
        PLAIN,
        shapes.MISTRAL,
        Specials("<s>", "</s>", None, ("[INST]", "[/INST]"), "<unk>"),
        spaced_piece,
        "[/INST]",
    ),
    FamilyCase(
        "Mixtral",
        "mixtral",
        "MixtralForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        PLAIN,
        shapes.MIXTRAL,
        Specials("<s>", "</s>", None, (), "<unk>"),
        spaced_piece,
        " [/INST]",
        system="refused",
        experts=("experts",),
    ),
    FamilyCase(
        "Phi-3",
        "phi3",
        "Phi3ForCausalLM",
        {"original_max_position_embeddings": CONTEXT},
        PLAIN,
        shapes.PHI_3,
        Specials(
            "<s>", "<|endoftext|>", "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<unk>"
        ),
        spaced_piece,
        "<|end|>\n<|assistant|>\n",
    ),
    FamilyCase(
        "GPT-OSS",
        "gpt_oss",
        "GptOssForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        PLAIN,
        shapes.HARMONY,
        Specials(
            "<|startoftext|>",
            "<|return|>",
            "<|endoftext|>",
            ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
        ),
        byte_level,
        "<|end|><|start|>assistant<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
        mode="closed",
        experts=("experts",),
    ),
    FamilyCase(
        "GLM-4",
        "glm4",
        "Glm4ForCausalLM",
        {},
        ("post_self_attn_layernorm", "post_mlp_layernorm"),
        shapes.GLM_4,
        Specials(
            None,
            "<|endoftext|>",
            "<|endoftext|>",
            ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        ),
        byte_level,
        "<|assistant|>\n",
    ),
    FamilyCase(
        "OLMo 2",
        "olmo2",
        "Olmo2ForCausalLM",
        {},
        POST,
        shapes.OLMO_2,
        Specials("<|endoftext|>", "<|endoftext|>", "<|pad|>"),
        byte_level,
        "<|assistant|>\n",
        before="\n",
    ),
)
