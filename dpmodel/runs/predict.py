"""Answers of the network in a run folder: exact and free after private training, else noisy and charged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from dpmodel.claims.claim import Claim, without_guarantee
from dpmodel.claims.weights import record_result, record_training
from dpmodel.config import Config, load_config, locating_errors
from dpmodel.config.reader import Override
from dpmodel.data import load_dataset
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.inference import INFERENCE_BATCH
from dpmodel.data.input_form import InputForm
from dpmodel.data.splits import DataSplits
from dpmodel.features import build_features
from dpmodel.planning.spent_ledgers import without_spent
from dpmodel.planning.training_plan import plan_training
from dpmodel.prediction.answer import Answer
from dpmodel.prediction.clipped_logits import device_of, logits_of
from dpmodel.prediction.logits import AUTO, DPLogits
from dpmodel.prediction.query_budget import BUDGET_NAME
from dpmodel.prediction.query_ledger import QueryLedger
from dpmodel.runs.build import build_task
from dpmodel.runs.evaluate import require_same_training
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.trust import load_run
from dpmodel.saving.checkpoint import load_weights
from mechanisms.engines.batch import outputs_of
from mechanisms.engines.probing import inference
from monitors.errors import BudgetExhausted, CheckpointError, ConfigError, DPModelError
from monitors.registry import Registry
from monitors.spent import PrivacySpent, epsilon_text, privacy_spent
from monitors.untrusted import read_json

#: Mechanisms that answer queries to one network, by name.
MECHANISMS: Registry[type[DPLogits]] = Registry("mechanism of private prediction")
MECHANISMS.register("dp_logits")(DPLogits)

#: Sensitivity of an empirical defence, as text.
NO_SENSITIVITY = "none"


@dataclass(frozen=True)
class QuerySettings:
    """How queries are answered and charged.

    Args:
        mechanism: ``"dp_logits"``; None: exact answers, which a network must be trained privately for.
        budget_epsilon: The budget of all queries; None: that of an existing ledger.
        budget_delta: Delta of the budget; None: that of an existing ledger, or 1e-5.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        norm_bound: L2 norm to which centred logits are clipped.
        sensitivity: ``"auto"``, ``"worst_case"``, a number, or None; see ``DPLogits``.
        ledger: Folder of the query ledger; None: ``queries`` in the run folder.
        cache: Whether an identical query is answered again for free.
    """

    mechanism: str | None = None
    budget_epsilon: float | None = None
    budget_delta: float | None = None
    noise_multiplier: float = 10.0
    norm_bound: float = 1.0
    sensitivity: str | float | None = AUTO
    ledger: str | os.PathLike[str] | None = None
    cache: bool = False


#: Delta of a new budget.
DEFAULT_DELTA = 1e-5


class RunPredictor:
    """The network of a run folder, ready for queries; a context manager that closes the query ledger.

    Args:
        mechanism: Answers stored inputs.
        inputs: What one input looks like.
        options: Settings of the data.
        spent: Epsilon of the training.
        classes: Number of scores per answer.
    """

    def __init__(
        self, mechanism: DPLogits, inputs: InputForm, options: Mapping[str, Any], spent: PrivacySpent, classes: int
    ) -> None:
        self.mechanism, self.inputs, self.options = mechanism, inputs, dict(options)
        self.spent, self.classes = spent, classes

    @property
    def ledger(self) -> QueryLedger | None:
        """The budget of the queries; None if they cost nothing or have no guarantee."""
        return self.mechanism.ledger

    @property
    def left(self) -> int | None:
        """Number of answers that still fit the budget; None if there is none."""
        if self.ledger is None or self.mechanism.noise is None:
            return None
        return self.ledger.left(self.mechanism.noise.event)

    def explain(self) -> str:
        """What the answers claim, in words."""
        if self.mechanism.why_free is None:
            return self.mechanism.explain()
        return (
            f"{self.mechanism.why_free}; the training spent epsilon {epsilon_text(self.spent.epsilon)} at delta "
            f"{self.spent.delta:g}"
        )

    def read(self, path: str | os.PathLike[str]) -> tuple[Tensor, list[str]]:
        """Stored inputs in a file or folder, and the names of their files; see ``InputForm.read``."""
        return self.inputs.read(path, self.options)

    def rows(self, values: Any) -> Tensor:
        """Stored inputs from numbers in nested lists, or an array; see ``InputForm.rows``."""
        return self.inputs.rows(values, image_size=self.options.get("image_size"))

    def query(self, x: Tensor, batch_size: int = INFERENCE_BATCH) -> Answer:
        """The answer to each row of stored inputs, charged if it costs something.

        Raises:
            BudgetExhausted: They do not fit the rest of the budget. Nothing was charged.
        """
        if not self.mechanism.caches and self.ledger is not None and len(x) > (left := self.left or 0):
            # Before the network runs: refusals must be cheap.
            raise BudgetExhausted(len(x), left, self.ledger.spent, self.ledger.epsilon, self.ledger.delta)
        return self.mechanism.query(x, batch_size)

    def close(self) -> None:
        """Close the query ledger."""
        if self.ledger is not None:
            self.ledger.close()

    def __enter__(self) -> RunPredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_predictor(
    path: str | os.PathLike[str],
    overrides: Iterable[Override] = (),
    settings: QuerySettings | None = None,
    *,
    trust_code: bool = False,
) -> RunPredictor:
    """Open the network of a run folder for queries. The data of the training are not needed, except by old folders.

    A network whose training has a guarantee answers exactly and for free (post-processing). Any other one needs a
    mechanism, and each answer is charged to a query ledger.

    Args:
        path: Folder of ``dpmodel train``.
        overrides: Settings to change, such as ``"performance.device=cpu"``.
        settings: How queries are answered. Default: exact answers.
        trust_code: Run the code that the configuration names, even if the folder was not made here.

    Raises:
        ConfigError: Not a run folder, a wrong setting, or a training without privacy and no mechanism for its answers.
        CheckpointError: Weights or ledger are missing, damaged, or belong to a different training.
        BudgetExhausted: The budget leaves nothing.
    """
    settings = QuerySettings() if settings is None else settings
    folder = RunFolder.existing(path)
    config = load_run(folder, overrides, trust_code=trust_code)
    stored = load_config(folder.config, import_plugins=False)
    require_same_training(stored, config)
    releases = folder.read_ledger()
    data, inputs = _blank_data(folder, config)
    plan = plan_training(without_spent(stored), stored.data.num_examples or len(data.train))
    spent = privacy_spent(releases, config.privacy.delta, config.privacy.accountant, plan.release.statement)
    lacking = without_guarantee(releases)
    private = lacking is None
    if settings.mechanism is not None:
        with _naming_settings():
            MECHANISMS.get(settings.mechanism)
    elif lacking is not None:
        raise ConfigError(_not_private(folder, lacking))
    network = _prepared_network(folder, config, data)
    if private:
        claim = Claim(releases)
        record_training(network, claim)
        record_result(network, claim)
    blank = data.train.x[:1]
    classes = logits_of(network, blank, device_of([network]), 1).shape[1]
    with _naming_settings():
        mechanism = _mechanism(network, folder, settings, private)
    return RunPredictor(mechanism, inputs, config.data.reader_arguments, spent, classes)


@contextmanager
def _naming_settings() -> Iterator[None]:
    """Report a wrong value as a fault of the settings."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, DPModelError):
            raise
        raise ConfigError(str(error)) from error


def _not_private(folder: RunFolder, lacking: str) -> str:
    return (
        f"{folder.path} was not trained with differential privacy ({lacking}), and exact answers can reveal training "
        "data. Charge noisy answers to a budget: --mechanism dp_logits --budget-epsilon 5 (in Python: QuerySettings); "
        "or train with privacy.noise, and answers are exact and free"
    )


def _mechanism(network: nn.Module, folder: RunFolder, settings: QuerySettings, private: bool) -> DPLogits:
    build = MECHANISMS.get(settings.mechanism or "dp_logits")
    chosen: dict[str, Any] = {
        "noise_multiplier": settings.noise_multiplier,
        "norm_bound": settings.norm_bound,
        "sensitivity": settings.sensitivity,
    }
    if (
        settings.sensitivity is None
        and (settings.budget_epsilon, settings.budget_delta, settings.ledger) != (None,) * 3
    ):
        raise ConfigError(
            f"sensitivity {NO_SENSITIVITY!r} has no guarantee, so no budget can be kept; leave out budget and ledger, "
            "or state a sensitivity"
        )
    free = private and settings.sensitivity == AUTO
    if free or settings.sensitivity is None:
        return build(network, cache=settings.cache and not free, **chosen)
    place = folder.queries if settings.ledger is None else Path(settings.ledger)
    epsilon, delta = settings.budget_epsilon, settings.budget_delta
    if not (place / BUDGET_NAME).exists():
        if epsilon is None:
            raise ConfigError(
                f"{place} holds no query budget yet; state it once with --budget-epsilon (in Python: budget_epsilon), "
                "for all queries about these training data together"
            )
        delta = DEFAULT_DELTA if delta is None else delta
    elif epsilon is not None and delta is None:
        delta = QueryLedger.budget_of(place)[1]
    ledger = QueryLedger(place, epsilon, delta)
    try:
        return build(network, ledger=ledger, cache=settings.cache, **chosen)
    except BaseException:
        ledger.close()
        raise


def parsed_sensitivity(text: str) -> str | float | None:
    """The sensitivity that a text states: a name, a number, or ``"none"``.

    Example:
        >>> parsed_sensitivity("worst_case"), parsed_sensitivity("0.5"), parsed_sensitivity("none")
        ('worst_case', 0.5, None)
    """
    if text.lower() == NO_SENSITIVITY:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _blank_data(folder: RunFolder, config: Config) -> tuple[DataSplits, InputForm]:
    """A stand-in for the data of the training, and the form of its inputs."""
    options = config.data.options
    try:
        form = InputForm.from_dict(read_json(folder.inputs))
    except FileNotFoundError:  # written by an earlier version
        with locating_errors(config, "data"):
            data = load_dataset(**config.data.reader_arguments)
        return data, InputForm.of(data)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder.inputs} cannot be read: {error}; remove it to read the data instead") from error
    with locating_errors(config, "data"):
        return form.blank(options), form


class _Prepared(nn.Module):
    """A network behind everything that is done to a stored input before.

    Args:
        data: Converts stored inputs.
        features: Fixed features; None for none.
        network: The network.
    """

    def __init__(self, data: InMemoryDataset, features: nn.Module | None, network: nn.Module) -> None:
        super().__init__()
        self.data, self.features, self.network = data, features, network

    def forward(self, x: Tensor) -> Tensor:
        """The outputs for stored inputs."""
        values = self.data.transform_batch(x)
        found: Tensor = self.network(values if self.features is None else _featured(self.features, values))
        return found

    def extra_repr(self) -> str:
        """The constants, on which answers depend."""
        return f"mean={self.data.constants[0]}, std={self.data.constants[1]}"


def _featured(features: nn.Module, x: Tensor) -> Tensor:
    # As when the features of the training were computed: see dpmodel.features.extract.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        found: Tensor = outputs_of(features, x).float()
    return found


def _prepared_network(folder: RunFolder, config: Config, data: DataSplits) -> nn.Module:
    """The trained network, which takes stored inputs."""
    section, features, seen = config.features, None, data
    if section is not None:
        facts = {**data.network_defaults(), "example_shape": data.example_shape}
        with locating_errors(config, "features"):
            features = build_features(section.name, facts, **section.options).requires_grad_(False)
        with inference(features):
            x = _featured(features, data.train.transform_batch(data.train.x[:1]))
        example = InMemoryDataset(x, data.train.y[:1])
        seen = DataSplits(data.name, example, example, data.num_classes)
    task = build_task(config, seen)
    if not folder.checkpoint.is_file():
        raise CheckpointError(f"{folder.checkpoint} is missing; train with output.checkpoint: true")
    load_weights(task.network, folder.checkpoint)
    return _Prepared(data.train, features, task.network).to(task.device)
