"""What is audited: a model with its data, or what a configuration trains."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dpmodel.audit.canaries import FEWEST, flip_coins, read_examples
from dpmodel.audit.meters import all_lines
from dpmodel.audit.plan import plan_audit
from dpmodel.audit.report import AuditReport
from dpmodel.audit.scores import scores
from dpmodel.audit.training import AuditedTraining
from dpmodel.config import Config, load_config
from dpmodel.data.loader import PrivateLoader, private_loader
from dpmodel.model import DPModel
from monitors import checks
from monitors.errors import ConfigError

#: Defaults: about epsilon 4 in about half a minute for LeNet5 on two cores.
EXAMPLES, CANARIES, STEPS, RATE, EPSILON = 1000, 2000, 120, 0.2, 4.0

#: Range of the epsilon of an audit: below, no bound can be expected; above, the noise is too weak to matter.
_LEAST_EPSILON, _MOST_EPSILON = 0.1, 20.0


def audit(
    model_or_config: DPModel | Config | str | os.PathLike[str],
    data: Any = None,
    *,
    examples: int = EXAMPLES,
    canaries: int = CANARIES,
    steps: int = STEPS,
    rate: float = RATE,
    epsilon: float = EPSILON,
    delta: float = 1e-5,
) -> AuditReport:
    """Train with canaries in the data, and compare what is released with what the ledger states.

    A copy of the network is trained through ``DPModel.fit``, with the loss, noise mechanism, clip mechanism, unit,
    sampling, engine and optimizer of what is audited, on part of its data. The multiplier of the noise is chosen so
    that the ledger's epsilon is about ``epsilon``. Nothing of what is audited is changed: the model keeps its weights
    and its ledger, and no run folder is written. The report itself is not private.

    The report of the ``config.resolved.yaml`` in a run folder names the digest of that run's ledger, so that the
    privacy card of the run counts it.

    Args:
        model_or_config: A model, a configuration, or the path of a YAML file.
        data: The training data of a model, as ``fit`` takes them; None for a configuration, which names its own.
        examples: Largest number of ordinary examples to use.
        canaries: Number of canaries, at least 100; about 2,000 give useful bounds.
        steps: Steps, rounded up to whole epochs.
        rate: Expected fraction of the rows in a step, in (0, 0.5].
        epsilon: Target of the ledger's epsilon, from 0.1 to 20; 2 to 4 is best.
        delta: Delta of all epsilons.

    Returns:
        The report; ``report.ok`` is False if a line contradicts the ledger. A correct run has such a line with a
        probability of at most 0.00002.

    Raises:
        ConfigError: Before anything is trained: a value is out of range, or the training adds no noise.
        ValueError: Before anything is trained: ``fit`` would refuse the model or its data.

    Example:
        >>> import torch
        >>> from dpmodel import NoiseMechanismsFactory
        >>> network = torch.nn.Linear(4, 2)
        >>> model = DPModel(
        ...     network, torch.nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1),
        ...     noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0),
        ... )
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
        >>> report = audit(model, torch.utils.data.DataLoader(data, batch_size=16), canaries=200, steps=20)
        >>> report.ok, report.line("first canary tensor").relation
        (True, '=')
    """
    started = time.perf_counter()
    _require_sound(examples, canaries, steps, rate, epsilon, delta)
    model, loader = _subject(model_or_config, data)
    if not model.noise_mech.private:
        raise ConfigError(
            "nothing can be audited: the training adds no noise, and its ledger says so with an infinite "
            "epsilon. Set privacy.noise, or DPModel(noise_mech=...)"
        )
    digest = run_digest(model_or_config)
    read = read_examples(loader, examples)
    plan = plan_audit(
        model, loader.batch_size, len(read), canaries, steps=steps, rate=rate, epsilon=epsilon, delta=delta
    )
    included = flip_coins(canaries)
    observed = AuditedTraining(model, plan, read, loader.fetcher.collate_fn, included)(delta)
    found = scores(observed)
    lines = tuple(all_lines(observed, found))
    seconds = time.perf_counter() - started
    return AuditReport(lines, observed.epsilon, delta, observed.description, found, included, seconds, digest)


def _require_sound(examples: int, canaries: int, steps: int, rate: float, epsilon: float, delta: float) -> None:
    try:
        checks.positive_int(examples=examples, canaries=canaries, steps=steps)
        checks.positive(rate=rate, epsilon=epsilon)
        checks.open_unit(delta=delta)
    except ValueError as error:
        raise ConfigError(f"{error}: an audit needs noise, steps, canaries and a sampling rate") from error
    if canaries < FEWEST:
        raise ConfigError(
            f"canaries={canaries} are too few: half of them are in the data, and no bound can be drawn from so few "
            f"guesses. Use at least {FEWEST}, better 2,000"
        )
    if rate > 0.5:
        raise ConfigError(f"rate must be at most 0.5, got {rate:g}; the default is {RATE:g}")
    if steps < 10:
        raise ConfigError(f"steps must be at least 10, got {steps}: the audit interrupts the training and resumes it")
    if not _LEAST_EPSILON <= epsilon <= _MOST_EPSILON:
        raise ConfigError(f"epsilon must be from {_LEAST_EPSILON:g} to {_MOST_EPSILON:g}, got {epsilon:g}")


def require_no_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a folder in place of a configuration.

    Raises:
        ConfigError: ``path`` is a folder.
    """
    if os.path.isdir(path):
        raise ConfigError(
            f"{os.fspath(path)} is a folder; an audit trains what a configuration describes, and reads no weights or "
            "ledger of a run. Give the YAML file of the training"
        )


def run_digest(asked: Any) -> str | None:
    """Digest of the ledger of the run whose resolved configuration is audited, unchanged; None if it is of no run.

    The report then belongs to that run: its privacy card counts it. The folder is only read.

    Raises:
        CheckpointError: The files of the run folder do not belong together.
    """
    from dpmodel.runs.folder import RunFolder

    if isinstance(asked, Config):
        path, changed = Path(asked.source), any(place.startswith("--set ") for place in asked._marks.values())
    elif isinstance(asked, (str, os.PathLike)):
        path, changed = Path(asked), False
    else:
        return None
    folder = RunFolder(path.parent)
    if changed or path.name != folder.config.name or not folder.ledger.is_file():
        return None
    return folder.read_ledger().digest()


def _subject(asked: Any, data: Any) -> tuple[DPModel, PrivateLoader]:
    if isinstance(asked, DPModel):
        if data is None:
            raise ConfigError("a model is audited with its data: audit(model, loader)")
        return asked, private_loader(data, asked.sampling)[0]
    if data is not None:
        raise ConfigError("a configuration names its data; leave out data")
    if isinstance(asked, (str, os.PathLike)):
        require_no_folder(asked)
        asked = load_config(asked)
    if not isinstance(asked, Config):
        raise ConfigError(f"audit takes a DPModel, a configuration or the path of one, got {type(asked).__name__}")
    from dpmodel.runs.build import build_training

    if asked.privacy.noise is None:
        raise ConfigError(f"{asked.where('privacy')}: nothing can be audited without noise; set privacy.noise")
    training = build_training(asked)
    return training.model, training.loader
