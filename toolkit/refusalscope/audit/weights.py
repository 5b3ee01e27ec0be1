"""How the weights of two checkpoints differ: by how much, in which format's steps, and along which directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.audit.checkpoint import Checkpoint, Kind, stream_first, writer
from refusalscope.progress import bar
from refusalscope.stats import torch_generator
from refusalscope.subspace import NotExported

Label = Literal["identical", "rounding", "low_rank", "broad"]
SKETCH, EXACT = 48, 128  # probes of a difference's column space; matrices up to this side are done exactly
DIRECTIONS = 8
LOW = 1 / 8  # of a matrix's dimensions: what a difference of low rank fits into
LOW_ENERGY = 0.95
STEP_BF16, STEP_INT8 = 2.0**-8, 1.2 / 254  # relative to the weight; relative to the tensor's largest
ROUNDING = 1e-7  # of the largest weight: arithmetic in float32
UNSTRUCTURED = 0.25  # of a difference's energy: rounding has no direction that holds as much


@dataclass(frozen=True)
class TensorDifference:
    """One tensor against the other: squared norms, their product, and the shape of the difference. Scalars only.

    Attributes:
        difference, reference, candidate, product: ‖Δ‖², ‖W‖², ‖W′‖² and ⟨W, W′⟩.
        rank_one, low: shares of ‖Δ‖² in the first direction, and in the first eighth of them; NaN for vectors.
        steps: the largest change of a weight, in steps of bf16 or of int8, whichever is smaller.
    """

    name: str
    kind: Kind | None
    difference: float
    reference: float
    candidate: float
    product: float
    rank_one: float
    low: float
    steps: float

    @property
    def relative(self) -> float:
        """‖Δ‖ / ‖W‖ (Frobenius)."""
        return math.sqrt(self.difference / self.reference) if self.reference > 0 else float(self.difference > 0)


@dataclass(frozen=True, eq=False, repr=False)
class Differences(NotExported):
    """Every tensor's difference, and that of everything that writes to the residual stream together.

    The writers' differences, each in units of its reference's norm, stand side by side as one matrix D ``[d, N]``.

    Attributes:
        energies: squared singular values of D, descending, as shares of ‖D‖²; few, or all d of them.
        directions: the first singular directions of D on the stream's side, ``[d, k]``; in memory only.
    """

    tensors: tuple[TensorDifference, ...]
    energies: Float[Tensor, " known"]
    directions: Float[Tensor, "d k"]
    left_out: int

    @property
    def relative(self) -> float:
        """‖Δ‖ / ‖W‖ over all weights."""
        return math.sqrt(self._sum("difference") / max(self._sum("reference"), 1e-300))

    @property
    def cosine(self) -> float:
        """The cosine between all weights of both: near 0 for models that share no origin."""
        return self._sum("product") / max(math.sqrt(self._sum("reference") * self._sum("candidate")), 1e-300)

    @property
    def finite(self) -> bool:
        """False where a weight of either is not a number."""
        return math.isfinite(self._sum("reference")) and math.isfinite(self._sum("candidate"))

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of D's energies (Roy and Vetterli 2007), as a share of d; of those energies known."""
        known = self.energies[self.energies > 0]
        known = known / known.sum() if len(known) else known
        return float((-(known * known.log()).sum()).exp()) / len(self.directions) if len(known) else 0.0

    @property
    def label(self) -> Label:
        """How the weights differ, from equal in every bit to everywhere."""
        changed = [one for one in self.tensors if one.difference > 0]
        if not changed:
            return "identical"
        matrices = [one for one in changed if not math.isnan(one.low)]
        largest = float(self.energies[0]) if len(self.energies) else 0.0
        if all(one.steps <= 1 for one in changed) and largest <= UNSTRUCTURED:
            return "rounding"
        energy = sum(one.difference / max(one.reference, 1e-300) for one in matrices)
        low = sum(one.low * one.difference / max(one.reference, 1e-300) for one in matrices)
        return "low_rank" if matrices and low >= LOW_ENERGY * energy else "broad"

    def _sum(self, field: str) -> float:
        return sum(getattr(one, field) for one in self.tensors)

    def __repr__(self) -> str:
        return f"Differences of {len(self.tensors)} tensors: {self.label}"


def compared(reference: Checkpoint, candidate: Checkpoint, *, seed: int = 0) -> Differences:
    """Returns the differences of two checkpoints with the same tensors, read once, a piece of a tensor at a time.

    Singular values come from ΔΔᵀ against random probes, in one pass (Nyström; Tropp et al. 2017, arXiv 1706.05736):
    exact up to 128 dimensions, and close for what stands out above that.
    """
    width, rows = reference.width, []
    probes = _probes(width, seed)
    together, energy = torch.zeros(width, probes.shape[1], dtype=torch.float64), 0.0
    with bar(len(reference.tensors), "weights") as shown:
        for name in sorted(reference.tensors):
            one, product = _tensor(reference, candidate, name, seed=seed)
            rows.append(one)
            if one.kind is not None and product is not None and one.reference > 0:
                together += product / one.reference
                energy += one.difference / one.reference
            shown.update()
    energies, directions = _spectrum(together, probes)
    left_out = sum(reference.tensors[n].shape != candidate.tensors[n].shape for n in reference.tensors)
    shares = energies / energy if energy > 0 else energies
    return Differences(tuple(rows), shares, directions[:, :DIRECTIONS], left_out)


def _tensor(
    reference: Checkpoint, candidate: Checkpoint, name: str, *, seed: int
) -> tuple[TensorDifference, Tensor | None]:
    """Returns one tensor's difference, and ΔΔᵀ against the probes of its side where it writes or is a matrix."""
    shape, found = reference.tensors[name].shape, writer(reference, name)
    axis = found[1] if found else _shorter(shape)
    side, is_matrix = shape[axis] if shape else 1, len(shape) >= 2
    probes, moves, sums = _probes(side, seed), _Moves(), torch.zeros(4, dtype=torch.float64)
    product = torch.zeros_like(probes)
    for first, second in stream_first(reference, candidate, name, axis):
        delta = second - first
        pairs = ((delta, delta), (first, first), (second, second), (first, second))
        sums += torch.tensor([_dot(*pair) for pair in pairs], dtype=torch.float64)
        moves.add(delta, first)
        if (is_matrix or found) and moves.largest > 0:
            product += (delta @ (delta.T @ probes.float())).double()
    difference, before, after, both = sums.tolist()
    energies = _spectrum(product, probes)[0] if is_matrix and difference > 0 else None
    rank_one, low = (math.nan, math.nan) if energies is None else _shares(energies, difference, side)
    made = TensorDifference(
        name=name,
        kind=found[0] if found else None,
        difference=difference,
        reference=before,
        candidate=after,
        product=both,
        rank_one=rank_one,
        low=low,
        steps=moves.steps(quantised=is_matrix),
    )
    return made, product if found else None


@dataclass
class _Moves:
    """The largest change of a weight so far, the largest weight, and how far any went beyond a step of bf16."""

    largest: float = 0.0
    weight: float = 0.0
    beyond: float = 0.0

    def add(self, delta: Tensor, before: Tensor) -> None:
        """Takes in a piece."""
        self.largest, self.weight = max(self.largest, _largest(delta)), max(self.weight, _largest(before))
        if self.largest > 0 and not self.broken:  # one that went further is enough
            self.beyond = max(self.beyond, float((delta.abs() - STEP_BF16 * before.abs()).max()))

    @property
    def broken(self) -> bool:
        """True where a weight moved by more than a step of bf16."""
        return self.beyond > ROUNDING * self.weight

    def steps(self, *, quantised: bool) -> float:
        """The largest change in steps: at most 1 where bf16 explains it; of int8 otherwise, which only matrices get."""
        if self.largest == 0:
            return 0.0
        if not self.broken:
            return 1.0
        return self.largest / (STEP_INT8 * self.weight) if quantised and self.weight > 0 else math.inf


def _shorter(shape: tuple[int, ...]) -> int:
    """The shorter of the last two axes."""
    return max(0, len(shape) - (1 if len(shape) >= 2 and shape[-1] < shape[-2] else 2))


def _shares(energies: Tensor, total: float, side: int) -> tuple[float, float]:
    """The shares of the first direction, and of the first eighth of them."""
    first, low = (float(energies[:k].sum()) / max(total, 1e-300) for k in (1, max(1, round(LOW * side))))
    return first, low


def _probes(side: int, seed: int) -> Float[Tensor, "side k"]:
    if side <= EXACT:
        return torch.eye(side, dtype=torch.float64)
    drawn = torch.randn(side, SKETCH, generator=torch_generator(seed, f"probes of {side}"), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def _spectrum(product: Float[Tensor, "d k"], probes: Float[Tensor, "d k"]) -> tuple[Tensor, Tensor]:
    """Returns eigenvalues, descending, and eigenvectors of a positive G from GΩ and Ω: G ≈ GΩ (ΩᵀGΩ)⁺ (GΩ)ᵀ."""
    inner = probes.T @ product
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    kept = values > 1e-12 * values.max().clamp(min=1e-300)
    root = product @ vectors[:, kept] / values[kept].sqrt()
    left, singular, _ = torch.linalg.svd(root, full_matrices=False)
    return singular.square(), left


def _dot(first: Tensor, second: Tensor) -> float:
    return float(first.reshape(-1) @ second.reshape(-1))


def _largest(x: Tensor) -> float:
    low, high = x.aminmax()
    return max(float(high), -float(low))
