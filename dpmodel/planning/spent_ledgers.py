"""The ledgers of earlier releases about the same data, which a configuration counts as spent."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dpmodel.config.faults import locating_errors
from monitors.errors import ConfigError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.config.schema import Config


def spent_ledger(config: Config) -> Ledger:
    """One ledger of all releases on the ledgers in ``privacy.spent``; empty if there are none.

    Raises:
        ConfigError: A file is missing, damaged, listed twice, or its guarantee is void; with file and line.
    """
    found, seen = Ledger(), dict[str, str]()
    for index, path in enumerate(config.privacy.spent):
        with locating_errors(config, f"privacy.spent.{index}"):
            place = os.path.realpath(path)
            if place in seen:
                raise ValueError(f"{path} is the same file as {seen[place]}; list each ledger once")
            seen[place] = path
            try:
                ledger = Ledger.load(path)
            except OSError as error:
                raise ValueError(f"the ledger {path} cannot be read: {error.strerror or error}") from error
            if ledger.violations:
                raise ValueError(f"the ledger {path} states no epsilon: {ledger.caveats[0]}")
            found.extend(ledger)
    return found


def without_spent(config: Config) -> Config:
    """The configuration without ``privacy.spent``: for what was trained, the ledger of its run folder states them."""
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={"spent": ()})})


def refuse_spent(config: Config, what: str) -> None:
    """Refuse ``privacy.spent`` where several trainings would each count the same releases.

    Raises:
        ConfigError: The configuration lists ledgers; with file and line.
    """
    if config.privacy.spent:
        raise ConfigError(
            f"{config.where('privacy.spent')}: privacy.spent is for a single training; {what} would count its ledgers "
            "once for each of its trainings. Lower the target epsilon by what was spent, or remove privacy.spent"
        )
