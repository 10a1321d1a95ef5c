"""A student: a network that is trained on public inputs and on the private labels that teachers give them (PATE)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpmodel.config import Config
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.inference import INFERENCE_BATCH
from dpmodel.data.splits import DataSplits, public_permutation
from dpmodel.prediction.answer import Answer
from dpmodel.prediction.clipped_logits import logits_of
from dpmodel.prediction.ensemble import Confidence, EnsembleLogits
from dpmodel.prediction.plain_training import PlainTraining
from dpmodel.prediction.query_ledger import QueryLedger
from dpmodel.prediction.teachers import config_of, holds_data, load_teachers
from dpmodel.prediction.teachers_folder import Ensemble, TeachersFolder
from dpmodel.preflight.configured import require_known_names
from dpmodel.runs.build import Task, build_task, read_data
from monitors import checks
from monitors.errors import BudgetExhausted, ConfigError, DataError
from monitors.events import GaussianEvent

#: Which examples of the configuration's data are public.
PUBLIC = ("test", "train")

#: Constants that turn stored inputs into those of the network; teachers and public inputs must agree in them.
_SCALES = ("mean", "std", "image_size")

#: Multipliers between which the noise of the answers is searched, and halvings of that range.
_MULTIPLIERS = 1e-3, 1e9
_HALVINGS = 80


@dataclass(frozen=True)
class Student:
    """A trained student, and what its labels cost.

    Args:
        network: The student, in evaluation mode. It may be published: it follows from public data and paid answers.
        rows: The public rows that were queried, int64 of shape (queries,).
        answer: The noisy votes for them.
        epsilon: Epsilon of the whole query ledger: all answers of these teachers that are on it, earlier ones too.
        delta: Its delta.
        noise_multiplier: Noise multiplier of each answer.
        label_accuracy: Share of the given labels that agree with those of the public data.
        accuracy: Accuracy of the student on public examples that were not queried.
        held_out: Number of those examples.
        notes: Notes of the query ledger, which limit the claim.
    """

    network: nn.Module
    rows: Tensor
    answer: Answer
    epsilon: float
    delta: float
    noise_multiplier: float
    label_accuracy: float
    accuracy: float
    held_out: int
    notes: tuple[str, ...] = ()

    @property
    def answered(self) -> int:
        """Number of queries with an answer."""
        return int(self.answer.answered.sum())

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "queries": len(self.rows),
            "answered": self.answered,
            "noise_multiplier": self.noise_multiplier,
            "label_accuracy": self.label_accuracy,
            "accuracy": self.accuracy,
            "held_out": self.held_out,
            "notes": list(self.notes),
        }


def train_student(
    config: Config,
    teachers: str | os.PathLike[str],
    *,
    queries: int,
    ledger: QueryLedger,
    noise_multiplier: float | None = None,
    confidence: Confidence | None = None,
    public: str = "test",
    rounds: int = 0,
    trust_code: bool = False,
) -> Student:
    """Let teachers label public inputs privately, and train a student on these labels.

    The training of the student uses no private data: the inputs are public, and each label was charged to the ledger
    before it was given. The whole epsilon is that of the ledger. The labels of the public data themselves are used for
    the two accuracies only.

    Args:
        config: Network, loss, optimizer and epochs of the student, and the data set with the public inputs. Its section
            ``privacy`` is not used.
        teachers: Folder of ``train_teachers``.
        queries: Number of public inputs to label: the first ones of a fixed permutation.
        ledger: The budget. Count all answers of the same teachers on one ledger.
        noise_multiplier: Noise multiplier of the votes; None: the smallest that fits the rest of the budget.
        confidence: Answer only queries on which many teachers agree. The comparison is charged for all queries.
        public: ``"test"``: the public inputs are the test examples, and the student is evaluated on those that were not
            queried. ``"train"``: they are the training examples of ``config``, which then must be other data than those
            of the teachers; the student is evaluated on the test examples.
        rounds: Rounds of self-training: the student labels all public inputs, those on which it is evaluated too but
            never their labels, and is trained on that from its initial weights.
        trust_code: Run the code that the configuration of the teachers names, even if their folder was not made here.

    Raises:
        ConfigError: A setting is wrong, or the public inputs are the data of the teachers.
        BudgetExhausted: The queries do not fit the budget. Nothing was charged.
        DataError: No query was answered, or networks and data do not fit.

    Example:
        >>> import tempfile
        >>> from dpmodel.config import make_config
        >>> from dpmodel.prediction import train_teachers
        >>> config = make_config({"data": {"name": "synthetic", "num_train": 400}, "network": "linear",
        ...     "optimizer": {"name": "SGD", "lr": 0.5}, "privacy": {"noise_multiplier": 1.0},
        ...     "training": {"epochs": 2, "batch_size": 10}})
        >>> folder = tempfile.mkdtemp()
        >>> _ = train_teachers(config, folder, parts=20, jobs=1)
        >>> with QueryLedger(tempfile.mkdtemp(), epsilon=8.0, delta=1e-5) as ledger:
        ...     student = train_student(config, folder, queries=50, ledger=ledger)
        >>> round(student.epsilon, 2), student.held_out
        (8.0, 206)

    References:
        Papernot et al. 2017, "Semi-supervised Knowledge Transfer for Deep Learning from Private Training Data";
        Papernot et al. 2018, "Scalable Private Learning with PATE".
    """
    checks.positive_int(queries=queries)
    checks.non_negative_int(rounds=rounds)
    checks.one_of(PUBLIC, public=public)
    folder = TeachersFolder(Path(teachers))
    ensemble = Ensemble.load(folder)
    require_known_names(config)
    task = build_task(config, private=False)
    seen = _as_teachers_see(task, config_of(folder, ensemble, trust_code=trust_code), ensemble, public)
    pool, held_out = _public_rows(task.data, public, queries)
    networks, rows = load_teachers(folder.path, trust_code=trust_code)
    multiplier = _fitting(ledger, queries, confidence) if noise_multiplier is None else noise_multiplier
    voters = EnsembleLogits(
        networks, rows=rows, noise_multiplier=multiplier, confidence=confidence, ledger=ledger, device=task.device
    )
    queried = pool[:queries]
    answer = voters.query(seen.batch(queried)[0])
    if not bool(answer.answered.any()):
        raise DataError("no query was answered: too few teachers agree. Lower the threshold, or ask without confidence")
    examples: InMemoryDataset = getattr(task.data, public)
    network = _taught(task, examples, queried, answer, rounds)
    label_accuracy = float((answer.labels == examples.y[queried])[answer.answered].double().mean())
    accuracy = _accuracy(network, task.data.test, held_out, task.device)
    spent, notes = ledger.spent, tuple(ledger.ledger.notes)
    return Student(
        network, queried, answer, spent, ledger.delta, multiplier, label_accuracy, accuracy, len(held_out), notes
    )


def _as_teachers_see(task: Task, teachers: Config, ensemble: Ensemble, public: str) -> InMemoryDataset:
    """The public inputs with the features of the teachers.

    Raises:
        ConfigError: They are scaled in another way than those of the teachers, or are the data of the teachers.
    """
    config = task.config
    for name in _SCALES:
        ours, theirs = (asked.data.options.get(name) for asked in (config, teachers))
        if ours != theirs:
            raise ConfigError(
                f"{config.where('data')}: data.{name} is {ours!r}, but the teachers were trained with {theirs!r}; they "
                "need public inputs of the same scale"
            )
    same = config.features == teachers.features
    asked = replace_sections(config, features=teachers.features)
    data = task.data if same else read_data(asked, task.device)
    if public == "train" and holds_data(ensemble, replace(task, config=asked, data=data)):
        raise ConfigError(
            f"{config.where('data')}: the training examples of data are those of the teachers, which are private; "
            "name a public data set, or use its test examples (public: test)"
        )
    examples: InMemoryDataset = getattr(data, public)
    return examples


def replace_sections(config: Config, **sections: Any) -> Config:
    """``config`` with other sections."""
    return config.model_copy(update=sections)


def _public_rows(data: DataSplits, public: str, queries: int) -> tuple[Tensor, Tensor]:
    """All public rows in the order of the queries, and the test rows on which the student is evaluated."""
    pool = public_permutation(len(getattr(data, public)))
    most = len(pool) - (public == "test")
    if queries > most:
        kept = " of which one at least is kept for the evaluation," if public == "test" else ""
        raise ConfigError(f"queries must be at most {most:,}: there are {len(pool):,} public inputs,{kept} got {queries:,}")
    return pool, pool[queries:] if public == "test" else torch.arange(len(data.test))


def _fitting(ledger: QueryLedger, queries: int, confidence: Confidence | None) -> float:
    """The smallest noise multiplier with which the queries fit the rest of the budget."""
    compared = [] if confidence is None else [(GaussianEvent(confidence.noise_multiplier), queries)]
    low, high = _MULTIPLIERS
    if not ledger.fits(*compared, (GaussianEvent(high), queries)):
        cost = compared[0][0] if compared else GaussianEvent(high)
        raise BudgetExhausted(queries, ledger.left(cost), ledger.spent, ledger.epsilon, ledger.delta)
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if ledger.fits(*compared, (GaussianEvent(middle), queries)) else (middle, high)
    return high


def _taught(task: Task, examples: InMemoryDataset, queried: Tensor, answer: Answer, rounds: int) -> nn.Module:
    """The student, trained on the answers; in further rounds, on what it says about all public inputs."""
    import copy

    training, network = PlainTraining.of(task), copy.deepcopy(task.network)
    x = examples.batch(queried[answer.answered])[0].to(task.device)
    training.fit(network, x, answer.labels[answer.answered].to(task.device))
    for number in range(rounds):
        everything = examples.transform_batch(examples.x).to(task.device)
        labels = torch.from_numpy(logits_of(network, everything, task.device, INFERENCE_BATCH).argmax(axis=1))
        network = copy.deepcopy(task.network)
        training.fit(network, everything, labels.to(task.device), stream=number + 1)
    return network


def _accuracy(network: nn.Module, test: InMemoryDataset, rows: Tensor, device: torch.device) -> float:
    x, y = test.batch(rows)
    found = torch.from_numpy(logits_of(network, x, device, INFERENCE_BATCH).argmax(axis=1))
    return float((found == y.cpu()).double().mean())
