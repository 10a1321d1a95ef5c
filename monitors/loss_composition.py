"""Composition of rounded privacy losses by one Fourier transform, tilted towards the losses that matter.

The masses are multiplied by ``exp(theta * loss)`` before the transform and divided by it afterwards. This centres the
composed distribution where delta is decided, so that rounding errors are relative to delta and not to 1. Losses that
leave the window wrap around to its other end: those from above are bounded by Chernoff's inequality and added to delta;
those from below only make delta larger. Frequencies of provably negligible amplitude are dropped, and charged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitors.loss_nodes import LossNodes
from monitors.privacy_loss import LossMasses

Floats = NDArray[np.floating]
Complexes = NDArray[np.complex128]

_MACHINE = 2.3e-16
_ROUNDING = 1e-13  # of the masses themselves, relative, of each release
_NEGLIGIBLE_AMPLITUDE = 1e-22
_UNDERFLOW = float(np.finfo(np.float64).tiny)
MOST_POINTS = 1 << 20  # most grid points of the window
_BLOCK = 1 << 18  # complex numbers multiplied at once
_MOST_PHASES = 1 << 20  # factors of the lowest frequencies that are kept
_CHERNOFF_FACTORS = (1.0, 1.6, 2.6, 6.0)  # of the tilt


@dataclass(frozen=True)
class ComposedLoss:
    """An upper bound on the privacy curve of a composition, in units of ``exp(log_scale)``.

    Args:
        losses: Grid points, ascending, shape (points,).
        masses: Probabilities of the grid points over ``exp(log_scale)``, shape (points,).
        extra: Probability of infinite losses and of losses above the window, over ``exp(log_scale)``; added to every
            delta.
        log_scale: Log of the unit.
    """

    losses: Floats
    masses: Floats
    extra: float
    log_scale: float

    def log_delta(self, epsilon: float) -> float:
        """Log of an upper bound on delta at ``epsilon``, which must not lie below the window."""
        above = self.losses > epsilon
        total = float(self.masses[above] @ -np.expm1(epsilon - self.losses[above])) + self.extra
        return math.log(total) + self.log_scale if total > 0 else -math.inf

    def epsilon(self, delta: float) -> float:
        """An upper bound on epsilon at ``delta``, at least the window's lowest loss; infinite if none is found."""
        target = math.exp(min(math.log(delta) - self.log_scale, 700.0)) - self.extra
        if target <= 0:
            return math.inf
        low, high = -1, self.losses.size - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._delta_at(middle) <= target else (middle, high)
        if high == 0:
            return float(self.losses[0])
        # between two points delta is mass - discount * exp(epsilon - upper)
        lower, upper = float(self.losses[high - 1]), float(self.losses[high])
        discount = float(self.masses[high:] @ np.exp(upper - self.losses[high:]))
        share = (float(self.masses[high:].sum()) - target) / discount if discount > 0 else 0.0
        return min(max(upper + math.log(share), lower), upper) if share > 0 else upper

    def _delta_at(self, index: int) -> float:
        return float(self.masses[index:] @ -np.expm1(self.losses[index] - self.losses[index:]))


def compose_losses(
    nodes: LossNodes, losses: list[LossMasses], step: float, tilt: float, tail: float, lowest: float
) -> ComposedLoss:
    """Compose all releases of ``nodes``, given the rounded loss of each node.

    Args:
        nodes: The releases, as lotteries over the nodes.
        losses: One distribution per node, all on the grid of ``step``.
        step: Spacing of the grid.
        tilt: Exponent of the tilting, positive; the best Renyi order minus one is a good choice.
        tail: Probability that may be lost above the window; it is charged.
        lowest: Smallest epsilon that will be evaluated, at least 0.
    """
    tilt = max(tilt, -math.log(tail) / (0.5 * MOST_POINTS * step))
    moments, shares = _mixed_moments(nodes, losses, step, tilt)
    exponents = [factor * tilt for factor in _CHERNOFF_FACTORS]
    bounds = [(_mixed_moments(nodes, losses, step, exponent)[0], exponent) for exponent in exponents]
    top = min((moment - math.log(tail)) / exponent for moment, exponent in bounds)
    top = min(max(top, lowest), lowest + MOST_POINTS * step)
    lost = math.exp(min(0.0, *(moment - exponent * top for moment, exponent in bounds)))
    # mass that wraps around, from below or from above, only increases delta; the width keeps it far below delta
    from_above = min(
        (moment - exponent * lowest - math.log(tail)) / (exponent - tilt) for moment, exponent in bounds[1:]
    )
    width = max(top - lowest, -math.log(tail) / tilt, from_above) + 4 * step
    size = _even_length(min(math.ceil(width / step), 2 * MOST_POINTS))
    last = math.ceil(top / step) + 1
    spectrum, dropped = _spectrum(nodes, losses, shares, step, tilt, size)
    indices = np.arange(max(last - size + 1, math.floor(lowest / step)), last + 1)
    # rounding error of a product of n factors, each exact to a few ulps of a transform of this size
    error = dropped + _MACHINE * (math.log2(size) + 8) * (nodes.counts.sum() + 1) * np.abs(spectrum).mean()
    tilted = np.maximum(np.fft.irfft(spectrum, size)[indices % size], 0.0) + error
    points = indices * step
    log_scale = moments - tilt * float(points[0])
    widening = math.exp(1e-9 + _ROUNDING * float(nodes.counts.sum()))
    masses = tilted * np.exp(tilt * (points[0] - points)) * widening
    infinite = float(
        nodes.counts @ (nodes.odds * np.array([loss.infinite for loss in losses])[nodes.corners]).sum(axis=1)
    )
    # The smallest normal number exceeds by far the total loss of the masses that underflow.
    extra = _in_units(min(1.0, infinite + lost), log_scale) + _UNDERFLOW
    return ComposedLoss(points, masses, extra, log_scale)


def _in_units(probability: float, log_scale: float) -> float:
    """``probability / exp(log_scale)``; infinite, which is pessimistic, if that overflows."""
    if probability == 0:
        return 0.0
    exponent = math.log(probability) - log_scale
    return math.exp(exponent) if exponent < 700.0 else math.inf


def _mixed_moments(nodes: LossNodes, losses: list[LossMasses], step: float, exponent: float) -> tuple[float, Floats]:
    """Log of the composition's ``E[exp(exponent * loss)]``, and each corner's share in its release's moment."""
    heights = np.array([loss.log_moment(exponent, step) for loss in losses])[nodes.corners]
    top = heights.max(axis=1, keepdims=True)
    parts = nodes.odds * np.exp(heights - top)
    total = parts.sum(axis=1, keepdims=True)
    return float(nodes.counts @ (np.log(total) + top)[:, 0]), parts / total


def _even_length(points: int) -> int:
    """The next even length with a fast transform."""
    length = 1 << max(4, (points - 1).bit_length())
    for odd in (9, 15, 5, 3):
        shorter = odd << max(1, math.ceil(math.log2(max(points / odd, 2))))
        length = shorter if points <= shorter < length else length
    return length


def _spectrum(
    nodes: LossNodes, losses: list[LossMasses], shares: Floats, step: float, tilt: float, size: int
) -> tuple[Complexes, float]:
    """Transform of the tilted composition, and a bound on the error of each value due to the dropped frequencies."""
    cells, member = np.unique(nodes.corners, axis=0, return_inverse=True)
    member = member.ravel()
    rows_of = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    totals = [nodes.counts[rows].sum() for rows in rows_of]
    bound, dropped = np.zeros(size // 2 + 1), 0.0
    transforms: dict[int, Complexes] = {}
    transform = _Transform(tilt, step, size)
    # The cells of most releases come first: they show which frequencies need not be kept for the others.
    for number in np.argsort(totals, kind="stable")[::-1]:
        corners, rows, total = cells[number], rows_of[number], totals[number]
        for corner in corners[[corner not in transforms for corner in corners]]:
            transforms[corner] = transform(losses[corner], bound.size)
        # the logarithm is concave, so the average lottery bounds the product over all lotteries
        mean = nodes.counts[rows] @ shares[rows] / total
        amplitudes = sum(share * np.abs(transforms[c]) for share, c in zip(mean, corners, strict=True))
        with np.errstate(divide="ignore"):
            bound += total * np.log(amplitudes)
        kept = int(np.flatnonzero(bound > math.log(_NEGLIGIBLE_AMPLITUDE))[-1]) + 1
        if kept < 0.8 * bound.size:
            dropped += float(np.exp(bound[kept:]).sum())
            bound = bound[:kept].copy()
            transforms = {corner: values[:kept].copy() for corner, values in transforms.items()}
    active = bound > math.log(_NEGLIGIBLE_AMPLITUDE)
    dropped = 2 * (dropped + float(np.exp(bound[~active]).sum())) / size
    product = np.ones(int(active.sum()), dtype=np.complex128)
    for corners, rows in zip(cells, rows_of, strict=True):
        mixed = np.array([transforms[corner][active] for corner in corners])
        product *= _cell_product(mixed, shares[rows], nodes.counts[rows].astype(np.int64))
    spectrum = np.zeros(size // 2 + 1, dtype=np.complex128)
    spectrum[np.flatnonzero(active)] = product
    return spectrum, dropped


class _Transform:
    """Transforms of tilted masses: all frequencies by a fast transform, or by their definition if that is less work."""

    def __init__(self, tilt: float, step: float, size: int) -> None:
        self._tilt, self._step, self._size = tilt, step, size
        self._phases: Floats = np.zeros((0, 0))  # a real and an imaginary column for each frequency

    def __call__(self, loss: LossMasses, kept: int) -> Complexes:
        """The ``kept`` lowest frequencies of ``loss``, shape (kept,)."""
        points = loss.masses.size
        if points * kept > min(_MOST_PHASES, self._size * math.log2(self._size)):
            return np.fft.rfft(loss.folded(self._tilt, self._step, self._size))[:kept]
        if points > self._phases.shape[0]:
            self._phases = self._powers(np.arange(min(2 * points, _MOST_PHASES // kept)), kept).view(np.float64)
        shift = self._powers(np.array([loss.first % self._size]), kept)[0]
        parts = loss.tilted(self._tilt, self._step) @ self._phases[:points, : 2 * kept]
        found: Complexes = shift * parts.view(np.complex128)
        return found

    def _powers(self, indices: NDArray[np.int64], kept: int) -> Complexes:
        # the product is reduced as an integer, so that every angle is exact
        angles = np.outer(indices, np.arange(kept)) % self._size * (-2 * math.pi / self._size)
        powers: Complexes = np.empty(angles.shape, dtype=np.complex128)
        np.cos(angles, out=powers.real)  # much faster than the exponential of a complex number
        np.sin(angles, out=powers.imag)
        return powers


def _cell_product(transforms: Complexes, shares: Floats, counts: NDArray[np.int64]) -> Complexes:
    """Product over the releases of each lottery's transform to the power of its count; shape (frequencies,).

    The powers share their squarings: for each binary digit of the counts, the transforms of the counts that have it are
    multiplied once. The relative error is bounded by three ulps for each release.
    """
    digits = np.ones((int(counts.max()).bit_length(), transforms.shape[1]), dtype=np.complex128)
    rows = max(1, _BLOCK // max(1, transforms.shape[1]))
    for start in range(0, counts.size, rows):
        part = slice(start, start + rows)
        mixed = shares[part] @ transforms
        for place in range(digits.shape[0]):
            having = (counts[part] >> place) & 1 == 1
            if having.any():
                digits[place] *= np.multiply.reduce(mixed[having], axis=0)
    product: Complexes = digits[-1]
    for digit in digits[-2::-1]:
        product = product * product * digit
    return product
