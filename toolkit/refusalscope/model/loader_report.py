"""What the Hugging Face loader would only log: missing and unused tensors."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from refusalscope.errors import ModelError

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ROW = re.compile(r"^(?P<key>\S+(?:\{.*?\}\S*)?)\s*\|\s*(?P<status>MISSING|MISMATCH|UNEXPECTED)\b", re.MULTILINE)


class UnusedTensorsWarning(UserWarning):
    """A checkpoint holds tensors its architecture has no place for: it may be declared as another one than it is."""


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += COLOURS.sub("", record.getMessage()) + "\n"


@contextmanager
def complete(name: str, *, files: str = "config.json and the safetensors") -> Iterator[None]:
    """Keeps the loader quiet while the block runs, and lets no tensor be made up in silence.

    Raises ModelError, on leaving, when the checkpoint lacks a tensor the architecture needs or has it in another shape;
    warns (``UnusedTensorsWarning``) of unused ones. ``files`` is what does not belong together then.
    """
    notes, bars, level = _Notes(), transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.add_handler(notes)
    transformers_logging.set_verbosity_warning()
    try:
        yield
    except RuntimeError as error:
        _check(name, files, notes.text, error)
        raise
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.remove_handler(notes)
        transformers_logging.enable_default_handler()
        if bars:
            transformers_logging.enable_progress_bar()
    _check(name, files, notes.text, None)
    if unused := _keys(notes.text, "UNEXPECTED"):
        warnings.warn(
            f"{name}: its safetensors hold tensors that its architecture does not use ({_some(unused)}). Check that "
            "config.json declares the architecture the weights were trained in.",
            UnusedTensorsWarning,
            stacklevel=4,
        )


def _check(name: str, files: str, text: str, cause: RuntimeError | None) -> None:
    wrong = {"missing": _keys(text, "MISSING"), "of another shape": _keys(text, "MISMATCH")}
    if found := [f"{what}: {_some(keys)}" for what, keys in wrong.items() if keys]:
        raise ModelError(
            f"{name}: {files} do not belong together ({'; '.join(found)}). Copy or download both again."
        ) from cause


def _keys(text: str, status: str) -> list[str]:
    return [row["key"] for row in ROW.finditer(text) if row["status"] == status]


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
