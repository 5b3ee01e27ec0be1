"""LEACE (Belrose et al. 2023, arXiv 2306.03819): the subspace along which the least-squares concept eraser moves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from refusalscope.activations import Activations
from refusalscope.locators.samples import check_groups, located
from refusalscope.subspace import Candidates

with warnings.catch_warnings():  # concept-erasure 0.2.4 scripts one function at import, which current torch deprecates
    warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
    from concept_erasure import LeaceFitter

SMALLEST = 1e-9


def leace(
    restricted: Activations, harmless: Activations, *, rank: int = 1, groups: Sequence[str] | None = None
) -> Candidates:
    """Returns the range of LEACE's eraser x ← x − A B (x − μ): the span of A, strongest direction first.

    For two classes that range is the difference in means, whatever the covariance: A ∝ Σ_xz = const · (μ₁ − μ₀). So
    this locator and ``mean_difference`` name one direction. Ablating it, as ``ablate`` does, shares with LEACE that
    afterwards the class means are equal at the located cell, so that no linear probe there beats a constant. It does
    not share the rest: LEACE measures how far to move along that direction with Σ⁻¹ (an oblique projection, the
    smallest edit that does it), about the mean and in one place; ablation measures it along the direction itself (an
    orthogonal one, a larger edit), about zero unless a reference is given, and at every write to the residual stream.

    Args:
        rank: k > 1 needs ``groups``: the concept is then which group a restricted prompt is of, or none (harmless).
        groups: one name per restricted prompt, in the order of capture. What is erased is then the group as well as the
            label: groups that differ for another reason (dialects) put that reason first.

    Every vector has the norm of the difference in means. Costs d³ per cell. Raises MeasurementError as every locator of
    single activations does.
    """
    check_groups(restricted, harmless, groups, locator="leace", rank=rank)

    def of_cell(x1: Tensor, x0: Tensor) -> Float[Tensor, "found d"]:
        eraser = fitted(x1, x0, groups).eraser
        strengths = torch.linalg.vector_norm(eraser.proj_right, dim=1)  # zero where the eraser left a direction out
        return eraser.proj_left.T[strengths > 0][:rank]

    return located(restricted, harmless, of_cell, locator="leace", rank=rank)


def fitted(
    x1: Float[Tensor, "restricted d"], x0: Float[Tensor, "harmless d"], groups: Sequence[str] | None
) -> LeaceFitter:
    """Returns concept-erasure's fit. The bound on the trace is off: where it acts, it adds directions to the range."""
    names = ["restricted"] * len(x1) if groups is None else list(groups)
    column = {name: index for index, name in enumerate(sorted(set(names)))}
    concept = one_hot(torch.tensor([column[name] for name in names]), len(column)).double()
    labels = torch.cat([concept, torch.zeros(len(x0), concept.shape[1], dtype=torch.float64)])
    return LeaceFitter.fit(torch.cat([x1, x0]), labels, constrain_cov_trace=False, svd_tol=SMALLEST)
