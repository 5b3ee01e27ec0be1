"""Every error a user can cause, one class per kind of input, each naming the one thing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class RefusalscopeError(Exception):
    """Base of all errors raised on purpose; the command line turns it into one line and exit code 1."""


class PromptError(RefusalscopeError):
    """A contrast set that cannot be read as one. Carries the file and the line where there is one."""

    def __init__(self, problem: str, *, file: Path | str | None = None, line: int | None = None, fix: str = ""):
        self.file, self.line, self.fix = file, line, fix
        place = "" if file is None else f"{file}" + ("" if line is None else f", line {line}") + ": "
        super().__init__(f"{place}{problem}" + (f" {fix}" if fix else ""))


class ModelError(RefusalscopeError):
    """A model that cannot be loaded safely, or lacks something a measurement needs (a chat template, a site)."""


class InterventionError(RefusalscopeError):
    """An intervention that did not happen as declared: a hook that did not fire, a weight that changed."""


class ContractError(RefusalscopeError):
    """A call that the contract of RESPONSIBLE_USE.md forbids, such as decoding from an intervened model."""


class MeasurementError(RefusalscopeError):
    """Input from which the requested number cannot be computed."""


class SelectionError(RefusalscopeError):
    """No candidate survives the selection rule. The message says which filter removed how many.

    ``cells`` is the search's frame, a row per cell with its scores and reason; None where nothing was searched.
    """

    def __init__(self, message: str, *, cells: Any = None):
        self.cells = cells
        super().__init__(message)


class ResultError(RefusalscopeError):
    """A result file that does not follow its closed schema, or cannot be written."""


class RecipeError(RefusalscopeError):
    """A recipe file that does not describe an organism."""
