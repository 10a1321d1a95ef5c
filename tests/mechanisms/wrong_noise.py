"""Noise mechanisms that are not what their events state, each in a different way."""

import random

import numpy as np
import torch

from mechanisms.noise import Gaussian
from monitors.events import GaussianEvent

#: Steps of a run.
LONG = range(1000)


class Drawn(Gaussian):
    """A plugin with custom draws: ``noise(size, step)`` returns noise of standard deviation 1."""

    def noise(self, size, step):
        return self.generator.normal(size)

    def add(self, summed, step):
        grad = summed.flat_grad
        noise = self.noise(grad.numel(), step) * self.schedule(step) * summed.norm_bound
        return grad.add_(noise.to(grad))


# Scale


class Quiet(Drawn):
    def noise(self, size, step):
        return 0.1 * self.generator.normal(size)


class TenPercentLess(Drawn):
    def noise(self, size, step):
        return 0.9 * self.generator.normal(size)


class TwoPercentLess(Drawn):
    def noise(self, size, step):
        return 0.98 * self.generator.normal(size)


class TwiceAsMuch(Drawn):
    def noise(self, size, step):
        return 2 * self.generator.normal(size)


class Silent(Gaussian):
    def add(self, summed, step):
        return summed.flat_grad


class ForgetsTheBound(Gaussian):
    def add(self, summed, step):
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step))


class OverTheBatch(Drawn):
    def noise(self, size, step):
        return self.generator.normal(size) / 32


class QuietLater(Drawn):
    def noise(self, size, step):
        return (1.0 if step < 300 else 0.3) * self.generator.normal(size)


class QuietAtTheEnd(Drawn):
    def noise(self, size, step):
        return (0.5 if step == LONG[-1] else 1.0) * self.generator.normal(size)


class RandomScale(Drawn):
    """A heavy-tailed mixture over the draws, correct on average."""

    def noise(self, size, step):
        scale = float(self.generator.integers(2, 1)[0])
        return self.generator.normal(size) * (0.1 if scale else 1.4107)


# Coordinates


class EveryOther(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[::2] = 0
        return drawn


class LastTensorLeftOut(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[-50:] = 0
        return drawn


class OneCoordinateLeftOut(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[17] = 0
        return drawn


class QuietBlock(Drawn):
    """A tenth of the noise in some coordinates far from both ends."""

    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[size // 3 : size // 3 + size // 64] *= 0.1
        return drawn


# Independence


class OneNumber(Drawn):
    def noise(self, size, step):
        return self.generator.normal(1).expand(size)


class Tiled(Drawn):
    def noise(self, size, step):
        return self.generator.normal(509).repeat(size // 509 + 1)[:size]


class Mirrored(Drawn):
    def noise(self, size, step):
        half = self.generator.normal((size + 1) // 2)
        return torch.cat([half, -half.flip(0)])[:size]


class MovingAverage(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size + 1)
        return (drawn[1:] + 0.2 * drawn[:-1]) / 1.04**0.5


class SignsAlone(Drawn):
    """The same magnitudes in both halves, with new signs."""

    def noise(self, size, step):
        half = self.generator.normal((size + 1) // 2)
        signs = torch.from_numpy(self.generator.integers(2, len(half)) * 2.0 - 1.0)
        return torch.cat([half, half * signs])[:size]


class DrawnOnce(Drawn):
    def noise(self, size, step):
        if not hasattr(self, "kept"):
            self.kept = self.generator.normal(size)
        return self.kept


class Replayed(Drawn):
    """Noise of the previous step, shifted by a few coordinates."""

    def noise(self, size, step):
        if not hasattr(self, "kept"):
            self.kept = self.generator.normal(size)
        self.kept = self.kept.roll(5)
        return self.kept


class EightVectors(Drawn):
    def noise(self, size, step):
        if not hasattr(self, "table"):
            self.table = self.generator.normal(8 * size).reshape(8, size)
        return self.table[step % 8]


class Carried(Drawn):
    """The noise of each step contains a part of the previous noise."""

    def noise(self, size, step):
        last = getattr(self, "last", None)
        self.last = self.generator.normal(size) if last is None else 0.6 * last + 0.8 * self.generator.normal(size)
        return self.last


# Public seeds


class SeedsTorch(Gaussian):
    def add(self, summed, step):
        torch.manual_seed(step)
        return summed.flat_grad.add_(torch.randn_like(summed.flat_grad) * self.schedule(step) * summed.norm_bound)


class FollowsTorch(Drawn):
    def noise(self, size, step):
        return torch.randn(size)


class FollowsNumPy(Drawn):
    def noise(self, size, step):
        return torch.from_numpy(np.random.normal(size=size))


class FollowsPython(Drawn):
    def noise(self, size, step):
        return torch.tensor([random.gauss(0, 1) for _ in range(size)], dtype=torch.float64)


class SeededByTheStep(Drawn):
    def noise(self, size, step):
        return torch.from_numpy(np.random.default_rng(step).normal(size=size))


class OwnSeed(Drawn):
    def __init__(self, **options):
        super().__init__(**options)
        self.own = torch.Generator().manual_seed(42)

    def noise(self, size, step):
        return torch.randn(size, generator=self.own)


class PartlyPublic(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[size // 2 :] = torch.from_numpy(np.random.default_rng(step).normal(size=size - size // 2))
        return drawn


# Dependence on private values


class ByTheSum(Gaussian):
    def add(self, summed, step):
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * float(summed.flat_grad.norm()) * 0.01)


class ByTheNorms(Gaussian):
    def add(self, summed, step):
        scale = 1.0 if summed.norms.numel() == 0 else float(summed.norms.mean().clamp(0.5, 2.0)) / summed.norm_bound
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * summed.norm_bound * scale)


class Shrinking(Drawn):
    def add(self, summed, step):
        summed.flat_grad.mul_(0.99)
        return super().add(summed, step)


class Clamping(Drawn):
    def add(self, summed, step):
        return super().add(summed, step).clamp(-10 * summed.norm_bound, 10 * summed.norm_bound)


class NoiseAlone(Drawn):
    def add(self, summed, step):
        summed.flat_grad.zero_()
        return super().add(summed, step)


# Distribution


class Uniform(Drawn):
    def noise(self, size, step):
        return torch.from_numpy((self.generator.words(size) * 2.0**-64 - 0.5) * 12**0.5)


class Laplace(Drawn):
    def noise(self, size, step):
        one, other = (-np.log1p((self.generator.words(size) >> np.uint64(11)) * -(2.0**-53)) for _ in range(2))
        return torch.from_numpy((one - other) / 2**0.5)


class Truncated(Drawn):
    def noise(self, size, step):
        return self.generator.normal(size).clamp(-3, 3)


class Biased(Drawn):
    def noise(self, size, step):
        return self.generator.normal(size) + 0.1


# Return values and events


class Wider(Drawn):
    def add(self, summed, step):
        return super().add(summed, step).double()


class Longer(Drawn):
    def add(self, summed, step):
        return torch.cat([super().add(summed, step), torch.zeros(1)])


class ReturnsNothing(Drawn):
    def add(self, summed, step):
        super().add(summed, step)


class ForgetsTheFactor(Gaussian):
    def event(self, step, sensitivity_factor=1.0):
        return GaussianEvent(self.schedule(step))


class CheaperEachTime(Gaussian):
    asked = 0

    def event(self, step, sensitivity_factor=1.0):
        type(self).asked += 1
        return GaussianEvent(self.schedule(step) * (1 + 1e-3 * self.asked))


WRONG = [
    (Quiet, r"0\.\d+ times the stated one"),
    (TenPercentLess, "times the stated one"),
    (TwoPercentLess, ""),
    (TwiceAsMuch, "times the stated one"),
    (Silent, "got no noise"),
    (ForgetsTheBound, "times the stated one"),
    (OverTheBatch, "times the stated one"),
    (QuietLater, "times the stated one"),
    (QuietAtTheEnd, "at step 999"),
    (RandomScale, ""),
    (EveryOther, "got no noise"),
    (LastTensorLeftOut, "50 of .* coordinates got no noise"),
    (OneCoordinateLeftOut, "1 of .* coordinates got no noise"),
    (QuietBlock, "for coordinates"),
    (OneNumber, ""),
    (Tiled, ""),
    (Mirrored, ""),
    (MovingAverage, ""),
    (SignsAlone, ""),
    (DrawnOnce, "the same noise"),
    (Replayed, ""),
    (EightVectors, ""),
    (Carried, ""),
    (SeedsTorch, "two copies of it drew the same noise"),
    (FollowsTorch, "global generator of torch"),
    (FollowsNumPy, "global generator of NumPy"),
    (FollowsPython, "global generator of Python"),
    (SeededByTheStep, "two copies"),
    (OwnSeed, "two copies"),
    (PartlyPublic, "two copies"),
    (ByTheSum, "for a sum of zeros"),
    (ByTheNorms, ""),
    (Shrinking, ""),
    (Clamping, "for a sum that is huge"),
    (NoiseAlone, "for a sum that is huge"),
    (Uniform, "not normal"),
    (Laplace, ""),
    (Truncated, ""),
    (Biased, "the mean"),
    (Wider, "returned torch.float64"),
    (Longer, "shape"),
    (ReturnsNothing, "NoneType"),
    (CheaperEachTime, ""),
]
