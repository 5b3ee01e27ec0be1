"""Placebos: subspaces that should do nothing, made to pass through the same measurement as the located one.

Each kind answers a different doubt: any direction of this norm (`random_like`), any direction along which the
activations vary (`covariance_like`), this many prompts without labels (`label_shuffled`), any contrast between groups
of prompts (`unrelated_contrast`), any other cell of the grid (`wrong_layer`). Only the last may be expected to work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from refusalscope.activations import Activations, Moments
from refusalscope.errors import MeasurementError
from refusalscope.stats import torch_generator
from refusalscope.subspace import Candidates, LayeredSubspace, Subspace

Found = TypeVar("Found", Subspace, Candidates)
Drawn = TypeVar("Drawn", bound=Subspace | LayeredSubspace | Candidates)
Located = TypeVar("Located")


@runtime_checkable
class Kind(Protocol):
    """What makes ``count`` placebos of a located subspace; `random_like` is one."""

    def __call__(self, found: Subspace, count: int, /, *, seed: int) -> list[Subspace]: ...


def random_like(subspace: Drawn, count: int, *, seed: int) -> list[Drawn]:
    """Returns ``count`` placebos of the same rank, cells and vector norms in directions drawn uniformly.

    Takes a subspace, one for each of some layers (drawn for each apart), or the candidates of a whole grid: a list of
    the same is returned.
    """
    drawn = _normal((count, *subspace.vectors.shape), seed, "random placebo")
    return [replace(subspace, vectors=one, locator="random placebo") for one in _scaled(drawn, subspace.vectors)]


def covariance_like(
    found: Found, count: int, *, restricted: Activations, harmless: Activations, seed: int
) -> list[Found]:
    """Returns ``count`` placebos drawn from the pooled within-class covariance of the activations, norms as located.

    x = Xᵀg / √(n − 2), X the activations at the cell centred on their own class, g standard normal: a Gaussian with
    exactly the empirical covariance, which is never formed. Harder than a uniform draw, because the directions in
    which activations vary are the ones a model reads; harder still where graded refusal varies within a class.

    Raises:
        MeasurementError: without single activations, for fewer prompts than dimensions asked for, or for a subspace
            that was located nowhere in particular.
    """
    centred = torch.cat([_each(x) - x.mean for x in (restricted, harmless)])
    rank = found.vectors.shape[-2]
    if len(centred) - 2 < rank:
        raise MeasurementError(f"{len(centred)} prompts span no {rank} dimensions within their classes. Capture more.")
    purpose = "covariance-matched placebo"
    if isinstance(found, Candidates):
        noise = _normal((count, *found.vectors.shape[:-1], len(centred)), seed, purpose)
        drawn = einsum(noise, centred, "count layer pos k prompt, prompt layer pos d -> count layer pos k d")
    else:
        noise = _normal((count, rank, len(centred)), seed, purpose)
        drawn = einsum(noise, _at(centred, found), "count k prompt, prompt d -> count k d")
    return [replace(found, vectors=one, locator=purpose) for one in _scaled(drawn, found.vectors)]


def label_shuffled(
    restricted: Activations, harmless: Activations, count: int, *, seed: int, balanced: bool = False
) -> list[Candidates]:
    """Returns ``count`` differences in means between two random halves of the pooled prompts.

    Shuffling keeps each class size, so the vectors carry the sampling noise of the located ones. They also carry what
    is left of the located one itself: a half that happens to hold more restricted prompts is moved towards them, and
    an ablation, which knows no lengths, may take refusal with it. ``balanced`` gives both halves equal shares of both
    classes (up to one prompt), which removes that part; p-values from balanced halves can be slightly too small
    (Southworth, Kim and Owen 2009), those from plain ones are too large where there is something to find.
    Raises MeasurementError when the activations were captured without ``keep_each=True``.
    """
    pool, sizes = torch.cat([_each(restricted), _each(harmless)]), (restricted.n, harmless.n)
    return [
        Candidates((pool[first].mean(0) - pool[second].mean(0)).unsqueeze(-2), "label-shuffled placebo", sizes)
        for first, second in _shuffled(sizes, sizes, count, seed=seed, balanced=balanced)
    ]


def located_on_shuffled(
    restricted: Activations,
    harmless: Activations,
    count: int,
    *,
    locate: Callable[[Activations, Activations], Located],
    seed: int,
    pairs: int | None = None,
    balanced: bool = False,
) -> list[Located]:
    """Returns what a locator finds in ``count`` shufflings of the labels, on as many prompts as it was given.

    Any locator that takes single activations can be judged this way. ``pairs`` draws that many prompts for each side
    instead: the placebo of a smaller budget. ``balanced``, and what it changes, is that of `label_shuffled`. Raises
    MeasurementError as that does, or when there are too few prompts.
    """
    pool = torch.cat([_each(restricted), _each(harmless)])
    sizes = (restricted.n, harmless.n) if pairs is None else (pairs, pairs)
    return [
        locate(subset(restricted, pool, first), subset(harmless, pool, second))
        for first, second in _shuffled((restricted.n, harmless.n), sizes, count, seed=seed, balanced=balanced)
    ]


def unrelated_contrast(
    activations: Activations, clusters: Sequence[str], *, seed: int, count: int | None = None
) -> list[Candidates]:
    """Returns differences in means between two clusters of one label: template against template, no refusal in it.

    Every pair of clusters once, in an order drawn by ``seed``; ``count`` keeps the first ones.

    Raises:
        MeasurementError: without single activations, when labels and prompts differ in number, or when there are
            fewer pairs of clusters than asked for.
    """
    each, names = _each(activations), sorted(set(clusters))
    if len(clusters) != len(each):
        raise MeasurementError(f"{len(clusters)} cluster names for {len(each)} prompts: give one per prompt, in order.")
    pairs = list(itertools.combinations(names, 2))
    if not pairs or (count or 0) > len(pairs):
        raise MeasurementError(f"{len(names)} clusters make {len(pairs)} contrasts; asked for {count or 'at least 1'}.")
    rows = {name: torch.tensor([cluster == name for cluster in clusters]) for name in names}
    means = {name: each[kept].mean(0) for name, kept in rows.items()}
    order = torch.randperm(len(pairs), generator=torch_generator(seed, "unrelated-contrast placebo")).tolist()
    return [
        Candidates(
            (means[first] - means[second]).unsqueeze(-2),
            "unrelated-contrast placebo",
            (int(rows[first].sum()), int(rows[second].sum())),
        )
        for first, second in (pairs[i] for i in order[:count])
    ]


def wrong_layer(candidates: Candidates, subspace: Subspace, *, apart: int = 1) -> list[Subspace]:
    """Returns the candidates of every cell at least ``apart`` layers away, at the located place and with its norms.

    Not a null: the streams entering neighbouring layers share most of what they hold, so these may well ablate
    refusal. They answer whether the chosen cell matters. Empty cells are left out.
    Raises MeasurementError for a subspace located nowhere in particular, of another rank, or when no cell is left.
    """
    cell, made = _cell(subspace), []
    if candidates.vectors.shape[2:] != subspace.vectors.shape:
        raise MeasurementError(
            f"The {subspace!r} has vectors of shape {tuple(subspace.vectors.shape)}, the candidates "
            f"{tuple(candidates.vectors.shape[2:])}: give the candidates it was chosen from."
        )
    for layer, position in candidates.cells():
        elsewhere = (layer, position) != cell and abs(layer - cell[0]) >= apart
        if elsewhere and not candidates.is_empty(layer, position):
            vectors = _scaled(candidates.at(layer, position).vectors, subspace.vectors)
            made.append(Subspace(vectors, *cell, "wrong-layer placebo"))
    if not made:
        raise MeasurementError(f"No candidate lies {apart} or more layers from layer {cell[0]}: ask for fewer.")
    return made


def norm_matched(placebos: Sequence[Found], found: Found) -> list[Found]:
    """Returns the placebos with the norms of the located vectors: an addition is then of the same dose."""
    return [replace(placebo, vectors=_scaled(placebo.vectors, found.vectors)) for placebo in placebos]


def subset(like: Activations, each: Float[Tensor, "prompt layer pos d"], rows: Tensor) -> Activations:
    """Returns activations of some rows of ``each`` under the label of ``like``, as if only these were captured."""
    moments = Moments()
    moments.add(each[rows])
    return moments.activations(like.label, each=each[rows].float())


def _shuffled(
    there: tuple[int, int], sizes: tuple[int, int], count: int, *, seed: int, balanced: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields disjoint rows of the pool (restricted prompts first) for both sides."""
    noise = torch_generator(seed, "label-shuffled placebo")
    if min(sizes) < 1 or sum(sizes) > sum(there):
        raise MeasurementError(f"{sum(there)} prompts cannot be shuffled into {sizes[0]} and {sizes[1]}.")
    for _ in range(count):
        order = torch.randperm(sum(there), generator=noise)
        if not balanced:
            yield order[: sizes[0]], order[sizes[0] : sum(sizes)]
            continue
        classes = order[order < there[0]], order[order >= there[0]]
        kept = round(sum(sizes) * there[0] / sum(there))
        share = round(kept * sizes[0] / sum(sizes))
        shares = [share, kept - share], [sizes[0] - share, sizes[1] - (kept - share)]
        parts = [rows[: sum(split)].split(split) for rows, split in zip(classes, shares, strict=True)]
        first, second = (torch.cat(sides) for sides in zip(*parts, strict=True))
        yield first, second


def _each(activations: Activations) -> Float[Tensor, "prompt layer pos d"]:
    if activations.each is None:
        raise MeasurementError("Placebos from activations need single ones: capture with keep_each=True.")
    return activations.each.double()


def _cell(subspace: Subspace) -> tuple[int, int]:
    if subspace.layer is None or subspace.position is None:
        raise MeasurementError(f"The {subspace!r} was located nowhere in particular: give one with layer and position.")
    return subspace.layer, subspace.position


def _at(each: Float[Tensor, "prompt layer pos d"], subspace: Subspace) -> Float[Tensor, "prompt d"]:
    layer, position = _cell(subspace)
    return each[:, layer, position]


def _normal(shape: tuple[int, ...], seed: int, purpose: str) -> Tensor:
    if shape[0] < 0:
        raise MeasurementError(f"A count of {shape[0]} placebos cannot be drawn: give 0 or more.")
    return torch.randn(shape, generator=torch_generator(seed, purpose), dtype=torch.float64)


def _scaled(drawn: Float[Tensor, "*many d"], like: Float[Tensor, "*cell d"]) -> Float[Tensor, "*many d"]:
    """Returns drawn vectors with the norms of the located ones; a drawn zero stays zero."""
    norms = torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
    return drawn / norms.clamp(min=1e-300) * torch.linalg.vector_norm(like, dim=-1, keepdim=True)
