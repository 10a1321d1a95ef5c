"""The exception tree: every error that dpmodel raises on purpose.

Each class also derives from the built-in exception that a caller would expect (``ValueError`` for a wrong value,
``FileNotFoundError`` for a missing file), so that code which knows nothing of dpmodel can still catch it.
"""

from __future__ import annotations


class DPModelError(Exception):
    """Base of all errors raised on purpose by ``dpmodel``, ``mechanisms`` and ``monitors``."""


class UnsupportedEventError(DPModelError, ValueError):
    """An accountant has no rule for an event, or its rule does not hold for that event."""


class BudgetExceededError(DPModelError):
    """The next release would spend more than the stated privacy budget."""


class BudgetExhausted(BudgetExceededError):  # noqa: N818 - a public name
    """The answers to a batch of queries do not fit the rest of the budget; none is given, and nothing is charged.

    Args:
        asked: Number of answers that were asked for.
        left: Number of such answers that still fit.
        spent: Epsilon spent so far, at ``delta``.
        epsilon: Epsilon of the whole budget.
        delta: Delta of the budget.
    """

    def __init__(self, asked: int, left: int, spent: float, epsilon: float, delta: float) -> None:
        super().__init__(
            f"{asked:,} answers do not fit the budget: epsilon {spent:.4g} of {epsilon:g} at delta {delta:g} is spent, "
            f"and {left:,} such answers are left. Nothing was charged. Ask for fewer, or add more noise to each"
        )
        self.asked, self.left, self.spent, self.epsilon, self.delta = asked, left, spent, epsilon, delta

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.asked, self.left, self.spent, self.epsilon, self.delta)


class CalibrationError(DPModelError, ValueError):
    """No parameter value in the searched range meets the privacy target."""


class MonitorMismatchError(DPModelError, ValueError):
    """Numbers given to a privacy monitor contradict the run that it watches."""


class ConfigError(DPModelError, ValueError):
    """A configuration field is unknown, missing, of the wrong type, or contradicts another."""


class DataError(DPModelError, ValueError):
    """Data have the wrong type, range or shape, or a file is corrupt."""


class MissingDataError(DataError, FileNotFoundError):
    """A data file does not exist at the expected path."""


class UnsupportedModuleError(DPModelError, ValueError):
    """A network has a layer that cannot be trained with per-example privacy, or that an engine does not support."""


class UnsupportedLoaderError(DPModelError, ValueError):
    """The sampling of a data loader has no privacy statement (weighted, distributed, custom, streaming)."""


class UnprotectedUpdateError(DPModelError, RuntimeError):
    """Something that is not clipped, noised and accounted could reach the optimizer."""


class NonFiniteGradientsError(DPModelError, ArithmeticError):
    """Too many steps in a row were dominated by NaN or infinite gradients, or the weights became NaN or infinite."""


class CheckpointError(DPModelError, ValueError):
    """A checkpoint is truncated, modified, of a foreign format, or does not match the object it is loaded into."""


class DistributedError(DPModelError, RuntimeError):
    """The processes of one training differ in what must be equal, or one of them has failed or is lost."""


class PrivacyWarning(UserWarning):
    """Something the user should know about the privacy claim; the claim itself stays true."""
