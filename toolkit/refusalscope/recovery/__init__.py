"""Recovery: what every locator finds where the truth was planted, scored against a truth that none of them saw."""

from __future__ import annotations

from refusalscope.recovery.contenders import NONE_LEFT
from refusalscope.recovery.scores import TRUTH, recovered

__all__ = ["NONE_LEFT", "TRUTH", "recovered"]
