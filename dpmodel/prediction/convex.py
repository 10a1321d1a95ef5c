"""A regularised linear classifier, whose answers have a proven sensitivity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dpmodel.data.loader import PrivateLoader
from dpmodel.preflight.own_rows import require_own_rows
from monitors import checks
from monitors.errors import DataError

#: Norm of the gradient, over the norm bound, at which the optimum counts as reached.
_TOLERANCE = 1e-4


class ConvexHead(nn.Module):
    """Multinomial logistic regression with L2 regularisation, at its checked optimum.

    The weights W minimise ``sum_i loss(W x_i, y_i) + regularization / 2 |W|^2`` over the training examples, where each
    feature vector is clipped to an L2 norm of ``norm_bound`` (R) and has a constant feature for the bias.

    The gradient of one loss is ``(p - y) x'``, of Frobenius norm at most ``sqrt(2) R``. The objective is strongly
    convex with parameter ``regularization`` (L), so adding or removing one example moves the minimiser by at most
    ``sqrt(2) R / L`` (Chaudhuri et al. 2011, lemma 7), and the logits of any query by at most R times that. A solution
    is accepted if the norm of its gradient is at most ``1e-4 R``; it then lies within ``1e-4 R / L`` of the minimiser,
    which is added for both data sets.

    Args:
        features: Features per example.
        classes: Number of classes.
        regularization: L, positive.
        norm_bound: R, positive: the norm of the features with the constant one.

    Example:
        >>> x, y = torch.randn(200, 3), torch.randint(0, 2, (200,))
        >>> head = ConvexHead(3, 2, regularization=10.0).fit(x, y)
        >>> round(head.logit_sensitivity, 4)
        0.1414

    References:
        Chaudhuri, Monteleoni and Sarwate 2011, "Differentially Private Empirical Risk Minimization"; Dwork and Feldman
        2018, "Privacy-preserving Prediction".
    """

    weight: Tensor

    def __init__(self, features: int, classes: int, *, regularization: float, norm_bound: float = 1.0) -> None:
        super().__init__()
        checks.positive_int(features=features, classes=classes)
        checks.positive(regularization=regularization, norm_bound=norm_bound)
        self.regularization, self.norm_bound = float(regularization), float(norm_bound)
        self.register_buffer("weight", torch.zeros(classes, features + 1, dtype=torch.float64))
        self.fitted = False

    @property
    def logit_sensitivity(self) -> float:
        """Largest L2 distance between the logits of a query for neighbouring training sets.

        Infinite before ``fit`` and for loaded weights.
        """
        if not self.fitted:
            return math.inf
        return self.norm_bound**2 * (math.sqrt(2.0) + 2.0 * _TOLERANCE) / self.regularization

    def fit(self, x: Tensor, y: Tensor) -> ConvexHead:
        """Find the minimiser by L-BFGS in float64.

        Args:
            x: Features, shape (N, ...), flattened.
            y: Classes, int64 of shape (N,).

        Raises:
            DataError: Shapes or classes do not fit, features are not finite, or rows occur again.
            ArithmeticError: The optimum was not reached.
        """
        from scipy.optimize import minimize

        rows, targets = self._rows(x), np.asarray(y.cpu(), dtype=np.int64)
        classes = len(self.weight)
        if targets.shape != (len(rows),) or len(rows) == 0 or targets.min() < 0 or targets.max() >= classes:
            raise DataError(f"y must hold one class of 0 .. {classes - 1} per example, got shape {targets.shape}")
        require_own_rows(PrivateLoader(TensorDataset(x.detach(), y), 1), released=True)
        shape = classes, self.weight.shape[1]
        found = minimize(
            _objective,
            np.zeros(math.prod(shape)),
            args=(rows, targets, self.regularization, shape),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 5000, "maxfun": 20_000, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
        )
        gradient = _objective(found.x, rows, targets, self.regularization, shape)[1]
        if not np.linalg.norm(gradient) <= _TOLERANCE * self.norm_bound:
            raise ArithmeticError(
                f"the optimum was not reached: the gradient has a norm of {np.linalg.norm(gradient):g}; raise "
                "regularization"
            )
        self.fitted = True
        self.weight.copy_(torch.from_numpy(found.x.reshape(shape)))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), float64."""
        return torch.from_numpy(self._rows(x)).to(self.weight.device) @ self.weight.T

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self.fitted = False  # nothing is known of how loaded weights were found
        super()._load_from_state_dict(*args, **options)

    def _rows(self, x: Tensor) -> NDArray[np.float64]:
        """The features with a constant one, clipped to the norm bound."""
        flat = x.detach().flatten(1).to("cpu", torch.float64).numpy()
        if flat.shape[1] != self.weight.shape[1] - 1:
            raise DataError(f"x must have {self.weight.shape[1] - 1} features per example, got {flat.shape[1]}")
        if not np.isfinite(flat).all():
            raise DataError("the features hold NaN or infinite values")
        rows = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        clipped: NDArray[np.float64] = rows * np.minimum(1.0, self.norm_bound * (1 - 1e-12) / norms)
        return clipped


def _objective(
    flat: NDArray[np.float64], rows: NDArray[Any], targets: NDArray[Any], regularization: float, shape: tuple[int, int]
) -> tuple[float, NDArray[np.float64]]:
    weight = flat.reshape(shape)
    scores = rows @ weight.T
    scores -= scores.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(scores).sum(axis=1))
    at = np.arange(len(rows))
    value = float((log_total - scores[at, targets]).sum() + 0.5 * regularization * (flat @ flat))
    residual = np.exp(scores - log_total[:, None])
    residual[at, targets] -= 1.0
    return value, (residual.T @ rows + regularization * weight).ravel()
