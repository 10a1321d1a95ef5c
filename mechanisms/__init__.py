"""Private releases: engines, clipping, noise and sampling. Importing this package does not import torch."""

from __future__ import annotations

from mechanisms.adaptive_clipping import QuantileClip
from mechanisms.clipping import Automatic, ClipMechanism, Fixed, PerLayer
from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms.noise import AdaGaussian, Gaussian, NoiseMechanism
from mechanisms.queries import CountingQuery, LaplaceMechanism
from mechanisms.rng import SecureGenerator
from mechanisms.sampling import PoissonSampler, Sampler, ShuffleSampler
from mechanisms.units import ClippedUnit

__all__ = [
    "AdaGaussian",
    "Automatic",
    "ClipMechanism",
    "ClipMechanismsFactory",
    "ClippedUnit",
    "CountingQuery",
    "Fixed",
    "Gaussian",
    "LaplaceMechanism",
    "NoiseMechanism",
    "NoiseMechanismsFactory",
    "PerLayer",
    "PoissonSampler",
    "QuantileClip",
    "Sampler",
    "SecureGenerator",
    "ShuffleSampler",
]
