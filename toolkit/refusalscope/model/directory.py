"""From a directory in Hugging Face format to its tokenizer and its hooked model; what is wrong with it in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from refusalscope.errors import ModelError
from refusalscope.model.loader_report import complete
from refusalscope.model.placement import check_packages
from refusalscope.model.safety import weight_files
from refusalscope.model.source import Source

# What transformers and TransformerLens raise for settings of the wrong type, value or combination.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, StrictDataclassError)
NO_ADAPTER = ("Could not determine supported architecture", "Unsupported architecture")


def directory_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a directory whose settings are readable. Raises ModelError where it is not."""
    with _explained(source):
        AutoConfig.from_pretrained(str(source.directory), trust_remote_code=False, local_files_only=True)
    return read_tokenizer(source)


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a directory. Raises ModelError, in one line, where it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(str(source.directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:
        if not isinstance(error, (OSError, ImportError, *UNREADABLE)) and type(error) is not Exception:
            raise  # tokenizers raises the base class
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelError(f"{source.name}: its tokenizer cannot be read ({reason}).") from error


def boot_directory(
    source: Source, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype, **where: Any
) -> TransformerBridge:
    """Returns a directory's model with hooks in it, on a ``device`` or spread by a ``device_map``.

    Raises:
        ModelError: for missing or damaged files, and an architecture that either library lacks.
    """
    check_packages(source.directory, name=source.name)
    with _explained(source), complete(source.name):
        return TransformerBridge.boot_transformers(
            str(source.directory), tokenizer=for_booting(tokenizer), dtype=dtype, trust_remote_code=False, **where
        )


def for_booting(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns a copy of a tokenizer for the bridge: booting gives it special tokens it does not have.

    One that adds no BOS would be loaded once more, from whatever its name means on this machine or on the Hub; so the
    copy says that it does. Nothing here asks the bridge for tokens.
    """
    made = copy.deepcopy(tokenizer)
    made.init_kwargs = {"name_or_path": "", **made.init_kwargs, "add_bos_token": True}
    return made


def spoken(error: BaseException) -> str:
    """Returns what a library said about a model it cannot load, on one line."""
    said = " ".join(str(error).split())
    if said.startswith(NO_ADAPTER):
        installed = version("transformer-lens")
        return f"TransformerLens {installed} has no adapter for this architecture, so there are no hooks in its layers"
    return said[:200].rstrip(".")


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Says in one line, naming the model, why its files are no model that can be loaded."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"{source.name}: {_damaged(source)} is damaged or cut off ({error}). Copy or download it again."
        ) from error
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ModelError(f"{source.name}: config.json holds no object of settings. Copy it again.") from error
        raise ModelError(
            f"{source.name}: model_type {config.get('model_type')!r} with architectures "
            f"{config.get('architectures')!r} cannot be loaded ({spoken(error)}). Give a causal language model that "
            "both transformers and TransformerLens support, or install newer versions of them."
        ) from error


def _damaged(source: Source) -> str:
    """The first weight file that cannot be opened: opening one compares its length with what its header declares."""
    for file in weight_files(source.directory, name=source.name):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return file.name
    return "a safetensors file"
