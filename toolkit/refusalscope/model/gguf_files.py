"""GGUF files: the header is checked first, then transformers dequantises the weights and rebuilds the tokenizer.

The ``gguf`` package is optional. Settings that lie beside a GGUF file are never read: they belong to another model.
"""

from __future__ import annotations

import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from refusalscope.errors import ModelError
from refusalscope.model.digests import files_digest
from refusalscope.model.gguf_reader import quick_reader, read_once
from refusalscope.model.loader_report import complete

MAGIC, VERSIONS = b"GGUF", (2, 3)
ONE_OF_SEVERAL = re.compile(r"-\d{5}-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
INSIDE = "model.gguf"  # what the file is called in the folder that the libraries see
GUESSED = 1024  # a flag in the file type: the writer inferred it
ROPE_FACTORS, LONG_ROPE = "rope_freqs.weight", "rope_factors_"
SCALED = ("gpt-oss",)  # architectures whose rope scaling transformers reads
AGAIN = "Copy or download it again."
BROKEN = (ValueError, KeyError, IndexError, OverflowError, MemoryError, struct.error)
UNREADABLE = (*BROKEN, TypeError, AttributeError, RuntimeError, OSError, ImportError)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header could be read and whose length is what the header declares.

    Attributes:
        reader: the ``gguf.GGUFReader``; tensors are memory maps.
    """

    path: Path
    name: str
    reader: Any

    @cached_property
    def architecture(self) -> str:
        """As GGUF calls it, such as ``llama`` or ``qwen2``."""
        return str(self._said("general.architecture") or "")

    @cached_property
    def quantisation(self) -> str:
        """The declared file type, such as ``Q4_K_M``; where none is declared, the type of most weights."""
        from gguf import LlamaFileType

        declared = self._said("general.file_type")
        if isinstance(declared, int) and (declared & ~GUESSED) in set(LlamaFileType):
            return LlamaFileType(declared & ~GUESSED).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        sizes: Counter[str] = Counter()
        for tensor in self.reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        return sizes.most_common(1)[0][0] if sizes else "unknown"

    def unread_rope_scaling(self) -> str:
        """What the file says of scaled rotary positions that transformers leaves out; empty where it says nothing.

        ``rope_freqs.weight`` is no such thing: ``apply_rope_factors`` reads it.
        """
        kind, factor = (self._said(f"{self.architecture}.rope.scaling.{key}") for key in ("type", "factor"))
        older = self._said(f"{self.architecture}.rope.scale_linear")  # before scaling had a type
        if self.architecture not in SCALED and kind not in (None, "", "none") and factor != 1:
            return f"{kind}" + ("" if factor is None else f", factor {factor:g}")
        if self.architecture not in SCALED and older not in (None, 1):
            return f"linear, factor {older:g}"
        return next((tensor.name for tensor in self.reader.tensors if tensor.name.startswith(LONG_ROPE)), "")

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that ends a turn, where the file says one beside the token that ends a text."""
        found = self._said("tokenizer.ggml.eot_token_id")
        return found if isinstance(found, int) else None

    def digest(self) -> str:
        """SHA-256 of the file."""
        return files_digest([self.path])

    def config(self) -> PreTrainedConfig:
        """Returns the configuration, its architecture that of transformers' causal language model."""
        with self._libraries() as folder:
            return self._config(folder)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer, rebuilt from the file's vocabulary."""
        with self._libraries() as folder:
            return AutoTokenizer.from_pretrained(folder, gguf_file=INSIDE, local_files_only=True)

    def module(self, *, dtype: torch.dtype, device_map: Any) -> PreTrainedModel:
        """Returns the model with dequantised weights. Raises ModelError where tensors are missing."""
        with self._libraries() as folder, complete(self.name, files="its header and its tensors"):
            config = self._config(folder)
            return AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=INSIDE,
                config=config,
                dtype=dtype,
                device_map=device_map,
                attn_implementation="eager",
                trust_remote_code=False,
                local_files_only=True,
            )

    def _config(self, folder: str) -> PreTrainedConfig:
        config = AutoConfig.from_pretrained(folder, gguf_file=INSIDE, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
        return config

    def _said(self, key: str) -> Any:
        field = self.reader.get_field(key)
        return None if field is None else field.contents()

    @contextmanager
    def _libraries(self) -> Iterator[str]:
        """A folder with the file and nothing else, its header read once however often transformers opens it.

        Whatever transformers raises becomes one line that names the file.
        """
        try:
            with tempfile.TemporaryDirectory() as folder, read_once(self.path, self.reader):
                (Path(folder) / INSIDE).symlink_to(self.path.resolve())
                yield folder
        except Exception as error:
            if not isinstance(error, UNREADABLE) and type(error) is not Exception:  # tokenizers raises the base class
                raise
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ModelError(
                f"{self.name}: a GGUF file of architecture {self.architecture!r} that transformers "
                f"{version('transformers')} cannot read ({type(error).__name__}: {reason}). Give the model as a "
                "directory with safetensors instead, or install newer versions of transformers and gguf."
            ) from error


def is_gguf(path: Path) -> bool:
    """Whether a path means a GGUF file: by its suffix."""
    return path.suffix.lower() == ".gguf"


def open_gguf(path: Path, *, name: str) -> GgufFile:
    """Returns a GGUF file with its header; no weight is read.

    Raises:
        ModelError: for one part of a split file, a file that is no GGUF, empty, damaged or cut off, and where the
            ``gguf`` package is missing.
    """
    _check_beginning(path, name=name)
    if find_spec("gguf") is None:
        raise ModelError(f"{name}: reading GGUF files needs the package 'gguf'. Run: pip install gguf.")
    try:
        found = GgufFile(path, name, quick_reader(path))
        parts = found._said("split.count")
    except BROKEN as error:
        reason = " ".join(str(error).split())[:100].rstrip(".")
        raise ModelError(f"{name}: damaged or cut off ({type(error).__name__}: {reason}). {AGAIN}") from error
    if isinstance(parts, int) and parts > 1:
        raise ModelError(_split(name, parts))
    if not found.architecture:
        raise ModelError(f"{name}: names no architecture (general.architecture), so it is no model. {AGAIN}")
    if scaling := found.unread_rope_scaling():
        raise ModelError(
            f"{name}: its rotary positions are scaled ({scaling}), which transformers {version('transformers')} does "
            "not read from GGUF files: every number would be that of another model. Give the safetensors."
        )
    return found


def apply_rope_factors(module: PreTrainedModel, file: GgufFile) -> None:
    """Divides the rotary frequencies by the factors a file stores as a tensor, which transformers leaves out.

    llama.cpp writes the rope scaling of Llama 3.1 and later that way. Raises ModelError where they do not fit.
    """
    stored = next((tensor for tensor in file.reader.tensors if tensor.name == ROPE_FACTORS), None)
    if stored is None:
        return
    factors = torch.tensor(stored.data.reshape(-1).tolist(), dtype=torch.float32)
    found: list[Any] = [part for part in module.modules() if isinstance(getattr(part, "inv_freq", None), torch.Tensor)]
    if not found or any(part.inv_freq.shape != factors.shape for part in found):
        raise ModelError(f"{file.name}: its tensor {ROPE_FACTORS} fits no rotary embedding. Give the safetensors.")
    for part in found:
        part.inv_freq = part.inv_freq / factors.to(part.inv_freq)


def _check_beginning(path: Path, *, name: str) -> None:
    if (split := ONE_OF_SEVERAL.search(path.name)) and int(split["count"]) > 1:
        raise ModelError(_split(name, int(split["count"])))
    with path.open("rb") as stream:
        head = stream.read(8)
    if not head:
        raise ModelError(f"{name}: the file is empty. {AGAIN}")
    if head[:4] != MAGIC:
        raise ModelError(f"{name}: no GGUF file, whatever its name says. Give a GGUF file, or a model's directory.")
    written = int.from_bytes(head[4:8], "little"), int.from_bytes(head[4:8], "big")
    if len(head) == 8 and not set(written) & set(VERSIONS):
        raise ModelError(f"{name}: GGUF version {written[0]} is not read. Convert the model again with llama.cpp.")


def _split(name: str, count: int) -> str:
    return (
        f"{name}: one of {count} parts of a split file. Merge them first: llama-gguf-split --merge "
        f"<the first part> <merged.gguf>, and give the merged file."
    )
