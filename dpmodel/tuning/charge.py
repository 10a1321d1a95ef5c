"""How a search is charged: its ledger, the number of runs, and what may be searched and published."""

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

#: Settings that do not change the events of a run: random stopping may search these.
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
    #: Whether all runs share one noise multiplier, solved for the search as a whole.
    as_one: ClassVar[bool] = True

    @abstractmethod
    def number(self, runs: int, generator: random.Random) -> int:
        """The number of runs."""

    @abstractmethod
    def ledger(self, planned: Sequence[Ledger], runs: int) -> Ledger:
        """What the search releases.

        Args:
            planned: The ledger of each run.
            runs: The number that the definition states.
        """

    def forbidden(self, path: str) -> str | None:
        """Why the field ``path`` may not be searched; None if it may."""
        del path
        return None

    def refuse_accountant(self, name: str) -> str | None:
        """Why the accountant ``name`` cannot state this charge; None if it can."""
        del name
        return None


@CHARGES.register("random")
class RandomStopping(Charge):
    """The best of a geometric number of runs; their number is secret.

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
        """One random-stopping event.

        Raises:
            ValueError: The runs do not all release the same.
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
        """Every accountant but Renyi's."""
        if name == "rdp":
            return None
        return f"random stopping can only be charged by accountant 'rdp', got {name!r}; set accountant: rdp"


@CHARGES.register("all")
class AllRuns(Charge):
    """Every run is charged; all of them may be inspected."""

    statement = "charged: every run is on the ledger in full"
    publishable = "everything in this folder except training losses"

    def number(self, runs: int, generator: random.Random) -> int:
        """The stated number."""
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
    """One run is charged; the choice among the runs is not."""

    statement = "NOT ACCOUNTED: epsilon is that of the best run, as if it were the only one"
    publishable = "nothing under this epsilon: it does not cover the choice of the best run"
    as_one = False

    def ledger(self, planned: Sequence[Ledger], runs: int) -> Ledger:
        """The ledger of one run, with a note that the search is not accounted for."""
        del runs
        alone = planned[0].copy()
        alone.add_note("tuning: not accounted")
        return alone
