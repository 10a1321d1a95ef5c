"""The checks of ``dpmodel.preflight.CHECKS``, one function each under the name of its entry, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dpmodel.data.collation import Collation
from dpmodel.data.loader import PrivateLoader, private_loader
from dpmodel.data.row_choice import require_held_out
from dpmodel.data.targets import require_class_targets, require_same_shape
from dpmodel.distributed.agreement import require_agreement, require_bare
from dpmodel.distributed.shared_rows import SharedRows
from dpmodel.preflight.arguments import check_types
from dpmodel.preflight.arrivals import require_separate_arrivals
from dpmodel.preflight.augmentation import tried_views
from dpmodel.preflight.batches import require_unmixed_batches
from dpmodel.preflight.calibration import require_counted, require_private_size
from dpmodel.preflight.held_examples import require_no_examples
from dpmodel.preflight.loss import try_loss
from dpmodel.preflight.mechanisms import require_sound_mechanisms
from dpmodel.preflight.network import require_valid
from dpmodel.preflight.optimizer import require_same_parameters, require_steps
from dpmodel.preflight.outputs import TRIED, require_evaluable, require_measurable, tried_outputs
from dpmodel.preflight.refusal import listed, not_finite, reading_examples
from dpmodel.preflight.rows import require_no_memory, require_separate_rows
from dpmodel.training.loop import to_device
from mechanisms.engines.base import Engine
from mechanisms.engines.batch import Batch
from mechanisms.engines.choose import Choice, choose_engine
from mechanisms.engines.modes import require_no_modes
from mechanisms.engines.padding import padding_rows
from mechanisms.engines.parameters import FlatLayout, trainable_parameters
from mechanisms.engines.probing import mode, preserve_state, shared_recordings
from monitors.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from dpmodel.augmentation import Augmentation
    from dpmodel.model import DPModel
    from dpmodel.training.run import Run

#: Options of engines that are passed on only if they differ from these: "auto" skips an engine that lacks one.
_ENGINE_DEFAULTS: Mapping[str, object] = {"precision": "fp32", "timed_plans": False, "cuda_graphs": True}


@dataclass
class Trial:
    """A training that is about to start. The checks read the arguments and fill in the attributes.

    Args:
        model: The model to be trained.
        given: The loader as the user passed it.
        valid_loader: Held-out data, or None.
        begin: Makes the run from the private loader, and restores the model of a resumed training.

    Attributes:
        loader: The private loader.
        rebuilt: Whether it was made of a ``DataLoader``.
        run: The run.
        tried: The first ``TRIED`` examples.
        augmentation: Draws views of the examples, or None.
        viewed: ``tried``, or views of it, as the engine gets them in training.
        outputs: The network's outputs for them.
        choice: The engine, and why it was chosen.
        padding: Rows of embeddings whose gradient is always zero, by parameter.
        collation: Checks the batches of the training too.
        lines: Notes for the user.
    """

    model: DPModel
    given: Any
    valid_loader: Any
    begin: Callable[[PrivateLoader], Run]
    loader: PrivateLoader = field(init=False)
    rebuilt: bool = field(default=False, init=False)
    run: Run = field(init=False)
    tried: Batch = field(init=False)
    augmentation: Augmentation | None = field(default=None, init=False)
    viewed: Batch = field(init=False)
    outputs: Any = field(init=False)
    choice: Choice = field(init=False)
    padding: Mapping[str, Sequence[int]] = field(default_factory=dict, init=False)
    collation: Collation = field(init=False)
    lines: list[str] = field(default_factory=list, init=False)

    @property
    def engine(self) -> Engine:
        """The engine of the training."""
        return self.choice.engine

    @property
    def network(self) -> nn.Module:
        """The network to be trained."""
        return self.model.network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def secret(self) -> bool:
        """Whether the examples that are read are chosen secretly; otherwise they are the same in each run."""
        return self.run.plan.secret

    def examples(self, count: int) -> Batch:
        """The first ``count`` examples, on the device."""
        return Batch(*(to_device(value, self.device) for value in self.loader.example(count)))

    def say(self, line: str | None) -> None:
        """Add a line that ``fit`` prints once all checks have passed; None adds nothing."""
        if line:
            self.lines.append(line)


@contextmanager
def _passes(trial: Trial) -> Iterator[None]:
    with reading_examples(), shared_recordings(), preserve_state(trial.network, trial.model.loss_fn):
        yield


#: What a check reads -> the context in which it runs.
CONTEXTS: Mapping[str, Callable[[Trial], Any]] = {
    "settings": lambda trial: nullcontext(),
    "examples": lambda trial: reading_examples(),
    "passes": _passes,
}


def arguments(trial: Trial) -> None:
    """The arguments of ``DPModel`` again: its attributes may have been set since."""
    model = trial.model
    check_types(model.network, model.loss_fn, model.optimizer, model.noise_mech, model.clip_mech)


def loader(trial: Trial) -> None:
    """The loader has a privacy statement; a ``DataLoader`` is rebuilt."""
    trial.loader, trial.rebuilt = private_loader(trial.given, trial.model.sampling)


def validation_data(trial: Trial) -> None:
    """The validation data are not the training data."""
    require_held_out(trial.valid_loader, trial.loader.dataset)


def layers(trial: Trial) -> None:
    """Every layer of a known type treats examples independently, and some parameter can be trained."""
    require_bare(trial.network)
    require_valid(trial.network)
    broken = not_finite(trainable_parameters(trial.network))
    if broken:
        raise UnsupportedModuleError(
            f"the parameter(s) {listed(broken)} of the network are NaN or infinite before training. Initialise the "
            "network again, or load weights that are finite"
        )


def modes(trial: Trial) -> None:
    """No mode or replaced kernel of torch sees the norms, the sums and the noise."""
    require_no_modes(trial.network)


def run(trial: Trial) -> None:
    """The training can be planned, stated together with the ledger, and resumed."""
    trial.run = trial.begin(trial.loader)
    if trial.rebuilt:
        trial.say(f"the DataLoader was rebuilt; sampling is now: {trial.run.plan.sampler.describe()}")
    trial.run.has_validation = trial.valid_loader is not None


def calibration(trial: Trial) -> None:
    """The ledger holds what ``noise_for_epsilon`` counted as spent, and nothing that states a private size."""
    require_private_size(trial.loader, trial.model.ledger)
    trial.say(
        require_counted(trial.model.noise_mech, trial.model.ledger, resumed=trial.run.step > trial.run.first_step)
    )


def memory(trial: Trial) -> None:
    """Items do not depend on the items read before; called before anything else is read."""
    if trial.loader.stream is not None:
        trial.loader.stream.peek()  # what is read once cannot be compared; the checks that follow get these examples
        return
    require_no_memory(trial.loader, secret=trial.secret)


def optimizer(trial: Trial) -> None:
    """The optimizer holds the parameters of the network and can take a step."""
    require_same_parameters(trial.network, trial.model.optimizer, trial.model.loss_fn)
    require_steps(trial.model.optimizer)


def network(trial: Trial) -> None:
    """The network takes the examples, and treats them independently."""
    loader = trial.loader
    trial.tried = trial.examples(TRIED)
    trial.outputs = tried_outputs(
        trial.network, trial.tried.x, lambda: to_device(loader.spread(loader.batch_size)[0], trial.device)
    )


def augmentation(trial: Trial) -> None:
    """Augmentation gives views that are like the examples, each of one example."""
    trial.augmentation = trial.model.augmentation
    trial.viewed = tried_views(trial.augmentation, trial.tried)


def targets(trial: Trial) -> None:
    """The targets fit the loss and the outputs."""
    require_class_targets(trial.loader.dataset, trial.outputs, trial.model.loss_fn)
    require_same_shape(trial.outputs, trial.tried.y, trial.model.loss_fn)


def loss(trial: Trial) -> None:
    """The loss of a single example can be computed, has a gradient, and involves no other example."""
    model = trial.model
    require_no_examples(model.network, model.loss_fn, trial.tried)
    for note in try_loss(model.network, model.loss_fn, trial.loader, trial.device, model.clip_mech.norm_bound):
        trial.say(note)


def mechanisms(trial: Trial) -> None:
    """Clipping, noise and sampling do what their events state."""
    run = trial.run
    steps, layout = range(run.first_step, run.planned_steps), FlatLayout.of(trial.network)
    run.notes = require_sound_mechanisms(run.plan, steps, trial.loader.build_sampler, layout)


def engine(trial: Trial) -> None:
    """An engine can compute the clipped sums of this network."""
    model, plan = trial.model, trial.run.plan
    rows = SharedRows(plan.sampler, plan.unit, trial.run.ranks)
    asked = {name: getattr(model, name) for name in _ENGINE_DEFAULTS}
    with mode(model.network, training=True):
        trial.choice = choose_engine(
            model.engine,
            model.network,
            model.loss_fn,
            plan.unit,
            trial.viewed,
            physical_batch_size=model.physical_batch_size,
            options={name: value for name, value in asked.items() if value != _ENGINE_DEFAULTS[name]},
            isolation=model.isolation,
            capacity=rows.capacity if model.static_shapes is True else None,
        )
    if model.static_shapes == "auto" and trial.engine.replays_on(trial.device):
        trial.engine.capacity = rows.usual
    trial.say(trial.choice.slower)
    if not trial.engine.shows_values:
        trial.padding = padding_rows(model.network, model.loss_fn, trial.examples(1))


def rows(trial: Trial) -> None:
    """Each record counts in one example; those of a stream are compared as they arrive."""
    if trial.loader.stream is not None:
        require_separate_arrivals(trial.loader)
        return
    trial.say(require_separate_rows(trial.loader, secret=trial.secret))


def batches(trial: Trial) -> None:
    """Batches do not mix their examples."""
    require_unmixed_batches(trial.loader, secret=trial.secret)


def collation(trial: Trial) -> None:
    """Padding does not change the gradient of an example."""
    model = trial.model
    trial.collation = Collation(trial.loader, model.network, model.loss_fn, trial.device, trial.secret, model.clip_mech)
    trial.collation.check()


def metrics(trial: Trial) -> None:
    """The metrics can be computed: on the validation data, or on training examples if there are none."""
    model = trial.model
    measured = model.network, model.metrics, model.loss_fn
    if trial.valid_loader is not None:
        require_evaluable(*measured, trial.valid_loader, trial.run.epochs, trial.device)
        return
    with reading_examples():
        examples = trial.examples(TRIED)
        trial.say(require_measurable(*measured, examples.x, examples.y, asked=model.metrics_asked))


def ranks(trial: Trial) -> None:
    """All processes of the training train the same; they get the weights of rank 0."""
    require_agreement(trial)
