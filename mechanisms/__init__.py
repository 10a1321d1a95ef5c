"""Private releases: engines, clipping, noise and sampling. Importing this package does not import torch."""

from __future__ import annotations

from mechanisms.adaptive_clipping import QuantileClip
from mechanisms.clipping import Automatic, ClipMechanism, Fixed, PerLayer
from mechanisms.correlated.banded import BandedMF
from mechanisms.correlated.samplers import ArrivalOrderSampler, CyclicPoissonSampler, FixedOrderSampler
from mechanisms.correlated.workload import Workload
from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms.gaussian_query import GaussianMechanism
from mechanisms.noise import AdaGaussian, Gaussian, NoiseMechanism
from mechanisms.queries import CountingQuery, LaplaceMechanism
from mechanisms.rng import SecureGenerator
from mechanisms.sampling import PoissonSampler, Sampler, ShuffleSampler
from mechanisms.sums.gram_sum import ClippedGramSum
from mechanisms.sums.product_sum import ClippedProductSum
from mechanisms.sums.vector_sum import ClippedVectorSum
from mechanisms.units import ClippedUnit

__all__ = [
    "AdaGaussian",
    "ArrivalOrderSampler",
    "Automatic",
    "BandedMF",
    "ClipMechanism",
    "ClipMechanismsFactory",
    "ClippedGramSum",
    "ClippedProductSum",
    "ClippedUnit",
    "ClippedVectorSum",
    "CountingQuery",
    "CyclicPoissonSampler",
    "Fixed",
    "FixedOrderSampler",
    "Gaussian",
    "GaussianMechanism",
    "LaplaceMechanism",
    "NoiseMechanism",
    "NoiseMechanismsFactory",
    "PerLayer",
    "PoissonSampler",
    "QuantileClip",
    "Sampler",
    "SecureGenerator",
    "ShuffleSampler",
    "Workload",
]
