"""What a training releases, seen by a callback and a hook of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmodel.audit.canaries import TABLES, CanaryNetwork
from dpmodel.callbacks.base import Callback
from dpmodel.model import DPModel
from mechanisms.noise import NoiseMechanism
from monitors.errors import ConfigError
from monitors.events import GaussianEvent, PrivacyEvent

if TYPE_CHECKING:
    from dpmodel.training.run import Run

Floats = NDArray[np.float64]

#: Most coordinates of a tensor that are kept of each blank step, evenly spread.
MOST_COORDINATES = 4096


@dataclass
class Stretch:
    """What was released by consecutive steps of one call of ``fit``.

    Args:
        noise: The noise mechanism that trained, prepared for this call.
        sensitivity_factor: Sensitivity over the norm bound.
    """

    noise: NoiseMechanism
    sensitivity_factor: float
    multipliers: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    events: list[PrivacyEvent] = field(default_factory=list)
    released: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def sigma(self) -> Floats:
        """Noise multiplier of each step over the sensitivity, as the ledger states it, shape (steps,)."""
        return np.asarray(self.multipliers)

    @property
    def sums(self) -> Floats:
        """The released sums over the sensitivity, shape (steps, ...)."""
        sums = np.stack(self.released).astype(np.float64)
        sensitivity = self.sensitivity_factor * np.asarray(self.bounds)
        found: Floats = sums / sensitivity.reshape(-1, *[1] * (sums.ndim - 1))
        return found

    @property
    def innovations(self) -> Floats:
        """The released sums in units of the stated noise, their correlation over the steps undone.

        Shape (steps, ...). Where there is no signal, these are independent standard normal numbers.
        """
        sums = self.sums
        found: Floats = self.noise.innovations(sums.reshape(len(sums), -1) / self.sigma[:, None]).reshape(sums.shape)
        return found

    @property
    def response(self) -> Floats:
        """What one draw of a canary adds to ``innovations`` of the steps from then on, over its size; norm 1."""
        impulse = np.zeros((len(self.multipliers), 1))
        impulse[0] = 1.0
        found: Floats = self.noise.innovations(impulse)[:, 0]
        last = np.flatnonzero(np.abs(found) > 1e-9)[-1]
        return found[: last + 1]


@dataclass
class Watch(Callback):
    """Keeps what is released: the noisy clipped sums of the named parameters, as the optimizer gets them.

    Args:
        take: Gives the sums of a step, from the network; shape as it likes.
        stretches: Gets one ``Stretch`` per call of ``fit``.
        stop_at: Step at which the training is interrupted, or None.
        begin: Called before the first step, when all checks before the training are done.
    """

    take: Callable[[CanaryNetwork], NDArray[np.float32]]
    stretches: list[Stretch] = field(default_factory=list)
    stop_at: int | None = None
    begin: Callable[[], None] | None = None

    def follow(self, model: DPModel) -> Callable[[], None]:
        """Look at the gradients that the optimizer of ``model`` gets; returns what ends it."""

        def look(*ignored: Any) -> None:
            del ignored
            self._seen = self.take(model.network)  # type: ignore[arg-type]

        return model.optimizer.register_step_pre_hook(look).remove

    def on_train_begin(self, run: Run) -> None:
        """Begin a stretch."""
        if self.begin is not None:
            self.begin()
        self.stretches.append(Stretch(run.plan.noise, run.plan.unit.sensitivity_factor))

    def on_train_step_begin(self, run: Run) -> None:
        """Keep the norm bound in force."""
        self._bound = run.norm_bound

    def on_train_step_end(self, run: Run) -> None:
        """Keep what the step has released, and what the ledger says about it."""
        stretch, ledger = self.stretches[-1], run.ledger
        ((event, _),) = ledger.rows_from(len(ledger) - 1)
        stretch.events.append(event)
        stretch.multipliers.append(stated_multiplier(event))
        stretch.bounds.append(self._bound)
        stretch.released.append(self._seen * np.float32(run.plan.unit.expected_units))
        if run.step - run.first_step == self.stop_at:
            run.stop("interrupted by the audit, which then resumes it")


def stated_multiplier(event: PrivacyEvent) -> float:
    """The noise multiplier of the noisy sum in a step's event: its first Gaussian release.

    Raises:
        ConfigError: There is none.
    """
    while not isinstance(event, GaussianEvent):
        inner = getattr(event, "event", None) or next(iter(getattr(event, "events", ())), None)
        if inner is None:
            raise ConfigError(
                f"the ledger records {type(event).__name__} for a step; an audit knows Gaussian noise only"
            )
        event = inner
    return event.noise_multiplier


def of_canaries(network: CanaryNetwork) -> NDArray[np.float32]:
    """The released gradient of the canaries' coordinates, shape (2, m)."""
    tables = [network.get_parameter(f"{name}.weight").grad for name in TABLES]
    found: NDArray[np.float32] = torch.stack([_cpu(table)[1:, 0] for table in tables]).numpy()
    return found


def coordinates(network: CanaryNetwork) -> dict[str, slice]:
    """Where ``of_every_tensor`` has the numbers of each parameter of the audited network."""
    places, begin = {}, 0
    for name, parameter in _own(network):
        count = min(parameter.numel(), MOST_COORDINATES)
        places[name] = slice(begin, begin + count)
        begin += count
    return places


def of_every_tensor(network: CanaryNetwork) -> NDArray[np.float32]:
    """The released gradient in some coordinates of each parameter of the audited network, shape (n,)."""
    parts = []
    for _, parameter in _own(network):
        flat = _cpu(parameter.grad).flatten()
        parts.append(flat[np.linspace(0, len(flat) - 1, min(len(flat), MOST_COORDINATES)).astype(np.int64)].numpy())
    found: NDArray[np.float32] = np.concatenate(parts)
    return found


def padded_tables(network: torch.nn.Module) -> frozenset[str]:
    """Names of the audited network's look-up tables with a row for padding."""
    modules = network.get_submodule("network").named_modules()
    return frozenset(
        f"{name}.weight".lstrip(".") for name, module in modules if getattr(module, "padding_idx", None) is not None
    )


def _own(network: CanaryNetwork) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in network.network.named_parameters() if value.requires_grad]


def _cpu(gradient: Any) -> Tensor:
    found: Tensor = gradient.detach().to("cpu", torch.float32)
    return found
