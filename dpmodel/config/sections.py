"""Sections of the configuration other than ``privacy``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from dpmodel.config.fields import FromList, NamedSection, NonNegativeInt, PositiveFloat, PositiveInt, Section, UnitFloat
from monitors import checks
from monitors.events import GaussianEvent
from monitors.ledger import Ledger


class DataSection(NamedSection):
    """The data set; other keys are arguments of the reader (``root``, ``image_size``, ``mean``, ``std``, ...).

    Args:
        name: A registered data set.
        limit: Train on only this many examples, the first ones of a fixed public permutation.
        test_limit: The same for the test examples.
        validation: Hold this many training examples back, and measure the metrics on them instead of the test examples.
        num_examples: The number of training examples, needed to plan without reading the data. An error is raised if
            it does not match the data.
    """

    name: str = "mnist"
    limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None
    validation: PositiveInt | None = None
    num_examples: PositiveInt | None = None

    @property
    def rows_by_position(self) -> dict[str, int]:
        """Settings that choose training examples by their position among all rows, with the prefix ``data.``."""
        chosen = {"data.limit": self.limit, "data.validation": self.validation}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def reader_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``dpmodel.data.load_dataset``."""
        stated = {"limit": self.limit, "test_limit": self.test_limit, "validation": self.validation}
        return {"name": self.name, **stated, **self.options}


class FeaturesSection(NamedSection):
    """Features that replace the inputs, computed once; other keys are arguments (``J``, ``L``, ``module``, ...).

    Args:
        name: ``scattering``, ``network``, or other registered features. They must be public: see ``docs/features.md``.
        cache: Keep the features on disk, in the cache folder.
        batch_size: Examples per pass while they are computed.
    """

    cache: bool = True
    batch_size: PositiveInt = 256


class TransformSection(NamedSection):
    """A random transform by its registered name; other keys are its arguments (``padding``, ...)."""


class AugmentationSection(Section):
    """Random augmentation of the examples on the training device.

    Args:
        transforms: Applied one after the other to each example.
        multiplicity: Number of random views of each example, whose gradients are averaged before the clip. It does not
            affect epsilon.
    """

    transforms: Annotated[tuple[TransformSection, ...], FromList] = Field(min_length=1)
    multiplicity: PositiveInt = 1

    @property
    def named(self) -> list[dict[str, Any]]:
        """The transforms as mappings of their names and arguments."""
        return [{"name": one.name, **one.options} for one in self.transforms]


class NormaliseSection(Section):
    """Normalisation of the inputs per channel, with statistics that are released when the training begins.

    Args:
        name: ``private``: noisy mean and variance of the training data, two releases on the ledger of the training, and
            a third one with ``whitening``.
        noise_multiplier: Noise multiplier of each release.
        norm_bound: Largest L2 norm of an example's means; it must not depend on the data.
        square_bound: Largest L2 norm of an example's second moments; it must not depend on the data.
        min_variance: Smallest variance that is used; null: the standard deviation of the noise of a second moment.
        whitening: Share of the correlation of the channels that is removed, from 0 to 1, by their noisy correlation. It
            speeds up training on features that are strongly correlated, such as scattering coefficients; see
            ``dpmodel.statistics.PrivateStatistics.normalise``.
    """

    name: Literal["private"]
    noise_multiplier: PositiveFloat
    norm_bound: PositiveFloat
    square_bound: PositiveFloat
    min_variance: PositiveFloat | None = None
    whitening: UnitFloat = 0.0

    @property
    def ledger(self) -> Ledger:
        """What it releases."""
        return Ledger().record(GaussianEvent(self.noise_multiplier), 3 if self.whitening else 2)


class NetworkSection(NamedSection):
    """The network: a registered ``name``, or ``module: package.module:Class``; other keys are its arguments.

    Args:
        name: A registered network.
        module: A class or function, as ``package.module:Class``; give this or ``name``. It is called only if it builds
            a network: see ``dpmodel.nets.user_module.import_network``.
        fix: Replace layers that cannot be trained privately, as ``dpmodel.fix`` does: for example, batch normalisation
            with group normalisation.
    """

    name: str | None = None  # type: ignore[assignment]
    module: str | None = None
    fix: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> NetworkSection:
        if (self.name is None) == (self.module is None):
            raise ValueError(
                f"give either name or module, got name={self.name!r} and module={self.module!r}; for example "
                "'name: lenet5', or 'module: my_package.networks:MyNet'"
            )
        if "seed" in self.options:
            raise ValueError(
                f"seed={self.options['seed']!r} does not belong here; set training.seed, which seeds the "
                "initial weights"
            )
        return self


class LossSection(NamedSection):
    """The loss: a registered name or a loss class of ``torch.nn``; other keys are its arguments."""

    name: str = "cross_entropy"


class ScheduleSection(NamedSection):
    """Learning-rate schedule: a class of ``torch.optim.lr_scheduler``; other keys are its arguments.

    Args:
        name: Such as ``LinearLR``.
        interval: ``step`` or ``epoch``: how often the schedule is advanced.
    """

    interval: str = "step"


class OptimizerSection(NamedSection):
    """The optimizer: SGD, Momentum, Adam, or any of ``torch.optim``; other keys are its arguments (``lr``, ...).

    Args:
        name: Name of the optimizer.
        schedule: Learning-rate schedule, or null for a constant rate.
    """

    name: str = "SGD"
    schedule: ScheduleSection | None = None


def _part_of_batch(value: Any) -> Any:
    try:
        if value not in (None, "auto"):
            checks.positive_int(physical_batch_size=value)
    except ValueError:
        wanted = "an integer of at least 1, 'auto' or null"
        raise ValueError(f"physical_batch_size must be {wanted}, got {value!r}") from None
    return value


class PerformanceSection(Section):
    """Settings that affect speed and memory, and never epsilon.

    Args:
        engine: ``auto``, or the name of an engine.
        physical_batch_size: Most examples in memory at once. null: the whole batch; ``auto``: as many as fit into half
            of the free memory.
        precision: Of forward and backward passes: ``fp32``, ``tf32`` (matrix products on a GPU) or ``bf16`` (autocast);
            engine ``bookkeeping``.
        timed_plans: Time each layer's exact formulas on the first batch instead of estimating which one is fastest
            (engine ``bookkeeping``).
        static_shapes: Pass the same number of examples through the network each time; rows of weight 0 make up for what
            was not drawn. ``auto``: if passes can be replayed as CUDA graphs.
        cuda_graphs: On a GPU, replay passes that are equal in all but their data as CUDA graphs (engine
            ``bookkeeping``).
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda``, ``cuda:1``, ...
        in_memory: Keep the examples on the training device.
        workers: Number of processes that prefetch batches; needs ``in_memory: false``.
        threads: Number of threads that torch may use; null leaves the choice to torch.
        isolation: ``verified`` gives the network and the loss one example at a time, and refuses a network that keeps
            something of an example where it cannot be reset. ``trust`` trains such a network and marks the ledger and
            the report.
    """

    engine: str = "auto"
    physical_batch_size: Annotated[int | Literal["auto"] | None, PlainValidator(_part_of_batch)] = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    timed_plans: bool = False
    static_shapes: bool | Literal["auto"] = "auto"
    cuda_graphs: bool = True
    isolation: Literal["verified", "trust"] = "verified"
    device: str = "auto"
    in_memory: bool = True
    workers: NonNegativeInt = 0
    threads: PositiveInt | None = None

    @model_validator(mode="after")
    def _workers_need_host_memory(self) -> PerformanceSection:
        if self.workers and self.in_memory:
            raise ValueError(
                f"workers={self.workers} needs the examples in host memory, but in_memory keeps them on the training "
                "device; set in_memory: false, or workers: 0"
            )
        return self


class TrainingSection(Section):
    """Length, batch size and metrics.

    Args:
        epochs: Number of epochs of ``num_examples // batch_size`` steps each. It affects epsilon.
        batch_size: Expected number of examples per step. It sets the sampling rate, so it affects epsilon.
        seed: Seed of the initial weights, which are public. Noise and sampling never use it.
        metrics: Names of the metrics that are computed on the test data after each epoch.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    seed: NonNegativeInt | None = 0
    metrics: Annotated[tuple[str, ...], FromList] = Field(default=("accuracy", "loss"), min_length=1)


class CallbackSection(NamedSection):
    """A callback by its registered name; other keys are its arguments."""


class OutputSection(Section):
    """Which files are written. The ledger and the privacy report are always written.

    Args:
        directory: The run folder; null: ``runs/<name of the configuration>``.
        checkpoint: Write the trained weights.
        history: Write the history as CSV.
        curve: Draw the training curve.
        save_every_steps: Steps between two saves of the training state, from which an interrupted training resumes.
            null saves no state, so that an interrupted training cannot be resumed.
    """

    directory: str | None = None
    checkpoint: bool = True
    history: bool = True
    curve: bool = True
    save_every_steps: PositiveInt | None = 100
