"""How a search is charged: its ledger, its number of runs, and what may be searched and published."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from monitors.ledger import Ledger
from monitors.registry import Registry
from monitors.tuning import best_of_random

CHARGES: Registry[type[Charge]] = Registry("tuning charge")

#: Settings that leave every event of a run as it is: what random stopping may search.
_SAME_RELEASE = (
    "network",
    "loss",
    "optimizer",
    "privacy.norm_bound",
    "privacy.clip.learning_rate",
    "privacy.clip.target_unclipped_quantile",
    "privacy.clip.decay_policy",
    "privacy.clip.min_norm_bound",
    "privacy.clip.max_norm_bound",
    "privacy.clip.stability",
)


class Charge(ABC):
    """One way to charge a search."""

    statement: ClassVar[str]
    publishable: ClassVar[str]
    #: Whether all runs share one multiplier, solved for the search as a whole.
    as_one: ClassVar[bool] = True

    @abstractmethod
    def number(self, runs: int, generator: random.Random) -> int:
        """How many runs are made."""

    @abstractmethod
    def ledger(self, planned: Sequence[Ledger], runs: int) -> Ledger:
        """What the search releases.

        Args:
            planned: The ledger of each run.
            runs: As the definition states it.
        """

    def forbidden(self, path: str) -> str | None:
        """Why the field ``path`` may not be searched; None if it may."""
        del path
        return None

    def refuse_accountant(self, name: str) -> str | None:
        """Why the accountant ``name`` cannot account for it; None if it can."""
        del name
        return None


@CHARGES.register("random")
class RandomStopping(Charge):
    """The best of a geometric number of runs; the number is secret.

    References:
        Papernot and Steinke 2022, "Hyperparameter Tuning with Renyi Differential Privacy", theorem 2.
    """

    statement = "charged: random stopping, the number of runs was drawn from a geometric distribution and is secret"
    publishable = (
        "the best run only. The other runs, their number and the duration of the search are not covered: keep this "
        "folder private"
    )

    def number(self, runs: int, generator: random.Random) -> int:
        """A geometric number of mean ``runs``, at least 1."""
        return 1 + math.floor(math.log(1.0 - generator.random()) / math.log1p(-1.0 / runs))

    def ledger(self, planned: Sequence[Ledger], runs: int) -> Ledger:
        """One random-stopping event; all runs release the same.

        Raises:
            ValueError: Two runs release different things.
        """
        if any(other != planned[0] for other in planned):
            raise ValueError(
                "under charge 'random' every run must release the same, but the searched fields change the events of "
                "a run; use charge 'all'"
            )
        return best_of_random(planned[0], float(runs), "geometric")

    def forbidden(self, path: str) -> str | None:
        """Fields that may change what a run releases."""
        if any(path == known or path.startswith(f"{known}.") for known in _SAME_RELEASE):
            return None
        return (
            "under charge 'random' every run must release the same; it may search network, loss, optimizer, "
            "privacy.norm_bound and the settings of the clip mechanism that move its bound. Use charge 'all' for this "
            "field"
        )

    def refuse_accountant(self, name: str) -> str | None:
        """All but Renyi."""
        return (
            None
            if name == "rdp"
            else f"random stopping can only be charged by accountant 'rdp', got {name!r}; set accountant: rdp"
        )


@CHARGES.register("all")
class AllRuns(Charge):
    """Every run is charged; all of them may be published."""

    statement = "charged: every run is on the ledger in full"
    publishable = "everything in this folder except training losses"

    def number(self, runs: int, generator: random.Random) -> int:
        """As many as stated."""
        del generator
        return runs

    def ledger(self, planned: Sequence[Ledger], runs: int) -> Ledger:
        """All runs, composed."""
        del runs
        merged = planned[0].merge(*planned[1:])
        merged.add_note(f"tuning: {len(planned)} runs, all of them charged")
        return merged


@CHARGES.register("none")
class NotAccounted(AllRuns):
    """Only one run is charged, and the choice among the runs is not."""

    statement = "NOT ACCOUNTED: epsilon is that of the best run, as if it had been the only one"
    publishable = "nothing under this epsilon: it does not cover the choice of the best run"
    as_one = False

    def ledger(self, planned: Sequence[Ledger], runs: int) -> Ledger:
        """A single run, with a note on what is missing."""
        del runs
        alone = planned[0].copy()
        alone.add_note("tuning: not accounted")
        return alone
