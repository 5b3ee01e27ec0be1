"""Layer scope: where in depth the ablation has to act."""

from __future__ import annotations

import time
from collections.abc import Sequence

from refusalscope.attack import Attack
from refusalscope.curves.curve import Curve
from refusalscope.curves.points import PLACEBOS, Point, answered, guarded, rows
from refusalscope.effect import Baseline
from refusalscope.errors import MeasurementError
from refusalscope.placebo import Kind, random_like
from refusalscope.subspace import Subspace

MOST_SINGLE = 16


def scope(
    before: Baseline,
    subspace: Subspace,
    *,
    scopes: Sequence[tuple[int, int]] = (),
    placebos: int = PLACEBOS,
    kind: Kind = random_like,
    seed: int = 0,
) -> Curve:
    """Returns bypass, suppression and KL by the layers in which the ablation acts, beside placebos with the same scope.

    Columns ``first last scope``; ``scope`` is ``one layer``, ``window`` or ``all``. No landmark: a scope is not a
    quantity. An ablation of one layer clears the stream as it enters and what that layer writes; later layers may
    write the subspace anew.

    Args:
        scopes: first and last layer, inclusive; by default `scopes_of` the model.

    Raises:
        MeasurementError: without a guardrail, or for layers the model does not have.
    """
    guarded(before)
    n_layers = before.model.n_layers
    wanted = list(scopes or scopes_of(n_layers))
    if wrong := [pair for pair in wanted if not 0 <= pair[0] <= pair[1] < n_layers]:
        raise MeasurementError(
            f"Scope {wrong[0]} is outside the layers 0–{n_layers - 1} of {before.model.origin.name}."
        )
    began, nulls = time.perf_counter(), kind(subspace, placebos, seed=seed)
    points = []
    for first, last in wanted:
        everywhere = (first, last) == (0, n_layers - 1)
        layers, name = (None, "all") if everywhere else ((first, last), "one layer" if first == last else "window")
        attacks = [Attack(one, layers=layers) for one in (subspace, *nulls)]
        points.append(Point({"first": first, "last": last, "scope": name}, (attacks[0],), tuple(attacks[1:])))
    answers = answered(before, points, what="scope curve")
    frame = rows(before, answers)
    return Curve("layer scope", frame, {}, sum(answer.pf for answer in answers), time.perf_counter() - began)


def scopes_of(n_layers: int) -> list[tuple[int, int]]:
    """Returns single layers (at most 16, evenly spread), windows of half the layers, and all layers."""
    step, width = -(-n_layers // MOST_SINGLE), max(1, n_layers // 2)
    single = [(layer, layer) for layer in range(0, n_layers, step)]
    windows = [(first, first + width - 1) for first in range(0, n_layers - width + 1, max(1, width // 3))]
    return list(dict.fromkeys([*single, *windows, (0, n_layers - 1)]))
