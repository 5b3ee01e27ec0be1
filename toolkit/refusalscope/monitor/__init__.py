"""Monitors: probes for restricted requests, frozen, and what they are worth after refusal is ablated or retrained."""

from __future__ import annotations

from refusalscope.monitor.alarms import alarms, overlap
from refusalscope.monitor.fit import Monitor, monitor
from refusalscope.monitor.latency import latency
from refusalscope.monitor.layers import by_layer
from refusalscope.monitor.rates import Calibration, calibrate
from refusalscope.monitor.surviving import Survival, survival

__all__ = [
    "Calibration",
    "Monitor",
    "Survival",
    "alarms",
    "by_layer",
    "calibrate",
    "latency",
    "monitor",
    "overlap",
    "survival",
]
