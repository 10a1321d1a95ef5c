"""Membership attacks on a run, on what a configuration trains, or on a model."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dpmodel.attack.evidence import Evidence
from dpmodel.attack.limits import Limit
from dpmodel.attack.methods import ATTACKS, Attack
from dpmodel.attack.report import AttackReport, Scored
from dpmodel.attack.shadows import Shadow, shadow_config, train_shadows
from dpmodel.attack.subject import Subject, open_subject
from dpmodel.compare.pool import default_jobs
from dpmodel.compare.runner import NullWatcher, Watcher
from dpmodel.config import Config
from dpmodel.config.reader import Override
from dpmodel.data.inference import INFERENCE_BATCH, predictions
from dpmodel.model import DPModel
from dpmodel.runs.folder import require_outside_runs
from monitors import checks
from monitors.errors import ConfigError, DPModelError, UnsupportedEventError
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

#: Default number of shadows, and of false-positive rates.
SHADOWS, RATES = 16, (0.01, 0.001)

#: What is attacked: the network of the run, or each shadow in turn with the help of the others.
RUN, EACH_SHADOW = "run", "shadows"

#: Shadows that do not help to attack one of them: itself, and that of the complementary half.
_PAIR = 2

#: How the limit follows from the ledger.
_LIMIT_OF_RUN = "the ledger's trade-off curve"
_LIMIT_OF_SHADOWS = "the trade-off curve of the trainings' ledgers, the largest of all"
_LIMITS = {
    1: "; neither the sampling rate nor the number of steps depends on the size of a half",
    2: ", applied twice: a member and an example that is not in the training differ by two steps, one removed and one "
    "added",
}

#: Attacks that are made by default; without references, those that need none.
METHODS = ("loss_threshold", "lira", "rmia", "label_only_sampling")


def attack(
    run_or_model: DPModel | Config | str | os.PathLike[str],
    data: Any = None,
    held_out: Any = None,
    *,
    methods: str | Attack | Iterable[str | Attack] | None = None,
    shadows: int = SHADOWS,
    targets: str | None = None,
    noise: bool = True,
    examples: int | None = None,
    rates: float | Iterable[float] = RATES,
    cache: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    overrides: Iterable[Override] = (),
    trust_code: bool = False,
    watcher: Watcher | None = None,
) -> AttackReport:
    """Try to tell training examples from others, and compare the success with what the ledger allows.

    With ``targets="run"``, the network of a run folder is attacked: members are its training examples, the others are
    held-out ones of its data. With ``targets="shadows"``, shadows are attacked, each with the help of the others: they
    are trained with the same configuration on random halves of both, so members and others are one population. A fifth
    of the held-out examples, at most 1,000, is set aside as the population that ``rmia`` compares with.

    Nothing of what is attacked is changed. The report contains statistics of private data and is for their holder.
    Shadows are trained with secret noise and sampling, so a repetition gives slightly different figures, unless it
    reuses the shadows in ``cache``.

    Args:
        run_or_model: A run folder, a configuration, the path of a YAML file, or a model.
        data: The training data of a model, as ``fit`` takes them; None for a run or a configuration.
        held_out: Examples that a model was not trained on.
        methods: Names in ``ATTACKS``, or attacks. Default: ``METHODS``; of a model, those without shadows.
        shadows: Number of shadows, if an attack needs any.
        targets: ``"run"`` or ``"shadows"``. Default: the run, if there is one.
        noise: False trains the shadows without noise.
        examples: Most attacked examples of each kind. The shadows are trained on these alone. Default: all.
        rates: One or more false-positive rates, each at least one over the number of others.
        cache: Folder in which shadows are kept; those in it are reused. Default: a temporary one.
        jobs: Number of processes; default: half of the cores.
        overrides: Settings of a run folder or a YAML file to change, such as ``"performance.device=cpu"``.
        trust_code: Run the code that a run folder's configuration names, even if the folder was not made here.
        watcher: Is notified of the progress.

    Returns:
        The report; ``report.ok`` is False if an attack reaches more than the ledger allows.

    Raises:
        ConfigError: Before anything is trained: a value is out of range, there are too few examples or shadows, an
            attack is unknown, or the folder is not that of a run.
        CheckpointError: Before anything is trained: the run was changed, or the cache is of another version.
        DataError: Before anything is trained: data are missing, or do not suit an attack.
        DPModelError: A shadow could not be trained.

    Example:
        >>> from dpmodel.config import make_config
        >>> config = make_config({"data": {"name": "synthetic", "num_train": 200, "num_test": 200},
        ...     "network": "linear", "optimizer": {"name": "SGD", "lr": 0.5},
        ...     "privacy": {"noise_multiplier": 1.0}, "training": {"epochs": 1, "batch_size": 20}})
        >>> report = attack(config, methods="lira", shadows=4, rates=[0.01], jobs=1)
        >>> report.ok, [measure.name for measure in report.measures]
        (True, ['AUC', 'TPR at FPR 1 %'])
    """
    started = time.perf_counter()
    chosen = _attacks(methods, isinstance(run_or_model, DPModel))
    wanted = (rates,) if isinstance(rates, int | float) else tuple(rates)
    _require_sound(wanted, shadows, examples, targets)
    processes = default_jobs() if jobs is None else jobs
    checks.positive_int(jobs=processes)
    if cache is not None:
        require_outside_runs(cache, "cache", "an attack")
    subject = open_subject(run_or_model, data, held_out, examples, overrides, trust_code=trust_code)
    request = _Request(subject, chosen, wanted, shadows, _targets(targets, subject), noise, examples)
    request.require_possible()
    with _folder(cache) as folder:
        trained = request.train(folder, processes, NullWatcher() if watcher is None else watcher)
        return request.carry_out(trained, started)


@dataclass(frozen=True)
class _Request:
    """What was asked for, with what is attacked."""

    subject: Subject
    attacks: dict[str, Attack]
    rates: tuple[float, ...]
    shadows: int
    targets: str
    noise: bool
    examples: int | None

    @property
    def helped(self) -> bool:
        """Whether an attack needs references."""
        return any(attack.references for attack in self.attacks.values())

    @property
    def _hops(self) -> int:
        """Neighbours in a row between a training with an example and one without it.

        One if it is added or removed and nothing else depends on the number of examples. Otherwise, trainings on equal
        numbers are compared, in which a different example takes its place.
        """
        config = self.subject.config
        if self.targets != EACH_SHADOW or config is None:
            return 2
        return 2 if shadow_config(config, self.subject.pool.size).privacy.num_examples_public is None else 1

    @property
    def trains(self) -> bool:
        """Whether shadows are trained."""
        return self.helped or self.targets == EACH_SHADOW

    def require_possible(self) -> None:
        """Refuse what can say nothing, before anything is trained."""
        if self.trains and self.subject.config is None:
            names = ", ".join(name for name, attack in self.attacks.items() if attack.references)
            raise ConfigError(
                f"{names or 'targets=shadows'} trains shadow models, which needs a configuration: attack a run folder "
                "or a configuration, or use loss_threshold or label_only_sampling"
            )
        self._require_shadows()
        self._require_others()
        few = self._outputs(self.subject.pool.data.batch(torch.arange(2))[0])
        for asked in self.attacks.values():
            asked.require_fits(self.subject.pool, few)

    def _require_shadows(self) -> None:
        own = self.targets == EACH_SHADOW
        for name, asked in self.attacks.items():
            least = asked.references + _PAIR if own and asked.references else max(asked.references, int(own))
            if self.shadows < least:
                raise ConfigError(
                    f"{name} needs at least {least} shadow models here, got {self.shadows}: raise --shadows"
                    + ("" if own else ", or use --method loss_threshold, which needs none")
                )

    def _require_others(self) -> None:
        pool, smallest = self.subject.pool, min(self.rates)
        others = self.shadows * pool.size // 2 if self.targets == EACH_SHADOW else pool.held_out
        if others * smallest < 1.0 - 1e-9:
            raise ConfigError(
                f"{others:,} examples that are not members cannot show a false-positive rate of {100 * smallest:g} %: "
                f"at least {int(np.ceil(1 / smallest - 1e-9)):,} are needed (a fifth of the held-out examples is set "
                "aside as the population). Use more held-out data (data.test_limit, data.validation, --examples), or a "
                "larger rate (--fpr 0.01)"
            )

    def train(self, folder: Path, processes: int, watcher: Watcher) -> list[Shadow]:
        """The trained shadows; none if no attack needs them."""
        subject = self.subject
        if not self.trains:
            return []
        assert subject.config is not None
        config = shadow_config(subject.config, subject.pool.size, noise=self.noise)
        shadows, outcomes = train_shadows(
            config,
            subject.pool,
            self.shadows,
            folder,
            examples=self.examples,
            processes=processes,
            watcher=watcher,
        )
        faults = [outcome for outcome in outcomes if outcome.fault is not None]
        if faults:
            raise DPModelError(f"{len(faults)} shadows could not be trained; {faults[0].job.label}: {faults[0].fault}")
        if any(outcome.interrupted for outcome in outcomes):
            raise KeyboardInterrupt
        return [shadows.load(number) for number in range(self.shadows)]

    def carry_out(self, shadows: list[Shadow], started: float) -> AttackReport:
        """Make the attacks and judge them."""
        if self.targets == EACH_SHADOW:
            attacked = [self._of_shadow(shadows, number) for number in range(len(shadows))]
            included, hops = np.array([shadow.reference.included for shadow in shadows]), self._hops
            ledgers = [shadow.ledger for shadow in shadows]
        else:
            attacked = [self._of_run(shadows)]
            included, hops = self.subject.pool.members[None], self._hops
            assert self.subject.ledger is not None
            ledgers = [self.subject.ledger]
        scored = []
        for name, asked in self.attacks.items():
            scores = np.array([asked.scores(evidence) for evidence in attacked])
            count = len(attacked[0].references) if asked.references else 0
            scored.append(Scored(name, asked.knows, count, scores, included))
        epsilon = max(_epsilon(ledger, self.subject.delta) for ledger in ledgers)
        return AttackReport(
            tuple(scored),
            self.rates,
            Limit.of(ledgers, hops),
            epsilon,
            self.subject.delta,
            self._described(),
            self._notes(),
            self.subject.pool.names(),
            time.perf_counter() - started,
            one_population=self.targets == EACH_SHADOW,
        )

    def _of_run(self, shadows: list[Shadow]) -> Evidence:
        outputs, subject = self._outputs(self.subject.pool.data), self.subject
        references = tuple(shadow.reference for shadow in shadows)
        return Evidence(subject.pool, outputs, self._loss_fn, lambda: subject.network, references)

    def _of_shadow(self, shadows: list[Shadow], number: int) -> Evidence:
        rest = (shadow for other, shadow in enumerate(shadows) if other // _PAIR != number // _PAIR)
        references = tuple(shadow.reference for shadow in rest)
        shadow = shadows[number]
        network = _restoring(self.subject.network, shadow)
        return Evidence(self.subject.pool, shadow.reference.outputs, self._loss_fn, network, references)

    def _outputs(self, inputs: Any) -> Any:
        found = predictions(self.subject.network, inputs, self.subject.device, INFERENCE_BATCH)
        return found.detach().float().cpu() if isinstance(found, torch.Tensor) else found

    @property
    def _loss_fn(self) -> Any:
        found = copy.deepcopy(self.subject.loss_fn)
        return found.cpu() if isinstance(found, nn.Module) else found

    def _described(self) -> dict[str, str]:
        pool, own = self.subject.pool, self.targets == EACH_SHADOW
        described = {"attacked": self.subject.name}
        if own:
            described["attacked"] = f"{self.shadows} {self.subject.name}, each on a random half of the examples"
            described["members"] = f"the half of {pool.size:,} examples (training and held-out) in each training"
            described["others"] = "the other half"
        else:
            described["members"] = f"{pool.train:,} training examples"
            described["others"] = f"{pool.held_out:,} held-out examples of the same data set"
        described["population"] = f"{pool.population:,} further held-out examples, in no training"
        if self.trains:
            kind = "" if self.noise else ", without noise"
            described["shadows"] = f"{self.shadows}, each on a random half of {pool.size:,} examples{kind}"
        described["limit"] = (_LIMIT_OF_SHADOWS if own else _LIMIT_OF_RUN) + _LIMITS[self._hops]
        return described

    def _notes(self) -> tuple[str, ...]:
        notes = list(self.subject.notes) if self.targets == RUN else []
        config = self.subject.config
        if self.trains and config is not None:
            kept = {callback.name for callback in shadow_config(config, self.subject.pool.size).callbacks}
            dropped = sorted({callback.name for callback in config.callbacks} - kept)
            if dropped:
                notes.append(f"shadows are trained without the callbacks {', '.join(dropped)}")
        return tuple(notes)


def _restoring(network: nn.Module, shadow: Shadow) -> Callable[[], nn.Module]:
    def restored() -> nn.Module:
        copied = copy.deepcopy(network)
        copied.load_state_dict(dict(shadow.weights))
        return copied.eval()

    return restored


def _attacks(methods: str | Attack | Iterable[str | Attack] | None, in_memory: bool) -> dict[str, Attack]:
    """The attacks by name."""
    if methods is None:
        methods = [name for name in METHODS if not (in_memory and ATTACKS.get(name).references)]
    asked = [methods] if isinstance(methods, (str, Attack)) else list(methods)
    try:
        found = [ATTACKS.create(one) if isinstance(one, str) else one for one in asked]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for one in found:
        if not isinstance(one, Attack):
            raise ConfigError(f"methods must be names or attacks, got {one!r}; names: {', '.join(ATTACKS.names())}")
    named = {ATTACKS.name_of(type(one)): one for one in found}
    if not named or len(named) != len(found):
        raise ConfigError(f"give each attack once, and at least one; names: {', '.join(ATTACKS.names())}")
    return named


def _require_sound(rates: tuple[float, ...], shadows: int, examples: int | None, targets: str | None) -> None:
    try:
        checks.non_negative_int(shadows=shadows)
        if examples is not None:
            checks.positive_int(examples=examples)
        if targets is not None:
            checks.one_of((RUN, EACH_SHADOW), targets=targets)
        for rate in rates:
            checks.open_unit(rates=rate)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not rates or len(set(rates)) != len(rates):
        raise ConfigError(f"rates must be one or more different false-positive rates, got {list(rates)}")


def _targets(asked: str | None, subject: Subject) -> str:
    if asked is None:
        return EACH_SHADOW if subject.ledger is None else RUN
    if asked == RUN and subject.ledger is None:
        raise ConfigError("a configuration has no trained network: give its run folder, or targets='shadows'")
    return asked


def _epsilon(ledger: Ledger, delta: float) -> float:
    """The tightest that the accountants know; infinite if none knows any."""
    for accountant in ("pld", "rdp"):
        try:
            return privacy_spent(ledger, delta, accountant).epsilon
        except UnsupportedEventError:
            continue
    return math.inf


@contextmanager
def _folder(cache: str | os.PathLike[str] | None) -> Iterator[Path]:
    if cache is not None:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory(prefix="dpmodel-attack-") as folder:
        yield Path(folder) / "shadows"
