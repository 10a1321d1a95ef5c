"""What happened in each epoch: loss, validation metrics, and the privacy figures in force."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from dpmodel.claims.choices import private_value_read
from dpmodel.training.table_file import TableFile, without_torn_line
from monitors import checks
from monitors.untrusted import read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from monitors.accountant import Accountant
    from monitors.ledger import Ledger


@dataclass(frozen=True)
class EpochRecord:
    """One row of a training history.

    Args:
        epoch: Number of the epoch, counted from 1.
        step: Steps done over the model's life when the epoch ended.
        loss: Mean training loss of the epoch. NOT private: it is computed from the training data without noise, and
            no ledger row covers it. Do not publish it with the model.
        metrics: Validation metrics by name; as private as the validation data are.
        epsilon: Privacy spent by everything on the ledger so far; None without a delta.
        noise_multiplier: Noise multiplier of the last step, as the noise mechanism states it.
        norm_bound: Clipping bound of the last step.
        seconds: Wall time of the epoch.
    """

    epoch: int
    step: int
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    epsilon: float | None = None
    noise_multiplier: float | None = None
    norm_bound: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        checks.positive_int(epoch=self.epoch)
        checks.non_negative_int(step=self.step)
        clash = sorted(set(self.metrics) & set(FIELDS))
        if clash:
            raise ValueError(
                f"metric {clash[0]!r} has the name of a history column; rename it, for example 'valid_{clash[0]}'"
            )
        object.__setattr__(self, "metrics", dict(self.metrics))

    def __getattribute__(self, name: str) -> Any:
        if name == "loss":
            private_value_read("the training loss")
        return object.__getattribute__(self, name)


#: Most changes of the norm bound that a history keeps.
MOST_NORM_BOUNDS = 4096

NORM_BOUND_COLUMNS = ("step", "norm_bound")

FIELDS = tuple(item.name for item in dataclasses.fields(EpochRecord) if item.name != "metrics")


class History:
    """The epochs of a training, oldest first. Iterating yields ``EpochRecord`` objects.

    ``history["accuracy"]`` is a column, ``history[-1]`` the last epoch, ``history[:3]`` a list of the first three.

    Args:
        delta: The delta of the ``epsilon`` column; None for no delta.

    Example:
        >>> history = History(delta=1e-5)
        >>> record = history.append(epoch=1, step=117, loss=0.4, metrics={"accuracy": 0.95}, epsilon=1.2)
        >>> history.column("accuracy")
        [0.95]
        >>> history["accuracy"], history[-1].step
        ([0.95], 117)
    """

    def __init__(self, delta: float | None = None) -> None:
        if delta is not None:
            checks.open_unit(delta=delta)
        self.delta = delta
        self.epochs: list[EpochRecord] = []
        #: Steps done and norm bound from there on, one pair for each change; empty if it was not recorded.
        self.norm_bounds: list[tuple[int, float]] = []
        self._names: dict[str, None] = {}  # of the metrics of the first `_named` epochs
        self._named = 0

    def append(self, record: EpochRecord | None = None, **fields: Any) -> EpochRecord:
        """Add one epoch, given as a record or as its fields, and return the record.

        Raises:
            ValueError: Both or neither are given, or the step is smaller than that of the last epoch.
        """
        if (record is None) == (not fields):
            raise ValueError("append takes either one EpochRecord or its fields by keyword")
        row = EpochRecord(**fields) if record is None else record
        if self.epochs and row.step < self.epochs[-1].step:
            raise ValueError(
                f"step {row.step} is behind step {self.epochs[-1].step} of the last epoch; steps never go back"
            )
        self.epochs.append(row)
        return row

    def record_norm_bound(self, step: int, norm_bound: float) -> None:
        """Note the norm bound after ``step`` steps, for the picture; a bound that does not change takes no memory.

        If the bound changed very often, every other change is kept.
        """
        if self.norm_bounds and self.norm_bounds[-1][1] == norm_bound:
            return
        if len(self.norm_bounds) >= MOST_NORM_BOUNDS:
            del self.norm_bounds[1::2]
        self.norm_bounds.append((step, norm_bound))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of all metrics seen, in order of first appearance."""
        if self._named > len(self.epochs):
            self._named, self._names = 0, {}
        for row in self.epochs[self._named :]:
            self._names.update(dict.fromkeys(row.metrics))
        self._named = len(self.epochs)
        return tuple(self._names)

    @property
    def columns(self) -> tuple[str, ...]:
        """All column names: the fields of a record with the metrics after the loss."""
        at = FIELDS.index("loss") + 1
        return FIELDS[:at] + self.metric_names + FIELDS[at:]

    def column(self, name: str) -> list[Any]:
        """One value per epoch of a field or metric; None if an epoch has none.

        Raises:
            ValueError: No epoch has that column; the known ones and the nearest are named.
        """
        if name not in self.columns:
            hint = checks.nearest_hint(name, self.columns) or ";"
            raise ValueError(f"the history has no column {name!r}{hint} it has: {', '.join(self.columns)}")
        return [_value(row, name) for row in self.epochs]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back."""
        epochs = [dataclasses.asdict(row) for row in self.epochs]
        return {"delta": self.delta, "epochs": epochs, "norm_bounds": [list(pair) for pair in self.norm_bounds]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        """Read back ``to_dict``.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: ``values`` is not the output of ``to_dict``.
        """
        history = cls(values.get("delta"))
        for row in values["epochs"]:
            stated = {**row, **row["metrics"]}
            del stated["metrics"]
            checks.numbers(**{name: value for name, value in stated.items() if value is not None})
            history.append(EpochRecord(**row))
        history.norm_bounds = _checked_bounds(values.get("norm_bounds", ()))
        return history

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line per epoch to ``path``, atomically; absent values are empty cells.

        The file is private to the user, because it contains the training loss.
        """
        TableFile(path).update(self.columns, self.cells)

    def cells(self, first: int = 0) -> list[list[Any]]:
        """The values of all columns, one list for each epoch from index ``first`` on; None if an epoch has none."""
        names = self.columns
        return [[_value(row, name) for name in names] for row in self.epochs[first:]]

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str], delta: float | None = None) -> History:
        """Read back ``to_csv``. A column that is not a field is a metric.

        Raises:
            ValueError: The file is not a history; the path and what is wrong are named.
        """
        history = cls(delta)
        reader = csv.DictReader(io.StringIO(without_torn_line(read_text(path)), newline=""), strict=True)
        try:
            names = list(reader.fieldnames or ())
            if not {"epoch", "step"} <= set(names) or len(set(names)) < len(names):
                raise ValueError(
                    f"the file is not a training history: its header is {checks.shown(names)}, but must name epoch, "
                    "step and each other column once"
                )
            for cells in reader:
                history.append(_record_of(cells))
        except (TypeError, ValueError, OverflowError, csv.Error) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
        return history

    def norm_bounds_to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line per change of the norm bound to ``path``, atomically."""
        TableFile(path).update(NORM_BOUND_COLUMNS, lambda first: self.norm_bounds[first:])

    def read_norm_bounds(self, path: str | os.PathLike[str]) -> None:
        """Read back ``norm_bounds_to_csv``; without such a file, the bound is known only at the ends of the epochs.

        Raises:
            ValueError: The file holds something else.
        """
        with suppress(FileNotFoundError):
            text = read_text(path)
            try:
                rows = csv.DictReader(io.StringIO(without_torn_line(text), newline=""), strict=True)
                self.norm_bounds = _checked_bounds((int(row["step"]), float(row["norm_bound"])) for row in rows)
            except (KeyError, TypeError, ValueError, csv.Error) as error:
                raise ValueError(f"{path} is not a list of norm bounds: {error}") from error

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ledger: Ledger | None = None,
        accountant: str | Accountant = "rdp",
        style: str = "light",
        size: float | None = None,
    ) -> Figure:
        """Draw the training curves: metrics, losses, epsilon, noise multiplier and norm bound.

        Args:
            path: Also save the picture here; the suffix chooses the format (``.png``, ``.svg``, ``.pdf``).
            ledger: Ledger of the training, for epsilon after each step. Default: the epsilon at the end of each epoch
                is drawn over the whole epoch, which is never too small.
            accountant: The accountant that reads ``ledger``: a name or an object.
            style: ``"light"`` or ``"dark"``.
            size: Width of the picture in inches, 2.5 to 40; a column of a paper is about 3.4 wide. Default: as wide as
                the panels require.

        Raises:
            ValueError: The history is empty, an argument is out of range, or ``ledger`` is given to a history without a
                delta.
        """
        from dpmodel.figures.epsilon_curve import epsilon_over
        from dpmodel.figures.training_curve import draw_history

        privacy = None
        if ledger is not None and len(self):
            if self.delta is None:
                raise ValueError("epsilon is drawn at the delta of the history, which has none: History(delta=1e-5)")
            steps = self.column("step")
            privacy = epsilon_over(ledger, steps, self.delta, accountant, done=steps[-1])
        return draw_history(self, path, privacy=privacy, style=style, size=size)

    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: int) -> EpochRecord: ...
    @overload
    def __getitem__(self, key: slice) -> list[EpochRecord]: ...

    def __getitem__(self, key: str | int | slice) -> Any:
        """A column by its name, an epoch by its index (from 0), or a list of epochs by a slice.

        Raises:
            ValueError: There is no such column.
            IndexError: There is no such epoch.
        """
        if isinstance(key, str):
            return self.column(key)
        try:
            return self.epochs[key]
        except IndexError as error:
            raise IndexError(f"the history has {len(self)} epochs, counted from 0; there is none at {key}") from error

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        return f"History({len(self)} epoch{'' if len(self) == 1 else 's'}: {', '.join(self.columns)})"


def _value(row: EpochRecord, name: str) -> Any:
    return getattr(row, name) if name in FIELDS else row.metrics.get(name)


def _checked_bounds(pairs: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    found = [(step, bound) for step, bound in pairs]
    for step, bound in found:
        checks.non_negative_int(step=step)
        checks.positive(norm_bound=bound)
    return found


def _record_of(cells: Mapping[str, str | None]) -> EpochRecord:
    if None in cells or None in cells.values():
        raise ValueError(f"the line does not have {len(cells) - (None in cells)} cells, as many as the header")
    values = {name: float(text) for name, text in cells.items() if text}
    fields: dict[str, Any] = {name: value for name, value in values.items() if name in FIELDS}
    metrics = {name: value for name, value in values.items() if name not in FIELDS}
    whole = {name: int(fields[name]) for name in ("epoch", "step") if name in fields}
    return EpochRecord(**(fields | whole), metrics=metrics)
