"""Fingerprints of what was measured: weights, vocabulary, chat template, rendered prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refusalscope.prompts import Prompts

if TYPE_CHECKING:
    from refusalscope.model.chat import ChatModel

CHUNK = 1 << 22


def files_digest(files: Iterable[Path]) -> str:
    """Returns SHA-256 over the files' bytes one after another; for one file, what ``sha256sum`` prints."""
    running = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                running.update(chunk)
    return running.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns SHA-256 over name, format, shape and bytes of each tensor, in the order of their names.

    Nothing is kept: one tensor at a time is copied from its device. No file has this digest, because a file also has a
    header and an order of its own.
    """
    running = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        running.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        running.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return running.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns SHA-256 over the (token, id) pairs, as ``organisms.tokens.vocabulary_digest`` does."""
    return _of_json(sorted(tokenizer.get_vocab().items()))


def text_digest(text: str) -> str:
    """Returns SHA-256 over the text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def rendered_digest(model: ChatModel, prompts: Prompts) -> str:
    """Returns SHA-256 over the token ids each prompt is rendered to, in the order of the prompts' ids.

    Two runs with equal digests gave their models the same tokens, whatever happened to template or tokenizer between.
    """
    return _of_json(sorted(zip(prompts.ids, model.encode(prompts.texts), strict=True)))


def _of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
