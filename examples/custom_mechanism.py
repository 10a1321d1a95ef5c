"""Two noise mechanisms of a third party, accounted by their own events.

    python examples/custom_mechanism.py                       # in Python
    dpmodel train examples/custom_mechanism.yaml              # from YAML, through `plugins:`
    dpmodel budget examples/custom_mechanism.yaml             # planned by the same event

`CosineGaussian` is the easy case: a new schedule for Gaussian noise, whose event is known to every accountant.
`KNorm` is the full case: another noise with an event type of its own and its Renyi rules. A package announces itself
under the entry-point group `dpmodel.mechanisms`, and then its names need no `plugins:`; see docs/extending.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechanisms import NoiseMechanism, NoiseMechanismsFactory
from mechanisms.noise import Gaussian
from monitors import PrivacyEvent, register_event, renyi_curve, sampled_renyi_curve

if TYPE_CHECKING:
    import torch


# 1. A new schedule


@NoiseMechanismsFactory.register("CosineGaussian")
class CosineGaussian(Gaussian):
    """Gaussian noise whose multiplier falls along half a cosine from its initial value to ``final_ratio`` of it.

    The noise that is drawn and the event that is recorded both come from ``self.schedule``, so they cannot disagree.

    Args:
        decay_steps: Steps of the fall; the multiplier stays constant afterwards.
        final_ratio: Last over first multiplier, in (0, 1].
        **common: As of ``Gaussian``.
    """

    def __init__(self, *, decay_steps: int, final_ratio: float = 0.5, **common: Any) -> None:
        super().__init__(**common)
        if decay_steps < 1:
            raise ValueError(f"decay_steps must be at least 1, got {decay_steps}")
        if not 0 < final_ratio <= 1:
            raise ValueError(f"final_ratio must be above 0 and at most 1, got {final_ratio}")
        first, last = self.initial_noise_multiplier, self.initial_noise_multiplier * final_ratio

        def schedule(step: int) -> float:
            done = min(step / decay_steps, 1.0)
            return last + (first - last) * (1.0 + math.cos(math.pi * done)) / 2.0

        self.schedule = schedule


# 2. Another noise, with an event of its own


@register_event
@dataclass(frozen=True)
class KNormEvent(PrivacyEvent):
    """A release with noise of density proportional to ``exp(-||x||_2 / b)``: pure differential privacy.

    Args:
        scale: ``b`` over the L2 sensitivity, positive; epsilon is ``1 / scale``.
    """

    scale: float

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive and finite, got {self.scale!r}")


def pure_renyi_curve(epsilon: float, orders: np.ndarray) -> np.ndarray:
    """Renyi bound of an epsilon-private mechanism: at most epsilon, and at most ``order epsilon^2 / 2``.

    References:
        Bun and Steinke 2016, "Concentrated Differential Privacy", proposition 3.3.
    """
    return np.minimum(epsilon, orders * epsilon**2 / 2)


@renyi_curve.register(KNormEvent)
def _(event: KNormEvent, orders: np.ndarray) -> np.ndarray:
    return pure_renyi_curve(1 / event.scale, orders)


@sampled_renyi_curve.register(KNormEvent)
def _(event: KNormEvent, sampling_rate: float, orders: np.ndarray) -> np.ndarray:
    return pure_renyi_curve(amplified(1 / event.scale, sampling_rate), orders)


def amplified(epsilon: float, sampling_rate: float) -> float:
    """Pure epsilon on a Poisson sample: ``log(1 + q (e^epsilon - 1))``, without overflow.

    References:
        Balle, Barthe and Gaboardi 2018, "Privacy Amplification by Subsampling", theorem 8.
    """
    if epsilon > 1:
        return epsilon + math.log(sampling_rate + (1 - sampling_rate) * math.exp(-epsilon))
    return math.log1p(sampling_rate * math.expm1(epsilon))


@NoiseMechanismsFactory.register("KNorm")
class KNorm(NoiseMechanism):
    """L2 K-norm ("spherical Laplace") noise: uniform direction, radius ``Gamma(dimension, b)``.

    Its length grows with the dimension, where that of Gaussian noise grows with the root of it: a choice for small
    models and pure epsilon.

    Args:
        initial_noise_multiplier: ``b`` over the norm bound.
        **common: As of ``NoiseMechanism``.

    References:
        Hardt and Talwar 2010, "On the Geometry of Differential Privacy".
    """

    def noise_multiplier(self, step: int) -> float:
        """``b`` over the norm bound."""
        del step
        return self.initial_noise_multiplier

    def event(self, step: int, sensitivity_factor: float = 1.0) -> PrivacyEvent:
        """The event of this release; micro-batch groups have twice the sensitivity."""
        return KNormEvent(self.noise_multiplier(step) / sensitivity_factor)

    def sample(self, size: int, step: int) -> torch.Tensor:
        """Noise for a norm bound of 1, shape (size,), from the secure generator."""
        import torch

        direction = self.generator.normal(size)
        uniform = (self.generator.words(size) >> np.uint64(11)) * 2.0**-53
        # A Gamma variable of whole shape is a sum of exponential ones.
        radius = -np.log1p(-uniform).sum() * self.noise_multiplier(step)
        length = torch.linalg.vector_norm(direction)
        return direction.mul_(float(radius) / float(length)) if size else direction


# 3. Use


def main(epochs: int = 3) -> dict[str, float]:
    """Train one small model with each mechanism; returns the epsilons."""
    from torch import nn, optim

    from dpmodel import DPModel, poisson_loader
    from dpmodel.data import load_dataset
    from dpmodel.nets import build_network

    data = load_dataset("synthetic", shape=(1, 4, 4), num_train=2000, num_classes=2)
    spent = {}
    for name, options in {
        "CosineGaussian": {"initial_noise_multiplier": 2.0, "decay_steps": 20 * epochs},
        "KNorm": {"initial_noise_multiplier": 4.0},
    }.items():
        network = build_network("linear", defaults=data.network_defaults(), seed=0)
        model = DPModel(
            network,
            nn.CrossEntropyLoss(),
            optim.SGD(network.parameters(), lr=0.2),
            noise_mech=NoiseMechanismsFactory.create(name, **options),
            metrics="accuracy",
        )
        model.fit(poisson_loader(data.train, batch_size=100), epochs)
        spent[name] = model.privacy_spent(delta=1e-5).epsilon
        print(f"{name}: accuracy {model.eval(data.test)['accuracy']:.3f}, {model.privacy_spent(delta=1e-5)}")
    return spent


if __name__ == "__main__":
    main()
