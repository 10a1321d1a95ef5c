"""Clip mechanisms with a fixed bound: the interface, and the clip factors computed from the norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechanisms.readable import readable
from monitors import checks
from monitors.registry import Registry

if TYPE_CHECKING:
    import torch

    from mechanisms.units import ClippedUnit
    from monitors.events import PrivacyEvent

CLIP: Registry[type[ClipMechanism]] = Registry("clip mechanism")

#: Smallest bound: below it, the entries of a clipped gradient may have too few digits in float32.
SMALLEST_BOUND = 1e-15


class ClipMechanism(ABC):
    """Base of all clip mechanisms; a custom mechanism is a subclass registered under a name.

    Units (examples or groups) are rows, and blocks of parameters are columns; flat clipping has one block. A mechanism
    returns one factor per unit and block, computed from that unit's norms alone. The engine multiplies by the factors
    after bounding them by ``block_bounds``, so that no unit contributes more than its bound. A mechanism whose factors
    depend on several units is refused before training (``require_sound_clip``).

    Guarantees: the clipped norm of block b is at most ``block_bounds(blocks)[b]``; a unit with a non-finite norm
    contributes exactly zero; the sum moves by at most ``norm_bound`` when one unit is added or removed.
    """

    def __init__(self) -> None:
        self._norm_bound: float | None = None

    def __repr__(self) -> str:
        return readable(self, **({"norm_bound": self.norm_bound} if self.started else {}))

    @property
    def norm_bound(self) -> float:
        """The bound in force for the next step, positive.

        Raises:
            RuntimeError: ``start`` has not been called.
        """
        if self._norm_bound is None:
            raise RuntimeError(
                f"{type(self).__name__} has no norm bound yet: pass it to DPModel, or call start(norm_bound)"
            )
        return self._norm_bound

    @property
    def started(self) -> bool:
        """Whether a bound is in force."""
        return self._norm_bound is not None

    def start(self, norm_bound: float) -> None:
        """Set the initial bound, before any data are seen.

        Raises:
            ValueError: The bound is not positive, or so small that clipped gradients would lose their digits.
        """
        checks.positive(norm_bound=norm_bound)
        if norm_bound < SMALLEST_BOUND:
            raise ValueError(
                f"norm_bound must be at least {SMALLEST_BOUND:g}, got {norm_bound:g}: below it, float32 rounds clipped "
                "gradients beyond their bound. Use a larger bound and a smaller learning rate"
            )
        self._norm_bound = float(norm_bound)

    def blocks(self, names: Sequence[str]) -> list[int]:
        """The block index of each parameter, given the parameter names in order; a single block by default."""
        return [0] * len(names)

    def block_bounds(self, blocks: int) -> list[float]:
        """The norm bounds of ``blocks`` blocks; their root sum of squares is ``norm_bound``."""
        return [self.norm_bound / math.sqrt(blocks)] * blocks

    @abstractmethod
    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """Clip factors.

        Args:
            norms: Finite L2 norms, shape (units, blocks).

        Returns:
            Factors of the same shape, each at least 0.
        """

    def constants(self, blocks: int) -> tuple[float, ...] | None:
        """All that ``factors`` depends on besides the norms of ``blocks`` blocks; None if that is not known.

        On a GPU, factors with known constants are recorded with the pass (``cuda_graphs``), and recorded again if the
        constants change. A subclass that overrides ``factors`` must override this method too, or it counts as None.
        """
        del blocks
        return None

    def event(self, step: int, unit: ClippedUnit) -> PrivacyEvent | None:
        """What the mechanism itself releases at ``step``; None if it releases nothing."""
        del step, unit
        return None

    def update(self, norms: torch.Tensor, unit: ClippedUnit, step: int) -> None:
        """Choose the bound of the next step from a noisy statistic of ``norms``; by default, the bound does not change.

        Args:
            norms: Norms before clipping, shape (units, blocks). They are private: anything learnt from them must be the
                release that ``event`` states. A mechanism without an event never sees them: the shape is (0, blocks).
            unit: The clipped unit.
            step: Step number.
        """
        del norms, unit, step

    @property
    def reproducible(self) -> bool:
        """Whether a user's seed determines the randomness of this mechanism."""
        return False

    @property
    def at_limit(self) -> str | None:
        """A message if the bound has reached a limit, else None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """State that a checkpoint must contain: the bound in force."""
        return {"norm_bound": self.norm_bound}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by ``state_dict``."""
        self.start(state["norm_bound"])


def beside(norms: torch.Tensor, bounds: Sequence[float]) -> torch.Tensor:
    """The bounds, shape (blocks,), on the device of ``norms``, for which the host does not wait."""
    if len(set(bounds)) == 1:
        return norms.new_full((len(bounds),), bounds[0])
    import torch

    from mechanisms.engines.device_copy import device_copy

    return device_copy(torch.tensor(bounds, dtype=norms.dtype, device="cpu"), norms.device)


def shrink(norms: torch.Tensor, bounds: Sequence[float]) -> torch.Tensor:
    """``min(1, bound / norm)`` per unit and block, safe at norm 0."""
    limits = beside(norms, bounds)
    return limits / norms.clamp(min=limits)


@CLIP.register("Fixed")
class Fixed(ClipMechanism):
    """Clip each unit's gradient to a constant norm bound, by the factor ``min(1, bound / norm)``.

    Edge cases: a zero gradient has factor 1.

    References:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1.

    Example:
        >>> import torch
        >>> clip = Fixed()
        >>> clip.start(1.0)
        >>> clip.factors(torch.tensor([[0.5], [2.0]])).flatten().tolist()
        [1.0, 0.5]
    """

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """``min(1, bound / norm)``, shape (units, 1)."""
        return shrink(norms, self.block_bounds(norms.shape[1]))

    def constants(self, blocks: int) -> tuple[float, ...]:
        """The bounds."""
        return tuple(self.block_bounds(blocks))


@CLIP.register("Automatic")
class Automatic(ClipMechanism):
    """Normalise instead of clipping, by the factor ``bound / (norm + stability)``; the bound only scales the step size.

    Args:
        stability: Added to the norm so that small gradients keep their relative size, positive.

    References:
        Bu et al. 2022, "Automatic Clipping: Differentially Private Deep Learning Made Easier and Stronger" (AUTO-S).

    Example:
        >>> import torch
        >>> clip = Automatic(stability=0.5)
        >>> clip.start(1.0)
        >>> clip.factors(torch.tensor([[1.5]])).item()
        0.5
    """

    def __init__(self, stability: float = 0.01) -> None:
        super().__init__()
        checks.positive(stability=stability)
        self.stability = float(stability)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """``bound / (norm + stability)``, shape (units, 1)."""
        return beside(norms, self.block_bounds(norms.shape[1])) / (norms + self.stability)

    def constants(self, blocks: int) -> tuple[float, ...]:
        """The bounds, and the stability."""
        return *self.block_bounds(blocks), self.stability


@CLIP.register("PerLayer")
class PerLayer(ClipMechanism):
    """Clip each layer's gradient to ``norm_bound / sqrt(layers)``, so that the whole stays within ``norm_bound``.

    A layer is a module that directly owns parameters; its weight and bias form one block.

    References:
        McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", section 3.

    Example:
        >>> clip = PerLayer()
        >>> clip.blocks(["conv1.weight", "fc1.weight", "fc1.bias"])
        [0, 1, 1]
    """

    def blocks(self, names: Sequence[str]) -> list[int]:
        """One block per module."""
        layers: dict[str, int] = {}
        return [layers.setdefault(name.rpartition(".")[0], len(layers)) for name in names]

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """``min(1, block bound / block norm)``, shape (units, blocks)."""
        return shrink(norms, self.block_bounds(norms.shape[1]))

    def constants(self, blocks: int) -> tuple[float, ...]:
        """The bounds of the blocks."""
        return tuple(self.block_bounds(blocks))
