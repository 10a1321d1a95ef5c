"""Names of metrics, and what a user may give as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from monitors import _checks
from monitors._registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Metric(Protocol):
    """What a metric object must offer; every ``torchmetrics.Metric`` does."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch."""

    def compute(self) -> Any:
        """The value over all batches since the last reset; a scalar."""

    def reset(self) -> None:
        """Forget all batches."""


METRICS: Registry[Callable[..., Metric]] = Registry("metric")


def _classification(name: str, class_name: str, **defaults: Any) -> None:
    # torchmetrics is imported when the first batch arrives: it takes longer to load than a small training step.
    def build(num_classes: int, **options: Any) -> Metric:
        from torchmetrics import classification

        chosen = {**defaults, **options}
        if num_classes == 2:
            chosen.pop("average", None)
            return getattr(classification, f"Binary{class_name}")(**chosen)  # type: ignore[no-any-return]
        return getattr(classification, f"Multiclass{class_name}")(num_classes=num_classes, **chosen)  # type: ignore[no-any-return]

    METRICS.register(name)(build)


# Accuracy over all examples is the field's meaning of the word; torchmetrics' own default averages over the classes.
_classification("accuracy", "Accuracy", average="micro")
_classification("f1", "F1Score", average="macro")
_classification("precision", "Precision", average="macro")
_classification("recall", "Recall", average="macro")
_classification("auroc", "AUROC", average="macro")


def _regression(name: str, class_name: str) -> None:
    def build(num_classes: int, **options: Any) -> Metric:
        import torchmetrics

        del num_classes
        return getattr(torchmetrics, class_name)(**options)  # type: ignore[no-any-return]

    METRICS.register(name)(build)


_regression("mae", "MeanAbsoluteError")
_regression("mse", "MeanSquaredError")

#: Names of metrics that compare numbers; all others are of classes, but for the loss.
REGRESSION = frozenset({"mae", "mse"})


@dataclass(frozen=True)
class MetricSpec:
    """A metric by name that is built when the first batch shows the number of classes.

    Args:
        name: ``"accuracy"``, ``"f1"``, ``"precision"``, ``"recall"``, ``"auroc"``, ``"mae"``, ``"mse"`` or ``"loss"``,
            in any case.
        options: Keyword arguments of the torchmetrics class.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = self.name.lower() if isinstance(self.name, str) else self.name
        if key != "loss" and key not in METRICS:
            names = sorted((*METRICS.names(), "loss"))
            hint = _checks.nearest_hint(self.name, names) or ";"
            raise ValueError(
                f"unknown metric {self.name!r}{hint} known: {', '.join(names)}, or any torchmetrics object"
            )


class Accuracy(MetricSpec):
    """Share of correct predictions; the number of classes is seen from the first batch.

    Example:
        >>> Accuracy(average="macro").options
        {'average': 'macro'}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("accuracy", options)


def named_metrics(metrics: Any) -> dict[str, MetricSpec | Metric]:
    """What a user gave as metrics, as a dict from the name in the result. See ``dpmodel.metrics.MetricSet``."""
    if metrics is None:
        metrics = "accuracy"
    # A torchmetrics.MetricCollection is a mapping in all but type.
    if isinstance(metrics, Mapping) or (hasattr(metrics, "items") and hasattr(metrics, "keys")):
        return {name: _entry(entry) for name, entry in metrics.items()}
    entries = (
        metrics if isinstance(metrics, Iterable) and not isinstance(metrics, (str, MetricSpec, Metric)) else [metrics]
    )
    named: dict[str, MetricSpec | Metric] = {}
    for given in entries:
        entry = _entry(given)
        name = (
            given if isinstance(given, str) else entry.name if isinstance(entry, MetricSpec) else type(entry).__name__
        )
        if name in named:
            raise ValueError(f"two metrics are called {name!r}; give a dict with a name for each")
        named[name] = entry
    return named


def _entry(given: Any) -> MetricSpec | Metric:
    if isinstance(given, str):
        return MetricSpec(given)
    if isinstance(given, type):
        raise ValueError(f"a metric must be an object, got the class {given.__name__}; write {given.__name__}(...)")
    if isinstance(given, (MetricSpec, Metric)):
        return given
    raise ValueError(f"a metric must be a name or an object with update, compute and reset, got {given!r}")


def is_loss(entry: Any) -> bool:
    """Whether a metric is the mean loss, which needs the loss function and not the number of classes."""
    return isinstance(entry, MetricSpec) and entry.name.lower() == "loss"


def is_of_classes(entry: Any) -> bool:
    """Whether a metric goes by a name that means a measure of classification."""
    return isinstance(entry, MetricSpec) and entry.name.lower() not in REGRESSION and not is_loss(entry)
