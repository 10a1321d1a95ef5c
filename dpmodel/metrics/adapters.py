"""Adapters that give torchmetrics objects, functions and the loss one interface: update, compute, reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from monitors.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dpmodel.metrics.evaluation_losses import EvaluationLosses


class PreparedMetric:
    """A torchmetrics metric chosen by name; it is updated with a view of each batch.

    Args:
        metric: The torchmetrics object.
        view: ``"classes"`` or ``"numbers"``: the view of ``BatchViews`` that it is updated with.
    """

    def __init__(self, metric: Any, view: str) -> None:
        self._metric = metric
        self.view = view

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add the view of one batch; an empty batch changes nothing."""
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
        function: Returns a number (the mean over the batch) or a tensor with one row per example.

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
        """Add one batch, weighted by its number of examples.

        Raises:
            DataError: The function returns neither a number nor one row per example.
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
            raise DataError(f"the metric {function_name(self._function)!r} returned {value!r}; {_WANTED}") from error
        if values.numel() != 1 and (values.dim() == 0 or len(values) != rows):
            raise DataError(
                f"the metric {function_name(self._function)!r} returned a tensor of shape {tuple(values.shape)} for "
                f"{rows} examples; {_WANTED}"
            )
        return float(values.mean())


_WANTED = (
    "a metric function must return a number or one row per example. For anything other than a mean, use an object "
    "with update, compute and reset"
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
        """Add one batch, whose outputs have one row per example."""
        self.add(self._losses.of_rows(outputs, targets))

    def add(self, losses: Tensor) -> None:
        """Add the losses of one batch, shape (B,)."""
        self._sum += float(losses.detach().double().sum())
        self._count += len(losses)

    def compute(self) -> float:
        """The mean over all examples since the last reset."""
        return self._sum / self._count

    def reset(self) -> None:
        """Forget all batches."""
        self._sum, self._count = 0.0, 0


def compute_alone(metric: Any) -> None:
    """Let a torchmetrics object compute from its own batches, also inside a process group.

    It would otherwise wait for all ranks to compute, but a rank may evaluate alone, and rank 0 validates for all.
    """
    held = metric._metric if isinstance(metric, PreparedMetric) else metric
    for part in held.modules() if hasattr(held, "modules") else [held]:
        if hasattr(part, "distributed_available_fn"):
            part.distributed_available_fn = _not_distributed


def _not_distributed() -> bool:
    return False


def function_name(function: Any) -> str:
    """Name of a function in results and errors; for a callable object, the name of its class."""
    return str(getattr(function, "__name__", type(function).__name__))


def count_rows(value: Any) -> int:
    """Number of examples in a nest of targets."""
    from mechanisms.engines.batch import first_tensor

    return len(first_tensor(value))
