"""Logistic probe: the direction by which a linear classifier tells the two classes apart, and the next ones."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from refusalscope.activations import Activations
from refusalscope.errors import MeasurementError
from refusalscope.linalg import orthonormal, project
from refusalscope.locators.samples import NOTHING, located
from refusalscope.subspace import Candidates

MOST_STEPS = 5000


def logistic(restricted: Activations, harmless: Activations, *, rank: int = 1, strength: float = 1.0) -> Candidates:
    """Returns the weights of an L2-penalised logistic regression of the label, as a direction in activation space.

    Features are standardised (centred, unit variance over both classes); weights w of standardised features are w / σ
    in activation space. The direction is rescaled to the norm of the difference in means, so that doses of addition
    compare; it points to restricted. It finds what separates best, which need not be what the model reads: separable
    classes are told apart by many directions, and the penalty picks among them.

    Args:
        rank: k probes in turn, each on what is left after projecting out those before (INLP, Ravfogel et al. 2020).
        strength: scikit-learn's C, the inverse of the penalty; as it goes to 0 the direction becomes that of the
            difference in means of standardised features, divided by σ.

    Deterministic: lbfgs from zero. Raises MeasurementError where the fit does not converge, and as every locator of
    single activations does.
    """
    if not strength > 0:
        raise MeasurementError(f"logistic: the inverse penalty must be above zero; got {strength}.")

    def of_cell(x1: Tensor, x0: Tensor) -> Float[Tensor, "found d"]:
        x, labels = torch.cat([x1, x0]), np.repeat([1, 0], [len(x1), len(x0)])
        found: list[Tensor] = []
        for _ in range(rank):
            left = x - project(x, orthonormal(torch.stack(found))) if found else x
            weights = _weights(left, labels, strength)
            if found:
                weights = weights - project(weights, orthonormal(torch.stack(found)))
            if not float(torch.linalg.vector_norm(weights)) > 0:
                break
            found.append(weights / torch.linalg.vector_norm(weights))
        return torch.stack(found) if found else x[:0]

    return located(restricted, harmless, of_cell, locator="logistic", rank=rank)


def _weights(x: Float[Tensor, "n d"], labels: np.ndarray, strength: float) -> Float[Tensor, " d"]:
    spread = x.std(0, correction=0)
    varies = spread > NOTHING * spread.max()  # a constant coordinate carries no class
    features = (x - x.mean(0))[:, varies] / spread[varies]
    fit = LogisticRegression(C=strength, max_iter=MOST_STEPS, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            fit.fit(features.numpy(), labels)
        except ConvergenceWarning as slow:
            raise MeasurementError(
                f"logistic: no convergence in {MOST_STEPS} steps at strength {strength:g}. Lower the strength."
            ) from slow
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    weights[varies] = torch.from_numpy(fit.coef_[0]).double() / spread[varies]
    return weights
