"""Diagnosis: when a model does not fit the picture of a refusal direction, which of six reasons it is, with numbers."""

from __future__ import annotations

from refusalscope.diagnosis.diagnose import diagnose, estimated_diagnose_cost
from refusalscope.diagnosis.findings import Diagnosis, Exact, Finding

__all__ = ["Diagnosis", "Exact", "Finding", "diagnose", "estimated_diagnose_cost"]
