"""A set of validation metrics that are updated and computed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpmodel.metrics.adapters import MeanLoss, PreparedMetric, compute_alone, count_rows
from dpmodel.metrics.names import Metric, MetricSpec, is_loss, named_metrics
from monitors.errors import DataError, DPModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dpmodel.metrics.evaluation_losses import EvaluationLosses
    from dpmodel.metrics.scores import BatchViews

LossFunction = Callable[["Tensor", "Tensor"], "Tensor"]


class MetricSet:
    """Several metrics that are updated, computed and reset together.

    Args:
        metrics: A name, a torchmetrics object (or any object with ``update``, ``compute`` and ``reset``), a function of
            outputs and targets that returns a number or one row per example (averaged over examples), a list of these,
            or a dict (as in MindSpore) from names in the result to any of these. None: accuracy only.
        loss_fn: The loss of the training. Required for ``"loss"``, the mean over all examples of the per-example losses
            of the training. Metrics given by name use it to interpret the outputs (see Shapes).

    Raises:
        ValueError: Unknown name, two metrics with the same name, a class instead of an object, or ``"loss"`` without
            ``loss_fn``.

    Shapes:
        The built-in metrics by name take scores (N, classes, ...) or (N, ..., classes) with class indices (N, ...) as
        targets, or scores (N,) or (N, 1, ...) of a binary task. From a tuple, list or dict they pick the scores if only
        one tensor qualifies. They try ``loss_fn`` on synthetic scores and targets to find out which dimension holds the
        classes, whether binary scores are probabilities or log odds, whether targets are shifted (as for the next token
        of a language model), and which targets are ignored and so not counted. ``"mae"`` and ``"mse"`` take outputs
        and targets of the same shape. Objects, functions, and metrics registered by plugins receive the outputs as the
        network returns them, without gradients.

    Example:
        >>> import torch
        >>> metrics = MetricSet("accuracy")
        >>> metrics.update(torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 9.0]]), torch.tensor([0, 1]))
        >>> metrics.compute()
        {'accuracy': 0.5}
    """

    def __init__(self, metrics: Any = None, *, loss_fn: LossFunction | None = None) -> None:
        self._loss_fn = loss_fn
        self._given = named_metrics(metrics)
        self._built: dict[str, Metric] = {}
        self._losses: EvaluationLosses | None = None
        self._views: BatchViews | None = None
        self._device: torch.device | None = None
        self._examples = 0
        wants_loss = [name for name, entry in self._given.items() if is_loss(entry)]
        if wants_loss and loss_fn is None:
            raise ValueError(f"the metric {wants_loss[0]!r} needs the loss function: MetricSet(..., loss_fn=...)")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values that ``compute`` returns, in order."""
        return tuple(self._given)

    def measure(self, network: nn.Module, x: Any, targets: Any) -> None:
        """Run one batch through ``network`` and add it.

        Args:
            network: In evaluation mode; called without gradients.
            x: Inputs of a non-empty batch.
            targets: Targets.

        Raises:
            DataError: See ``update``.
        """
        from mechanisms.engines.batch import outputs_of

        outputs = outputs_of(network, x)
        losses = None
        if any(is_loss(entry) for entry in self._given.values()):
            losses = self._losses_of(network, x, outputs, targets)
        self.update(outputs, targets, losses=losses)

    def update(self, outputs: Any, targets: Any, *, losses: Tensor | None = None) -> None:
        """Add one batch; an empty batch changes nothing.

        Args:
            outputs: Outputs of the network.
            targets: Targets.
            losses: Per-example losses (B,) for ``"loss"``. Default: computed from the outputs, one row per example.

        Raises:
            DataError: The shapes do not match, or a target is out of range.
        """
        rows = count_rows(targets)
        if hasattr(outputs, "dim") and not outputs.dim() and any(not is_loss(entry) for entry in self._given.values()):
            raise DataError(
                f"the network returns one number for {rows} examples (does it compute the loss?), from which "
                f"{', '.join(self.names)} cannot be computed; make it return the scores too"
            )
        if hasattr(outputs, "dim") and losses is None and outputs.shape[:1] != (rows,):
            raise DataError(f"outputs and targets differ in length: {len(outputs)} and {rows}")
        if rows == 0:
            return
        outputs = outputs.detach() if hasattr(outputs, "detach") else outputs
        if not self._built:
            self._build(outputs, targets)
        self.to(_device(outputs, targets))
        views: dict[str, Any] = {}
        for name, metric in self._built.items():
            if isinstance(metric, PreparedMetric):
                if metric.view not in views:
                    views[metric.view] = self._batch_views().pairs(metric.view, name, outputs, targets)
                metric.update(*views[metric.view])
            elif losses is not None and isinstance(metric, MeanLoss) and is_loss(self._given[name]):
                metric.add(losses)
            else:
                metric.update(outputs, targets)
        self._examples += rows

    def compute(self) -> dict[str, float]:
        """The values over all batches since the last reset.

        Raises:
            DataError: There were no examples.
            ValueError: A metric object returns more than one number.
        """
        if self._examples == 0:
            raise DataError("there are no examples to compute metrics from: the loader is empty")
        return {name: _scalar(name, metric.compute()) for name, metric in self._built.items()}

    def reset(self) -> None:
        """Forget all batches, but keep the metric objects."""
        self._examples = 0
        for metric in self._built.values():
            metric.reset()

    def try_compute(self) -> Exception | None:
        """Compute all metrics to check that each returns one number.

        Returns:
            The error of a metric that cannot be computed yet, perhaps because it needs more examples; None if all were
            computed.

        Raises:
            ValueError: A metric returns anything other than one number.
        """
        import warnings

        for name, metric in self._built.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    value = metric.compute()
            except Exception as error:
                return error
            _scalar(name, value)
        return None

    def forget(self) -> None:
        """Forget all batches and the interpretation of outputs and targets, which the next batch will decide again."""
        self.reset()
        self._built, self._views, self._device = {}, None, None

    def to(self, device: torch.device | str) -> MetricSet:
        """Move all metrics to ``device`` and return the set; ``update`` moves them to its outputs automatically."""
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
        # Some objects create their state only in reset.
        for metric in built.values():
            metric.reset()
            compute_alone(metric)
        self._built = built

    def _metric(self, name: str, entry: MetricSpec | Metric, outputs: Any, targets: Any) -> Metric:
        if not isinstance(entry, MetricSpec):
            return entry
        if is_loss(entry):
            return MeanLoss(self._example_losses())
        seen: dict[str, Any] = {}
        if entry.asked:
            scores = self._batch_views().read("classes", name, outputs, targets)
            seen = {asked: getattr(scores, asked) for asked in entry.asked}
        return entry.build(**seen)

    def _losses_of(self, network: nn.Module, x: Any, outputs: Any, targets: Any) -> Tensor:
        from dpmodel.preflight.loss_remedies import failed_loss

        assert self._loss_fn is not None
        try:
            return self._example_losses()(network, x, outputs, targets)
        except DPModelError:
            raise
        except Exception as error:
            failed = failed_loss(self._loss_fn, outputs, targets, error)
            raise DataError(f"in evaluation mode, {failed}") from error

    def _example_losses(self) -> EvaluationLosses:
        from dpmodel.metrics.evaluation_losses import EvaluationLosses

        if self._losses is None:
            assert self._loss_fn is not None
            self._losses = EvaluationLosses(self._loss_fn)
        return self._losses

    def _batch_views(self) -> BatchViews:
        from dpmodel.metrics.scores import BatchViews

        if self._views is None:
            self._views = BatchViews(None if self._loss_fn is None else self._example_losses())
        return self._views


def _device(outputs: Any, targets: Any) -> torch.device:
    from mechanisms.engines.batch import first_tensor
    from mechanisms.engines.outputs import output_tensors

    return next((tensor.device for tensor in output_tensors(outputs)), first_tensor(targets).device)


def _scalar(name: str, value: Any) -> float:
    size = value.numel() if hasattr(value, "numel") else getattr(value, "size", None)
    if size is None:
        size = len(value) if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) else 1
    if size != 1 or isinstance(value, (Mapping, str)):
        raise ValueError(
            f"the metric {name!r} returns {f'a {type(value).__name__} of ' if isinstance(value, Mapping) else ''}"
            f"{size} numbers, but a metric must be a single number; make it a scalar (average='macro'), or pass one "
            "metric for each number"
        )
    try:
        return float(value[0] if isinstance(value, (list, tuple)) else value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metric {name!r} returns {value!r} instead of a number") from error
