"""Projections of a batch: its part inside a basis, for one basis or for a different one in each block of rows."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import InterventionError


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 where the model is: a projection in a narrower type would round what it leaves alone."""
    return torch.promote_types(dtype, torch.float32)


def blocks(x: Float[Tensor, "row pos d"], basis: Tensor) -> Float[Tensor, "*candidate vector d"]:
    """Returns all vectors of a batch in the basis' precision, in one block per candidate where there are several."""
    if basis.ndim == 2:
        return x.to(basis.dtype).flatten(0, 1)
    if len(x) % len(basis):
        raise InterventionError(f"A batch of {len(x)} rows cannot hold {len(basis)} equal blocks, one per subspace.")
    return rearrange(x.to(basis.dtype), "(c r) p d -> c (r p) d", c=len(basis))


def inside(vectors: Tensor, basis: Tensor, shift: Tensor | None = None) -> Float[Tensor, "*candidate vector k"]:
    """Returns Uᵀ(h − c) of every vector, for each candidate's own U; ``shift`` is Uᵀc."""
    found = (vectors * basis.mT).sum(-1, keepdim=True) if basis.shape[-1] == 1 else vectors @ basis
    return found if shift is None else found - rearrange(shift, "... k -> ... 1 k").to(vectors.device)


def held(x: Float[Tensor, "row pos d"], basis: Tensor, shift: Tensor | None = None) -> Tensor:
    """Returns the largest |Uᵀ(h − c)| relative to the largest norm of h."""
    vectors = blocks(x, basis)
    found = inside(vectors, basis.to(x.device), shift)
    return found.abs().amax() / torch.linalg.vector_norm(vectors, dim=-1).amax().clamp(min=1e-30)
