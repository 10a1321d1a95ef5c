"""What metrics are given: scores made into probabilities for those of the library, and plain functions as metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from monitors.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PreparedMetric:
    """A metric of torchmetrics that sees the outputs only after ``prepare``.

    Args:
        name: What the metric is called in errors.
        metric: The metric of torchmetrics.
        prepare: Outputs and targets to what the metric takes.
    """

    def __init__(
        self, name: str, metric: Any, prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    ) -> None:
        self._name = name
        self._metric = metric
        self._prepare = prepare

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in one batch.

        Raises:
            DataError: The outputs are not one tensor.
        """
        require_one_tensor(self._name, outputs)
        self._metric.update(*(self._prepare(outputs, targets) if self._prepare is not None else (outputs, targets)))

    def compute(self) -> Any:
        """The value over all batches since the last reset."""
        return self._metric.compute()

    def reset(self) -> None:
        """Forget all batches."""
        self._metric.reset()

    def to(self, device: torch.device | str) -> PreparedMetric:
        """Move the metric's sums to ``device``."""
        self._metric.to(device)
        return self


class FunctionMetric:
    """A function of outputs and targets, averaged over examples.

    Args:
        function: Gives a number, the mean over the batch, or a tensor with one row per example.

    Example:
        >>> import torch
        >>> metric = FunctionMetric(lambda outputs, targets: (outputs - targets).abs())
        >>> metric.update(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 2.0, 3.0]))
        >>> metric.compute()
        1.0
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function
        self.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in one batch; it weighs as many examples as it has.

        Raises:
            DataError: The function gives neither a number nor one row per example.
        """
        rows = count_rows(targets)
        self._sum += rows * self._mean(self._function(outputs, targets), rows)
        self._count += rows

    def compute(self) -> float:
        """The mean over all examples since the last reset."""
        return self._sum / self._count

    def reset(self) -> None:
        """Forget all batches."""
        self._sum, self._count = 0.0, 0

    def _mean(self, value: Any, rows: int) -> float:
        import torch

        try:
            values = torch.as_tensor(value).detach().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"the metric {function_name(self._function)!r} gives {value!r}, {_WANTED}") from error
        if values.numel() != 1 and (values.dim() == 0 or len(values) != rows):
            raise DataError(
                f"the metric {function_name(self._function)!r} gives a tensor of shape {tuple(values.shape)} for "
                f"{rows} examples, {_WANTED}"
            )
        return float(values.mean())


_WANTED = (
    "where a function as metric gives a number or one row per example; for more than a mean give an object with "
    "update, compute and reset"
)


class MeanLoss(FunctionMetric):
    """Mean loss over examples, whatever the shape of the loss; summed in double precision, as all functions are."""

    def _mean(self, value: Any, rows: int) -> float:
        del rows
        return float(value.detach().double().mean())


def function_name(function: Any) -> str:
    """What a function is called in results and errors; the class of an object that can be called."""
    return str(getattr(function, "__name__", type(function).__name__))


def leading_tensor(value: Any) -> Tensor:
    """The first tensor in a nest of outputs or targets."""
    from mechanisms.engines.batch import first_tensor

    return first_tensor(value)


def count_rows(value: Any) -> int:
    """Examples in a nest of outputs or targets."""
    return len(leading_tensor(value))


def require_one_tensor(name: str, outputs: Any) -> None:
    """Refuse outputs that are a tuple, list or dict.

    Raises:
        DataError: Names the metric and what the network gives.
    """
    if not hasattr(outputs, "dim"):
        raise DataError(
            f"the metric {name!r} takes the outputs as one tensor, but the network gives a "
            f"{type(outputs).__name__}; give a function of outputs and targets, or an object with update, compute and "
            "reset, that picks from it"
        )


def count_classes(outputs: Tensor, targets: Tensor) -> int:
    """Classes of a task, seen from a batch; 2 where the outputs are one score per example.

    Raises:
        DataError: The targets are no class numbers, or out of range.
    """
    binary = outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1)
    if not binary and outputs.shape == targets.shape:
        raise DataError(
            f"outputs and targets both have shape {tuple(outputs.shape)}: metrics by name take class numbers as "
            "targets. For several labels per example or one-hot targets give a torchmetrics object, such as "
            f"torchmetrics.classification.MultilabelAccuracy(num_labels={outputs.shape[1]})."
        )
    classes = 2 if binary else int(outputs.shape[1])
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"targets must lie in [0, {classes}) for outputs of shape {tuple(outputs.shape)}, got {low} to {high}"
        )
    return classes


def class_probabilities(outputs: Tensor, targets: Tensor, *, are_probabilities: bool) -> tuple[Tensor, Tensor]:
    """Scores as probabilities, float64: (N,) of the second of two classes, or (N, classes, ...).

    Args:
        outputs: Scores (N, classes, ...), or (N,) and (N, 1) for two classes.
        targets: Class numbers (N, ...).
        are_probabilities: Whether outputs with one number per example are probabilities already.
    """
    # torchmetrics guesses from each batch's range whether it holds scores or probabilities, and guesses wrong for a
    # batch of small scores; so it is given probabilities only. Double precision keeps large scores apart.
    values = outputs.double()
    if values.dim() == 2 and values.shape[1] == 1:
        values, targets = values[:, 0], targets.reshape(-1)
    elif values.dim() == 2 and values.shape[1] == 2:
        return values.softmax(1)[:, 1], targets
    if values.dim() == 1:
        return (values if are_probabilities else values.sigmoid()), targets
    return values.softmax(1), targets
