"""Mean, variance and correlation of a data set, from noisy sums over all examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from dpmodel.data.contents import require_dense_tensors
from dpmodel.data.loader import PrivateLoader
from dpmodel.preflight.own_rows import require_own_rows
from dpmodel.statistics.private_statistics import PrivateStatistics, correlation_bound, require_channels
from mechanisms.answers import require_ledger
from mechanisms.gaussian_query import GaussianMechanism
from mechanisms.sums.gram_sum import ClippedGramSum
from mechanisms.sums.vector_sum import ClippedVectorSum, require_bound
from monitors import checks
from monitors.errors import DataError
from monitors.ledger import Ledger
from monitors.origins import Origins

#: Smallest variance whose inverse root float32 holds, with which the layer multiplies; rounded up.
_LEAST_VARIANCE = 1e-70
#: Numbers of the data that are read at once, and most examples.
_NUMBERS, _EXAMPLES = 1 << 22, 4096


def private_mean_and_variance(
    x: Any,
    *,
    noise_multiplier: float,
    norm_bound: float,
    square_bound: float,
    ledger: Ledger,
    dims: Sequence[int] | None = None,
    min_variance: float | None = None,
    correlation: bool = False,
    seed: int | None = 0,
) -> PrivateStatistics:
    """Mean and variance of each channel or feature of ``x``, from two Gaussian releases on ``ledger``.

    For each example, its values and their squares are averaged over ``dims``. The two vectors are clipped to
    ``norm_bound`` and ``square_bound``, added up over all examples, noised, and divided by the number of examples. Both
    releases are recorded before their noise is drawn. The variance is the second moment minus the squared mean.

    With ``correlation``, a third release follows: the products ``z z'`` of the standardised values, averaged over
    ``dims`` for each example, clipped by their Frobenius norm to half the number of channels, and averaged over all
    examples. Standardised values have a mean square of one, so this bound needs no knowledge of the data.

    An example with a NaN or infinite value contributes exactly zero, and counts in the number of examples.

    Args:
        x: Tensor (N, ...) of floats, or a map-style data set of pairs (input, target), which is read in chunks.
        noise_multiplier: Standard deviation of the noise over the bound, positive, of each release.
        norm_bound: Largest L2 norm of an example's vector of means. It must not depend on the data.
        square_bound: Largest L2 norm of an example's vector of second moments. It must not depend on the data.
        ledger: Where the releases are recorded. Pass it to ``DPModel(ledger=...)``, and to ``noise_for_epsilon`` as
            ``spent``.
        dims: Axes of ``x`` that are averaged within an example, counted as in ``x``. Default: all but examples (axis 0)
            and channels (axis 1), so ``(2, 3)`` for images (N, C, H, W), and none for features (N, F).
        min_variance: Smallest variance that is stated, at least 1e-70. Default: the standard deviation of the noise in
            a second moment, ``noise_multiplier * square_bound / N``; a smaller variance could not be told from noise.
        correlation: Whether to release the correlation of the channels too, which ``normalise(whitening=...)`` needs.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Raises:
        ValueError, DataError: An argument is wrong, or the data are not floats of one shape, or mix or repeat their
            rows. Nothing was recorded.

    Example:
        >>> ledger = Ledger()
        >>> images = torch.rand(1000, 3, 8, 8)
        >>> statistics = private_mean_and_variance(
        ...     images, noise_multiplier=8.0, norm_bound=1.0, square_bound=0.7, ledger=ledger)
        >>> statistics.normalise(), ledger
        (Standardise((3, 1, 1)), Ledger(2 releases in 1 rows))
    """
    require_ledger(ledger)
    mechanism = GaussianMechanism(noise_multiplier, seed)
    require_bound(norm_bound=norm_bound, square_bound=square_bound)
    shape, chunks = _read(x)
    num_examples, axes = shape[0], _axes(dims, shape)
    floor = variance_floor(noise_multiplier * square_bound / num_examples, min_variance)
    if correlation:
        require_channels(math.prod(size for axis, size in enumerate(shape) if axis not in (0, *axes)))
    sums = [ClippedVectorSum(bound, num_examples) for bound in (norm_bound, square_bound)]
    for chunk in chunks():
        _require_floats(chunk, shape)
        values = chunk.detach().double()
        for total, powers in zip(sums, (values, values.square()), strict=True):
            total.add(_averaged(powers, axes))
    before = ledger.total
    mean, square = (torch.from_numpy(mechanism.release(total, ledger)) / num_examples for total in sums)
    kept = [size for axis, size in enumerate(shape) if axis not in (0, *axes)]
    statistics = PrivateStatistics(
        mean=mean.reshape(kept),
        variance=(square - mean.square()).clamp(min=floor).reshape(kept),
        shape=tuple(1 if axis in axes else size for axis, size in enumerate(shape) if axis),
        num_examples=num_examples,
        noise_multiplier=float(noise_multiplier),
        norm_bound=float(norm_bound),
        square_bound=float(square_bound),
        min_variance=float(floor),
        ledger=ledger,
    )
    if correlation:
        statistics = _with_correlation(statistics, chunks(), axes, mechanism)
    return replace(statistics, origins=Origins(ledger.origins).stretch(before, statistics.releases))


def variance_floor(square_noise: float, min_variance: float | None) -> float:
    """``min_variance``, or the standard deviation of the noise in a second moment in its place.

    Raises:
        ValueError: It is not positive, or so small that float32 does not hold its inverse root.
    """
    floor = square_noise if min_variance is None else min_variance
    checks.positive(min_variance=floor)
    if floor < _LEAST_VARIANCE:
        raise ValueError(f"min_variance must be at least {_LEAST_VARIANCE:g}, got {floor:g}; state a larger one")
    return floor


def _with_correlation(
    found: PrivateStatistics, chunks: Iterable[Tensor], axes: tuple[int, ...], mechanism: GaussianMechanism
) -> PrivateStatistics:
    grams = ClippedGramSum(correlation_bound(found.mean.numel()), found.num_examples)
    mean, scale = found.mean.reshape(found.shape), found.variance.rsqrt().reshape(found.shape)
    for chunk in chunks:
        rows = _by_position((chunk.detach().double().cpu() - mean) * scale, axes)
        grams.add(rows.transpose(0, 2, 1) / math.sqrt(rows.shape[2]))
    noisy = grams.unpacked(mechanism.release(grams, found.ledger)) / found.num_examples
    return replace(found, correlation=torch.from_numpy(noisy))


def _read(x: Any) -> tuple[tuple[int, ...], Callable[[], Iterable[Any]]]:
    """The shape of all examples, and what reads them in chunks."""
    if isinstance(x, Tensor):
        if x.dim() < 2 or not x.numel():
            raise DataError(f"x must hold one row of numbers per example, shape (N, ...), got {tuple(x.shape)}")
        require_dense_tensors(x, "x")
        require_own_rows(PrivateLoader(TensorDataset(x), 1), released=True)
        return tuple(x.shape), partial(x.split, _rows_at_once(x.shape[1:]))
    if not hasattr(x, "__getitem__") or not hasattr(x, "__len__") or isinstance(x, (list, tuple, np.ndarray)):
        remedy = "; convert an array with torch.from_numpy" if isinstance(x, np.ndarray) else ""
        raise DataError(f"x must be a tensor or a map-style data set of pairs, got {type(x).__name__}{remedy}")
    if not len(x):
        raise DataError("x has no examples")
    loader = PrivateLoader(x, 1)
    require_own_rows(loader, released=True)
    first = loader.example(1)[0]
    if not isinstance(first, Tensor) or first.dim() < 2 or not first.numel():
        found = f"shape {tuple(first.shape[1:])}" if isinstance(first, Tensor) else type(first).__name__
        raise DataError(f"the inputs must be one tensor per example, with one axis or more and not empty, got {found}")
    shape = (loader.num_examples, *first.shape[1:])
    return shape, partial(_inputs, loader, _rows_at_once(first.shape[1:]))


def _inputs(loader: PrivateLoader, rows: int) -> Iterator[Any]:
    return (inputs for inputs, _ in loader.in_order(rows))


def _averaged(values: Tensor, axes: tuple[int, ...]) -> NDArray[np.float64]:
    """The vector of each example, (n, D): its values averaged over ``axes``.

    The last bit of a vector must not depend on the other examples. That of torch's mean does, for some layouts: its
    kernels add up several examples at once. NumPy adds up each row of contiguous numbers by itself.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found: NDArray[np.float64] = _by_position(values, axes).mean(axis=-1)
    return found


def _by_position(values: Tensor, axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Shape (n, D, S): the values of each channel at all positions, which ``axes`` count; contiguous."""
    kept = [axis for axis in range(1, values.dim()) if axis not in axes]
    length = math.prod(values.shape[axis] for axis in axes)
    return np.ascontiguousarray(values.permute(0, *kept, *axes).reshape(len(values), -1, length).cpu().numpy())


def _rows_at_once(shape: Sequence[int]) -> int:
    return min(_EXAMPLES, max(1, _NUMBERS // max(1, math.prod(shape))))


def _axes(dims: Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if dims is None:
        return tuple(range(2, len(shape)))
    given = [dims] if isinstance(dims, int) else list(dims)
    axes = [axis + len(shape) if isinstance(axis, int) and axis < 0 else axis for axis in given]
    allowed = range(1, len(shape))
    wrong = [axis for axis in axes if isinstance(axis, bool) or not isinstance(axis, int) or axis not in allowed]
    if wrong or len(set(axes)) != len(axes):
        raise ValueError(
            f"dims must be different axes from 1 to {len(shape) - 1} of data of shape (N, "
            f"{', '.join(map(str, shape[1:]))}), got {dims!r}; axis 0 counts the examples"
        )
    return tuple(axes)


def _require_floats(chunk: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(chunk, Tensor) or not chunk.is_floating_point():
        kind = chunk.dtype if isinstance(chunk, Tensor) else type(chunk).__name__
        raise DataError(f"x must hold floats, got {kind}; convert the data first, as the network will see them")
    if tuple(chunk.shape[1:]) != shape[1:]:
        raise DataError(f"all examples must have the shape {shape[1:]}, got one of {tuple(chunk.shape[1:])}")
