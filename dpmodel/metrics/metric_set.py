"""Validation metrics from torchmetrics, by name or as objects, updated and read together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpmodel.metrics.adapters import MeanLoss, count_classes, count_rows, leading_tensor, require_one_tensor
from dpmodel.metrics.names import Metric, MetricSpec, is_loss, named_metrics
from monitors.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LossFunction = Callable[["Tensor", "Tensor"], "Tensor"]


class MetricSet:
    """Several metrics that are updated, read and reset together.

    Args:
        metrics: A name, a torchmetrics object (or any with ``update``, ``compute`` and ``reset``), a function of
            outputs and targets that gives a number or one row per example (averaged over examples), a list of these,
            or a dict (as in MindSpore) from the name in the result to any of them. None is the accuracy alone.
        loss_fn: Needed for ``"loss"``: the mean of it over all examples seen, each weighing the same.

    Raises:
        ValueError: Unknown name, two metrics of one name, a class instead of an object, or ``"loss"`` without
            ``loss_fn``.

    Shapes:
        The library's names take outputs (N, classes) or (N, classes, ...) scores, or (N,) and (N, 1) scores of a
        binary task (probabilities, where ``loss_fn`` is ``torch.nn.BCELoss``); targets (N, ...) whole numbers in
        [0, classes). ``"mae"`` and ``"mse"`` take outputs and targets of one shape. Objects, functions, the loss, and
        what others registered by name are given the outputs as the network gives them, without gradients: there they
        may be tuples, lists or dicts of tensors.

    Example:
        >>> import torch
        >>> metrics = MetricSet("accuracy")
        >>> metrics.update(torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 9.0]]), torch.tensor([0, 1]))
        >>> metrics.compute()
        {'accuracy': 0.5}
    """

    def __init__(self, metrics: Any = None, *, loss_fn: LossFunction | None = None) -> None:
        self._loss_fn = loss_fn
        self._probabilities = type(loss_fn).__name__ == "BCELoss"
        self._given = named_metrics(metrics)
        self._built: dict[str, Metric] = {}
        self._device: torch.device | None = None
        self._examples = 0
        wants_loss = [name for name, entry in self._given.items() if is_loss(entry)]
        if wants_loss and loss_fn is None:
            raise ValueError(f"the metric {wants_loss[0]!r} needs the loss function: MetricSet(..., loss_fn=...)")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values that ``compute`` returns, in order."""
        return tuple(self._given)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in one batch; an empty one changes nothing.

        Raises:
            DataError: The shapes do not fit, or a target is out of range.
        """
        first, rows = leading_tensor(outputs), count_rows(targets)
        if len(first) != rows:
            raise DataError(f"outputs and targets differ in length: {len(first)} and {rows}")
        if rows == 0:
            return
        outputs = outputs.detach() if outputs is first else outputs
        if not self._built:
            self._build(outputs, targets)
        self.to(first.device)
        for metric in self._built.values():
            metric.update(outputs, targets)
        self._examples += rows

    def compute(self) -> dict[str, float]:
        """The values over all batches since the last reset.

        Raises:
            DataError: No example was seen.
            ValueError: A metric object gives more than one number.
        """
        if self._examples == 0:
            raise DataError("the metrics have seen no example: the loader is empty")
        return {name: _scalar(name, metric.compute()) for name, metric in self._built.items()}

    def reset(self) -> None:
        """Forget all batches; the metrics stay built."""
        self._examples = 0
        for metric in self._built.values():
            metric.reset()

    def to(self, device: torch.device | str) -> MetricSet:
        """Move all metrics to ``device`` and return the set; ``update`` follows its outputs by itself."""
        import torch

        target = torch.device(device)
        if target != self._device:
            for metric in self._built.values():
                if hasattr(metric, "to"):
                    metric.to(target)
            self._device = target
        return self

    def _build(self, outputs: Any, targets: Any) -> None:
        built = {name: self._metric(name, entry, outputs, targets) for name, entry in self._given.items()}
        # An object may set up its sums in reset alone.
        for metric in built.values():
            metric.reset()
        self._built = built

    def _metric(self, name: str, entry: MetricSpec | Metric, outputs: Any, targets: Any) -> Metric:
        if not isinstance(entry, MetricSpec):
            return entry
        if is_loss(entry):
            assert self._loss_fn is not None
            return MeanLoss(self._loss_fn)
        seen: dict[str, Any] = {"are_probabilities": self._probabilities}
        if "num_classes" in entry.asked:
            require_one_tensor(name, outputs)
            seen["num_classes"] = count_classes(outputs, targets)
        return entry.build(**{name: seen[name] for name in entry.asked})


def _scalar(name: str, value: Any) -> float:
    size = value.numel() if hasattr(value, "numel") else 1
    if size != 1:
        raise ValueError(f"the metric {name!r} gives {size} numbers; choose one that gives a scalar (average='macro')")
    return float(value)
