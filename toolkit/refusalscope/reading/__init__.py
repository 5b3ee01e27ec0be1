"""Reading a reply: how this model opens a refusal and an answer, and how well that is read."""

from __future__ import annotations

from refusalscope.reading.discover import PHRASES_FOLLOW, readout
from refusalscope.reading.readout import Opening, Readout
from refusalscope.reading.replies import greedy_replies, refusal_marks
from refusalscope.reading.validity import Validity, validate_readout

__all__ = [
    "PHRASES_FOLLOW",
    "Opening",
    "Readout",
    "Validity",
    "greedy_replies",
    "readout",
    "refusal_marks",
    "validate_readout",
]
