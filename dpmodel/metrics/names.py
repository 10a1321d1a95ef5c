"""Names of metrics, and the values that users may pass as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from dpmodel.metrics.adapters import FunctionMetric, MeanLoss, PreparedMetric, function_name
from monitors import checks
from monitors.arguments import check_arguments
from monitors.registry import Registry
from monitors.signatures import signature


@runtime_checkable
class Metric(Protocol):
    """The interface of a metric object; every ``torchmetrics.Metric`` has it."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add one batch: the network's outputs and the targets, unchanged."""

    def compute(self) -> Any:
        """The value over all batches since the last reset; a scalar."""

    def reset(self) -> None:
        """Forget all batches; called before the first one too."""


#: Builders of metrics by name. A builder is called with the first batch. If it has an argument ``num_classes`` or
#: ``are_probabilities`` (whether the outputs are already probabilities, as ``torch.nn.BCELoss`` expects), it is passed.
#: It returns a metric object, or a function of outputs and targets; both receive the outputs unchanged.
METRICS: Registry[Callable[..., Any]] = Registry("metric")

#: Metrics with values between 0 and 1.
FRACTIONS: set[str] = set()

#: Arguments of a builder that are passed automatically.
SEEN_IN_A_BATCH = ("num_classes", "are_probabilities")


def _classification(name: str, class_name: str, **defaults: Any) -> None:
    # torchmetrics is imported with the first batch, because its import takes longer than a small training step.
    def build(num_classes: int, **options: Any) -> Metric:
        from torchmetrics import classification

        chosen = {**defaults, **options}
        if num_classes == 2:
            chosen.pop("average", None)
            metric = getattr(classification, f"Binary{class_name}")(**chosen)
        else:
            metric = getattr(classification, f"Multiclass{class_name}")(num_classes=num_classes, **chosen)
        return PreparedMetric(metric, "classes")

    METRICS.register(name)(build)
    FRACTIONS.add(name)


# Accuracy usually means the share of all examples; the default of torchmetrics averages over classes instead.
_classification("accuracy", "Accuracy", average="micro")
_classification("f1", "F1Score", average="macro")
_classification("precision", "Precision", average="macro")
_classification("recall", "Recall", average="macro")
_classification("auroc", "AUROC", average="macro")


def _regression(name: str, class_name: str) -> None:
    def build(**options: Any) -> Metric:
        import torchmetrics

        return PreparedMetric(getattr(torchmetrics, class_name)(**options), "numbers")

    METRICS.register(name)(build)


_regression("mae", "MeanAbsoluteError")
_regression("mse", "MeanSquaredError")

#: Built-in metrics that compare numbers; the others compare classes.
REGRESSION = frozenset({"mae", "mse"})


@dataclass(frozen=True)
class MetricSpec:
    """A metric given by name. It is built with the first batch, which shows the number of classes.

    Args:
        name: ``"accuracy"``, ``"f1"``, ``"precision"``, ``"recall"``, ``"auroc"``, ``"mae"``, ``"mse"``, ``"loss"`` or
            a registered name; case does not matter.
        options: Keyword arguments of the torchmetrics class, or of the registered builder.

    Raises:
        ValueError: Unknown name, or an argument that the builder does not take; the nearest is suggested.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_loss(self):
            owner = f"metric {self.name!r} (its builder, called before there are outputs)"
            check_arguments(METRICS.get(self.key), self.options, owner, provided=SEEN_IN_A_BATCH)

    @property
    def key(self) -> str:
        """The registered name."""
        known = METRICS.names()
        if self.name in known:
            return self.name
        by_lower = {name.lower(): name for name in known}
        if not isinstance(self.name, str) or self.name.lower() not in by_lower:
            names = sorted((*known, "loss"))
            hint = checks.nearest_hint(self.name, names) or ";"
            raise ValueError(
                f"unknown metric {self.name!r}{hint} known: {', '.join(names)}, any torchmetrics object, or a function "
                "of outputs and targets"
            )
        return by_lower[self.name.lower()]

    @property
    def asked(self) -> tuple[str, ...]:
        """The names in ``SEEN_IN_A_BATCH`` that the builder takes."""
        parameters = signature(METRICS.get(self.key)).parameters
        return tuple(name for name in SEEN_IN_A_BATCH if name in parameters)

    def build(self, **seen: Any) -> Metric:
        """Build the metric from the arguments in ``asked``.

        Raises:
            ValueError: The registered builder does not return a metric.
        """
        built = METRICS.create(self.key, **seen, **self.options)
        if isinstance(built, Metric):
            return built
        if callable(built):
            return FunctionMetric(built)
        raise ValueError(
            f"the builder of metric {self.name!r} returned {built!r}; it must return an object with update, compute "
            "and reset, or a function of outputs and targets"
        )


class Accuracy(MetricSpec):
    """Share of correct predictions; the number of classes is taken from the first batch.

    Example:
        >>> Accuracy(average="macro").options
        {'average': 'macro'}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("accuracy", options)


def named_metrics(metrics: Any) -> dict[str, MetricSpec | Metric]:
    """The user's metrics as a dict from names in the result. See ``dpmodel.metrics.MetricSet``."""
    if metrics is None:
        metrics = "accuracy"
    # torchmetrics.MetricCollection behaves like a mapping but is not one.
    if isinstance(metrics, Mapping) or (hasattr(metrics, "items") and hasattr(metrics, "keys")):
        return {name: _entry(entry) for name, entry in metrics.items()}
    entries = (
        metrics if isinstance(metrics, Iterable) and not isinstance(metrics, (str, MetricSpec, Metric)) else [metrics]
    )
    named: dict[str, MetricSpec | Metric] = {}
    for given in entries:
        entry, name = _entry(given), _name_of(given)
        if name in named:
            raise ValueError(f"two metrics have the name {name!r}; pass a dict with a name for each")
        named[name] = entry
    return named


def _name_of(given: Any) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, MetricSpec):
        return given.name
    if isinstance(given, Metric):
        return type(given).__name__
    name = function_name(given)
    if not name.isidentifier():
        raise ValueError(f"the metric {given!r} has no name; pass a dict from a name to the metric")
    return name


def _entry(given: Any) -> MetricSpec | Metric:
    if isinstance(given, str):
        return MetricSpec(given)
    if isinstance(given, type):
        raise ValueError(f"a metric must be an object, got the class {given.__name__}; write {given.__name__}(...)")
    if isinstance(given, (MetricSpec, Metric)):
        return given
    if isinstance(getattr(given, "reduction", None), str):
        from dpmodel.metrics.evaluation_losses import EvaluationLosses

        return MeanLoss(EvaluationLosses(given))
    if callable(given):
        return FunctionMetric(given)
    raise ValueError(
        "a metric must be a name or an object with update, compute and reset, or a function of outputs and targets, "
        f"got {given!r}"
    )


def is_loss(entry: Any) -> bool:
    """Whether a metric is the mean loss, which needs the loss function and not the number of classes."""
    return isinstance(entry, MetricSpec) and isinstance(entry.name, str) and entry.name.lower() == "loss"
