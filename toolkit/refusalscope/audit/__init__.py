"""The tamper audit: was refusal edited out of a checkpoint, compared with the one it is said to come from?"""

from __future__ import annotations

from refusalscope.audit.audit import Loading, audit
from refusalscope.audit.declared import declared
from refusalscope.audit.evidence import Audit, Evidence, Labels
from refusalscope.audit.rates import fitted, rates, read_cases, roc

__all__ = ["Audit", "Evidence", "Labels", "Loading", "audit", "declared", "fitted", "rates", "read_cases", "roc"]
