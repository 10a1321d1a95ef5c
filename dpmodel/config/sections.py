"""Sections of the configuration that change nothing about what an epsilon means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from dpmodel.config.fields import FromList, NamedSection, NonNegativeInt, PositiveInt, Section
from monitors import checks


class DataSection(NamedSection):
    """Which data; further keys are arguments of the reader (``root``, ``image_size``, ``mean``, ``std``, ...).

    Args:
        name: A registered data set.
        limit: Train on this many examples only, the first of a fixed public permutation.
        test_limit: The same for the test examples.
        num_examples: The number of training examples as you know it. Needed to plan without reading the data; where the
            data are read, a contradiction is an error.
    """

    name: str = "mnist"
    limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None
    num_examples: PositiveInt | None = None

    @property
    def reader_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``dpmodel.data.load_dataset``."""
        return {"name": self.name, "limit": self.limit, "test_limit": self.test_limit, **self.options}


class NetworkSection(NamedSection):
    """Which network: a registered ``name``, or ``module: package.module:Class``; further keys are its arguments.

    Args:
        name: A registered network.
        module: A class or function, as ``package.module:Class``; give it or ``name``.
        fix: Replace layers that cannot be trained privately, as ``dpmodel.fix`` does: batch normalisation by group
            normalisation, for example.
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
            raise ValueError(f"seed={self.options['seed']!r} belongs to training.seed, which seeds the initial weights")
        return self


class LossSection(NamedSection):
    """Which loss: a registered name or a loss class of ``torch.nn``; further keys are its arguments."""

    name: str = "cross_entropy"


class ScheduleSection(NamedSection):
    """Learning-rate schedule: a class of ``torch.optim.lr_scheduler``; further keys are its arguments.

    Args:
        name: Such as ``LinearLR``.
        interval: ``step`` or ``epoch``: how often it moves.
    """

    interval: str = "step"


class OptimizerSection(NamedSection):
    """Which optimizer: SGD, Momentum, Adam, or any of ``torch.optim``; further keys are its arguments (``lr``, ...).

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
        wanted = "a whole number of at least 1, 'auto' or null"
        raise ValueError(f"physical_batch_size must be {wanted}, got {value!r}") from None
    return value


class PerformanceSection(Section):
    """What changes speed and memory, and never epsilon.

    Args:
        engine: ``auto``, or the name of an engine.
        physical_batch_size: Most examples in memory at once; null is the whole batch, ``auto`` what fits into half of
            the free memory.
        precision: ``fp32``, or ``bf16``: forward and backward pass under autocast (engine ``bookkeeping``).
        timed_plans: Time each layer's exact plans on the first batch instead of estimating which is the fastest (engine
            ``bookkeeping``).
        device: ``auto`` (a CUDA device where there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        in_memory: Keep the examples on the training device.
        workers: Processes that fetch batches ahead; needs ``in_memory: false``.
        threads: Threads that torch may use; null leaves its own choice.
        isolation: ``verified`` shows network and loss one example at a time, and refuses what keeps something of an
            example where it cannot be put back; ``trust`` trains that too and marks the ledger and the report.
    """

    engine: str = "auto"
    physical_batch_size: Annotated[int | Literal["auto"] | None, PlainValidator(_part_of_batch)] = None
    precision: Literal["fp32", "bf16"] = "fp32"
    timed_plans: bool = False
    isolation: Literal["verified", "trust"] = "verified"
    device: str = "auto"
    in_memory: bool = True
    workers: NonNegativeInt = 0
    threads: PositiveInt | None = None

    @model_validator(mode="after")
    def _workers_need_host_memory(self) -> PerformanceSection:
        if self.workers and self.in_memory:
            raise ValueError(
                f"workers={self.workers} fetch from the host's memory, but in_memory keeps the examples on the "
                "training device; set in_memory: false, or workers: 0"
            )
        return self


class TrainingSection(Section):
    """How long, in which batches, and how the result is measured.

    Args:
        epochs: Epochs; an epoch is ``num_examples // batch_size`` steps.
        batch_size: Expected examples per step. It decides the sampling rate, so it changes epsilon; so do the epochs.
        seed: Of the initial weights only, which are public. Noise and sampling never use it.
        metrics: Names of metrics that are measured on the test data after each epoch.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    seed: NonNegativeInt | None = 0
    metrics: Annotated[tuple[str, ...], FromList] = Field(default=("accuracy", "loss"), min_length=1)


class CallbackSection(NamedSection):
    """One callback by its registered name; further keys are its arguments."""


class OutputSection(Section):
    """What a training leaves behind. The ledger and the privacy report are always written.

    Args:
        directory: The run folder; null is ``runs/<name of the configuration>``.
        checkpoint: Write the trained weights.
        history: Write the history as CSV.
        curve: Draw the training curve.
        save_every_steps: Steps between two saves of the training's state, from which one that was broken off goes on;
            null saves none, and it can only begin again.
    """

    directory: str | None = None
    checkpoint: bool = True
    history: bool = True
    curve: bool = True
    save_every_steps: PositiveInt | None = 100
