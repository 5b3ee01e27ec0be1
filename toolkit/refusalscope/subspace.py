"""Located subspaces: values that live in memory only, and say where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import ContractError, MeasurementError
from refusalscope.linalg import orthonormal, principal_angles
from refusalscope.reprs import Shown

NO_EXPORT = (
    "Located directions are not exported: they stay in memory (RESPONSIBLE_USE.md, C2). Save measurements instead."
)


class NotExported:
    """Base of values that refuse to be pickled or copied into a file."""

    def __reduce_ex__(self, protocol):
        raise ContractError(NO_EXPORT)


@dataclass(frozen=True, repr=False, eq=False)
class Subspace(Shown, NotExported):
    """A k-dimensional subspace of the residual stream, with the vectors it was made from.

    Attributes:
        vectors: spanning vectors ``[k, d]`` in float64; their norms are the doses of an addition.
        layer: the layer whose entering residual stream it was located in (None: nowhere in particular).
        position: index from the end of the prompt, −1 = last (None: not tied to one).
        locator: the name of the method that located it.
    """

    vectors: Float[Tensor, "k d"]
    layer: int | None
    position: int | None
    locator: str

    @cached_property
    def basis(self) -> Float[Tensor, "d k"]:
        """Orthonormal basis U of the span, float64. Raises MeasurementError where the vectors are dependent."""
        return orthonormal(self.vectors)

    @property
    def rank(self) -> int:
        """Number of dimensions k."""
        return len(self.vectors)

    @property
    def norm(self) -> float:
        """Norm of the first vector, in units of the residual stream."""
        return float(torch.linalg.vector_norm(self.vectors[0]))

    def angles(self, other: Subspace | Float[Tensor, "d j"]) -> Float[Tensor, " m"]:
        """Principal angles to another subspace (or orthonormal basis), in radians, ascending."""
        return principal_angles(self.basis, other.basis if isinstance(other, Subspace) else other)

    def __repr__(self) -> str:
        place = "" if self.layer is None else f" at layer {self.layer}, position {self.position}"
        return f"Subspace of rank {self.rank} by {self.locator}{place}"


@dataclass(frozen=True, repr=False, eq=False)
class LayeredSubspace(Shown, NotExported):
    """A subspace for each of some layers, all of one rank: what the stream that a layer reads is to lose.

    Attributes:
        vectors: spanning vectors ``[layer, k, d]`` in float64, in the order of ``layers``.
        layers: which layers, ascending.
        locator: the name of the method that located them, and where.
    """

    vectors: Float[Tensor, "layer k d"]
    layers: tuple[int, ...]
    locator: str

    @property
    def rank(self) -> int:
        """Number of dimensions k at each layer."""
        return self.vectors.shape[1]

    def at(self, layer: int) -> Subspace:
        """Returns the subspace of one layer. Raises MeasurementError for a layer that has none."""
        if layer not in self.layers:
            raise MeasurementError(f"The {self!r} has no directions at layer {layer}, only at {self.layers}.")
        return Subspace(self.vectors[self.layers.index(layer)], layer, None, self.locator)

    def __repr__(self) -> str:
        return f"LayeredSubspace of rank {self.rank} by {self.locator}, at {len(self.layers)} layers"


Ablatable = Subspace | LayeredSubspace


@dataclass(frozen=True, repr=False, eq=False)
class Candidates(Shown, NotExported):
    """What a locator returns: one candidate subspace per (layer, position).

    Attributes:
        vectors: ``[layer, pos, k, d]``, float64.
        locator: the name of the method.
        n: prompts per class it was located on.
    """

    vectors: Float[Tensor, "layer pos k d"]
    locator: str
    n: tuple[int, int]

    @property
    def n_layers(self) -> int:
        return self.vectors.shape[0]

    @property
    def positions(self) -> range:
        """Positions counted from the end of the prompt: −P to −1."""
        return range(-self.vectors.shape[1], 0)

    def at(self, layer: int, position: int) -> Subspace:
        """Returns the candidate of one cell. Raises MeasurementError for a cell outside the grid."""
        if not 0 <= layer < self.n_layers or position not in self.positions:
            raise MeasurementError(
                f"No candidate at layer {layer}, position {position}: layers run from 0 to {self.n_layers - 1}, "
                f"positions from {self.positions.start} to -1."
            )
        return Subspace(self.vectors[layer, position], layer, position, self.locator)

    def every_layer(self, position: int) -> LayeredSubspace:
        """Returns the candidates of one position together, without layers that hold no direction.

        Raises MeasurementError for a position outside the grid, or where no layer holds one.
        """
        cells = [self.at(layer, position) for layer in range(self.n_layers)]
        layers = tuple(layer for layer in range(len(cells)) if not self.is_empty(layer, position))
        if not layers:
            raise MeasurementError(f"{self.locator} found no direction at position {position} of any layer.")
        vectors = torch.stack([cells[layer].vectors for layer in layers])
        return LayeredSubspace(vectors, layers, f"{self.locator} of every layer at {position}")

    def is_empty(self, layer: int, position: int) -> bool:
        """True where there is no direction to speak of: the two means are equal up to rounding, as at layer 0."""
        largest = float(torch.linalg.vector_norm(self.vectors, dim=-1).max())
        here = float(torch.linalg.vector_norm(self.vectors[layer, position], dim=-1).min())
        return not here > 1e-6 * largest

    def cells(self) -> Iterator[tuple[int, int]]:
        """Yields every (layer, position)."""
        return ((layer, position) for layer in range(self.n_layers) for position in self.positions)

    def __repr__(self) -> str:
        return (
            f"Candidates by {self.locator}: one per layer and position, {self.n_layers} × {len(self.positions)} cells"
        )
