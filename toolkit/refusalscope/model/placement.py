"""Number formats and devices: what a quantised checkpoint needs, where parameters lie, whether the format suffices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from refusalscope.errors import ModelError
from refusalscope.model.batching import batches, forward
from refusalscope.model.chat import ChatModel

PACKAGES = {"bitsandbytes": "bitsandbytes"}  # by quant_method


def check_packages(directory: Path, *, name: str) -> None:
    """Returns nothing; raises ModelError for a quantised checkpoint whose package is not installed."""
    method = stored_quantisation(directory)
    package = PACKAGES.get(method or "")
    if package is not None and find_spec(package) is None:
        raise ModelError(
            f"{name}: its weights are quantised by {method}, and the package {package!r} is not installed. "
            f"Run: pip install {package}. Or give the model before quantisation."
        )


def quantisation(config: object) -> str | None:
    """Returns the method a configuration's weights are quantised by, None where they are not."""
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        return None
    loads = settings.get("load_in_8bit") or settings.get("load_in_4bit")
    return str(settings.get("quant_method") or ("bitsandbytes" if loads else "unknown"))


def stored_quantisation(directory: Path) -> str | None:
    """Returns the method by which a directory's weights are quantised, None where they are not."""
    return quantisation(json.loads((directory / "config.json").read_text(encoding="utf-8")))


def check_in_memory(module: torch.nn.Module, *, name: str) -> None:
    """Returns nothing; raises ModelError where parameters were left on disk.

    They are exchanged in every forward, so that nothing could be said about whether an intervention changed them (C1).
    """
    away = [key for key, value in module.named_parameters() if value.is_meta]
    if away:
        raise ModelError(
            f"{name}: {len(away)} of its parameters were left on disk ({away[0]} and others), where it cannot be "
            "verified that a measurement changes none. Give a device_map that holds them all, or a smaller dtype."
        )


def check_finite(model: ChatModel, token_lists: Sequence[Sequence[int]]) -> None:
    """Returns nothing; raises ModelError where logits of arbitrary tokens are not numbers: the dtype overflows."""
    if any(bool(forward(model, row).isnan().any()) for row in batches(model, token_lists, batch_size=1)):
        wider = model.dtype.itemsize < 4
        fix = "Load it with dtype=torch.bfloat16 or torch.float32." if wider else "Its weights are damaged; copy them."
        raise ModelError(f"{model.origin.name}: in {model.origin.dtype} its logits are not finite. {fix}")
