"""Whether two checkpoints can be compared at all, and if not, why and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refusalscope.audit.checkpoint import EMBEDDINGS, Checkpoint
from refusalscope.audit.weights import Differences

SHAPES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
NOT_OF_THE_MODEL = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "vocab_size", "use_cache")
RELATED = 0.5  # cosine of all weights: an edit leaves most of a model as it was, strangers share nothing
OUTPUTS = ("lm_head", "embed_out")
GIVE_REFERENCE = "Give the checkpoint it was made from."


@dataclass(frozen=True)
class Obstacle:
    """Why nothing can be told, and the one thing to do."""

    reason: str
    action: str


def strangers(reference: Checkpoint, candidate: Checkpoint) -> Obstacle | None:
    """Returns why two checkpoints are not of one architecture with the same tensors; None where they are.

    More or fewer rows of the vocabulary are no obstacle (padding), nor is a tied output that only one stores.
    """
    kinds = [one.config.get("model_type") for one in (reference, candidate)]
    if kinds[0] != kinds[1]:
        return Obstacle(f"another architecture: {kinds[0]} and {kinds[1]}", GIVE_REFERENCE)
    for name in SHAPES:
        sizes = [one.config.get(name) for one in (reference, candidate)]
        if None not in sizes and sizes[0] != sizes[1]:
            return Obstacle(f"another shape: {name} is {sizes[0]} and {sizes[1]}", GIVE_REFERENCE)
    names = [_own(one) for one in (reference, candidate)]
    if missing := sorted(names[0] - names[1]):
        return Obstacle(_named(f"the candidate has no {missing[0]!r}", len(missing)), "Save it with its own names.")
    if extra := sorted(names[1] - names[0]):
        return Obstacle(_named(f"only the candidate has {extra[0]!r}", len(extra)), GIVE_REFERENCE)
    for name in sorted(names[0]):
        shapes = reference.tensors[name].shape, candidate.tensors[name].shape
        if shapes[0] != shapes[1] and not _padded(name, *shapes):
            return Obstacle(f"{name!r} has shapes {shapes[0]} and {shapes[1]}", GIVE_REFERENCE)
    return None


def shared(one: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with the tensors that both store."""
    kept = {name: tensor for name, tensor in one.tensors.items() if name in other.tensors}
    return Checkpoint(one.directory, one.name, one.config, kept)


def unrelated(differences: Differences) -> Obstacle | None:
    """Returns why weights that were read cannot be compared; None where they can."""
    if not differences.finite:
        bad = next(x.name for x in differences.tensors if not math.isfinite(x.reference + x.candidate))
        return Obstacle(f"{bad!r} holds values that are not finite numbers", "Copy or download the model again.")
    if differences.cosine < RELATED:
        return Obstacle(f"unrelated weights: their cosine is {differences.cosine:.2f}", GIVE_REFERENCE)
    return None


def same_settings(reference: Checkpoint, candidate: Checkpoint) -> bool:
    """Returns whether configuration, tokenizer and chat template agree, so that equal weights are an equal model."""
    if _settings(reference.config) != _settings(candidate.config):
        return False
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"):
        files = [one.directory / name for one in (reference, candidate)]
        if len({file.is_file() for file in files}) > 1:
            return False
        if files[0].is_file() and files[0].read_bytes() != files[1].read_bytes():
            return False
    return True


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in NOT_OF_THE_MODEL}


def _own(checkpoint: Checkpoint) -> set[str]:
    """Names of the tensors, without the output where it is the embedding again."""
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return {name for name in checkpoint.tensors if not (tied and name.split(".")[0] in OUTPUTS)}


def _padded(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    vocabulary = any(part in (*EMBEDDINGS, *OUTPUTS) for part in name.split("."))
    return vocabulary and len(first) == len(second) == 2 and first[1] == second[1]


def _named(what: str, n: int) -> str:
    return what + (f" and {n - 1} more" if n > 1 else "")
