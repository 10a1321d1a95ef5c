"""Which validation metric is watched, and which direction is better."""

from __future__ import annotations

from collections.abc import Iterable

from monitors import checks
from monitors.errors import ConfigError

LESS_IS_BETTER = frozenset({"loss", "mse", "mae", "error"})


def direction(monitor: str, mode: str) -> int:
    """1 if a higher value is better, -1 if a lower one is; ``"auto"`` decides by the name of the metric."""
    checks.one_of(("auto", "max", "min"), mode=mode)
    if mode == "auto":
        return -1 if LESS_IS_BETTER & set(monitor.lower().replace("-", "_").split("_")) else 1
    return 1 if mode == "max" else -1


def matching_name(monitor: str, names: Iterable[str], owner: str) -> str:
    """The one of ``names`` that matches ``monitor``, ignoring case.

    Raises:
        ConfigError: None matches; the known metrics and the nearest one are named.
    """
    by_lower = {name.lower(): name for name in names}
    # The history calls the validation loss "valid_loss", to distinguish it from the training loss in the same table.
    wanted = monitor.lower() if monitor.lower() in by_lower else monitor.lower().removeprefix("valid_")
    if wanted not in by_lower:
        listing = ", ".join(by_lower.values()) or "none (is valid_loader given to fit?)"
        hint = checks.nearest_hint(monitor, by_lower.values()) or ";"
        raise ConfigError(f"{owner} watches the validation metric {monitor!r}{hint} the metrics are: {listing}")
    return by_lower[wanted]
