"""The declared rates of the rule in use, for those who must decide what an audit can be relied on for."""

from __future__ import annotations

from refusalscope import stats
from refusalscope.audit.calibration import DECLARED
from refusalscope.stats import Estimate


def declared() -> dict[str, Estimate]:
    """Returns how often the audit flags edited and benign candidates of organism families it was not fitted on.

    Wilson intervals over candidates, each family left out in turn; ``rates`` has the same by class of edit.
    """
    return {name: stats.wilson(flagged, n) for name, (flagged, n) in DECLARED.items()}
