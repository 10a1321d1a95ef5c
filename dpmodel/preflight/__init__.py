"""The list of checks that a training passes before its first release, in order.

Nothing is released, and no budget is spent, before the last check has passed. ``docs/refused.md`` is generated from
this list (``dpmodel.preflight.table``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from monitors.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DistributedError,
    DPModelError,
    UnprotectedUpdateError,
    UnsupportedEventError,
    UnsupportedLoaderError,
    UnsupportedModuleError,
)

if TYPE_CHECKING:
    from dpmodel.data.loader import PrivateLoader
    from dpmodel.model import DPModel
    from dpmodel.preflight.trial import Trial
    from dpmodel.training.run import Run


class Refusal(NamedTuple):
    """One thing that a check refuses.

    Args:
        what: What is refused, and why.
        instead: What to do instead.
        error: The exception, if it differs from that of the check.
    """

    what: str
    instead: str
    error: type[Exception] | None = None


class Check(NamedTuple):
    """One check.

    Args:
        name: Name of its function in ``dpmodel.preflight.trial``.
        error: The exception that it raises.
        refusals: What it refuses.
        reads: ``"settings"``, ``"examples"`` (it reads private examples), or ``"passes"`` (it also passes them through
            the network).
        setting: The setting of a configuration that an UnsupportedModuleError or DataError concerns; of several,
            the first that is written.
    """

    name: str
    error: type[Exception]
    refusals: Sequence[Refusal]
    reads: str = "settings"
    setting: str | tuple[str, ...] | None = None

    def __call__(self, trial: Trial) -> None:
        """Run the check.

        Raises:
            Exception: One of ``refusals``. Errors of dpmodel have ``setting`` as an attribute.
        """
        from dpmodel.preflight import trial as functions  # late: this list needs no torch

        try:
            getattr(functions, self.name)(trial)
        except DPModelError as error:
            error.setting = self.setting  # type: ignore[attr-defined]
            raise


def check(model: DPModel, loader: Any, valid_loader: Any, begin: Callable[[PrivateLoader], Run]) -> Trial:
    """Run all checks in order. They leave network, loss, optimizer and data set as they were.

    If one refuses, the random generators are left as they were too.

    Args:
        model: The model to be trained.
        loader: The training data, as ``fit`` takes them.
        valid_loader: Held-out data, or None.
        begin: Makes the run, and restores the model of a resumed training. Called once the network's layers and torch's
            modes have passed.

    Returns:
        The private loader, the run, the engine, and notes for the user.

    Raises:
        DPModelError, ValueError: The first refusal.
    """
    from dpmodel.data.generators import Generators
    from dpmodel.preflight.trial import CONTEXTS, Trial

    trial = Trial(model, loader, valid_loader, begin)
    with Generators(loader, valid_loader).preserved(if_refused=True):
        for reads, entries in groupby(CHECKS, key=lambda entry: entry.reads):
            with CONTEXTS[reads](trial):
                for entry in entries:
                    entry(trial)
    return trial


# fmt: off
#: The order matters: what costs nothing comes first, the memory of a data set is tested before anything else is read,
#: and the network is probed before the loss, the mechanisms and the engine are tried on it.
CHECKS: tuple[Check, ...] = (
    Check("arguments", ValueError, [
        Refusal("A class or a name in place of an object: `loss_fn=nn.MSELoss`, `noise_mech='Gaussian'`.",
            "Pass an object: `nn.MSELoss()`, `NoiseMechanismsFactory.create('Gaussian', ...)`."),
        Refusal("An optimizer that needs a closure (LBFGS) or sparse gradients (SparseAdam).",
            "Use one whose `step()` takes a single dense gradient, such as SGD or Adam."),
        Refusal("An optimizer with a NaN or infinite setting, a negative learning rate, or momentum of 1 or more.",
            "Correct the setting that the message names."),
    ]),
    Check("loader", UnsupportedLoaderError, [
        Refusal("A stream (`IterableDataset`) without a length: the number of examples is part of the statement.",
            "Define `__len__`, or pass `dpmodel.data.Stream(dataset, num_examples=...)`."),
        Refusal("A stream with a sampling that draws examples, or with worker processes (they repeat it).",
            "Train one pass with `sampling='fixed_order'` and `num_workers=0`, or use a map-style data set."),
        Refusal("A weighted, distributed or custom sampler, a `batch_sampler`, or replacement: not accounted for.",
            "Pass `DataLoader(dataset, batch_size=...)`; select rows with `Subset` or `SubsetRandomSampler`."),
        Refusal("Tensors, a list of batches, or `batch_size=None`: the batch size sets the sampling rate.",
            "Pass `DataLoader(TensorDataset(x, y), batch_size=64)` or `poisson_loader(dataset, 64)`."),
        Refusal("A `poisson_loader` for a model with `sampling='shuffle'`.",
            "Build the model with the sampling of the loader."),
        Refusal("A `Subset` or `ConcatDataset` that holds a row more than once: the ledger accounts for one.",
            "Include each row once. To weight a class, weight its loss."),
        Refusal("A batch size larger than the data set.",
            "Choose a smaller batch size.", ValueError),
    ]),
    Check("validation_data", UnsupportedLoaderError, [
        Refusal("Validation data that share rows with the training data: the metrics would have no noise.",
            "Pass held-out data. `evaluate` shows how well the training data are fitted."),
    ]),
    Check("layers", UnsupportedModuleError, [
        Refusal("BatchNorm and SyncBatchNorm: they mix the examples of a batch.",
            "Call `dpmodel.fix(network)`: `GroupNorm`, or `FrozenBatchNorm` for frozen layers."),
        Refusal("InstanceNorm with `track_running_stats=True`: statistics of the data without noise.",
            "Call `dpmodel.fix(network)`, or set `track_running_stats=False`."),
        Refusal("Embedding with `max_norm` or `scale_grad_by_freq`: it rescales by the rows that a batch looks up.",
            "Call `dpmodel.fix(network)`, or leave both out."),
        Refusal("Lazy layers that have not seen a batch: their parameters have no shape yet.",
            "Call the network once, for example on zeros, before you build `DPModel`."),
        Refusal("A network in `DistributedDataParallel`, `DataParallel` or FSDP (they mix unclipped gradients), or "
            "with `DTensor` parameters.",
            "Pass the bare module; dpmodel adds up the clipped sums of the processes itself. A network that does not "
            "fit on a device trains with `ShardedStep`."),
        Refusal("A network without trainable parameters.",
            "Unfreeze some parameters with `requires_grad_(True)`."),
        Refusal("Parameters that are NaN or infinite before training.",
            "Initialise the network again, or load finite weights."),
        Refusal("Complex parameters.",
            "Use real ones with a last dimension of 2, and `torch.view_as_complex`."),
    ], setting="network"),
    Check("modes", ConfigError, [
        Refusal("A `TorchDispatchMode` or `TorchFunctionMode` around `fit`: it could change norms and noise.",
            "Call `fit` outside it."),
        Refusal("A PyTorch operator with a replaced kernel: it would compute norms and noise too.",
            "Remove the kernel before `fit`, or register it for an operator of your own."),
        Refusal("Parameters that were created in `torch.inference_mode()`: they cannot have gradients.",
            "Build the network outside inference mode.", UnsupportedModuleError),
    ], setting="network"),
    Check("run", ValueError, [
        Refusal("A batch size that is not a multiple of `micro_batches`.",
            "Choose a multiple of `micro_batches` as batch size."),
        Refusal("Correlated noise (`BandedMF`) with adaptive clipping, micro-batches, or too frequent examples.",
            "Use `sampling='cyclic_poisson'` or `'fixed_order'` and a fixed bound, or `Gaussian` noise."),
        Refusal("A stream for several epochs, or one that a training has read: it is read once.",
            "Use `epochs=1` and a new object, or a map-style data set for several passes.", UnsupportedLoaderError),
        Refusal("A stream for several processes: each would have to see the same examples in the same order.",
            "Start a single process, or use a map-style data set.", DistributedError),
        Refusal("A resumed training on a stream: whether the same examples arrive again is not known.",
            "Train on the examples that are left, from the saved weights and with the ledger of the folder.",
            CheckpointError),
        Refusal("A ledger with releases for a different neighbour relation: no single epsilon covers both.",
            "Use the same sampling for all trainings on these data, or two ledgers.", UnsupportedEventError),
        Refusal("A saved state that is damaged or belongs to a different training.",
            "Resume with the settings of the interrupted training, or use a new folder.", CheckpointError),
    ]),
    Check("calibration", UnprotectedUpdateError, [
        Refusal("Noise from `noise_for_epsilon(..., spent=ledger)` for a model whose ledger lacks those releases.",
            "Pass the same ledger to `DPModel(ledger=...)`."),
        Refusal("`num_examples_public` after private statistics of the rows, which use their true number.",
            "Leave out `num_examples_public`, or normalise with public constants."),
    ]),
    Check("memory", DataError, [
        Refusal("A data set whose items depend on the items read before, such as a running mean.",
            "Let `__getitem__` depend on its index only."),
        Refusal("A stream that ends before its stated number of examples, if its first ones show it.",
            "State the number of examples that arrive."),
    ], reads="examples", setting="data"),
    Check("optimizer", UnprotectedUpdateError, [
        Refusal("An optimizer that lacks trainable parameters of the network, or was built before `fix`.",
            "Build it from `network.parameters()`, or freeze the missing parameters."),
        Refusal("An optimizer with trainable parameters of the loss or a different module: they get no noise.",
            "Make them parameters of the network, or leave them out of the optimizer."),
        Refusal("An optimizer whose `step()` fails or cannot be called without arguments.",
            "Change the settings that the message names, or use a different optimizer.", ConfigError),
        Refusal("An optimizer whose settings make the weights NaN or infinite within a few steps.",
            "Lower the learning rate or weight decay, or use the defaults.", ConfigError),
    ]),
    Check("network", UnsupportedModuleError, [
        Refusal("A layer of any type that mixes examples, such as attention over the first dimension.",
            "Make each layer treat every example separately."),
        Refusal("A forward pass that writes to buffers or parameters: data stored there get no noise.",
            "Use a layer that keeps no statistics of the data, or freeze them."),
        Refusal("A network that stores earlier data in Python attributes.",
            "Keep no state of the data in `forward`."),
        Refusal("Examples that are not dense tensors (text, objects, sparse or nested tensors).",
            "Convert them in the data set or in a `collate_fn`.", DataError),
        Refusal("Inputs that the network does not accept, or a network that works for one batch size only.",
            "Fix their shape or type; take the batch size from `x.shape[0]`.", DataError),
    ], reads="passes", setting="network"),
    Check("augmentation", DataError, [
        Refusal("An augmentation that does not fit the examples, such as a crop of vectors.",
            "Give the examples the shape (channels, height, width), or leave the augmentation out."),
        Refusal("An augmentation that changes shape or type of an example, or makes its values NaN or infinite.",
            "Return views in shape, type and device like the copies that it is given."),
        Refusal("An augmentation that combines examples, keeps state, or decides by the values of an example.",
            "Compute each view from one image and the given random numbers alone."),
    ], reads="passes", setting="augmentation"),
    Check("targets", DataError, [
        Refusal("Class indices that are out of range or not integers.",
            "Correct the labels, convert them with `targets.long()`, or add outputs."),
        Refusal("`CrossEntropyLoss` for a network with a single output: it is always 0.",
            "Use `BCEWithLogitsLoss` for two classes, `MSELoss` or `L1Loss` for numbers."),
        Refusal("Targets that an element-wise loss would broadcast, such as (B,) over outputs (B, 1).",
            "Give both the same shape: `targets.unsqueeze(1)`, or `outputs.squeeze(1)`."),
    ], reads="passes", setting=("network.num_classes", "loss", "network")),
    Check("loss", UnsupportedModuleError, [
        Refusal("A loss that compares the examples of a batch (contrastive, in-batch negatives, ranking).",
            "Put everything that an example is compared with into the example."),
        Refusal("A loss that depends on no trainable parameter: training would only add noise.",
            "Look for `detach()`, `.item()`, `torch.no_grad()` or `argmax` in network and loss."),
        Refusal("A network or a loss that holds training examples, such as a memory bank.",
            "Use public examples, or private statistics (`dpmodel.statistics`).", DataError),
        Refusal("A loss that fails on the network's outputs and the targets.",
            "Apply the conversion that the message suggests, such as `targets.float()`.", DataError),
    ], reads="passes", setting="loss"),
    Check("mechanisms", UnprotectedUpdateError, [
        Refusal("A noise mechanism that adds less noise than its event states, or correlated noise.",
            "Make mechanism and event agree; the message says what was measured."),
        Refusal("A clip mechanism that exceeds its bound, or whose bound follows the norms unaccounted.",
            "Make mechanism and event agree; the message says what was measured."),
        Refusal("A sampler that does not draw its rows as it states.",
            "Draw from `self.generator`, and state what is drawn."),
    ], reads="passes"),
    Check("engine", UnsupportedModuleError, [
        Refusal("An engine, requested by name, that cannot compute this network exactly.",
            "Use `engine='auto'` or `engine='loop'`."),
        Refusal("A network or loss that stores data of an example in a file or a thread.",
            "Remove it; `isolation='trust'` trains it, and marks the ledger and the report."),
        Refusal("`torch.utils.checkpoint` with `use_reentrant=True`: it hides gradients of single examples.",
            "Use `use_reentrant=False`."),
        Refusal("TF32 and other reduced float32 products: a clipped gradient could exceed its bound.",
            "Call `torch.set_float32_matmul_precision('highest')`; use `precision='tf32'` or `'bf16'`.", ConfigError),
    ], reads="passes", setting="performance.engine"),
    Check("rows", DataError, [
        Refusal("A data set that repeats its rows, as oversampling does: the ledger accounts for one.",
            "Include each row once. To weight a class, weight its loss."),
        Refusal("A stream that repeats its first examples; all others are compared as they arrive.",
            "Let each example arrive once."),
        Refusal("A data set that uses one stored row in several examples: overlapping windows (`unfold`), mixup.",
            "Let example i depend on row i only; keep public tables outside the data set."),
    ], reads="examples", setting="data"),
    Check("batches", DataError, [
        Refusal("A `collate_fn`, `batch` or `transform_batch` that mixes the examples of a batch.",
            "Make each row of the batch from one example."),
    ], reads="examples", setting="data"),
    Check("collation", DataError, [
        Refusal("Padding to the longest example of a batch, if it changes the gradients of shorter ones.",
            "Pad to one fixed length, or mask the padding in network and loss."),
    ], reads="examples", setting="data"),
    Check("metrics", DataError, [
        Refusal("Validation data that are empty, or an iterator that is used for several epochs.",
            "Pass a `DataLoader`, a data set, or `(inputs, targets)`."),
        Refusal("Metrics that cannot be computed from the outputs and the targets.",
            "Choose metrics that fit: `DPModel(..., metrics=...)`."),
    ], setting="training.metrics"),
    Check("ranks", DistributedError, [
        Refusal("Processes of one training that differ in settings, versions, ledger or data set.",
            "Start each with the same script and the whole data set, in the same order."),
    ], reads="examples"),
)
# fmt: on
