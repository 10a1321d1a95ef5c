"""A student: a network that is trained on public inputs and on the private labels that teachers give them (PATE)."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpmodel.config import Config
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.inference import INFERENCE_BATCH
from dpmodel.data.splits import DataSplits, public_permutation
from dpmodel.prediction.answer import Answer
from dpmodel.prediction.clipped_logits import logits_of
from dpmodel.prediction.ensemble import Confidence, EnsembleLogits
from dpmodel.prediction.plain_training import PlainTraining
from dpmodel.prediction.public_labels import PublicLabels
from dpmodel.prediction.query_ledger import QueryLedger
from dpmodel.prediction.teachers import config_of, held_rows, holds_data, load_teachers, stored_data
from dpmodel.prediction.teachers_folder import Ensemble, TeachersFolder
from dpmodel.preflight.configured import require_known_names
from dpmodel.preflight.refusal import HAS_READ
from dpmodel.runs.build import Task, build_task, read_data
from dpmodel.saving.checkpoint import save_checkpoint
from dpmodel.saving.lock import FolderLock
from monitors import checks
from monitors.atomic import write_atomically
from monitors.errors import BudgetExhausted, ConfigError, DataError
from monitors.events import GaussianEvent

#: Which examples of the configuration's data are public.
PUBLIC = ("test", "train")

LABELS = "labels.safetensors"
NETWORK = "student.safetensors"
REPORT = "student.json"

#: Share of the public inputs that may equal private ones by chance: published test sets repeat some training examples.
BY_CHANCE = 0.01

#: Constants that turn stored inputs into those of the network; teachers and public inputs must agree in them.
_SCALES = ("mean", "std", "image_size")

#: Multipliers between which the noise of the answers is searched, and halvings of that range.
_MULTIPLIERS = 1e-3, 1e4
_HALVINGS = 80

#: A little more noise, so that the stated epsilon is not above the budget by its rounding.
_SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Student:
    """A trained student, and what its labels cost.

    Args:
        network: The student, in evaluation mode. It may be published: it follows from public data and paid answers.
        labels: The noisy votes for the public inputs that were queried.
        epsilon: Epsilon of the whole query ledger: all answers of these teachers that are on it, earlier ones too.
        delta: Its delta.
        label_accuracy: Share of the given labels that agree with those of the public data.
        accuracy: Accuracy of the student on public examples that were not queried.
        held_out: Number of those examples.
        notes: Notes of the query ledger, which limit the claim.
        reused: Whether the labels are those of an earlier call.
    """

    network: nn.Module
    labels: PublicLabels
    epsilon: float
    delta: float
    label_accuracy: float
    accuracy: float
    held_out: int
    notes: tuple[str, ...] = ()
    reused: bool = False

    @property
    def answered(self) -> int:
        """Number of queries with an answer."""
        return int(self.labels.answer.answered.sum())

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "queries": len(self.labels.rows),
            "answered": self.answered,
            "noise_multiplier": self.labels.noise_multiplier,
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
    output: str | os.PathLike[str] | None = None,
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
        ledger: The budget. Count all answers about the same data on one ledger, those of other teachers too.
        noise_multiplier: Noise multiplier of the votes; None: the smallest that fits the rest of the budget.
        confidence: Answer only queries on which many teachers agree. The comparison is charged for all queries, and the
            guarantee is the budget of the ledger; see ``Confidence``.
        public: ``"test"``: the public inputs are the test examples, and the student is evaluated on those that were not
            queried. ``"train"``: they are the training examples of ``config``, which then must be other data than those
            of the teachers; the student is evaluated on the test examples.
        rounds: Rounds of self-training: the student labels all public inputs, those on which it is evaluated too but
            never their labels, and is trained on that from its initial weights.
        output: Folder for ``labels.safetensors``, written as soon as they are given, ``student.safetensors`` and
            ``student.json``. Labels of the same queries that it holds are used again, at no cost. None: no files.
        trust_code: Run the code that the configuration of the teachers names, even if their folder was not made here.

    Raises:
        ConfigError: A setting is wrong, a public input is one of the teachers' examples, or ``output`` holds the
            answers to other queries.
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
    teachers_config = config_of(folder, ensemble, trust_code=trust_code)
    require_known_names(config)
    _require_public_settings(config, public)
    task = build_task(config, private=False)
    seen = _as_teachers_see(task, teachers_config, ensemble, public)
    pool, held_out = _public_rows(task.data, public, queries)
    examples: InMemoryDataset = getattr(task.data, public)
    asked = _asked(ensemble, examples, public, queries, confidence)
    with nullcontext() if output is None else FolderLock(output):
        files = None if output is None else Path(output)
        labels = None if files is None else PublicLabels.load(files / LABELS, asked, ledger)
        reused = labels is not None
        if labels is None:
            networks, rows = load_teachers(folder.path, trust_code=trust_code)
            multiplier = _fitting(ledger, queries, confidence) if noise_multiplier is None else noise_multiplier
            voters = EnsembleLogits(
                networks,
                rows=rows,
                noise_multiplier=multiplier,
                confidence=confidence,
                ledger=ledger,
                device=task.device,
            )
            answer = voters.query(seen.batch(pool[:queries])[0])
            labels = PublicLabels(pool[:queries], answer, multiplier, ledger.spent, ledger.head, asked)
            if files is not None:
                labels.save(files / LABELS)
        student = _student(task, examples, labels, rounds, held_out, ledger, reused)
        if files is not None:
            save_checkpoint(files / NETWORK, student.network)
            write_atomically(files / REPORT, json.dumps(student.to_dict(), indent=1) + "\n")
    return student


def _require_public_settings(config: Config, public: str) -> None:
    """Refuse settings that use private data."""
    if config.normalise is not None:
        raise ConfigError(
            f"{config.where('normalise')}: normalise releases statistics of private data, which a student does not "
            "use; remove it"
        )
    if config.data.validation is not None and public == "test":
        raise ConfigError(
            f"{config.where('data.validation')}: data.validation={config.data.validation} replaces the test examples "
            "with training examples that it holds back, and these are not public inputs; remove data.validation, or "
            "use the training examples of a public data set (public: train)"
        )


def _asked(
    ensemble: Ensemble, examples: InMemoryDataset, public: str, queries: int, confidence: Confidence | None
) -> dict[str, Any]:
    """What the teachers are asked, as JSON values; the data are public, and so is their digest."""
    compared = None if confidence is None else [confidence.threshold, confidence.noise_multiplier]
    digest = Fingerprint.of(examples).digest
    return {"teachers": _name(ensemble), "public": public, "data": digest, "queries": queries, "confidence": compared}


def _name(ensemble: Ensemble) -> str:
    """A public name of an ensemble: its ID is the key of a digest of private data, and must stay secret."""
    return hashlib.sha256(b"teachers " + bytes.fromhex(ensemble.ensemble_id)).hexdigest()


def _student(
    task: Task,
    examples: InMemoryDataset,
    labels: PublicLabels,
    rounds: int,
    held_out: Tensor,
    ledger: QueryLedger,
    reused: bool,
) -> Student:
    """Train and evaluate the student."""
    answered = labels.answer.answered
    if not bool(answered.any()):
        raise DataError("no query was answered: too few teachers agree. Lower the threshold, or ask without confidence")
    network = _taught(task, examples, labels.rows, labels.answer, rounds)
    right = labels.answer.labels == examples.y[labels.rows]
    return Student(
        network,
        labels,
        ledger.spent,
        ledger.delta,
        float(right[answered].double().mean()),
        _accuracy(network, task.data.test, held_out, task.device),
        len(held_out),
        tuple(ledger.ledger.notes),
        reused,
    )


def _as_teachers_see(task: Task, teachers: Config, ensemble: Ensemble, public: str) -> InMemoryDataset:
    """The public inputs with the features of the teachers.

    Raises:
        ConfigError: They are scaled in another way than those of the teachers, or some are inputs of the teachers.
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
    asked = config.model_copy(update={"features": teachers.features})
    data = task.data if same else read_data(asked, task.device)[0]
    if holds_data(ensemble, getattr(stored_data(task), public)):
        raise ConfigError(
            f"{config.where('data')}: the {public} examples of data are those of the teachers, which are private; "
            f"name a public data set, or use its test examples (public: test). {HAS_READ}"
        )
    stored = getattr(stored_data(task), public)
    held = held_rows(ensemble, stored)
    if len(held) > BY_CHANCE * len(stored):
        raise ConfigError(
            f"{config.where('data')}: {len(held):,} of the {public} examples, the first of them in row {held[0]}, have "
            f"the inputs of examples of the teachers, which are private; leave these out of the public data. {HAS_READ}"
        )
    examples: InMemoryDataset = getattr(data, public)
    return examples


def _public_rows(data: DataSplits, public: str, queries: int) -> tuple[Tensor, Tensor]:
    """All public rows in the order of the queries, and the test rows on which the student is evaluated."""
    pool = public_permutation(len(getattr(data, public)))
    most = len(pool) - (public == "test")
    if queries > most:
        kept = ", of which one at least is kept for the evaluation" if public == "test" else ""
        raise ConfigError(
            f"queries must be at most {most:,}, got {queries:,}: there are {len(pool):,} public inputs{kept}"
        )
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
    return high * _SLACK


def _taught(task: Task, examples: InMemoryDataset, queried: Tensor, answer: Answer, rounds: int) -> nn.Module:
    """The student, trained on the answers; in further rounds, on what it says about all public inputs."""
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
