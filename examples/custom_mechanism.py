"""Two third-party noise mechanisms, accounted for by their own events.

    python examples/custom_mechanism.py                       # in Python
    dpmodel train examples/custom_mechanism.yaml              # from YAML, through `plugins:`
    dpmodel budget examples/custom_mechanism.yaml             # planned by the same event

`CosineGaussian` is the simple case: a new schedule for Gaussian noise, whose event every accountant knows. `KNorm` is
the full case: a different noise distribution with a new event type and its Renyi rules. A package that declares an
entry point in the group `dpmodel.mechanisms` needs no `plugins:`; see docs/extending.md.
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
    """Gaussian noise whose multiplier falls along half a cosine to ``final_ratio`` times its initial value.

    The noise and the recorded event both come from ``self.schedule``, so they always agree.

    Args:
        decay_steps: Number of steps of the decay; afterwards the multiplier is constant.
        final_ratio: Ratio of the last to the first multiplier, in (0, 1].
        **common: Arguments of ``Gaussian``.
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


# 2. A new noise distribution with a new event


@register_event
@dataclass(frozen=True)
class KNormEvent(PrivacyEvent):
    """A release with noise of density proportional to ``exp(-||x||_2 / b)``, which gives pure differential privacy.

    Args:
        scale: ``b`` divided by the L2 sensitivity, positive; epsilon is ``1 / scale``.
    """

    scale: float

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive and finite, got {self.scale!r}")


def pure_renyi_curve(epsilon: float, orders: np.ndarray) -> np.ndarray:
    """Renyi bound of a pure epsilon-DP mechanism: the minimum of epsilon and ``order epsilon^2 / 2``.

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
    """Pure epsilon of a Poisson sample, ``log(1 + q (e^epsilon - 1))``, computed without overflow.

    References:
        Balle, Barthe and Gaboardi 2018, "Privacy Amplification by Subsampling", theorem 8.
    """
    if epsilon > 1:
        return epsilon + math.log(sampling_rate + (1 - sampling_rate) * math.exp(-epsilon))
    return math.log1p(sampling_rate * math.expm1(epsilon))


@NoiseMechanismsFactory.register("KNorm")
class KNorm(NoiseMechanism):
    """L2 K-norm ("spherical Laplace") noise: uniform direction, radius ``Gamma(dimension, b)``.

    The length of the noise grows with the dimension, that of Gaussian noise only with its square root. Use this
    mechanism for small models and pure epsilon.

    Args:
        initial_noise_multiplier: ``b`` divided by the norm bound.
        **common: Arguments of ``NoiseMechanism``.

    References:
        Hardt and Talwar 2010, "On the Geometry of Differential Privacy".
    """

    def noise_multiplier(self, step: int) -> float:
        """``b`` divided by the norm bound."""
        del step
        return self.initial_noise_multiplier

    def event(self, step: int, sensitivity_factor: float = 1.0) -> PrivacyEvent:
        """Event of this release; micro-batch groups have twice the sensitivity."""
        return KNormEvent(self.noise_multiplier(step) / sensitivity_factor)

    def sample(self, size: int, step: int) -> torch.Tensor:
        """Noise for a norm bound of 1, shape (size,), from the secure generator."""
        import torch

        direction = self.generator.normal(size)
        uniform = (self.generator.words(size) >> np.uint64(11)) * 2.0**-53
        # A Gamma variable with an integer shape is a sum of exponential variables.
        radius = -np.log1p(-uniform).sum() * self.noise_multiplier(step)
        length = torch.linalg.vector_norm(direction)
        return direction.mul_(float(radius) / float(length)) if size else direction


# 3. Use


def main(epochs: int = 3) -> dict[str, float]:
    """Train one small model with each mechanism and return their epsilons."""
    from torch import nn, optim

    from dpmodel import DPModel, build_network, load_dataset, poisson_loader

    data = load_dataset("synthetic", shape=(1, 4, 4), num_train=2000, num_classes=2)
    spent = {}
    mechanisms: dict[str, dict[str, Any]] = {
        "CosineGaussian": {"initial_noise_multiplier": 2.0, "decay_steps": 20 * epochs},
        "KNorm": {"initial_noise_multiplier": 4.0},
    }
    for name, options in mechanisms.items():
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
        print(f"{name}: accuracy {model.evaluate(data.test)['accuracy']:.3f}, {model.privacy_spent(delta=1e-5)}")
    return spent


if __name__ == "__main__":
    main()
