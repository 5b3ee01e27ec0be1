"""Does a single loud channel own the direction, so that the difference in means says how loud it is and little else?

Few coordinates of the residual stream can be orders of magnitude above the rest (massive activations, Sun et al. 2024,
arXiv 2402.17762; rogue dimensions, Timkey and van Schijndel 2021, arXiv 2109.04404). Where such a channel varies with
the prompt, a small relative difference in it outweighs all others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from refusalscope import stats
from refusalscope.activations import ContrastActivations
from refusalscope.diagnosis.findings import GIVE_MORE, Exact, Finding, Number, side, why_open
from refusalscope.diagnosis.resampled import over_prompts
from refusalscope.errors import MeasurementError
from refusalscope.linalg import energy_share
from refusalscope.locators.mean_difference import mean_difference
from refusalscope.locators.standardised import difference_and_spread, in_spreads, standardised
from refusalscope.locators.winsorised import winsorised
from refusalscope.prompts import Prompts
from refusalscope.rule import Cell
from refusalscope.subspace import Candidates

CHANNEL = "loud channel"
# share = cos² of the angle to the channel's axis: above one half the direction is nearer to that axis than to all
# other channels together. Shipped organisms stay at or below 0.12 in every cell, the published gemma-2b-it below 0.08.
OWNED = 0.5


def loud_channel(acts: ContrastActivations, cell: Cell, prompts: Prompts, *, seed: int) -> Finding:
    """Returns whether one channel holds more than half of the energy of the direction at a cell, by loudness alone.

    By loudness alone: with every channel in units of its own spread, it no longer does. A channel that also holds most
    of the standardised difference tells the classes apart, loud or not, and then nothing is wrong with it.

    Args:
        acts: captured with ``keep_each=True`` on ``prompts``.

    Raises MeasurementError for activations that are not finite, or fewer than two prompts of a class.
    """
    found, spread = difference_and_spread(*acts, locator="the diagnosis of loud channels")
    row, plain = (cell.layer, found.shape[1] + cell.position), mean_difference(*acts)
    if plain.is_empty(*cell):
        raise MeasurementError("The classes do not differ in the mean at the cell that was looked at.")
    here, channel = found[row], int(found[row].abs().argmax())
    numbers = _shares(acts, prompts, row, channel, seed=seed)
    effects = in_spreads(here, spread[row]).square()
    own = float(effects[channel] / effects.sum())
    numbers["share of that channel in standard deviations"] = Exact(own, sum(a.n for a in acts), "prompts")
    numbers |= _variants(acts, plain, cell) | _everywhere(plain)
    share = numbers["top channel's share of the difference in means"]
    assert isinstance(share, stats.Estimate)
    return _judged(share, own, numbers)


def _judged(share: stats.Estimate, own: float, numbers: Mapping[str, Number]) -> Finding:
    found = side(share, OWNED)
    if found == "above" and own < OWNED:
        sentence = "A loud channel owns the difference in means."
        action = "Locate with standardised, or with winsorised over channels, and compare what each does."
        return Finding(CHANNEL, "fired", sentence, numbers, action)
    if found == "above":
        sentence = "One channel owns the difference in means, and it tells the classes apart in its own spread as well."
        return Finding(CHANNEL, "clear", sentence, numbers)
    if found == "below":
        return Finding(CHANNEL, "clear", "No channel owns the difference in means.", numbers)
    sentence = "Whether a loud channel owns the difference in means is open."
    return Finding(CHANNEL, "cannot tell", sentence, numbers, GIVE_MORE, why_open({"share": share}))


def _shares(
    acts: ContrastActivations, prompts: Prompts, row: tuple[int, int], channel: int, *, seed: int
) -> dict[str, Number]:
    x = torch.cat([part.each[:, row[0], row[1]] for part in acts if part.each is not None]).double()
    if len(x) != sum(part.n for part in acts):
        raise MeasurementError("The diagnosis of loud channels needs single activations: capture with keep_each=True.")
    clusters = (*prompts.restricted.clusters, *prompts.harmless.clusters)
    signs = np.repeat([1.0, -1.0], [part.n for part in acts])
    rows, loud = x.numpy(), x.square() / x.square().sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)

    def share(drawn: np.ndarray) -> float:
        counts = np.bincount(drawn, minlength=len(signs)).astype(float)
        sizes = {sign: counts[signs == sign].sum() for sign in (1.0, -1.0)}
        if not all(sizes.values()):
            return float("nan")
        weights = np.where(signs > 0, counts / sizes[1.0], -counts / sizes[-1.0])
        return energy_share(torch.from_numpy(weights @ rows))

    return {
        "top channel's share of the difference in means": over_prompts(share, clusters, seed=seed),
        "that channel's share of the residual stream": stats.mean(loud[:, channel].numpy(), clusters=clusters),
        "top share of the residual stream": stats.mean(loud.amax(1).numpy(), clusters=clusters),
    }


def _variants(acts: ContrastActivations, plain: Candidates, cell: Cell) -> dict[str, Number]:
    """What the locators that do not heed loudness find there: their top share, and how far they are from the plain."""
    here, n = plain.at(*cell).vectors[0], sum(part.n for part in acts)
    numbers: dict[str, Number] = {}
    for name, made in (
        ("standardised", standardised(*acts)),
        ("winsorised over channels", winsorised(*acts)),
        ("winsorised over prompts", winsorised(*acts, over="prompts")),
    ):
        if made.is_empty(*cell):
            continue
        other = made.at(*cell).vectors[0]
        numbers[f"{name}: top share"] = Exact(energy_share(other), n, "prompts")
        numbers[f"{name}: cosine with the plain one"] = Exact(
            float(torch.cosine_similarity(here, other, dim=0)), n, "prompts"
        )
    return numbers


def _everywhere(plain: Candidates) -> dict[str, Number]:
    real = [cell for cell in plain.cells() if not plain.is_empty(*cell)]
    shares = [energy_share(plain.at(*cell).vectors[0]) for cell in real]
    owned = sum(share > OWNED for share in shares)
    return {
        "cells owned by one channel": Exact(owned, len(real), "cells with a direction"),
        "largest share in any cell": Exact(max(shares), len(real), "cells with a direction"),
    }
