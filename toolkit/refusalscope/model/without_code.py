"""Directories that name code of their own, loaded without it: the libraries see a copy of the settings that names none.

DeepSeek-V3, Kimi K2 and Phi-3 are published with ``auto_map`` and modules beside the weights, although transformers has
their architectures. ``trust_remote_code=False`` alone does not keep such code from running (CVE-2026-5241).
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from refusalscope.errors import ModelError
from refusalscope.model.placement import quantisation
from refusalscope.model.safety import RUNS_CODE, SAME_AS, check_settings, code_keys, settings_files
from refusalscope.model.source import Source
from refusalscope.model.tiktoken_file import TIKTOKEN, tokenizer_json

DATA = (".safetensors", ".json", ".txt", ".model", ".jinja")
OWN_TOKENIZER = "TikTokenTokenizer"


class CodeNotRunWarning(UserWarning):
    """A directory names code of its own. It was not run: transformers' own architecture was used instead."""


@contextmanager
def without_code(source: Source) -> Iterator[Source]:
    """Yields the source as it is, or one whose directory has the same weights and settings that name no code.

    Weights and vocabularies are links; ``auto_map`` and the like are gone at every depth; modules are left out. Warns
    (``CodeNotRunWarning``) where there was such a key. A model type that stands for an architecture of another name
    is renamed, a vocabulary that only the directory's own code reads is converted, and FP8 weights are dequantised on
    every device, not only where there are no kernels for them.
    """
    named = code_keys(source.directory, name=source.name)
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not named and str(kind) not in SAME_AS and quantisation(config) != "fp8":
        yield source
        return
    if named:
        files = ", ".join(dict.fromkeys(file for file, _ in named))
        warnings.warn(
            f"{source.name}: {files} names code that was not run; transformers' own architecture is used instead. "
            "Compare its answers with the publisher's before you trust a difference.",
            CodeNotRunWarning,
            stacklevel=5,
        )
    with tempfile.TemporaryDirectory() as folder:
        _copy(source, Path(folder))
        check_settings(Path(folder), name=source.name)
        if left := code_keys(Path(folder), name=source.name):
            raise AssertionError(f"{source.name}: {left[0]} is left in the copy that names no code")
        yield replace(source, directory=Path(folder), code_not_run=bool(named))


def _copy(source: Source, folder: Path) -> None:
    settings = {file.name for file in settings_files(source.directory)}
    for file in sorted(source.directory.iterdir()):
        if not file.is_file() or file.suffix not in DATA:
            continue
        if file.name in settings:
            (folder / file.name).write_text(_rewritten(file, name=source.name), encoding="utf-8")
        else:
            (folder / file.name).symlink_to(file.resolve())
    _convert_tokenizer(folder, name=source.name)


def _rewritten(file: Path, *, name: str) -> str:
    """Returns settings without keys that name code, and with the model type that transformers knows."""

    def kept(members: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in members if key not in RUNS_CODE}

    settings = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=kept)
    if file.name == "config.json" and isinstance(settings, dict):
        settings |= {"model_type": SAME_AS[kind]} if (kind := str(settings.get("model_type"))) in SAME_AS else {}
        if quantisation(settings) == "fp8":
            settings["quantization_config"]["dequantize"] = True
    try:
        return json.dumps(settings)
    except RecursionError as error:
        raise ModelError(f"{name}: {file.name} is nested too deeply to be read.") from error


def _convert_tokenizer(folder: Path, *, name: str) -> None:
    """Writes ``tokenizer.json`` where the only vocabulary is one that the directory's own code reads."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if (folder / "tokenizer.json").exists() or not isinstance(settings, dict) or not (folder / TIKTOKEN).is_file():
        return
    if settings.get("tokenizer_class") != OWN_TOKENIZER:
        raise ModelError(
            f"{name}: how {TIKTOKEN} splits text is known for the class {OWN_TOKENIZER} only, not for "
            f"{settings.get('tokenizer_class')!r}. Save the tokenizer as tokenizer.json beside it."
        )
    (folder / "tokenizer.json").write_text(tokenizer_json(folder / TIKTOKEN, settings, name=name), encoding="utf-8")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings), encoding="utf-8")
