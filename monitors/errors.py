"""The exception tree: every error that dpmodel raises on purpose.

Each class also derives from the built-in exception that a caller would expect (``ValueError`` for a wrong value,
``FileNotFoundError`` for a missing file), so that code which knows nothing of dpmodel can still catch it.
"""

from __future__ import annotations


class DPModelError(Exception):
    """Base of all errors raised on purpose by ``dpmodel``, ``mechanisms`` and ``monitors``."""


class UnsupportedEventError(DPModelError, ValueError):
    """An accountant met an event that it has no rule for, or a rule that does not hold there."""


class BudgetExceededError(DPModelError):
    """The next release would spend more than the stated privacy budget."""


class CalibrationError(DPModelError, ValueError):
    """No parameter value in the searched range meets the privacy target."""


class MonitorMismatchError(DPModelError, ValueError):
    """Numbers given to a privacy monitor contradict the run that it watches."""


class ConfigError(DPModelError, ValueError):
    """A configuration field is unknown, missing, of the wrong type, or contradicts another."""


class DataError(DPModelError, ValueError):
    """Data have the wrong type, range or shape, or a file is corrupt."""


class MissingDataError(DataError, FileNotFoundError):
    """A data file is not where it was looked for."""


class UnsupportedModuleError(DPModelError, ValueError):
    """A network holds a layer that cannot be trained with per-example privacy, or that an engine cannot take."""


class UnsupportedLoaderError(DPModelError, ValueError):
    """A data loader whose sampling has no privacy statement (weighted, distributed, custom, streaming)."""


class UnprotectedUpdateError(DPModelError, RuntimeError):
    """Something that is not clipped, noised and accounted could reach the optimizer."""


class NonFiniteGradientsError(DPModelError, ArithmeticError):
    """Too many steps in a row were dominated by NaN or infinite gradients."""


class CheckpointError(DPModelError, ValueError):
    """A checkpoint is truncated, changed, foreign, or does not match the object it is loaded into."""


class PrivacyWarning(UserWarning):
    """Something the user should know about the privacy claim; the claim itself stays true."""
