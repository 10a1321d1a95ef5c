"""Mean, variance and correlation that were released privately, with what their release cost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from dpmodel.statistics.standardise import Standardise
from mechanisms.answers import REPRODUCIBLE, TRUE_SIZE, remember_answers
from mechanisms.sums.gram_sum import ClippedGramSum
from monitors import checks
from monitors.errors import CheckpointError, DataError
from monitors.events import GaussianEvent
from monitors.ledger import Ledger
from monitors.origins import Run

_KIND = "private mean and variance"
#: Most channels or features whose correlation is released: its products take D^2 numbers, its roots D^3 operations.
MOST_CHANNELS = 4096


def correlation_bound(channels: int) -> float:
    """Largest Frobenius norm of the products of an example's standardised values.

    The products have a trace of ``channels`` on average. Averaged over many positions, they have a smaller norm, and
    half of the trace clips few examples. With one position, the norm equals the trace, so most examples are clipped:
    this shrinks the correlation as a whole, and whitening depends on its scale only through the noise.
    """
    return channels / 2


def require_channels(channels: int) -> None:
    """Raise a DataError if there are too few or too many channels for a correlation."""
    if channels < 2:
        raise DataError("one channel has no correlation with others; use no whitening")
    if channels > MOST_CHANNELS:
        raise DataError(
            f"the correlation of {channels:,} features has {channels**2:,} numbers; at most {MOST_CHANNELS:,} features "
            "are supported. Average over positions with dims, or use no whitening"
        )


@dataclass(frozen=True, eq=False)
class PrivateStatistics:
    """Private mean and variance of each channel or feature. They may be published like trained weights.

    Args:
        mean: The noisy mean, float64.
        variance: Second moment minus squared mean, at least ``min_variance``, float64; shape of ``mean``.
        shape: The shape of ``mean`` beside an example, with 1 for each axis that was averaged.
        num_examples: Number of examples.
        noise_multiplier: Noise multiplier of each release.
        norm_bound: Bound on the norm of an example's means.
        square_bound: Bound on the norm of an example's second moments.
        min_variance: Smallest variance that is stated.
        ledger: The ledger on which they were recorded.
        correlation: Noisy mean of the clipped products of standardised values, symmetric (D, D) for D channels or
            features, float64; None if it was not released.
        origins: The identities of the releases on the ledger.
    """

    mean: Tensor
    variance: Tensor
    shape: tuple[int, ...]
    num_examples: int
    noise_multiplier: float
    norm_bound: float
    square_bound: float
    min_variance: float
    ledger: Ledger = field(repr=False)
    correlation: Tensor | None = None
    origins: tuple[Run, ...] | None = field(default=None, repr=False)

    @property
    def releases(self) -> int:
        """Number of releases, of ``GaussianEvent(noise_multiplier)`` each."""
        return 2 if self.correlation is None else 3

    @property
    def mean_noise(self) -> float:
        """Standard deviation of the noise in each mean."""
        return self.noise_multiplier * self.norm_bound / self.num_examples

    @property
    def square_noise(self) -> float:
        """Standard deviation of the noise in each second moment."""
        return self.noise_multiplier * self.square_bound / self.num_examples

    @property
    def correlation_noise(self) -> float:
        """Standard deviation of the noise in an entry of the correlation off the diagonal."""
        grams = ClippedGramSum(correlation_bound(self.mean.numel()), self.num_examples)
        return self.noise_multiplier * grams.pair_noise / self.num_examples

    def normalise(self, *, whitening: float = 0.0, resumed: bool = False) -> Standardise:
        """A layer that standardises examples. A ``DPModel`` whose network holds it continues the ledger.

        Args:
            whitening: Share of the correlation of the channels that the layer removes, from 0 to 1: standardised values
                are multiplied by ``R^(-whitening / 2)``, where ``R`` is the noisy correlation. Its eigenvalues are
                raised to the typical norm of its noise first, below which they cannot be told from noise.
            resumed: Whether ``StateKeeper(resume=True)`` will restore the training: the ledger in its state holds the
                releases already, so the layer continues none.

        Raises:
            ValueError: ``whitening`` is out of range, or above 0 without a released correlation.
        """
        checks.unit_interval(whitening=whitening)
        ledger = None if resumed else self.ledger
        mixing = self._mixing(whitening) if whitening else None
        return Standardise(self.mean.reshape(self.shape), self.variance.reshape(self.shape), ledger, mixing=mixing)

    def _mixing(self, whitening: float) -> Tensor:
        """``R^(-whitening / 2)``, scaled so that values of correlation ``R`` have a mean square of one.

        Variances below their floor leave standardised values of a smaller mean square, which this restores.
        """
        if self.correlation is None:
            raise ValueError(
                f"whitening={whitening} needs the correlation of the channels, which was not released; call "
                "private_mean_and_variance(..., correlation=True)"
            )
        size = len(self.correlation)
        values, vectors = torch.linalg.eigh(self.correlation)
        values = torch.clamp(values, min=2.0 * self.correlation_noise * size**0.5)
        factors = values.pow(-whitening / 2)
        factors = factors / (values * factors.square()).mean().sqrt()
        return torch.mm(vectors * factors, vectors.T)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to a safetensors file. Save the ledger as well: ``ledger.save(path)``."""
        tensors = {"mean": self.mean, "variance": self.variance}
        if self.correlation is not None:
            tensors["correlation"] = self.correlation
        values = {"kind": _KIND, "settings": self._settings(), "reproducible": REPRODUCIBLE in self.ledger.notes}
        values["origins"] = self.origins
        write_tensor_file(path, tensors, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], ledger: Ledger | None = None) -> PrivateStatistics:
        """Read what ``save`` wrote.

        Args:
            path: The file.
            ledger: The ledger that holds the releases; None: a new one with these.

        Raises:
            CheckpointError: The file is missing, damaged, or holds something else.
            ValueError: The releases are not on ``ledger``.
        """
        tensors, values = read_tensor_file(path)
        try:
            if values["kind"] != _KIND:
                raise ValueError(f"it holds {checks.shown(values['kind'])}")
            found = cls._from(tensors, values["settings"], bool(values["reproducible"]), values.get("origins"))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = checks.shortened(str(error))
            raise CheckpointError(f"{path} does not hold private statistics, or is damaged: {reason}") from error
        if ledger is None:
            remember_answers(found.ledger, found.ledger)
            return found
        if not ledger.holds(found.ledger):
            raise ValueError(
                f"the ledger lacks the {found.releases} releases of {path}, {found.ledger.rows[0][0]!r} each. Load the "
                "ledger that was saved with the statistics"
            )
        remember_answers(ledger, found.ledger)
        ledger.add_note(TRUE_SIZE)
        return replace(found, ledger=ledger)

    @classmethod
    def _from(
        cls,
        tensors: dict[str, Tensor],
        settings: dict[str, Any],
        reproducible: bool,
        origins: Iterable[Any] | None,
    ) -> PrivateStatistics:
        multiplier = settings["noise_multiplier"]
        checks.positive(**{name: value for name, value in settings.items() if name != "shape"})
        correlation = tensors.get("correlation")
        releases = 2 if correlation is None else 3
        rows = [{"event": GaussianEvent(multiplier).to_dict(), "count": releases}]
        ledger = Ledger.from_rows(rows, [REPRODUCIBLE, TRUE_SIZE] if reproducible else [TRUE_SIZE], origins)
        settings = {**settings, "shape": (*settings["shape"],), "origins": ledger.origins}
        found = cls(tensors["mean"], tensors["variance"], ledger=ledger, correlation=correlation, **settings)
        for name, value in tensors.items():
            if value.dtype != torch.float64:
                raise ValueError(f"{name} must be float64, got {value.dtype}")
        if correlation is not None:
            require_channels(found.mean.numel())
            if correlation.shape != (found.mean.numel(),) * 2 or not torch.equal(correlation, correlation.T):
                raise ValueError(f"the correlation must be symmetric, one row per channel, got {correlation.shape}")
        found.normalise(whitening=0.0 if correlation is None else 1.0)  # refuses shapes and values that do not fit
        return found

    def _settings(self) -> dict[str, Any]:
        without = ("mean", "variance", "ledger", "correlation", "origins")
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in without}
