"""Opening depth: how far into a reply the guardrail still holds, teacher-forced (Qi et al. 2024, arXiv 2406.05946)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from refusalscope.curves.curve import Curve
from refusalscope.curves.landmarks import mark
from refusalscope.curves.points import NO_PLACEBO, PLACEBOS, columns, estimated, guarded, placebo_columns
from refusalscope.effect import Baseline
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.interventions import ablate
from refusalscope.model.batching import Batch, forward, map_rows
from refusalscope.model.continuations import read_continuations
from refusalscope.placebo import Kind, random_like
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import log_odds
from refusalscope.stats import Estimate
from refusalscope.subspace import Subspace

DEEPEST = 8
TOGETHER = 16
NO_NULL = {
    "baseline": "nothing is ablated: there is no placebo for it",
    "ablated": "placebos are measured on restricted prompts only",
}


def depth(
    before: Baseline,
    subspace: Subspace,
    opening: str,
    *,
    deepest: int = DEEPEST,
    placebos: int = PLACEBOS,
    kind: Kind = random_like,
    seed: int = 0,
) -> Curve:
    """Returns the refusal margin after the first 0, 1, … tokens of a fixed opening of the reply, teacher-forced.

    The opening is usually the beginning of a compliant answer: a guardrail that is only a few tokens deep is gone
    after them. Depth 0 is the margin. With one-token openings all depths come from one forward per prompt, else each
    from one of its own. Columns ``depth condition label``,
    then as in every curve, with ``measure`` = ``margin`` in nats; conditions are ``baseline`` and ``ablated``, the
    placebos stand beside the ablated restricted prompts, and p counts placebos that lower the margin as much.
    The landmark ``depth of the guardrail`` is the smallest number of tokens after which the mean margin of restricted
    prompts is not above zero at baseline. A margin is about the readout's openings alone: a refusal
    that begins otherwise after a part of the reply than at its beginning is not seen.

    Args:
        opening: text of the reply's beginning, scored and never generated; only its first tokens are read.
        deepest: tokens of it to go through.

    Raises:
        MeasurementError: without a guardrail, or for an opening shorter than ``deepest`` tokens.
    """
    guarded(before)
    began, tokens = time.perf_counter(), before.model.encode_reply(opening)
    if not 0 <= deepest <= len(tokens):
        raise MeasurementError(f"The opening has {len(tokens)} tokens; a curve to depth {deepest} needs that many.")
    replies, prompts = tokens[:deepest], before.prompts
    plain = {part: margins_along(before, _part(prompts, part), replies) for part in ("restricted", "harmless")}
    ablated = {part: _ablated(before, _part(prompts, part), [subspace], replies)[0] for part in plain}
    nulls = kind(subspace, placebos, seed=seed)
    null = _ablated(before, prompts.restricted, nulls, replies).mean(1)  # a placebo's mean margin at each depth
    nulls_of = {"restricted": null, "harmless": None}
    frame = pd.DataFrame(
        [row for part in plain for row in _rows(prompts, part, "baseline", plain[part], None)]
        + [row for part in plain for row in _rows(prompts, part, "ablated", ablated[part], nulls_of[part])]
    )
    each = 1 if before.readout.one_token else 1 + deepest  # forwards that all depths of one prompt come from
    pf = float(each * (2 * len(prompts) + len(nulls) * len(prompts.restricted)))
    landmarks = {"depth of the guardrail": _landmark(prompts, plain["restricted"], seed)}
    return Curve("opening depth", frame.assign(pf=pf), landmarks, pf, time.perf_counter() - began)


def margins_along(
    before: Baseline, prompts: Prompts, reply: Sequence[int], *, copies: int = 1
) -> Float[Tensor, "*copies prompt depth"]:
    """Returns the refusal margin of every prompt after each number of reply tokens, 0 included, in nats."""
    model, length, found = before.model, len(reply), before.readout
    if not found.one_token:
        return _one_depth_at_a_time(before, prompts, reply, copies=copies)

    def scored(batch: Batch) -> Tensor:
        margins = log_odds(forward(model, batch.repeated(copies), keep=length + 1), found.first_tokens)
        return rearrange(margins, "(c r) d -> r c d", c=copies)

    asked = [[*ids, *reply] for ids in model.encode(prompts.texts)]
    size = max(1, model.batch_size // copies)
    values = map_rows(model, asked, scored, batch_size=size, reply_length=length).cpu()
    return values[:, 0] if copies == 1 else values.transpose(0, 1)


def _one_depth_at_a_time(
    before: Baseline, prompts: Prompts, reply: Sequence[int], *, copies: int
) -> Float[Tensor, "*copies prompt depth"]:
    """Openings of several tokens are read behind every part of the reply, in a forward of its own."""
    model, found, made = before.model, before.readout, []
    for depth in range(len(reply) + 1):
        asked = [[*ids, *reply[:depth]] for ids in model.encode(prompts.texts)]
        made.append(
            read_continuations(
                model, asked, found.tree, lambda logits, _rows: found.margin_of(logits), copies=copies, progress="depth"
            )
        )
    return torch.stack(made, dim=-1)


def _ablated(
    before: Baseline, prompts: Prompts, subspaces: Sequence[Subspace], reply: Sequence[int]
) -> Float[Tensor, "subspace prompt depth"]:
    """Returns margins under the ablation of each subspace, NaN where it did not happen as declared."""
    made = [torch.zeros(0, len(prompts), len(reply) + 1)]
    for start in range(0, len(subspaces), TOGETHER):
        together = list(subspaces[start : start + TOGETHER])
        try:
            with ablate(before.model, together):
                found = margins_along(before, prompts, reply, copies=len(together))
        except InterventionError:
            found = torch.full((len(together), len(prompts), len(reply) + 1), math.nan)
        made.append(found.reshape(len(together), len(prompts), -1))
    return torch.cat(made)


def _part(prompts: Prompts, label: str) -> Prompts:
    return prompts.restricted if label == "restricted" else prompts.harmless


def _rows(prompts: Prompts, label: str, condition: str, margins: Tensor, null: Tensor | None) -> list[dict]:
    made = []
    for at in range(margins.shape[1]):
        estimate = estimated(margins[:, at], _part(prompts, label).clusters, unit="nats")
        row = {"depth": at, "condition": condition, "label": label, "measure": "margin", **columns(estimate)}
        if null is not None:
            made.append(row | placebo_columns(estimate.value, null[:, at], larger=False))
        else:
            why = "; ".join(filter(None, (estimate.note, NO_NULL[condition])))
            made.append(row | NO_PLACEBO | {"note": why})
    return made


def _landmark(prompts: Prompts, margins: Float[Tensor, "prompt depth"], seed: int) -> Estimate:
    deepest = margins.shape[1] - 1
    return mark(
        lambda drawn: _first_not_above_zero(margins[drawn].double().mean(0)),
        prompts.restricted.clusters,
        cap=deepest + 1,
        seed=seed,
        never=f"the mean margin of restricted prompts stays above zero through {deepest} tokens",
    )


def _first_not_above_zero(means: Float[Tensor, " depth"]) -> float:
    return next((float(at) for at, value in enumerate(means.tolist()) if value <= 0), math.inf)
