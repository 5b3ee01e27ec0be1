"""Small linear algebra in the field's terms: projections, orthonormal bases, principal angles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError


def orthonormal(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "d k"]:
    """Returns an orthonormal basis U of the span of the rows, in float64, first column along the first row.

    Householder QR with the signs fixed so that each column points along its own row. Raises MeasurementError
    when the rows do not span k dimensions (relative tolerance 1e-6), or are not finite.
    """
    rows = vectors.double()
    if not bool(torch.isfinite(rows).all()):
        raise MeasurementError("A direction has coordinates that are not finite numbers.")
    scale = torch.linalg.vector_norm(rows, dim=1).amax() if len(rows) else torch.tensor(0.0)
    basis, upper = torch.linalg.qr(rows.T)
    diagonal = upper.diagonal()
    if len(rows) == 0 or float(diagonal.abs().min()) <= 1e-6 * float(scale):
        raise MeasurementError(f"{len(rows)} given vectors do not span {len(rows)} dimensions.")
    return basis * torch.sign(diagonal)


def project(x: Float[Tensor, "*batch d"], basis: Float[Tensor, "d k"]) -> Float[Tensor, "*batch d"]:
    """Returns U Uᵀ x, the part of x inside the span of an orthonormal basis, in the dtype of x."""
    inside = basis.to(x.dtype)
    return (x @ inside) @ inside.T


def principal_angles(first: Float[Tensor, "d k"], second: Float[Tensor, "d j"]) -> Float[Tensor, " m"]:
    """Returns the principal angles between two subspaces in radians, ascending, m = min(k, j).

    Björck and Golub 1973, as ``scipy.linalg.subspace_angles``: accurate for small angles too. Zero means that
    one shared direction lies in both; π/2 that none of what is left is shared.
    """
    from scipy.linalg import subspace_angles

    angles = subspace_angles(first.double().cpu().numpy(), second.double().cpu().numpy())
    return torch.from_numpy(angles.copy()).flip(0)


def energy_share(x: Float[Tensor, " d"]) -> float:
    """Returns the share of a vector's squared norm in its largest coordinate: 1/d when even, 1 when one owns it."""
    squares = x.double().square()
    return float(squares.max() / squares.sum())
