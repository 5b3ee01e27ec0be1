"""From a directory, a GGUF file, a Hub id or a model in memory to a ChatModel that is checked before it is used."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from refusalscope.errors import ModelError
from refusalscope.model.chat import ChatModel, Origin, rows_per_forward
from refusalscope.model.continuations import packs
from refusalscope.model.digests import files_digest, tensors_digest, tokenizer_digest
from refusalscope.model.directory import UNREADABLE, boot_directory, directory_tokenizer, for_booting, spoken
from refusalscope.model.gguf_files import apply_rope_factors, open_gguf
from refusalscope.model.placement import check_finite, check_in_memory, stored_quantisation
from refusalscope.model.resume import resumes
from refusalscope.model.safety import check_directory, weight_files
from refusalscope.model.sites import find_sites
from refusalscope.model.source import Source, find_source
from refusalscope.model.template import Chat, Template, find_template
from refusalscope.model.without_code import without_code

PROBE_SEED = 0
PROBE_LENGTHS = (7, 5, 6)
IN_MEMORY = "in-memory model"
DeviceMap = str | dict[str, str | int]
PLACED_BY_THE_LOADER = ("auto", "balanced", "balanced_low_0", "sequential", "disk")


@dataclass(frozen=True)
class Placing:
    """In which number format a model is loaded, and where to."""

    dtype: torch.dtype
    device: str | None
    device_map: DeviceMap | None

    @property
    def where(self) -> dict[str, Any]:
        """As the libraries take it."""
        return {"device": self.device or "cpu"} if self.device_map is None else {"device_map": self.device_map}


def load(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    chat: Chat | None = None,
) -> ChatModel:
    """Returns a chat model from a directory in Hugging Face format, a GGUF file, the Hub, or a model in memory.

    Nothing in the files is executed, weights are safetensors or GGUF only, and no parameter is changed. Sites and
    resuming are checked on the loaded model with a few arbitrary tokens.

    A directory that names code of its own (``auto_map``) is loaded without it where transformers has the architecture,
    with a ``CodeNotRunWarning``; otherwise it is refused. GGUF weights are dequantised. A model in memory is changed:
    hooks are put into its layers, and it can neither be saved nor be used as before.

    Args:
        model: a directory, a ``.gguf`` file, a Hub id such as ``Qwen/Qwen3-1.7B``, or a Hugging Face model object.
        tokenizer: of a model in memory, and only of one.
        name: what results call a model in memory; by default the last part of the name its configuration remembers.
        revision: a Hub commit of 40 hexadecimal digits; any other revision is resolved to one, with a warning.
        dtype: of the parameters, float32 unless given; a model in memory stays in its own.
        device: ``"cpu"`` unless it or ``device_map`` says otherwise; a GPU is never chosen unasked.
        device_map: for a model larger than one device, as in Hugging Face; excludes ``device``.
        chat: a chat template or a system message other than the model's own; both go into the template's digest.

    Raises:
        ModelError: for files that are missing, unsafe or damaged, an unsupported architecture, a device that this
            machine does not have, no chat template, one that takes no system message, or no usable hook sites.

    Example:
        >>> model = load("data/organisms/guarded-0")
    """
    if isinstance(model, PreTrainedModel):
        given = {"revision": revision, "dtype": dtype, "device": device, "device_map": device_map}
        return _from_memory(model, tokenizer, name=name, chat=chat, given=given)
    if not isinstance(model, str | Path):
        raise ModelError(
            f"{type(model).__name__} is no model that can be loaded. Give a directory, a GGUF file, a Hub id or a "
            "Hugging Face model (PreTrainedModel) with its tokenizer."
        )
    if alien := [key for key, value in {"tokenizer": tokenizer, "name": name}.items() if value is not None]:
        raise ModelError(f"{model}: {alien[0]}= is for a model in memory; files have their own. Leave it out.")
    if device is not None and device_map is not None:
        raise ModelError(f"{model}: device={device!r} and device_map={device_map!r} exclude each other. Give one.")
    _check_devices(model, device=device, device_map=device_map)
    source, placing = find_source(model, revision=revision), Placing(dtype or torch.float32, device, device_map)
    return (_from_directory if source.gguf is None else _from_gguf)(source, placing, chat)


def _from_directory(named: Source, placing: Placing, chat: Chat | None) -> ChatModel:
    check_directory(named.directory, name=named.name)
    with without_code(named) as source:
        tokenizer = directory_tokenizer(source)
        template = find_template(tokenizer, name=source.name, chat=chat)
        bridge = boot_directory(source, tokenizer, dtype=placing.dtype, **placing.where)
        stored = stored_quantisation(source.directory)
    origin = Origin(
        name=source.name,
        commit=source.commit,
        weights=files_digest(weight_files(named.directory, name=named.name)),
        quantisation=stored,
        code_not_run=source.code_not_run,
        **_facts(bridge, tokenizer, template, dtype=placing.dtype),
    )
    return probed(bridge, tokenizer, origin, template)


def _from_gguf(source: Source, placing: Placing, chat: Chat | None) -> ChatModel:
    assert source.gguf is not None
    file = open_gguf(source.gguf, name=source.name)
    tokenizer = file.tokenizer()
    template = find_template(tokenizer, name=file.name, chat=chat)
    module = file.module(dtype=placing.dtype, device_map=placing.device_map)
    apply_rope_factors(module, file)
    if file.end_of_turn is not None:  # beside the token that ends a text, which is all that transformers reads
        ends = getattr(module.generation_config, "eos_token_id", None)
        several = ends if isinstance(ends, list) else [ends, module.config.eos_token_id]
        module.generation_config.eos_token_id = sorted({file.end_of_turn, *(one for one in several if one is not None)})
    bridge = _boot(module if placing.device_map else module.to(placing.where["device"]), tokenizer, name=file.name)
    facts = _facts(bridge, tokenizer, template, dtype=placing.dtype)
    origin = Origin(name=file.name, commit=None, weights=file.digest(), quantisation=file.quantisation, **facts)
    return probed(bridge, tokenizer, origin, template)


def _from_memory(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str | None,
    chat: Chat | None,
    given: dict[str, object],
) -> ChatModel:
    name = name or Path(str(module.config.name_or_path or "")).name or IN_MEMORY
    if tokenizer is None:
        raise ModelError(f"{name}: a model in memory needs its tokenizer. Pass it: load(model, tokenizer=tokenizer).")
    for key, value in given.items():
        if value is not None:
            raise ModelError(
                f"{name}: {key}={value} is for files; a model in memory stays in its format and where it is. Leave it "
                "out, and convert or move the model first: model.to(...)."
            )
    if any(isinstance(part, GeneralizedComponent) for part in module.modules()):
        raise ModelError(f"{name}: this model is loaded already. Use the ChatModel that load returned.")
    check_in_memory(module, name=name)
    template, weights = find_template(tokenizer, name=name, chat=chat), tensors_digest(module.state_dict())
    quantised = getattr(getattr(module, "hf_quantizer", None), "quantization_config", None)
    bridge = _boot(module, tokenizer, name=name)
    origin = Origin(
        name=name,
        commit=None,
        weights=weights,
        quantisation=None
        if quantised is None
        else str(getattr(quantised.quant_method, "value", quantised.quant_method)),
        **_facts(bridge, tokenizer, template, dtype=module.dtype),
    )
    return probed(bridge, tokenizer, origin, template)


def probed(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, origin: Origin, template: Template
) -> ChatModel:
    """Returns the chat model, after forwards of arbitrary tokens that find its sites and what it can do.

    Raises:
        ModelError: for parameters left on disk, no usable hook sites, or logits that are not finite.
    """
    check_in_memory(bridge.original_model, name=origin.name)
    bridge.eval()
    probe = _probe(bridge)
    sites, rows = find_sites(bridge, probe, name=origin.name), rows_per_forward(int(bridge.cfg.d_model))
    model = ChatModel(bridge, tokenizer, origin, template, sites, rows)
    ragged = [row[:length] for row, length in zip(probe.tolist(), PROBE_LENGTHS, strict=True)]
    check_finite(model, ragged)
    return dataclasses.replace(model, can_resume=resumes(model, ragged), can_pack=packs(model, ragged))


def _boot(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> TransformerBridge:
    """Puts hooks into a module, in its format and where it is."""
    module.config.architectures = module.config.architectures or [type(module).__name__]
    device = None if getattr(module, "hf_device_map", None) else str(module.device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            module.config.save_pretrained(folder)  # the bridge reads settings from a directory
            return TransformerBridge.boot_transformers(
                folder, hf_model=module, tokenizer=for_booting(tokenizer), dtype=module.dtype, device=device
            )
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise ModelError(
            f"{name}: a {type(module).__name__} cannot be loaded ({spoken(error)}). Give a causal language model that "
            "both transformers and TransformerLens support, or install newer versions of them."
        ) from error


def _check_devices(name: str | Path, *, device: str | None, device_map: DeviceMap | None) -> None:
    """Raises ModelError for a device this machine does not have, before anything is read or downloaded."""
    mapped = device_map.values() if isinstance(device_map, dict) else [device_map or device or "cpu"]
    for where in set(mapped) - set(PLACED_BY_THE_LOADER):
        try:
            torch.empty(0, device=where)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ModelError(
                f"{name}: device {where!r} cannot be used here ({reason}). Give one this machine has, such as 'cpu'."
            ) from error


def _facts(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, template: Template, *, dtype: torch.dtype
) -> dict[str, Any]:
    """Returns what an origin says of any loaded model."""
    return {
        "tokenizer": tokenizer_digest(tokenizer),
        "template": template.digest,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(bridge.cfg.device),
        "architecture": str(bridge.cfg.architecture),
    }


def _probe(bridge: TransformerBridge) -> Int[Tensor, "row pos"]:
    generator = torch.Generator().manual_seed(PROBE_SEED)
    shape = (len(PROBE_LENGTHS), max(PROBE_LENGTHS))
    return torch.randint(bridge.cfg.d_vocab, shape, generator=generator).to(bridge.cfg.device)
