"""Chat models: loaded safely, spoken to as they expect, run in batches under hooks. Nothing here decodes or saves."""

from __future__ import annotations

from refusalscope.model.batching import Batch, SmallerBatchWarning, batches, forward, map_rows
from refusalscope.model.chat import ChatModel, Origin
from refusalscope.model.digests import rendered_digest
from refusalscope.model.families import Families, Family, families
from refusalscope.model.loading import load
from refusalscope.model.resume import Residuals, recorded, resume
from refusalscope.model.sites import Sites
from refusalscope.model.source import UnpinnedRevisionWarning
from refusalscope.model.template import Chat, Template
from refusalscope.model.without_code import CodeNotRunWarning

__all__ = [
    "Batch",
    "Chat",
    "ChatModel",
    "CodeNotRunWarning",
    "Families",
    "Family",
    "Origin",
    "Residuals",
    "Sites",
    "SmallerBatchWarning",
    "Template",
    "UnpinnedRevisionWarning",
    "batches",
    "families",
    "forward",
    "load",
    "map_rows",
    "recorded",
    "rendered_digest",
    "resume",
]
