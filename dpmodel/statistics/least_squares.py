"""A linear model in closed form: ridge regression on one noisy release of second moments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dpmodel.claims.weights import record_statistics
from dpmodel.data.contents import require_dense_tensors
from dpmodel.data.loader import PrivateLoader
from dpmodel.preflight.own_rows import require_own_rows
from mechanisms.answers import require_ledger
from mechanisms.gaussian_query import GaussianMechanism
from mechanisms.sums.product_sum import ClippedProductSum
from monitors import checks
from monitors.errors import DataError
from monitors.ledger import Ledger

#: Examples that are read at once.
_EXAMPLES = 4096


@dataclass(frozen=True, eq=False)
class PrivateLinear:
    """A linear model that was released privately. It may be published like trained weights.

    Args:
        weight: Shape (K, D), float64.
        bias: Shape (K,), float64.
        ridge: The penalty that was used.
        moment_noise: Standard deviation of the noise in an entry of the second moments off the diagonal.
        num_examples: Number of examples.
        ledger: The ledger on which the release was recorded.
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    moment_noise: float
    num_examples: int
    ledger: Ledger = field(repr=False)

    def layer(self) -> nn.Linear:
        """A linear layer with these weights. A ``DPModel`` whose network holds it continues the ledger."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)
        record_statistics(layer, self.ledger)
        return layer


def private_least_squares(
    x: Any,
    y: Tensor | None = None,
    *,
    noise_multiplier: float,
    norm_bound: float,
    ledger: Ledger,
    num_classes: int | None = None,
    target_bound: float | None = None,
    ridge: float | None = None,
    seed: int | None = 0,
) -> PrivateLinear:
    """Fit a linear model to features in closed form, from one Gaussian release on ``ledger``.

    The features of each example are clipped to ``norm_bound``, and a constant of ``norm_bound / sqrt(D)`` is appended
    for the bias. The second moments ``X'X`` and ``X'Y`` over all examples are released once, together, as one
    ``GaussianEvent(noise_multiplier)``. The rest is post-processing: negative eigenvalues of the noisy ``X'X`` are set
    to zero, and ``(X'X + ridge I) W = X'Y`` is solved.

    The sensitivity holds exactly, for adding or removing one example: ``mechanisms.ClippedProductSum`` proves it. An
    example with a NaN or infinite value contributes exactly zero.

    Args:
        x: Features (N, ...), floats, which are flattened; or a map-style data set of pairs (features, target).
        y: Targets: classes (N,) with ``num_classes``, or floats (N,) or (N, K) with ``target_bound``. None if ``x`` is
            a data set.
        noise_multiplier: Standard deviation of the noise over the sensitivity, positive.
        norm_bound: Largest L2 norm of an example's features. It must not depend on the data.
        ledger: Where the release is recorded. Pass it to ``DPModel(ledger=...)`` too if a model is trained on the data.
        num_classes: Number of classes K, at least 2; targets become vectors of 1 - 1/K for the class and -1/K for the
            others, whose norm is below one.
        target_bound: Largest L2 norm of an example's target, for regression. It must not depend on the data.
        ridge: Penalty on the squared weights, in the units of ``X'X``, positive; it must not depend on the data.
            Default: the typical spectral norm of the noise in ``X'X``, which depends on sizes and bounds alone.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Raises:
        ValueError, DataError: An argument is wrong, or the data do not have the stated form. Nothing was recorded.

    References:
        Sheffet 2017, "Differentially Private Ordinary Least Squares"; Wang 2018, "Revisiting Differentially Private
        Linear Regression" (sufficient statistics with noise).

    Example:
        >>> ledger, features = Ledger(), torch.randn(20_000, 3)
        >>> classes = (features[:, 0] > 0).long()
        >>> found = private_least_squares(
        ...     features, classes, num_classes=2, noise_multiplier=4.0, norm_bound=3.0, ledger=ledger)
        >>> accuracy = (found.layer()(features).argmax(1) == classes).float().mean()
        >>> bool(accuracy > 0.9), ledger
        (True, Ledger(1 releases in 1 rows))
    """
    require_ledger(ledger)
    mechanism = GaussianMechanism(noise_multiplier, seed)
    if (num_classes is None) == (target_bound is None):
        raise ValueError(
            f"give num_classes for classes, or target_bound for numbers, got num_classes={num_classes!r} and "
            f"target_bound={target_bound!r}"
        )
    checks.positive(norm_bound=norm_bound)
    if ridge is not None:
        checks.positive(ridge=ridge)
    if target_bound is None:
        checks.positive_int(num_classes=num_classes)
        if num_classes == 1:
            raise ValueError("num_classes must be at least 2, got 1")
    else:
        checks.positive(target_bound=target_bound)
    num_examples, chunks = _read(x, y)
    products: ClippedProductSum | None = None
    for features, targets in chunks:
        rows = _rows_of(features)
        bias = norm_bound / math.sqrt(rows.shape[1])
        if products is None:
            products = ClippedProductSum(math.hypot(norm_bound, bias), target_bound or 1.0, num_examples)
        inputs = torch.cat((_clipped(rows, norm_bound), torch.full((len(rows), 1), bias, dtype=torch.float64)), dim=1)
        products.add(inputs.numpy(), _targets_of(targets, num_classes).numpy())
    assert products is not None
    second, cross = map(torch.from_numpy, products.unpacked(mechanism.release(products, ledger)))
    noise = mechanism.noise_multiplier * products.pair_noise
    penalty = 2.0 * noise * math.sqrt(len(second)) if ridge is None else float(ridge)
    solved = _solve(second, cross, penalty)
    return PrivateLinear(
        weight=solved[:-1].T.contiguous(),
        bias=solved[-1] * bias,
        ridge=penalty,
        moment_noise=noise,
        num_examples=num_examples,
        ledger=ledger,
    )


def _solve(second: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """``(S + ridge I)^-1 C`` for the positive part ``S`` of ``second``."""
    values, vectors = torch.linalg.eigh(second)
    solved: Tensor = (vectors / (values.clamp(min=0.0) + ridge)) @ (vectors.T @ cross)
    return solved


def _read(x: Any, y: Tensor | None) -> tuple[int, Iterator[tuple[Any, Any]]]:
    """The number of examples, and pairs of features and targets in chunks."""
    if isinstance(x, Tensor):
        if not isinstance(y, Tensor) or x.dim() < 2 or not x.numel() or y.shape[:1] != x.shape[:1]:
            shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise DataError(f"x and y must be tensors (N, ...) with one row per example, got {tuple(x.shape)}, {shape}")
        require_dense_tensors((x, y), "(x, y)")
        require_own_rows(PrivateLoader(TensorDataset(x, y), 1), released=True)
        return len(x), zip(x.split(_EXAMPLES), y.split(_EXAMPLES), strict=True)
    wrong = not hasattr(x, "__getitem__") or not hasattr(x, "__len__") or isinstance(x, (list, tuple, np.ndarray))
    if y is not None or wrong:
        remedy = "; convert arrays with torch.from_numpy" if isinstance(x, np.ndarray) else ""
        raise DataError(
            f"x must be a tensor, or a map-style data set of pairs without y, got {type(x).__name__}{remedy}"
        )
    if not len(x):
        raise DataError("x has no examples")
    loader = PrivateLoader(x, 1)
    require_own_rows(loader, released=True)
    return loader.num_examples, iter(loader.in_order(_EXAMPLES))


def _rows_of(features: Any) -> Tensor:
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.dim() < 2:
        kind = f"{features.dtype}" if isinstance(features, Tensor) else type(features).__name__
        raise DataError(f"the features must be floats of shape (N, ...), got {kind}; convert the data first")
    return features.detach().double().cpu().flatten(1)


def _clipped(rows: Tensor, bound: float) -> Tensor:
    """Rows of norm ``bound`` at most. The exact bound is that of ``ClippedProductSum``; this spares the constant."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * (bound / norms.clamp(min=bound))


def _targets_of(targets: Any, num_classes: int | None) -> Tensor:
    """Targets (n, K) in float64."""
    if not isinstance(targets, Tensor) or (num_classes is None) != targets.is_floating_point():
        kind = f"{targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise DataError(f"the targets must be integers with num_classes, or floats with target_bound, got {kind}")
    if num_classes is None:
        return targets.detach().double().cpu().reshape(len(targets), -1)
    if targets.dim() != 1 or bool(((targets < 0) | (targets >= num_classes)).any()):
        raise DataError(f"the classes must be numbers from 0 to {num_classes - 1}, one per example")
    return torch.nn.functional.one_hot(targets.long().cpu(), num_classes).double() - 1.0 / num_classes
