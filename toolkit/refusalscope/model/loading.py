"""From a directory or a Hub id to a ChatModel: safety first, then the loader, then checks on the model itself."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from refusalscope.errors import ModelError
from refusalscope.model.chat import ChatModel, Origin, rows_per_forward
from refusalscope.model.continuations import packs
from refusalscope.model.digests import files_digest, tokenizer_digest
from refusalscope.model.loader_report import complete
from refusalscope.model.placement import check_finite, check_in_memory, check_packages
from refusalscope.model.resume import resumes
from refusalscope.model.safety import check_directory, weight_files
from refusalscope.model.sites import find_sites
from refusalscope.model.source import Source, find_source
from refusalscope.model.template import Chat, Template, find_template

# What transformers and TransformerLens raise for settings of the wrong type, value or combination.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, StrictDataclassError)
NO_ADAPTER = ("Could not determine supported architecture", "Unsupported architecture")
PROBE_SEED = 0
PROBE_LENGTHS = (7, 5, 6)
DeviceMap = str | dict[str, str | int]
PLACED_BY_THE_LOADER = ("auto", "balanced", "balanced_low_0", "sequential", "disk")


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    chat: Chat | None = None,
) -> ChatModel:
    """Returns a chat model from a directory in Hugging Face format, or from the Hub.

    Nothing in the files is executed, weights are safetensors only, and no parameter is changed. Sites and resuming are
    checked on the loaded model with a few arbitrary tokens.

    Args:
        name: a directory, or a Hub id such as ``Qwen/Qwen3-1.7B``.
        revision: a Hub commit of 40 hexadecimal digits; any other revision is resolved to one, with a warning.
        dtype: of the parameters.
        device: ``"cpu"`` unless it or ``device_map`` says otherwise; a GPU is never chosen unasked.
        device_map: for a model larger than one device, as in Hugging Face; excludes ``device``.
        chat: a chat template or a system message other than the model's own; both go into the template's digest.

    Raises:
        ModelError: for files that are missing, unsafe or damaged, an unsupported architecture, a device that this
            machine does not have, no chat template, one that takes no system message, or no usable hook sites.

    Example:
        >>> model = load("data/organisms/guarded-0")
    """
    if device is not None and device_map is not None:
        raise ModelError(f"{name}: device={device!r} and device_map={device_map!r} exclude each other. Give one.")
    _check_devices(name, device=device, device_map=device_map)
    source = find_source(name, revision=revision)
    check_directory(source.directory, name=source.name)
    with _explained(source):
        AutoConfig.from_pretrained(str(source.directory), trust_remote_code=False, local_files_only=True)
    tokenizer = _tokenizer(source)
    template = find_template(tokenizer, name=source.name, chat=chat)
    bridge = _boot(source, tokenizer, dtype=dtype, device=device, device_map=device_map)
    return probed(bridge, tokenizer, _origin(source, bridge, tokenizer, template, dtype=dtype), template)


def probed(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, origin: Origin, template: Template
) -> ChatModel:
    """Returns the chat model, after forwards of arbitrary tokens that find its sites and what it can do.

    Raises:
        ModelError: for no usable hook sites, or logits that are not finite.
    """
    probe = _probe(bridge)
    sites, rows = find_sites(bridge, probe, name=origin.name), rows_per_forward(int(bridge.cfg.d_model))
    model = ChatModel(bridge, tokenizer, origin, template, sites, rows)
    ragged = [row[:length] for row, length in zip(probe.tolist(), PROBE_LENGTHS, strict=True)]
    check_finite(model, ragged)
    return dataclasses.replace(model, can_resume=resumes(model, ragged), can_pack=packs(model, ragged))


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(str(source.directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ModelError(f"{source.name}: its tokenizer cannot be read ({error}).") from error


def _boot(
    source: Source, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype, device: str | None, device_map
) -> TransformerBridge:
    where = {"device": device or "cpu"} if device_map is None else {"device_map": device_map}
    check_packages(source.directory, name=source.name)
    with _explained(source), complete(source.name):
        # A copy of the tokenizer, because booting gives it special tokens it does not have.
        bridge = TransformerBridge.boot_transformers(
            str(source.directory), tokenizer=copy.deepcopy(tokenizer), dtype=dtype, trust_remote_code=False, **where
        )
    bridge.eval()
    check_in_memory(bridge, name=source.name)
    return bridge


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
            f"{config.get('architectures')!r} cannot be loaded ({_reason(error)}). Give a causal language model that "
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


def _reason(error: BaseException) -> str:
    said = " ".join(str(error).split())
    if said.startswith(NO_ADAPTER):
        installed = version("transformer-lens")
        return f"TransformerLens {installed} has no adapter for this architecture, so there are no hooks in its layers"
    return said[:200].rstrip(".")


def _origin(
    source: Source,
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    dtype: torch.dtype,
) -> Origin:
    return Origin(
        name=source.name,
        commit=source.commit,
        weights=files_digest(weight_files(source.directory, name=source.name)),
        tokenizer=tokenizer_digest(tokenizer),
        template=template.digest,
        dtype=str(dtype).removeprefix("torch."),
        device=str(bridge.cfg.device),
        architecture=str(bridge.cfg.architecture),
    )


def _probe(bridge: TransformerBridge) -> Int[Tensor, "row pos"]:
    generator = torch.Generator().manual_seed(PROBE_SEED)
    shape = (len(PROBE_LENGTHS), max(PROBE_LENGTHS))
    return torch.randint(bridge.cfg.d_vocab, shape, generator=generator).to(bridge.cfg.device)
