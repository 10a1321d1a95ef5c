"""The part of a model that states its privacy: ledger, epsilon and report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from dpmodel.claims.claim import Claim, forgotten_queries, joined_statement
from dpmodel.claims.weights import claim_for, claims_of, record_training
from dpmodel.runs.report.subject import ReportSubject
from monitors.errors import UnprotectedUpdateError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.runs.report import PrivacyReport
    from dpmodel.training.run import Run
    from monitors.accountant import Accountant
    from monitors.spent import PrivacySpent


class ClaimedModel:
    """Base of models whose ledger follows the weights of their network.

    If a network, or parts of it, was trained privately in this process, a second model on it continues with the ledger
    of that training.

    Attributes:
        network: The network that is trained.
        optimizer: What trains it. It may carry earlier private releases as well, such as momentum.
    """

    network: nn.Module
    optimizer: Optimizer
    _claim: Claim
    _in_training: bool = False
    #: Whether ``fit`` must still announce that it continues with the ledger of an earlier training.
    _continues: bool = False
    #: The last training as its report describes it, and how it ended; None before the first.
    _trained: tuple[ReportSubject, str] | None = None
    steps_done: int

    def _claim_weights(self, ledger: Ledger | None) -> None:
        """Call it once network and optimizer are set."""
        if ledger is None:
            self._claim = claim_for(self.network, None, self.optimizer, *self._beside())
            self._continues = bool(len(self._claim.ledger))
        else:
            self.ledger = ledger

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy or an unpickled model has new parameters, which must be known like the old ones.
        self.__dict__.update(state)
        if len(self.ledger):
            record_training(self.network, self.claim)

    @property
    def claim(self) -> Claim:
        """The claim in force for the weights."""
        return self._claim.current

    @property
    def ledger(self) -> Ledger:
        """Everything released so far. It may be set between trainings, to continue an earlier ledger.

        A ledger that does not contain what these weights have spent gets a note that says so.

        Raises:
            UnprotectedUpdateError: It is set while a training records on the present ledger.
            ValueError: It is set to something that is not a ledger.
        """
        return self.claim.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        if self._in_training:
            raise UnprotectedUpdateError(
                "the ledger was replaced while a training records its releases on it; set it before or after fit"
            )
        if not isinstance(ledger, Ledger):
            raise ValueError(f"ledger must be a monitors.Ledger, got {ledger!r} of type {type(ledger).__name__}")
        chosen = Claim(ledger, chosen=True)
        chosen.verified(self._claim.current.verification if "_claim" in self.__dict__ else ())
        self._claim = claim_for(self.network, chosen, self.optimizer, *self._beside())

    @property
    def statements(self) -> list[dict[str, str]]:
        """Unit, relation and sampling in words, one entry per kind of training on the ledger."""
        return self.claim.statements

    @statements.setter
    def statements(self, statements: Iterable[Mapping[str, str]]) -> None:
        self.claim.statements[:] = [dict(entry) for entry in statements]

    @property
    def verification(self) -> list[str]:
        """What was verified about the trainings on the ledger, how and when: sentences for the report."""
        return self.claim.verification

    def _beside(self, loader: Any = None) -> tuple[Any, ...]:
        """What examples pass through beside the network: it may hold networks that were trained privately."""
        data = (getattr(loader, name, None) for name in ("dataset", "collate_fn", "fetcher"))
        return (getattr(self, "loss_fn", None), getattr(self, "augmentation", None), *data)

    def _continue_claim(self, loader: Any = None) -> str | None:
        """Call before each training; returns a line that says with which ledger it continues, or None.

        Args:
            loader: The source of the examples.

        Raises:
            UnprotectedUpdateError: The claim was violated: these weights cannot be trained further.
        """
        before, beside = self.claim, self._beside(loader)
        for claim in (before, *claims_of(self.network, self.optimizer, *beside)):
            claim.require_sound()
        self._claim = claim_for(self.network, before, self.optimizer, *beside)
        continues, self._continues = self._continues or self.claim is not before, False
        if not continues:
            return None
        return (
            f"this network holds results of earlier private releases: the ledger continues from those "
            f"{self.ledger.total:,} releases. For different data, pass ledger=Ledger() to DPModel"
        )

    def privacy_spent(self, delta: float, accountant: str | Accountant = "rdp") -> PrivacySpent:
        """Epsilon at ``delta`` of everything on the ledger, with the conditions under which it holds.

        Args:
            delta: In (0, 1).
            accountant: ``"rdp"``, ``"zcdp"`` or ``"pld"``, or an accountant object.

        Example:
            >>> import torch
            >>> from dpmodel import DPModel
            >>> network = nn.Linear(4, 2)
            >>> model = DPModel(network, nn.MSELoss(), torch.optim.SGD(network.parameters(), lr=0.1))
            >>> model.privacy_spent(1e-5).epsilon
            0.0
        """
        from monitors.spent import privacy_spent

        return privacy_spent(self.ledger, delta, accountant, joined_statement(self.statements))

    def report(
        self,
        delta: float | None = None,
        accountant: str | Accountant | None = None,
        *,
        card: Mapping[str, Any] | None = None,
    ) -> PrivacyReport:
        """The privacy report: what was spent, under which conditions, and what it does not cover.

        ``print(report)`` shows it in plain words, ``report.save(folder)`` writes it as Markdown, JSON and HTML, and
        ``report.to_dict()`` returns plain values. The mechanisms are those of the last call of ``fit``; the figures
        cover everything on the ledger.

        Args:
            delta: Default: the delta of the last training's privacy monitor, or 1e-5.
            accountant: A name or an object. Default: the accountant of the monitor, or ``"rdp"``.
            card: What you declare for the privacy card: the keys of the section ``card`` of a configuration.

        Raises:
            ValueError: The model has not been trained, or ``delta`` is out of range.
            ConfigError: ``card`` has unknown or wrong values, or names an audit of a different ledger.

        Example:
            >>> import torch
            >>> from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
            >>> network = nn.Linear(2, 1)
            >>> noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=2.0)
            >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            >>> model = DPModel(network, nn.MSELoss(), optimizer, noise_mech=noise)
            >>> data = torch.utils.data.TensorDataset(torch.randn(40, 2), torch.randn(40, 1))
            >>> _ = model.fit(poisson_loader(data, batch_size=10))
            >>> print(model.report(delta=1e-3))
            # Privacy report
            ...
        """
        if self._trained is None:
            raise ValueError(
                "a report describes a training, but this model has not been trained: call fit first. "
                "privacy_spent(delta) states what is on the ledger"
            )
        from dpmodel.runs.report import make_report

        subject, status = self._trained
        stated = replace(
            subject,
            delta=subject.delta if delta is None else delta,
            accountant=subject.accountant if accountant is None else accountant,
            statement=joined_statement(self.statements),
        )
        if card is None:
            return make_report(stated, self.ledger, self.steps_done, status=status, verified=self.verification)
        from dpmodel.config.reader import declared_card
        from dpmodel.runs.report.audit_result import audit_result

        stated = replace(stated, card=declared_card(card))
        result = audit_result(self.ledger.digest(), None, stated.card.audit)
        made = make_report(stated, self.ledger, self.steps_done, status=status, verified=self.verification)
        return made.with_values("audit", result=result)

    @contextmanager
    def _described(self, run: Run) -> Iterator[None]:
        """Keep the report's description of ``run``, which is carried out inside the block."""
        self._trained = run.subject, "under way"
        forgotten = None if self.claim.chosen else forgotten_queries(self.ledger)
        if forgotten is not None:
            self.ledger.add_note(forgotten)
            run.say(forgotten)
        try:
            yield
        except BaseException as error:
            self._trained = run.subject, run.status(error)
            raise
        self._trained = run.subject, run.status()
