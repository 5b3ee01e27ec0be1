"""refusalscope measures how optional the refusal guardrail of an open-weight chat model is.

Public names are imported when they are first used (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refusalscope import (
        attribution,
        curves,
        figures,
        frames,
        linalg,
        optionality,
        organisms,
        placebo,
        plotting,
        published,
        stats,
        transfer,
        truth,
    )
    from refusalscope import locators as locate
    from refusalscope.activations import Activations
    from refusalscope.attack import Attack, Responses, respond
    from refusalscope.audit import Audit, audit
    from refusalscope.capture import capture
    from refusalscope.claims import Claim, claim
    from refusalscope.cosmic import CosmicChoice, cosmic
    from refusalscope.diagnosis import Diagnosis, diagnose
    from refusalscope.effect import Baseline, Effect, baseline, effect, mean_margin, placebo_effects
    from refusalscope.errors import MeasurementError, RefusalscopeError
    from refusalscope.forecast import forecast
    from refusalscope.instrument import Instrument, check_instrument
    from refusalscope.interventions import ablate, add
    from refusalscope.machine import measured_machine
    from refusalscope.metrics import Openings, cross_entropy, kl, margin, next_token, opening_margin, refuses
    from refusalscope.model import (
        Chat,
        ChatModel,
        Families,
        Family,
        families,
        load,
    )
    from refusalscope.monitor import Monitor, Survival, monitor, survival
    from refusalscope.objective import interchange_objective, rdo_objective
    from refusalscope.organisms import language
    from refusalscope.outcomes import outcomes
    from refusalscope.plotting import show_theme
    from refusalscope.progress import quiet
    from refusalscope.prompts import ContrastSet, Prompt, Prompts, passages
    from refusalscope.reading import Readout, Validity, readout, validate_readout
    from refusalscope.recovery import recovered
    from refusalscope.replay import replay
    from refusalscope.report import Comparison, Plan, compare, measure
    from refusalscope.results import GuardrailCard
    from refusalscope.selection import Choice, select
    from refusalscope.stats import Estimate
    from refusalscope.subspace import Candidates, Subspace

__version__ = version("refusalscope")

__all__ = [
    "Activations",
    "Attack",
    "Audit",
    "Baseline",
    "Candidates",
    "Chat",
    "ChatModel",
    "Choice",
    "Claim",
    "Comparison",
    "ContrastSet",
    "CosmicChoice",
    "Diagnosis",
    "Effect",
    "Estimate",
    "Families",
    "Family",
    "GuardrailCard",
    "Instrument",
    "MeasurementError",
    "Monitor",
    "Openings",
    "Plan",
    "Prompt",
    "Prompts",
    "Readout",
    "RefusalscopeError",
    "Responses",
    "Subspace",
    "Survival",
    "Validity",
    "ablate",
    "add",
    "attribution",
    "audit",
    "baseline",
    "capture",
    "check_instrument",
    "claim",
    "compare",
    "cosmic",
    "cross_entropy",
    "curves",
    "diagnose",
    "effect",
    "families",
    "figures",
    "forecast",
    "frames",
    "interchange_objective",
    "kl",
    "language",
    "linalg",
    "load",
    "locate",
    "margin",
    "mean_margin",
    "measure",
    "measured_machine",
    "monitor",
    "next_token",
    "opening_margin",
    "optionality",
    "organisms",
    "outcomes",
    "passages",
    "placebo",
    "placebo_effects",
    "plotting",
    "published",
    "quiet",
    "rdo_objective",
    "readout",
    "recovered",
    "refuses",
    "replay",
    "respond",
    "select",
    "show_theme",
    "stats",
    "survival",
    "transfer",
    "truth",
    "validate_readout",
]

# Where each public name is defined; a module that is itself public stands in _MODULES.
_MODULES = {
    "attribution": "attribution",
    "curves": "curves",
    "figures": "figures",
    "frames": "frames",
    "linalg": "linalg",
    "locate": "locators",
    "optionality": "optionality",
    "organisms": "organisms",
    "placebo": "placebo",
    "plotting": "plotting",
    "published": "published",
    "stats": "stats",
    "transfer": "transfer",
    "truth": "truth",
}
_HOMES = {
    "activations": ("Activations",),
    "attack": ("Attack", "Responses", "respond"),
    "audit": ("Audit", "audit"),
    "capture": ("capture",),
    "claims": ("Claim", "claim"),
    "cosmic": ("CosmicChoice", "cosmic"),
    "diagnosis": ("Diagnosis", "diagnose"),
    "effect": ("Baseline", "Effect", "baseline", "effect", "mean_margin", "placebo_effects"),
    "errors": ("MeasurementError", "RefusalscopeError"),
    "forecast": ("forecast",),
    "instrument": ("Instrument", "check_instrument"),
    "interventions": ("ablate", "add"),
    "machine": ("measured_machine",),
    "metrics": ("Openings", "cross_entropy", "kl", "margin", "next_token", "opening_margin", "refuses"),
    "reading": ("Readout", "Validity", "readout", "validate_readout"),
    "model": (
        "Chat",
        "ChatModel",
        "Families",
        "Family",
        "families",
        "load",
    ),
    "monitor": ("Monitor", "Survival", "monitor", "survival"),
    "objective": ("interchange_objective", "rdo_objective"),
    "organisms": ("language",),
    "outcomes": ("outcomes",),
    "plotting": ("show_theme",),
    "progress": ("quiet",),
    "prompts": ("ContrastSet", "Prompt", "Prompts", "passages"),
    "recovery": ("recovered",),
    "replay": ("replay",),
    "report": ("Comparison", "Plan", "compare", "measure"),
    "results": ("GuardrailCard",),
    "selection": ("Choice", "select"),
    "stats": ("Estimate",),
    "subspace": ("Candidates", "Subspace"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """Keeps a public function from being replaced by the module of its name when Python imports that module."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    """Imports a public name on first use, and keeps it."""
    if name in _MODULES:
        found: object = import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME_OF:
        found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
