"""Attribution: which components write a located direction, and what refusal is left when they are knocked out."""

from __future__ import annotations

from refusalscope.attribution.direct import Attribution, attribution
from refusalscope.attribution.knockout import knock_out, knockout_curve, mean_writes

__all__ = ["Attribution", "attribution", "knock_out", "knockout_curve", "mean_writes"]
