"""refusalscope measures how optional the refusal guardrail of an open-weight chat model is."""

from __future__ import annotations

from importlib.metadata import version

from refusalscope import figures, frames, linalg, organisms, placebo, plotting, stats, truth
from refusalscope import locators as locate
from refusalscope.activations import Activations
from refusalscope.capture import capture
from refusalscope.claims import Claim, claim
from refusalscope.effect import Baseline, Effect, baseline, effect, mean_margin, placebo_effects
from refusalscope.errors import MeasurementError, RefusalscopeError
from refusalscope.interventions import ablate, add
from refusalscope.metrics import Openings, cross_entropy, kl, margin, next_token, opening_margin
from refusalscope.model import ChatModel, RefusalTokens, discover_refusal_tokens, given_refusal_tokens, load
from refusalscope.organisms import language
from refusalscope.outcomes import outcomes
from refusalscope.prompts import ContrastSet, Prompt, Prompts
from refusalscope.replay import replay
from refusalscope.report import measure
from refusalscope.results import GuardrailCard
from refusalscope.selection import Choice, select
from refusalscope.stats import Estimate
from refusalscope.subspace import Candidates, Subspace

__version__ = version("refusalscope")

__all__ = [
    "Activations",
    "Baseline",
    "Candidates",
    "ChatModel",
    "Choice",
    "Claim",
    "ContrastSet",
    "Effect",
    "Estimate",
    "GuardrailCard",
    "MeasurementError",
    "Openings",
    "Prompt",
    "Prompts",
    "RefusalTokens",
    "RefusalscopeError",
    "Subspace",
    "ablate",
    "add",
    "baseline",
    "capture",
    "claim",
    "cross_entropy",
    "discover_refusal_tokens",
    "effect",
    "figures",
    "frames",
    "given_refusal_tokens",
    "kl",
    "language",
    "linalg",
    "load",
    "locate",
    "margin",
    "mean_margin",
    "measure",
    "next_token",
    "opening_margin",
    "organisms",
    "outcomes",
    "placebo",
    "placebo_effects",
    "plotting",
    "replay",
    "select",
    "stats",
    "truth",
]
