"""Validation metrics from torchmetrics, by name or as objects, updated and read together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpmodel.metric_names import METRICS as METRICS
from dpmodel.metric_names import Accuracy as Accuracy
from dpmodel.metric_names import Metric as Metric
from dpmodel.metric_names import MetricSpec as MetricSpec
from dpmodel.metric_names import is_loss, is_of_classes, named_metrics
from monitors.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LossFunction = Callable[["Tensor", "Tensor"], "Tensor"]


class MetricSet:
    """Several metrics that are updated, read and reset together.

    Args:
        metrics: A name, a torchmetrics object, a list of these, or a dict (as in MindSpore) from the name in the result
            to either. None is the accuracy alone.
        loss_fn: Needed for ``"loss"``: the mean of it over all examples seen, each weighing the same.

    Raises:
        ValueError: Unknown name, two metrics of one name, a class instead of an object, or ``"loss"`` without
            ``loss_fn``.

    Shapes:
        outputs (N, classes) or (N, classes, ...) scores, or (N,) and (N, 1) scores of a binary task (probabilities,
        where ``loss_fn`` is ``torch.nn.BCELoss``); targets (N, ...) whole numbers in [0, classes). Objects are given
        the outputs as they are, and so is the loss: there they may be tuples, lists or dicts of tensors. ``"mae"`` and
        ``"mse"`` take outputs and targets of one shape.

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
        first, rows = _first(outputs), _rows(targets)
        if len(first) != rows:
            raise DataError(f"outputs and targets differ in length: {len(first)} and {rows}")
        if rows == 0:
            return
        outputs = outputs.detach() if outputs is first else outputs
        if not self._built:
            self._build(outputs, targets)
        self.to(first.device)
        for name, metric in self._built.items():
            metric.update(*_prepared(self._given[name], outputs, targets, self._probabilities))
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
        named = [name for name, entry in self._given.items() if isinstance(entry, MetricSpec) and not is_loss(entry)]
        if named and not hasattr(outputs, "dim"):
            raise DataError(
                f"the metric {named[0]!r} takes the outputs as one tensor, but the network gives a "
                f"{type(outputs).__name__}; give an object with update, compute and reset that picks from it"
            )
        of_classes = any(is_of_classes(self._given[name]) for name in named)
        classes = _num_classes(outputs, targets) if of_classes else 0
        for name, entry in self._given.items():
            self._built[name] = self._metric(entry, classes)

    def _metric(self, entry: MetricSpec | Metric, classes: int) -> Metric:
        if not isinstance(entry, MetricSpec):
            return entry
        if is_loss(entry):
            assert self._loss_fn is not None
            return _MeanLoss(self._loss_fn)
        return METRICS.create(entry.name.lower(), classes, **entry.options)  # type: ignore[no-any-return]


class _MeanLoss:
    """Mean loss over examples; kept in double precision so that many batches add up exactly enough."""

    def __init__(self, loss_fn: LossFunction) -> None:
        self._loss_fn = loss_fn
        self.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        value, rows = self._loss_fn(outputs, targets).detach().double(), _rows(targets)
        self._sum += float(value.mean()) * rows
        self._count += rows

    def compute(self) -> float:
        return self._sum / self._count

    def reset(self) -> None:
        self._sum, self._count = 0.0, 0


def _first(value: Any) -> Tensor:
    from mechanisms.engines.batch import first_tensor

    return first_tensor(value)


def _rows(value: Any) -> int:
    return len(_first(value))


def _num_classes(outputs: Tensor, targets: Tensor) -> int:
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


def _prepared(
    entry: MetricSpec | Metric, outputs: Tensor, targets: Tensor, are_probabilities: bool
) -> tuple[Tensor, Tensor]:
    if not is_of_classes(entry):
        return outputs, targets
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


def _scalar(name: str, value: Any) -> float:
    size = value.numel() if hasattr(value, "numel") else 1
    if size != 1:
        raise ValueError(f"the metric {name!r} gives {size} numbers; choose one that gives a scalar (average='macro')")
    return float(value)
