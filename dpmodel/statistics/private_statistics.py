"""Mean and variance that were released privately, with what their release cost."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from dpmodel.statistics.standardise import Standardise
from mechanisms.answers import REPRODUCIBLE, remember_asked
from monitors import checks
from monitors.errors import CheckpointError
from monitors.events import GaussianEvent
from monitors.ledger import Ledger

_KIND = "private mean and variance"


@dataclass(frozen=True, eq=False)
class PrivateStatistics:
    """Private mean and variance of each channel or feature. They may be published like trained weights.

    Args:
        mean: The noisy mean, float64.
        variance: Second moment minus squared mean, at least ``min_variance``, float64; shape of ``mean``.
        shape: The shape of ``mean`` beside an example, with 1 for each axis that was averaged.
        num_examples: Number of examples.
        noise_multiplier: Noise multiplier of each of the two releases.
        norm_bound: Bound on the norm of an example's means.
        square_bound: Bound on the norm of an example's second moments.
        min_variance: Smallest variance that is stated.
        ledger: The ledger on which they were recorded.
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

    @property
    def mean_noise(self) -> float:
        """Standard deviation of the noise in each mean."""
        return self.noise_multiplier * self.norm_bound / self.num_examples

    @property
    def square_noise(self) -> float:
        """Standard deviation of the noise in each second moment."""
        return self.noise_multiplier * self.square_bound / self.num_examples

    def normalise(self, *, resumed: bool = False) -> Standardise:
        """A layer that standardises examples. A ``DPModel`` whose network holds it continues the ledger.

        Args:
            resumed: Whether ``StateKeeper(resume=True)`` will restore the training: the ledger in its state holds the
                releases already, so the layer continues none.
        """
        ledger = None if resumed else self.ledger
        return Standardise(self.mean.reshape(self.shape), self.variance.reshape(self.shape), ledger)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to a safetensors file. Save the ledger as well: ``ledger.save(path)``."""
        values = {"kind": _KIND, "settings": self._settings(), "reproducible": REPRODUCIBLE in self.ledger.notes}
        write_tensor_file(path, {"mean": self.mean, "variance": self.variance}, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], ledger: Ledger | None = None) -> PrivateStatistics:
        """Read what ``save`` wrote.

        Args:
            path: The file.
            ledger: The ledger that holds the two releases; None: a new one with these two.

        Raises:
            CheckpointError: The file is missing, damaged, or holds something else.
            ValueError: The two releases are not on ``ledger``.
        """
        tensors, values = read_tensor_file(path)
        try:
            if values["kind"] != _KIND:
                raise ValueError(f"it holds {checks.shown(values['kind'])}")
            found = cls._from(tensors, values["settings"], bool(values["reproducible"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = checks.shortened(str(error))
            raise CheckpointError(f"{path} does not hold private statistics, or is damaged: {reason}") from error
        remember_asked(found.ledger if ledger is None else ledger, keep=True)
        if ledger is None:
            return found
        if not ledger.covers(found.ledger):
            raise ValueError(
                f"the ledger lacks the two releases of {path}, {found.ledger.rows[0][0]!r} each. Load the ledger that "
                "was saved with the statistics"
            )
        return cls(**{**found._settings(), "mean": found.mean, "variance": found.variance, "ledger": ledger})

    @classmethod
    def _from(cls, tensors: dict[str, Tensor], settings: dict[str, Any], reproducible: bool) -> PrivateStatistics:
        multiplier = settings["noise_multiplier"]
        checks.positive(**{name: value for name, value in settings.items() if name != "shape"})
        ledger = Ledger([REPRODUCIBLE] if reproducible else ()).record(GaussianEvent(multiplier), 2)
        found = cls(tensors["mean"], tensors["variance"], ledger=ledger, **{**settings, "shape": (*settings["shape"],)})
        for value in (found.mean, found.variance):
            if value.dtype != torch.float64:
                raise ValueError(f"mean and variance must be float64, got {value.dtype}")
        found.normalise()  # refuses shapes and values that do not fit
        return found

    def _settings(self) -> dict[str, Any]:
        without = ("mean", "variance", "ledger")
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in without}
