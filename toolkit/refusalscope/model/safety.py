"""What a model directory may contain: declarative configuration and safetensors, nothing that runs when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from refusalscope.errors import ModelError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib")
RUNS_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
OTHER_WEIGHTS = "transformers_weights"
KERNELS = ("attn_implementation", "experts_implementation")  # a value with a slash is a Hub repository of compiled code
SAME_AS = {"kimi_k2": "deepseek_v3"}  # model types of an architecture that transformers has under another one
WORDS_NOT_SETTINGS = {"tokenizer.json", "vocab.json", "added_tokens.json", INDEX}


def check_directory(directory: Path, *, name: str) -> None:
    """Refuses a directory before any loader opens it.

    ``trust_remote_code=False`` is not a boundary (CVE-2026-5241: a nested configuration overrides it). A directory
    with a key that asks for code is refused wherever the key occurs, unless transformers has the architecture itself:
    then ``without_code`` keeps the key from the loader. Weights must be safetensors under the name the loader looks for
    first: pickles beside them are then never opened.

    Raises:
        ModelError: naming the file, the key, and the one thing to do.
    """
    check_settings(directory, name=name)
    weight_files(directory, name=name)


def check_settings(directory: Path, *, name: str) -> None:
    """Refuses a missing ``config.json``, keys that name code that is needed, kernels, adapters, other weights.

    Raises:
        ModelError: for the first of these.
    """
    if not (directory / "config.json").is_file():
        ggufs = sorted(file.name for file in directory.glob("*.gguf"))
        fix = f"To load a GGUF file, give the file: {name}/{ggufs[0]}" if ggufs else "Give one save_pretrained wrote"
        raise ModelError(f"{name}: no config.json in this directory. {fix}.")
    if (directory / "adapter_config.json").exists():
        raise ModelError(
            f"{name}: adapter_config.json sends the loader to another model. Merge the adapter and save that."
        )
    for file in settings_files(directory):
        _check_keys(file, name=name)
    _check_code(directory, name=name)
    _check_no_installer(directory, name=name)


def settings_files(directory: Path) -> list[Path]:
    """Returns the JSON files of a directory that hold settings, not a vocabulary or an index, in name order."""
    return [file for file in sorted(directory.glob("*.json")) if file.name not in WORDS_NOT_SETTINGS]


def code_keys(directory: Path, *, name: str) -> list[tuple[str, str]]:
    """Returns the keys that name code to run, at any depth, as (file name, key)."""
    return [
        (file.name, key)
        for file in settings_files(directory)
        for key, value in _settings(file, name=name)
        if key in RUNS_CODE and value is not False
    ]


def weight_files(directory: Path, *, name: str) -> tuple[Path, ...]:
    """Returns the safetensors files the loader will open, in name order.

    Raises:
        ModelError: when there are none, or when the index points outside the directory or at another format.
    """
    if (directory / SINGLE).is_file():
        return (directory / SINGLE,)
    if (directory / INDEX).is_file():
        return tuple(_shard(directory, shard, name=name) for shard in sorted(_shards(directory / INDEX, name=name)))
    pickles = sorted(file.name for file in directory.iterdir() if file.suffix.lower() in PICKLES)
    found = f"only {', '.join(pickles)}, which run code when opened" if pickles else "no weights"
    raise ModelError(f"{name}: {found}; expected {SINGLE} or {INDEX}. Save it with safe_serialization=True.")


def _check_keys(file: Path, *, name: str) -> None:
    for key, value in _settings(file, name=name):
        if key.strip("_").removesuffix("_internal") in KERNELS and "/" in str(value):
            raise ModelError(
                f"{name}: {file.name} has the key {key!r}, which names a kernel to download and run. Remove the key."
            )
        if key == OTHER_WEIGHTS:
            raise ModelError(
                f"{name}: {file.name} has the key {key!r}. Save the weights as {SINGLE} and remove the key."
            )


def _check_code(directory: Path, *, name: str) -> None:
    named = code_keys(directory, name=name)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if not named or _known(config):
        return
    (file, key), *_ = named
    declared = config.get("architectures") if isinstance(config, dict) else None
    raise ModelError(
        f"{name}: {file} has the key {key!r}, which names code to run, and transformers {version('transformers')} has "
        f"no architecture {declared!r} of its own. Code is never run here. Use a model without it."
    )


def _known(config: object) -> bool:
    """Whether transformers has the declared causal language model, so that no other code is needed."""
    if not isinstance(config, dict) or not isinstance(kind := config.get("model_type"), str):
        return False
    found, declared = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(SAME_AS.get(kind, kind)), config.get("architectures")
    names = {found} if isinstance(found, str) else set(found or ())
    return bool(names) and isinstance(declared, list) and bool(declared) and set(map(str, declared)) <= names


def _settings(file: Path, *, name: str) -> Iterator[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []

    def note(members: list[tuple[str, object]]) -> dict[str, object]:
        pairs.extend(members)  # every member at every depth, a repeated key's hidden first value included
        return dict(members)

    try:
        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=note)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {file.name} is not readable as JSON ({type(error).__name__}).") from error
    return iter(pairs)


def _check_no_installer(directory: Path, *, name: str) -> None:
    # TransformerBridge 4.3 runs pip by itself when an image model's processor needs torchvision.
    settings = dict(_settings(directory / "config.json", name=name))
    if "vision_config" in settings and find_spec("torchvision") is None:
        raise ModelError(f"{name}: reads images too, and loading it needs torchvision. Install torchvision first.")


def _shards(index: Path, *, name: str) -> set[str]:
    members = dict(_settings(index, name=name))
    table = members.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{name}: {index.name} has no weight_map. Save the model again with save_pretrained.")
    return {str(shard) for shard in table.values()}


def _shard(directory: Path, shard: str, *, name: str) -> Path:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
        raise ModelError(
            f"{name}: {INDEX} points at {shard!r}, not at a safetensors file beside it. Save the model again."
        )
    if not (directory / shard).is_file():
        raise ModelError(f"{name}: {INDEX} points at {shard!r}, which is missing. Download the model again.")
    return directory / shard
