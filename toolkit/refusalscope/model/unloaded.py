"""A chat model without its weights: built from its configuration alone, so that its cost is known before it is loaded.

It has layers, width, positions and parameters to count; it holds no number, and it cannot be run.
"""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import StrictDataclassError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from refusalscope.errors import ModelError
from refusalscope.model.chat import ChatModel, Origin, rows_per_forward
from refusalscope.model.directory import read_tokenizer
from refusalscope.model.gguf_files import GgufFile, is_gguf, open_gguf
from refusalscope.model.safety import check_settings
from refusalscope.model.sites import Sites
from refusalscope.model.source import COMMIT, ELSEWHERE, HUB_ID, NEEDED, UNSERVED, Source, find_source
from refusalscope.model.template import Template, find_template
from refusalscope.model.without_code import without_code
from refusalscope.organisms.tokens import tokenizer as stand_in

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
POSITIONS = 5  # where no tokenizer tells: the number for ChatML and its like
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, StrictDataclassError)


class Unloaded(TransformerBridge):
    """A bridge to a model on the meta device: settings and shapes, no values, no forward."""

    def __init__(self, model: torch.nn.Module, config: PreTrainedConfig) -> None:
        torch.nn.Module.__init__(self)
        text = config.get_text_config()
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        self.__dict__["original_model"] = model
        self.cfg: Any = SimpleNamespace(
            n_layers=text.num_hidden_layers,
            d_model=text.hidden_size,
            n_heads=heads,
            d_head=width,
            d_vocab=text.vocab_size,
            n_ctx=getattr(text, "max_position_embeddings", None) or 2**31,
            device="meta",
        )

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises ModelError: there is nothing to run."""
        raise ModelError("This model was built from its configuration alone and has no weights. Load it to run it.")


def unloaded(name: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32) -> ChatModel:
    """Returns a chat model without weights from a directory's ``config.json``, a Hub repository's, or a GGUF header.

    No weight is read or downloaded. With a tokenizer beside the configuration, positions and prompts are
    counted as they will be; without one, ``positions_are_assumed``. Whether it resumes from a layer is not known: it is
    taken to.

    Raises:
        ModelError: for settings that are missing, unsafe, or of no causal language model transformers knows.
    """
    source = find_settings(name, revision=revision)
    if source.gguf is not None:
        return _from_header(open_gguf(source.gguf, name=source.name), dtype=dtype)
    check_settings(source.directory, name=source.name)
    with without_code(source) as readable:
        model, config = _meta(readable, dtype=dtype)
        known = any((readable.directory / file).is_file() for file in TOKENIZER_FILES)
        tokenizer = read_tokenizer(readable) if known else stand_in()
    template = find_template(tokenizer, name=source.name) if known else Template((0,) * POSITIONS, "")
    return _described(Unloaded(model, config), config, tokenizer, template, name=source.name, commit=source.commit)


def _from_header(file: GgufFile, *, dtype: torch.dtype) -> ChatModel:
    config, tokenizer = file.config(), file.tokenizer()
    with torch.device("meta"), redirect_stdout(StringIO()):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    template = find_template(tokenizer, name=file.name)
    return _described(Unloaded(model, config), config, tokenizer, template, name=file.name, stored=file.quantisation)


def _described(
    bridge: Unloaded,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    name: str,
    commit: str | None = None,
    stored: str | None = None,
) -> ChatModel:
    architecture = (config.architectures or [config.model_type])[0]
    spoken = str(bridge.original_model.dtype).removeprefix("torch.")
    origin = Origin(name, commit, "", "", template.digest, spoken, "meta", str(architecture), stored)
    sites = Sites((), (), (), (), (), additive=True)
    return ChatModel(bridge, tokenizer, origin, template, sites, rows_per_forward(bridge.cfg.d_model), can_resume=True)


def positions_are_assumed(model: ChatModel) -> bool:
    """True where no tokenizer lay beside the configuration, so that positions and prompt lengths are assumptions."""
    return not model.template.source


def find_settings(name: str | Path, *, revision: str | None) -> Source:
    """Returns a directory that holds a model's settings, weights or not.

    Raises:
        ModelError: when there is neither a directory nor a Hub repository of that name to be reached.
    """
    if (
        isinstance(name, Path)
        or is_gguf(Path(name))
        or Path(name).expanduser().is_dir()
        or not HUB_ID.fullmatch(name)
        or name[:1] in "./~"
    ):
        return find_source(name, revision=revision)
    settings = [pattern for pattern in NEEDED if pattern != "*.safetensors"]
    try:
        found = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=settings, ignore_patterns=ELSEWHERE
            )
        )
    except (*UNSERVED, ValueError) as error:
        raise ModelError(
            f"{name}: no such directory, and the Hub did not serve it ({type(error).__name__}). Give a directory that "
            "holds its config.json."
        ) from error
    return Source(found, name, found.name if COMMIT.fullmatch(found.name) else None)


def _meta(source: Source, *, dtype: torch.dtype) -> tuple[torch.nn.Module, PreTrainedConfig]:
    try:
        config = AutoConfig.from_pretrained(str(source.directory), trust_remote_code=False, local_files_only=True)
        with torch.device("meta"), redirect_stdout(StringIO()):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except UNREADABLE as error:
        kind = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
        kind = kind.get("model_type") if isinstance(kind, dict) else None
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelError(
            f"{source.name}: config.json of model_type {kind!r} makes no model ({reason}). Give the settings of a "
            "causal language model that transformers knows."
        ) from error
    return model.eval(), config
