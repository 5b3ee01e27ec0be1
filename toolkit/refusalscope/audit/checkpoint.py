"""A checkpoint read tensor by tensor, in pieces: never a whole model, never a whole embedding in a wider format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refusalscope.errors import ModelError
from refusalscope.model.digests import files_digest
from refusalscope.model.safety import check_directory, weight_files
from refusalscope.model.source import find_source

PIECE = 1 << 21  # numbers of a matrix held at once in float32
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
ATTENTION, MLP = ("o_proj", "out_proj", "dense", "wo"), ("down_proj", "w2", "fc2")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")
Kind = Literal["embedding", "attention", "mlp"]


@dataclass(frozen=True)
class Stored:
    """Where a tensor is, and what its header says of it: nothing of the tensor itself is read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A model directory in Hugging Face format, opened safely, with its tensors by name."""

    directory: Path
    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def width(self) -> int:
        """d, the width of the residual stream."""
        return int(self.config.get("hidden_size") or self.config.get("n_embd") or 0)

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor, in the format it is stored in."""
        return max(count(one.shape) * BYTES.get(one.dtype, 4) for one in self.tensors.values())

    def digest(self) -> str:
        """SHA-256 over the weight files, as ``ChatModel.origin.weights``."""
        return files_digest(weight_files(self.directory, name=self.name))

    def __repr__(self) -> str:
        return f"Checkpoint {self.name}: {len(self.tensors)} tensors"


def opened(folder: str | Path) -> Checkpoint:
    """Returns the checkpoint in a directory, after the loader's own safety checks. No weight is read.

    Raises:
        ModelError: for a missing directory, a key that names code, pickles, a shard that is missing, outside the
            directory, cut off, or that holds a tensor twice.
    """
    source = find_source(folder, revision=None)
    if source.gguf is not None:
        raise ModelError(f"{source.name}: an audit reads safetensors tensor by tensor. Give the model's directory.")
    check_directory(source.directory, name=source.name)
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ModelError(f"{source.name}: config.json holds no object of settings. Copy it again.")
    config = config | (config["text_config"] if isinstance(config.get("text_config"), dict) else {})
    tensors: dict[str, Stored] = {}
    for file in weight_files(source.directory, name=source.name):
        for key, one in _headers(file, name=source.name):
            if key in tensors:
                raise ModelError(f"{source.name}: the tensor {key!r} is stored twice. Save the model again.")
            tensors[key] = one
    if not tensors:
        raise ModelError(f"{source.name}: its weight files hold no tensor. Copy the model again.")
    return Checkpoint(source.directory, source.name, config, tensors)


def pieces(reference: Checkpoint, candidate: Checkpoint, name: str, *, along: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields equal parts of one tensor of both, cut along an axis, in float32; rows that only one has are left out.

    Files are mapped for this one tensor, so that no more of them stays in memory than that.
    """
    one, other = reference.tensors[name], candidate.tensors[name]
    length = min(one.shape[along], other.shape[along]) if one.shape else 1
    step = max(1, PIECE * max(1, one.shape[along] if one.shape else 1) // max(1, count(one.shape)))
    with _mapped(reference, one.file) as left, _mapped(candidate, other.file) as right:
        if not one.shape:
            yield left.get_tensor(name).float()[None], right.get_tensor(name).float()[None]
            return
        slices = left.get_slice(name), right.get_slice(name)
        for start in range(0, length, step):
            cut = (*(slice(None) for _ in range(along)), slice(start, min(length, start + step)))
            first, second = (part[cut].to(torch.float32) for part in slices)
            yield first, second


def stream_first(
    reference: Checkpoint, candidate: Checkpoint, name: str, axis: int
) -> Iterator[tuple[Float[Tensor, "side n"], Float[Tensor, "side n"]]]:
    """Yields parts of both tensors as matrices whose rows are the given axis, whole; cut along another one."""
    shape = reference.tensors[name].shape
    if len(shape) <= 1:
        for first, second in pieces(reference, candidate, name, along=0):
            yield first[:, None], second[:, None]
        return
    other = 0 if len(shape) == 3 else 1 - axis
    for pair in pieces(reference, candidate, name, along=other):
        first, second = (rearrange(part.movedim(axis, 0), "side ... -> side (...)") for part in pair)
        yield first, second


def writer(checkpoint: Checkpoint, name: str) -> tuple[Kind, int] | None:
    """Returns what a tensor writes to the residual stream and which of its axes is the stream's; None if it does not.

    By name, as Hugging Face calls them: the embedding, attention's output projection, an MLP's or an expert's last
    matrix, and their biases.
    """
    shape, parts = checkpoint.tensors[name].shape, name.split(".")
    if any(part in EMBEDDINGS for part in parts) and len(shape) == 2:
        return "embedding", 1
    kind: Kind | None = "mlp" if _ends(parts, MLP) else "attention" if _ends(parts, ATTENTION) else None
    if kind is None or checkpoint.width not in shape:
        return None
    fused = len(shape) == 3 and checkpoint.config.get("model_type") == "gpt_oss"  # stores its experts as [in, out]
    axis = len(shape) - 1 if fused or len(shape) == 1 or "bias" in name else len(shape) - 2
    return (kind, axis) if shape[axis] == checkpoint.width else None


def count(shape: tuple[int, ...]) -> int:
    """Returns the numbers in a tensor of a shape."""
    return math.prod(shape)


def _ends(parts: list[str], names: tuple[str, ...]) -> bool:
    return any(part.removesuffix("_bias") in names for part in parts[-2:])


def _headers(file: Path, *, name: str) -> Iterator[tuple[str, Stored]]:
    try:
        with safe_open(file, "pt") as read:
            for key in read.keys():  # noqa: SIM118 (no mapping)
                part = read.get_slice(key)
                yield key, Stored(file, tuple(part.get_shape()), part.get_dtype())
    except SafetensorError as error:
        raise ModelError(f"{name}: {file.name} is damaged or cut off ({error}). Copy or download it again.") from error


def _mapped(checkpoint: Checkpoint, file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{checkpoint.name}: {file.name} cannot be read ({error}). Copy it again.") from error
