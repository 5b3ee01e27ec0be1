"""Readings: how well a harmfulness and a refusal direction part classes of prompts, beside random directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.model.chat import ChatModel
from refusalscope.placebo import random_like
from refusalscope.prompts import Prompts
from refusalscope.subspace import Subspace
from refusalscope.transfer.contrasts import Row, auroc, columns, placebo_columns
from refusalscope.transfer.harm import Pair, captured


def readings(
    model: ChatModel,
    pair: Pair,
    classes: Mapping[str, Prompts],
    contrasts: Sequence[tuple[str, str]],
    *,
    placebos: int = 199,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the AUROC of the first class of each contrast against the second, read along each direction of a pair.

    Columns ``first second read value low high n clusters note random_low random_high random_p``. The placebos are
    random directions read at the same layer and position. One prompt-forward per prompt of ``classes``.

    The intervals follow the prompts' ``cluster``. Where every phrasing asks about the same few items, give each prompt
    its item as cluster: intervals over phrasings are then far too narrow for a claim about items.

    Args:
        classes: prompts by name of their class; none that located the pair.
        contrasts: names of two classes each.

    Raises:
        MeasurementError: a contrast names a class that is not there.
    """
    if unknown := {name for names in contrasts for name in names} - set(classes):
        raise MeasurementError(f"Contrasts name {sorted(unknown)}; the classes are {sorted(classes)}. Name these.")
    each = {name: captured(model, prompts, name).each for name, prompts in classes.items()}
    rows: list[Row] = []
    for first, second in contrasts:
        clusters = (*classes[first].clusters, *classes[second].clusters)
        for read, one in pair.items():
            x, y = (_at(each[name], one) for name in (first, second))
            directions = (one, *random_like(one, placebos, seed=seed))
            areas = [auroc(x @ u.basis[:, 0], y @ u.basis[:, 0], clusters=clusters) for u in directions]
            row = {"first": first, "second": second, "read": read, **columns(areas[0])}
            rows.append(row | placebo_columns(areas[0].value, [area.value for area in areas[1:]], name="random"))
    return pd.DataFrame(rows)


def _at(each: Float[Tensor, "prompt layer pos d"] | None, one: Subspace) -> Float[Tensor, "prompt d"]:
    assert each is not None
    return each[:, one.layer, one.position].double()
