"""The normalisation of a configured training: a layer that the training fills with private statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dpmodel.callbacks.base import Callback
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.statistics.moments import private_mean_and_variance, variance_floor
from dpmodel.statistics.private_statistics import require_channels
from dpmodel.statistics.standardise import Standardise
from mechanisms.answers import asked_ledgers, forget_asked
from mechanisms.gaussian_query import GaussianMechanism
from mechanisms.sums.vector_sum import require_bound

if TYPE_CHECKING:
    from dpmodel.config.sections import NormaliseSection
    from dpmodel.training.run import Run


class NormalisedNetwork(nn.Sequential):
    """A network behind a layer that standardises its inputs; until statistics are set, the layer changes nothing.

    Args:
        network: The network.
        example_shape: Shape of one example; the statistics are per channel, its first axis.
        whitening: Share of the correlation of the channels that will be removed.

    Raises:
        DataError: There are too many channels for whitening.
    """

    def __init__(self, network: nn.Module, example_shape: Sequence[int], whitening: float = 0.0) -> None:
        super().__init__()
        channels = example_shape[0]
        if whitening:
            require_channels(channels)
        shape = (channels, *[1] * (len(example_shape) - 1))
        mixing = torch.eye(channels) if whitening else None
        self.normalise = Standardise(torch.zeros(shape), torch.ones(shape), mixing=mixing)
        self.network = network


class PrivateNormalisation(Callback):
    """Releases mean and variance of the training data when the training begins, on its ledger, and sets the layer.

    A resumed training does not use it: the layer is restored with the weights, and the ledger states the releases.

    Args:
        dataset: The training data.
        section: Bounds and noise.

    Raises:
        ValueError: A number is too small or too large for a release.
    """

    def __init__(self, dataset: InMemoryDataset, section: NormaliseSection) -> None:
        self.dataset = dataset
        self.section = section
        noise = GaussianMechanism(section.noise_multiplier).noise_multiplier
        require_bound(norm_bound=section.norm_bound, square_bound=section.square_bound)
        variance_floor(noise * section.square_bound / len(dataset), section.min_variance)

    def on_train_begin(self, run: Run) -> None:
        """Release the statistics on rank 0, and set the layer on every rank."""
        layer = run.network.normalise
        assert isinstance(layer, Standardise)

        def release() -> dict[str, Tensor]:
            section, asked = self.section, asked_ledgers()
            found = private_mean_and_variance(
                self.dataset,
                noise_multiplier=section.noise_multiplier,
                norm_bound=section.norm_bound,
                square_bound=section.square_bound,
                min_variance=section.min_variance,
                correlation=section.whitening > 0,
                ledger=run.ledger,
            ).normalise(whitening=section.whitening)
            if not any(known is run.ledger for known in asked):
                forget_asked(run.ledger)
            return dict(found.named_buffers())

        released = run.ranks.once(release)
        with run.post_processing("normalisation with private statistics, which are on the ledger"):
            for name, buffer in layer.named_buffers():
                buffer.copy_(released[name])
