"""The organisms' tokenizer: one token per word, a ChatML template, ordinary Hugging Face files."""

from __future__ import annotations

import hashlib
import json

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from refusalscope.organisms.language import language

PAD, UNKNOWN, START, END, NEWLINE = "<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>", "\n"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Returns the word-level tokenizer every organism ships with; token ids are fixed by the language."""
    words = (PAD, UNKNOWN, START, END, NEWLINE, *ROLES, *language().words)
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = Whitespace()
    core.add_special_tokens([AddedToken(token, special=True) for token in (PAD, UNKNOWN, START, END, NEWLINE)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        model_max_length=256,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def vocabulary_digest(made: PreTrainedTokenizerFast) -> str:
    """Returns SHA-256 over the (token, id) pairs: equal digests can only ever say the same things."""
    return hashlib.sha256(json.dumps(sorted(made.get_vocab().items())).encode()).hexdigest()


def speaks_only_the_language(made) -> bool:
    """Returns True when a tokenizer's whole vocabulary is the fictional one, so that its model can say nothing else."""
    return vocabulary_digest(made) == vocabulary_digest(tokenizer())
