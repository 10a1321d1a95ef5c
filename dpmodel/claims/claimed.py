"""The part of a model that states what its training has spent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from dpmodel.claims.claim import Claim, joined_statement
from dpmodel.claims.weights import claim_for, claims_of, record_training
from monitors.errors import UnprotectedUpdateError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from monitors.accountant import Accountant, PrivacySpent


class ClaimedModel:
    """Base of models whose ledger follows the weights of their network.

    A second model on a network, or on parts of a network, that was trained privately in this process continues with
    the ledger of that training.

    Attributes:
        network: The network that is trained.
    """

    network: nn.Module
    _claim: Claim
    _in_training: bool = False
    #: Whether ``fit`` still has to say that it continues with the ledger of an earlier training.
    _continues: bool = False

    def _claim_weights(self, ledger: Ledger | None) -> None:
        """Call once the network is there."""
        if ledger is None:
            self._claim = claim_for(self.network)
            self._continues = bool(len(self._claim.ledger))
        else:
            self.ledger = ledger

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy, and what a pickle is read back to, has parameters of its own: they must be known like the others.
        self.__dict__.update(state)
        if len(self.ledger):
            record_training(self.network, self.claim)

    @property
    def claim(self) -> Claim:
        """The claim that holds for the weights."""
        return self._claim.current

    @property
    def ledger(self) -> Ledger:
        """Everything released so far. May be set between trainings, to continue from what was spent before.

        A ledger that does not contain what these weights have spent gets a note that says so.

        Raises:
            UnprotectedUpdateError: It is set while a training records on the one that is there.
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
        self._claim = claim_for(self.network, chosen)

    @property
    def statements(self) -> list[dict[str, str]]:
        """Unit, relation and sampling in words, one entry for each kind of training on the ledger."""
        return self.claim.statements

    @statements.setter
    def statements(self, statements: Iterable[Mapping[str, str]]) -> None:
        self.claim.statements[:] = [dict(entry) for entry in statements]

    @property
    def verification(self) -> list[str]:
        """What was verified about the trainings on the ledger, how and when: one sentence each, for the report."""
        return self.claim.verification

    def _continue_claim(self) -> str | None:
        """Call before each training; a line that says with which ledger it continues, or None.

        Raises:
            UnprotectedUpdateError: The claim was violated: these weights are not trained further.
        """
        before = self.claim
        for claim in (before, *claims_of(self.network)):
            claim.require_sound()
        self._claim = claim_for(self.network, before)
        continues, self._continues = self._continues or self.claim is not before, False
        if not continues:
            return None
        return (
            f"weights of this network were trained privately before: the ledger continues from those "
            f"{self.ledger.total:,} releases. For other data, pass ledger=Ledger() to DPModel"
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
        from monitors.accountant import privacy_spent

        return privacy_spent(self.ledger, delta, accountant, joined_statement(self.statements))
