"""Metrics of torchmetrics, functions and the loss behind one interface: update, compute, reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from monitors.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dpmodel.metrics.evaluation_losses import EvaluationLosses


class PreparedMetric:
    """A metric of torchmetrics by name, which sees outputs and targets as a view of the batch.

    Args:
        metric: The metric of torchmetrics.
        view: ``"classes"`` or ``"numbers"``: which attribute of ``BatchViews`` it is given.
    """

    def __init__(self, metric: Any, view: str) -> None:
        self._metric = metric
        self.view = view

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take in a view of one batch; an empty one changes nothing."""
        if len(targets):
            self._metric.update(predictions, targets)

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


class MeanLoss:
    """Mean over examples of the per-example losses that training uses, summed in double precision.

    Args:
        losses: ``EvaluationLosses`` of the loss.
    """

    def __init__(self, losses: EvaluationLosses) -> None:
        self._losses = losses
        self.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in one batch, whose outputs hold one row per example."""
        self.add(self._losses.of_rows(outputs, targets))

    def add(self, losses: Tensor) -> None:
        """Take in the losses of one batch, shape (B,)."""
        self._sum += float(losses.detach().double().sum())
        self._count += len(losses)

    def compute(self) -> float:
        """The mean over all examples since the last reset."""
        return self._sum / self._count

    def reset(self) -> None:
        """Forget all batches."""
        self._sum, self._count = 0.0, 0


def function_name(function: Any) -> str:
    """What a function is called in results and errors; the class of an object that can be called."""
    return str(getattr(function, "__name__", type(function).__name__))


def count_rows(value: Any) -> int:
    """Examples in a nest of targets."""
    from mechanisms.engines.batch import first_tensor

    return len(first_tensor(value))
