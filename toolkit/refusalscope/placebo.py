"""Placebos: subspaces that should do nothing, made to pass through the same measurement as the located one."""

from __future__ import annotations

import torch

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.stats import torch_generator
from refusalscope.subspace import Candidates, Subspace


def random_like(subspace: Subspace, count: int, *, seed: int) -> list[Subspace]:
    """Returns ``count`` subspaces of the same rank, layer and vector norms in directions drawn uniformly."""
    noise = torch_generator(seed, "random placebo")
    drawn = torch.randn((count, *subspace.vectors.shape), generator=noise, dtype=torch.float64)
    norms = torch.linalg.vector_norm(subspace.vectors, dim=-1, keepdim=True)
    matched = drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True) * norms
    return [Subspace(vectors, subspace.layer, subspace.position, "random placebo") for vectors in matched]


def label_shuffled(restricted: Activations, harmless: Activations, count: int, *, seed: int) -> list[Candidates]:
    """Returns ``count`` differences in means between two random halves of the pooled prompts.

    Shuffling keeps each class size, so the vectors carry the sampling noise of the located ones and nothing else.
    Raises MeasurementError when the activations were captured without ``keep_each=True``.
    """
    if restricted.each is None or harmless.each is None:
        raise MeasurementError("Label shuffling needs single activations: capture with keep_each=True.")
    pool, noise = torch.cat([restricted.each, harmless.each]).double(), torch_generator(seed, "label-shuffled placebo")
    made = []
    for _ in range(count):
        order = torch.randperm(len(pool), generator=noise)
        gap = pool[order[: restricted.n]].mean(0) - pool[order[restricted.n :]].mean(0)
        made.append(Candidates(gap.unsqueeze(-2), "label-shuffled placebo", (restricted.n, harmless.n)))
    return made
