"""The audited training: a copy of a model trains on data with canaries, through its public ``fit``, and is watched."""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from dpmodel.audit.canaries import (
    STRENGTH,
    TABLES,
    CanaryCollation,
    CanaryLoss,
    CanaryNetwork,
    CanaryRows,
    WatchedLoader,
)
from dpmodel.callbacks.base import Callback
from dpmodel.model import DPModel
from dpmodel.planning.release import ReleasePlan
from dpmodel.saving.keeper import StateKeeper
from mechanisms.clipping import ClipMechanism
from mechanisms.noise import AUTO, NoiseMechanism
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors.errors import ConfigError, PrivacyWarning
from monitors.events import GaussianEvent, PrivacyEvent
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.training.run import Run

Floats = NDArray[np.float64]

#: Steps on blank rows only, in which every released number is noise.
BLANK_STEPS = 20

#: Most coordinates of a tensor that are kept of each blank step, evenly spread.
MOST_COORDINATES = 4096

#: Bands of a mechanism that leaves their number open, and most bands: more would take many small steps.
OPEN_BANDS, MOST_BANDS = 8, 24

#: Largest batch of correlated noise, over the rows of one of ``bands`` groups.
_OF_A_GROUP = 0.75


@dataclass(frozen=True)
class AuditPlan:
    """What the audited training will be; chosen before anything is trained.

    Args:
        rows: Number of rows: ordinary examples and canaries.
        canaries: Number of canaries.
        batch_size: Expected examples per step.
        epochs: Epochs of the training.
        steps: Its steps.
        unit: The clipped unit.
        noise: The noise mechanism at the audit's multiplier.
    """

    rows: int
    canaries: int
    batch_size: int
    epochs: int
    steps: int
    unit: ClippedUnit
    noise: NoiseMechanism

    @property
    def rate(self) -> float:
        """Expected fraction of the rows in a step."""
        return self.batch_size / self.rows


def plan_audit(
    model: DPModel,
    batch_size: int,
    examples: int,
    canaries: int,
    *,
    steps: int,
    rate: float,
    epsilon: float,
    delta: float,
) -> AuditPlan:
    """The plan whose ledger has about ``epsilon``.

    Args:
        model: The audited model; its mechanisms are not changed.
        batch_size: Examples per step of the model's training, which tells the size of its micro-batches.
        examples: Ordinary examples.
        canaries: Canaries.
        steps: Steps, rounded up to whole epochs.
        rate: Expected fraction of the rows in a step.
        epsilon: Target of the noise multiplier.
        delta: Delta of the target.

    Raises:
        ConfigError: The multiplier of the noise cannot be chosen, or no multiplier meets the target.
    """
    rows = examples + canaries
    noise, bands = _few_bands(model.noise_mech)
    if bands > 1 and rate > _OF_A_GROUP / bands:  # as many draws of each row, in more and smaller steps
        steps = round(steps * rate * bands / _OF_A_GROUP)
        rate = _OF_A_GROUP / bands
    group = _group_size(model, batch_size, int(rate * rows / 2))
    batch_size = max(group, round(rate * rows / group) * group)
    unit = ClippedUnit(group, batch_size // group)
    sampler = SAMPLERS.get(model.sampling)(rows, batch_size)
    epochs = max(1, -(-steps // sampler.steps_per_epoch))
    clip = copy.deepcopy(model.clip_mech)
    clip.start(model.norm_bound)
    total = epochs * sampler.steps_per_epoch
    try:
        plan = ReleasePlan(noise, clip, unit, sampler)
        # many different events take the exact accountant long
        constant = noise.noise_multiplier(0) == noise.noise_multiplier(total - 1) and plan.clip_event(0) is None
        accountant = "pld" if constant else "rdp"
        multiplier = plan.multiplier_for(epsilon, delta, total, accountant)
        noise = noise.at(multiplier)
    except ValueError as error:
        raise ConfigError(f"no noise for an audit at epsilon {epsilon:g}: {error}") from error
    return AuditPlan(rows, canaries, batch_size, epochs, total, unit, noise)


def _few_bands(noise: NoiseMechanism) -> tuple[NoiseMechanism, int]:
    """The mechanism with a moderate number of bands, and this number."""
    if noise.bands == AUTO:
        return noise.with_bands(OPEN_BANDS), OPEN_BANDS
    bands = int(noise.bands)
    return (noise, bands) if bands <= MOST_BANDS else (noise.with_bands(MOST_BANDS), MOST_BANDS)


def _group_size(model: DPModel, batch_size: int, most: int) -> int:
    """Examples per clipped unit: those of the model's micro-batches, but at most ``most``."""
    if model.micro_batches is None:
        return 1
    return min(ClippedUnit.of(batch_size, model.micro_batches).group_size, max(1, most))


def canary_share(clip: ClipMechanism, unit: ClippedUnit, names: list[str]) -> float:
    """The clipped norm of a canary over the sensitivity, as the clip mechanism states it; 1 for flat clipping.

    Args:
        clip: The clip mechanism, started.
        unit: The clipped unit.
        names: Names of the trained parameters, in order.
    """
    blocks = clip.blocks(names)
    bounds = np.asarray(clip.block_bounds(max(blocks) + 1))
    squares = np.zeros(len(bounds))
    for name, block in zip(names, blocks, strict=True):
        if name.partition(".")[0] in TABLES:
            squares[block] += 0.5
    norms = STRENGTH * clip.norm_bound * np.sqrt(squares)
    factors = clip.factors(torch.from_numpy(norms).float()[None])[0].double().numpy()
    clipped = np.minimum(norms * factors, bounds)
    return float(np.linalg.norm(clipped)) / (clip.norm_bound * unit.sensitivity_factor)


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


@dataclass
class Observed:
    """Everything that an audit looks at.

    Args:
        plan: The plan.
        included: The coins, shape (m,).
        parts: The training until its interruption, and from then on.
        blank: The steps on blank rows.
        tensors: Where ``blank`` has the numbers of each parameter.
        drawn: The rows of each step of ``parts``.
        ledger: What the training has recorded.
        epsilon: Its epsilon.
        delta: The delta of ``epsilon``.
        padded: Parameters whose rows for padding get no noise, because nothing is released of them.
        share: What the clip mechanism states for a canary's clipped norm over the sensitivity.
        description: What was audited, by part.
    """

    plan: AuditPlan
    included: NDArray[np.bool_]
    parts: list[Stretch]
    blank: Stretch
    tensors: dict[str, slice]
    drawn: list[NDArray[np.int64]]
    ledger: Ledger
    epsilon: float
    delta: float
    padded: frozenset[str]
    share: float
    description: dict[str, str]


class AuditedTraining:
    """Trains copies of ``model`` as ``plan`` says: to the middle, resumed to the end, then on blank rows.

    Args:
        model: The audited model, which is not trained or changed.
        plan: The plan.
        examples: Ordinary examples.
        collate: The ``collate_fn`` of the data.
        included: The coins.
    """

    def __init__(
        self,
        model: DPModel,
        plan: AuditPlan,
        examples: list[Any],
        collate: Callable[[list[Any]], Any],
        included: NDArray[np.bool_],
    ) -> None:
        self.model = model
        self.plan = plan
        self.rows = CanaryRows(examples, included)
        self.collate = default_collate if collate is default_collate else CanaryCollation(collate)
        self.included = included

    def __call__(self, delta: float) -> Observed:
        """Train and watch."""
        watch, loader = Watch(of_canaries, stop_at=self.plan.steps // 2), self._loader(self.rows)
        with tempfile.TemporaryDirectory(prefix="dpmodel-audit-") as folder:
            self._fit(self.copied(), loader, self.plan.epochs, watch, StateKeeper(folder, self.plan.steps))
            watch.stop_at = None
            model = self.copied()
            share = canary_share(model.clip_mech, self.plan.unit, self._names(model))
            self._fit(model, loader, self.plan.epochs, watch, StateKeeper(folder, self.plan.steps, resume=True))
        ledger = model.ledger.copy()
        epsilon = _epsilon(model, delta)
        description, drawn = self._describe(model), list(loader.drawn)
        everything = Watch(of_every_tensor, begin=self.rows.blank)
        self._fit(model, loader, -(-BLANK_STEPS // loader.steps_per_epoch), everything, None)
        return Observed(
            plan=self.plan,
            included=self.included,
            parts=watch.stretches,
            blank=everything.stretches[0],
            tensors=coordinates(model.network),  # type: ignore[arg-type]
            drawn=drawn,
            ledger=ledger,
            epsilon=epsilon,
            delta=delta,
            padded=padded_tables(model.network),
            share=share,
            description=description,
        )

    def copied(self) -> DPModel:
        """A model like the audited one, for a network with canaries; it shares nothing with the audited one."""
        model, plan = self.model, self.plan
        network, optimizer, loss_fn, clip = copy.deepcopy(
            (model.network, model.optimizer, model.loss_fn, model.clip_mech)
        )
        wrapped = CanaryNetwork(network, plan.canaries, STRENGTH * model.norm_bound)
        tables = [wrapped.get_parameter(f"{name}.weight") for name in TABLES]
        for table in tables:
            table.data = table.data.to(model.device)
        optimizer.add_param_group({"params": tables})
        return DPModel(
            wrapped,
            CanaryLoss(loss_fn),
            optimizer,
            micro_batches=plan.unit.expected_units if plan.unit.grouped else None,
            norm_bound=model.norm_bound,
            noise_mech=plan.noise.at(plan.noise.initial_noise_multiplier),
            clip_mech=clip,
            sampling=model.sampling,
            engine=model.engine,
            physical_batch_size=model.physical_batch_size,
            precision=model.precision,
            timed_plans=model.timed_plans,
            static_shapes=model.static_shapes,
            cuda_graphs=model.cuda_graphs,
            isolation=model.isolation,
            device=model.device,
            seed=model.seed,
            ledger=Ledger(),
        )

    def _loader(self, rows: CanaryRows) -> WatchedLoader:
        return WatchedLoader(rows, self.plan.batch_size, sampling=self.model.sampling, collate_fn=self.collate)

    def _fit(
        self, model: DPModel, loader: WatchedLoader, epochs: int, watch: Watch, keeper: StateKeeper | None
    ) -> None:
        stop = watch.follow(model)
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", PrivacyWarning)  # rows are repeated and blank on purpose
            model.fit(loader, epochs, callbacks=[watch], keeper=keeper)
        stop()

    def _names(self, model: DPModel) -> list[str]:
        return [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]

    def _describe(self, model: DPModel) -> dict[str, str]:
        plan, choice = self.plan, model._choice
        return {
            "network": f"{type(self.model.network).__name__}, loss {_name(self.model.loss_fn)}",
            "noise": repr(model.noise_mech),
            "clipping": repr(model.clip_mech),
            "unit": plan.unit.describe(),
            "sampling": SAMPLERS.get(model.sampling)(plan.rows, plan.batch_size).describe(),
            "engine": choice.engine.name if choice is not None else model.engine,
            "optimizer": type(model.optimizer).__name__,
            "rows": f"{plan.rows - plan.canaries:,} ordinary and {plan.canaries:,} canaries",
            "steps": f"{plan.steps}, interrupted and resumed after {plan.steps // 2}",
        }


def _name(loss_fn: Any) -> str:
    return type(loss_fn).__name__ if isinstance(loss_fn, torch.nn.Module) else getattr(loss_fn, "__name__", "function")


def _epsilon(model: DPModel, delta: float) -> float:
    return model.privacy_spent(delta, accountant="pld").epsilon
