"""``DPModel``: train, evaluate and predict with differential privacy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpmodel import preflight
from dpmodel.augmentation import Augmentation
from dpmodel.callbacks.base import CallbackList
from dpmodel.claims.claimed import ClaimedModel
from dpmodel.claims.verification import verified_by
from dpmodel.claims.weights import read_late, record_result, record_training
from dpmodel.data.inference import INFERENCE_BATCH, evaluation_batches, predictions
from dpmodel.data.loader import PrivateLoader
from dpmodel.data.stream import require_one_pass
from dpmodel.distributed.follower import Follower
from dpmodel.distributed.group import current_ranks
from dpmodel.metrics import MetricSet
from dpmodel.planning.bands import best_for_multiplier
from dpmodel.planning.release import NOT_VERIFIED, ReleasePlan, large_delta
from dpmodel.planning.workload import training_workload
from dpmodel.preflight.arguments import check_keeper, check_types, refuse_unknown, require_agreement, usable_device
from dpmodel.runs.recorder import recording
from dpmodel.training.guard import UpdateGuard
from dpmodel.training.history import History
from dpmodel.training.interrupt import finishing_steps
from dpmodel.training.loop import TrainingLoop, to_device
from dpmodel.training.own_clip import own_clip
from dpmodel.training.randomness import secret_randomness
from dpmodel.training.run import Run
from dpmodel.training.step import PrivateStep
from mechanisms.clipping import ClipMechanism, Fixed
from mechanisms.engines.base import ENGINES, ONE_AT_A_TIME
from mechanisms.engines.batch import first_tensor
from mechanisms.engines.modes import plain_modes
from mechanisms.engines.power_iterations import PowerIterations
from mechanisms.engines.precision import PRECISIONS
from mechanisms.engines.probing import inference, mode
from mechanisms.engines.state.pass_boundary import ISOLATION
from mechanisms.noise import AUTO, NoiseMechanism, NoNoise
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors import checks
from monitors.errors import UnprotectedUpdateError
from monitors.ledger import Ledger
from monitors.relation import relation_of

if TYPE_CHECKING:
    from dpmodel.preflight.trial import Trial
    from dpmodel.runs.recorder import RunRecorder
    from dpmodel.saving.record import ReleaseRecord
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.update_graph import UpdateGraph
    from mechanisms.engines.choose import Choice


class DPModel(ClaimedModel):
    """A network with its loss and optimizer, trained with differential privacy.

    Guarantees: the gradient of each example (or of each micro-batch group) is clipped to the bound of the clip
    mechanism; the noise follows that bound; every release is recorded on ``ledger`` before it is used; a gradient that
    is not finite contributes exactly zero; an empty Poisson batch is a noise-only step; the sum is divided by the
    expected batch size, never by the drawn one.

    Args:
        network: A module whose layers treat examples independently; ``dpmodel.validate`` checks this.
        loss_fn: ``loss_fn(outputs, targets)``, any reduction; see ``mechanisms.engines.ExampleLosses``.
        optimizer: A torch optimizer over the network's trainable parameters.
        micro_batches: None clips each example. A number k splits each batch into k groups and clips the mean
            gradient of each group. One example can then move the sum by twice the bound, and the ledger says so.
        norm_bound: Initial L2 norm bound, positive.
        noise_mech: From ``NoiseMechanismsFactory``; None trains without noise, at infinite epsilon.
        clip_mech: From ``ClipMechanismsFactory``; None is ``"Fixed"``. One that another model uses is copied.
        metrics: A name or a torchmetrics object, a list of them, or a dict under your own names.
        sampling: ``"poisson"`` (amplified), ``"shuffle"`` (no amplification claimed), or ``"cyclic_poisson"`` and
            ``"fixed_order"`` for correlated noise (``"BandedMF"``).
        engine: ``"auto"``, or the name of an engine.
        physical_batch_size: Largest number of examples in memory at once; it changes no result. None: the whole batch;
            ``"auto"``: what fits half of the free memory.
        precision: Of the forward and backward pass: ``"fp32"``, ``"tf32"`` (matrix products on a GPU) or ``"bf16"``
            (autocast). Norms, clipping, sum and noise are in full float32 (engine ``"bookkeeping"``).
        timed_plans: Time the exact formulas of each layer on the first batch instead of estimating which is fastest
            (engine ``"bookkeeping"``). Two runs may then differ in their last bits.
        static_shapes: Pass the same number of examples through the network each time: rows of weight 0 make up for what
            was not drawn, and a larger draw takes several passes. It changes no result. ``"auto"``: if passes can be
            replayed as CUDA graphs.
        cuda_graphs: On a GPU, replay passes and updates that are equal in all but their data as CUDA graphs (engine
            ``"bookkeeping"``), without the code of network, loss and optimizer; ``explain_engine()`` says when not.
        isolation: ``"verified"``: network and loss see one example at a time, and their Python state is restored after
            each pass; a network that keeps something of an example elsewhere is refused. ``"trust"`` trains it too,
            and marks the ledger and the report "isolation not verified".
        augmentation: Random transforms of each example, on the device: names of ``dpmodel.augmentation.AUGMENTATIONS``,
            or what else ``dpmodel.augmentation.Augmentation`` takes. None: none.
        augmentation_multiplicity: Number of views (random augmentations) of each example whose gradients are averaged
            before the clip. They count as one example: a step takes longer, and epsilon is the same.
        device: Where to train. Default: the device of the network.
        seed: None: secret sampling. An integer makes sampling reproducible and voids the guarantee (tests only).
        ledger: Where releases are recorded. Default: the ledger of the weights if this process has trained them
            privately before, otherwise a new one. Pass ``Ledger()`` for different data.

    Raises:
        ValueError: A value is out of range, or mechanisms contradict each other.

    Example:
        >>> from mechanisms import NoiseMechanismsFactory
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> network = nn.Linear(4, 2)
        >>> model = DPModel(
        ...     network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1),
        ...     noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0),
        ... )
        >>> data = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
        >>> history = model.fit(DataLoader(data, batch_size=16), epochs=2)
        the DataLoader was rebuilt; sampling is now: Poisson, rate 16/64 = 0.25 per step
        >>> model.ledger
        Ledger(8 releases in 1 rows)
    """

    def __init__(
        self,
        network: nn.Module,
        loss_fn: Callable[..., Tensor],
        optimizer: Optimizer,
        *,
        micro_batches: int | None = None,
        norm_bound: float = 1.0,
        noise_mech: NoiseMechanism | None = None,
        clip_mech: ClipMechanism | None = None,
        metrics: Any = None,
        sampling: str = "poisson",
        engine: str = "auto",
        physical_batch_size: int | str | None = None,
        precision: str = "fp32",
        timed_plans: bool = False,
        static_shapes: bool | str = "auto",
        cuda_graphs: bool = True,
        isolation: str = "verified",
        augmentation: Any = None,
        augmentation_multiplicity: int = 1,
        device: str | torch.device | None = None,
        seed: int | None = None,
        ledger: Ledger | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, type(self))
        check_types(network, loss_fn, optimizer, noise_mech, clip_mech)
        checks.positive(norm_bound=norm_bound)
        if micro_batches is not None:
            checks.positive_int(micro_batches=micro_batches)
        if physical_batch_size is not None and physical_batch_size != "auto":
            checks.positive_int(physical_batch_size=physical_batch_size)
        checks.one_of(PRECISIONS, precision=precision)
        checks.one_of(ISOLATION, isolation=isolation)
        checks.one_of((True, False, "auto"), static_shapes=static_shapes)
        SAMPLERS.get(sampling)
        if engine != "auto":
            ENGINES.get(engine)
        self.network = network
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.micro_batches = micro_batches
        self.noise_mech = noise_mech if noise_mech is not None else NoNoise()
        # The bound that one model learns from its data is a release on its ledger, and must not reach another.
        self.clip_mech = Fixed() if clip_mech is None else own_clip(clip_mech)
        self.sampling = sampling
        self.engine = engine
        self.physical_batch_size = physical_batch_size
        self.precision = precision
        self.timed_plans = bool(timed_plans)
        self.static_shapes = static_shapes
        self.cuda_graphs = bool(cuda_graphs)
        self.isolation = isolation
        self.augmentation = Augmentation.of(augmentation, augmentation_multiplicity)
        self.seed = seed
        self.metrics = MetricSet("loss" if metrics is None else metrics, loss_fn=loss_fn)
        self.metrics_asked = metrics is not None
        self._claim_weights(ledger)
        self.steps_done = 0
        self._choice: tuple[Choice, UpdateGraph] | None = None
        require_agreement(self.noise_mech, norm_bound)
        self.norm_bound = float(norm_bound)
        self.clip_mech.start(norm_bound)
        self.device = _device_of(network) if device is None else usable_device(device)
        network.to(self.device)

    def __repr__(self) -> str:
        parts = type(self.network).__name__, repr(self.noise_mech), repr(self.clip_mech)
        return f"DPModel({', '.join(parts)}, {self.steps_done:,} steps done)"

    def __getstate__(self) -> dict[str, Any]:
        read_late(self.network)  # a copy has a ledger of its own
        # An engine serves one network, so the next fit chooses again; a copy is not in training.
        return {**self.__dict__, "_choice": None, "_in_training": False}

    def fit(
        self,
        loader: Any,
        epochs: int = 1,
        *,
        valid_loader: Any = None,
        callbacks: Any = (),
        keeper: ReleaseRecord | None = None,
        output: str | os.PathLike[str] | RunRecorder | None = None,
        **unknown: Any,
    ) -> History:
        """Train for ``epochs`` epochs. If another thread of the process trains a model, wait until it has finished.

        Args:
            loader: ``DataLoader`` (rebuilt for private sampling, announced once) or ``poisson_loader(...)``. That of an
                ``IterableDataset`` is read once, in order, with ``sampling="fixed_order"`` and 1 epoch.
            epochs: At least 1; an epoch is ``num_examples // batch_size`` steps.
            valid_loader: Held-out data for the metrics after each epoch; the training data are refused.
            callbacks: Callbacks and privacy monitors.
            keeper: ``StateKeeper(folder)`` saves the state of the training; with ``resume=True`` it resumes one.
            output: A new folder for ledger, privacy report, history, weights and training curve. Default: none.
            **unknown: Refused; the message names the argument to use instead.

        Returns:
            One record per finished epoch.

        Raises:
            ValueError, UnprotectedUpdateError: Before any budget is spent; ``docs/refused.md`` lists every refusal.
            UnprotectedUpdateError: While training; what was released stays on the ledger. If something without noise
                may have reached the weights, the ledger states a violation and an infinite epsilon, and later calls
                refuse to train these weights.
            NonFiniteGradientsError: While training: most gradients were NaN or infinite for many steps.
        """
        refuse_unknown(unknown, self.fit)
        checks.positive_int(epochs=epochs)
        check_keeper(keeper)
        if self._in_training:
            raise UnprotectedUpdateError("fit was called while this model is training; call it after fit has returned")
        ranks, iterations = current_ranks(), PowerIterations(self.network)
        with (
            ONE_AT_A_TIME,
            ranks.together(self),
            recording(output, keeper, ranks) as (recorder, records),
            plain_modes() as set_aside,
            iterations.held(),
        ):
            continues = self._continue_claim(loader)
            keepers: list[ReleaseRecord | Follower] = [*records]
            listeners = CallbackList(callbacks, last=[*records, *recorder], first_rank=ranks.first)
            begin = partial(self._begin, epochs=epochs, keepers=keepers, listeners=listeners)
            trial = preflight.check(self, loader, valid_loader, begin)
            step = self._private_step(trial, iterations)
            for line in filter(None, (continues, set_aside, *trial.lines)):
                trial.run.say(line)
            evaluate = None if valid_loader is None else lambda: self.evaluate(valid_loader)
            drawn = trial.run, trial.loader, trial.collation
            self._carry_out(TrainingLoop(*drawn, step, listeners, evaluate, self.device, keepers, trial.augmentation))
        return trial.run.history

    def train(
        self, epochs: int, loader: Any, callbacks: Any = (), *, dataset_sink_mode: bool = False, **options: Any
    ) -> History:
        """``fit``, by MindSpore's name; there is no sink mode."""
        _refuse_sink_mode(dataset_sink_mode)
        return self.fit(loader, epochs, callbacks=callbacks, **options)

    def evaluate(self, loader: Any, *, batch_size: int | None = None) -> dict[str, float]:
        """Metrics over all of ``loader``, each example once.

        Args:
            loader: A ``DataLoader``, a data set, or ``(inputs, targets)``.
            batch_size: Examples per call of the network, if the loader does not say. Default: at most 1,000, and at
                most ``physical_batch_size``.

        Returns:
            Name to value; the mean loss under ``"loss"`` if the model has no metrics.
        """
        self.metrics.reset()
        with inference(self.network):
            for x, y in evaluation_batches(loader, self._inference_batch(batch_size)):
                if first_tensor(x).shape[0]:
                    self.metrics.measure(self.network, to_device(x, self.device), to_device(y, self.device))
        return self.metrics.compute()

    def eval(self, loader: Any, *, dataset_sink_mode: bool = False, **options: Any) -> dict[str, float]:
        """``evaluate``, by MindSpore's name; there is no sink mode."""
        _refuse_sink_mode(dataset_sink_mode)
        return self.evaluate(loader, **options)

    def predict(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """The network's outputs for ``inputs`` in evaluation mode, in the order given, without gradients.

        This is post-processing of a private model and costs no budget.

        Args:
            inputs: A tensor or NumPy array whose first dimension counts examples, a tuple, list or dict of them (one
                per argument of the network), or what ``evaluate`` takes: a ``DataLoader``, a data set, or, if the
                network has one input, ``(inputs, targets)``. Targets are ignored; a loader that shuffles is read in
                order.
            batch_size: Examples per call of the network; default: as in ``evaluate``.

        Returns:
            A tensor, or what the network returns: tensors in tuples, lists, dicts and ``ModelOutput`` objects.

        Raises:
            DataError: The inputs are not tensors or arrays, or the outputs of several batches cannot be joined.
        """
        return predictions(self.network, inputs, self.device, self._inference_batch(batch_size))

    def explain_engine(self) -> str:
        """Which engine computes the clipped sums, why, and how it treats each layer; known after ``fit``."""
        if self._choice is None:
            return "the engine is chosen when fit sees the first examples"
        choice, updates = self._choice
        parts = choice.reason, choice.engine.explain_isolation(), choice.engine.explain(), *updates.words(self.device)
        return "\n".join(parts)

    def _begin(
        self, loader: PrivateLoader, *, epochs: int, keepers: list[ReleaseRecord | Follower], listeners: CallbackList
    ) -> Run:
        """The run of this call of ``fit``; a resumed training is restored."""
        ranks = current_ranks()
        state = ranks.share(next((keeper.state for keeper in keepers if keeper.state is not None), None))
        require_one_pass(loader.dataset, epochs, processes=ranks.size, resumed=state is not None)
        plan = self._plan(loader, epochs, state, listeners)
        run = Run(self, plan, epochs, loader.steps_per_epoch, listeners, ranks)
        run.sources = loader.sources
        for keeper in keepers:
            keeper.restore(run, listeners)
        ledger, saves_state = ranks.share((run.ledger, any(keeper.saves_state for keeper in keepers)))
        if not ranks.first:
            keepers.append(Follower(run, state, ledger, saves_state=saves_state))
        if state is not None:
            record_training(self.network, self._claim)  # the restored weights are those of a private training
            end = plan.sampler.first_partition + plan.sampler.partitions(run.planned_steps - run.first_step)
            self.ledger.reserve_partitions(max(1, end - self.ledger.next_partition))
        return run

    def _plan(
        self, loader: PrivateLoader, epochs: int, state: TrainingState | None, listeners: CallbackList
    ) -> ReleasePlan:
        unit = ClippedUnit.of(loader.batch_size, self.micro_batches)
        partition = self.ledger.next_partition if state is None else state.run["first_partition"]
        first_step = self.steps_done if state is None else state.run["first_step"]

        def plan_with(noise: NoiseMechanism) -> ReleasePlan:
            return ReleasePlan(noise, self.clip_mech, unit, loader.make_sampler(self.seed, partition), first_step)

        noise = self.noise_mech
        if noise.bands != 1:
            workload = training_workload(self.optimizer, listeners, epochs, loader.steps_per_epoch)
            if noise.bands == AUTO:
                auto = noise
                noise = auto.with_bands(best_for_multiplier(lambda bands: plan_with(auto.with_bands(bands)), workload))
            noise = noise.prepared(workload)
        plan = plan_with(noise)
        if state is None:  # a training on this ledger may have begun while the bands were chosen
            steps = epochs * loader.steps_per_epoch
            plan.sampler.first_partition = self.ledger.reserve_partitions(plan.sampler.partitions(steps))
        relation_of([*self.ledger, (plan.event(first_step), 1)])  # one ledger, one statement
        return plan

    def _carry_out(self, loop: TrainingLoop) -> None:
        run = loop.run
        with (
            self._described(run),
            mode(self.network, training=True),
            self._training(run, loop.loader) as loop.before_pass,
            run.ranks.together(self),
            loop.releases.watched(),
            loop.step.guard.until_the_end(),
            finishing_steps(run) if any(keeper.saves_state for keeper in loop.keepers) else nullcontext(),
        ):
            try:
                loop.listeners.notify("on_train_begin", run)
                self._state_claim(run)
                loop()
            finally:
                loop.step.release()  # per-example gradients do not outlive the training
                with suppress(UnprotectedUpdateError):  # ``until_the_end`` raises it
                    run.read_late()  # callbacks may save the weights
                loop.listeners.notify("on_train_end", run)
        loop.releases.settle()
        record_result(self.network, self.claim, self.optimizer, *self._beside(loop.loader))

    @contextmanager
    def _training(self, run: Run, loader: PrivateLoader) -> Iterator[Callable[[], None] | None]:
        self._in_training = True
        claim = self.claim
        claim.begin(run.violated, run.read_late)
        record_training(self.network, claim, self.optimizer)
        drawing = (*loader.sources, self.network, self.loss_fn)
        try:
            with (
                secret_randomness(self.device, *drawing) if run.plan.secret else nullcontext() as renew,
                torch.enable_grad(),
            ):
                yield renew
        finally:
            claim.end(run.violated, run.read_late)
            self._in_training = False

    def _private_step(self, trial: Trial, iterations: PowerIterations) -> PrivateStep:
        guard = UpdateGuard(self.network, self.optimizer, self.loss_fn, self.claim.violate)
        trial.run.guarded_by(guard)
        trained = self.network, self.loss_fn, self.optimizer, trial.engine, trial.run.plan, self.ledger
        step = PrivateStep(*trained, guard, trial.padding, iterations, trial.run.ranks)
        self._choice = trial.choice, step.graph
        self.claim.verified(verified_by(step))
        return step

    def _inference_batch(self, batch_size: int | None) -> int:
        if batch_size is not None:
            checks.positive_int(batch_size=batch_size)
            return batch_size
        stated = self.physical_batch_size
        return min(INFERENCE_BATCH, stated) if isinstance(stated, int) else INFERENCE_BATCH

    def _state_claim(self, run: Run) -> None:
        if run.plan.statement not in self.statements:
            self.statements.append(run.plan.statement)
        for caveat in (*run.plan.caveats, *run.notes):
            self.ledger.add_note(caveat)
        if self.isolation == "trust":
            self.ledger.add_note(NOT_VERIFIED)
            run.say(NOT_VERIFIED)
        for note in run.notes:
            run.say(note)
        if self.noise_mech.private and run.delta * run.plan.sampler.stated_examples >= 1:
            run.say(large_delta(run.delta, run.plan.sampler.stated_examples))
        if not self.noise_mech.private:
            run.say("no noise mechanism: this training is NOT private (epsilon is infinite)")
        elif run.plan.unit.grouped:
            run.say(
                f"micro-batches of {run.plan.unit.group_size} examples: one example can move the clipped sum by twice "
                "the norm bound, so each noise multiplier is accounted at half its value"
            )
        if run.plan.count_warning:
            run.say(run.plan.count_warning)


def _refuse_sink_mode(wanted: bool) -> None:
    if wanted:
        raise ValueError("dataset_sink_mode=True exists for MindSpore's devices only; leave it out or pass False")


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
