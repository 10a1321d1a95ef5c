"""Passes of a few examples through the network and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from dpmodel.data.inference import evaluation_batches
from dpmodel.data.targets import require_class_targets
from dpmodel.metrics import MetricSet
from dpmodel.preflight.network import require_valid
from dpmodel.saving.nest import describe_batch
from dpmodel.training.loop import to_device
from mechanisms.engines.batch import first_tensor, map_tensors, outputs_of
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.probing import inference, preserve_state
from monitors.errors import DataError, DPModelError

#: Examples on which a network and an engine are tried.
TRIED = 4


def fixed_size(what: str, size: int) -> str:
    """The message for something that works for batches of ``size`` examples only."""
    return (
        f"it works with {size} examples, the batch size of the loader: {what} has a batch size written into it. "
        "Batches of private training vary in size, and each example is passed through separately. Take the size from "
        "the tensors (x.shape[0])"
    )


def tried_outputs(network: nn.Module, x: Any, whole: Callable[[], Any] | None = None) -> Any:
    """The network's outputs for the inputs ``x`` of some examples, in evaluation mode.

    Args:
        network: Left as it was.
        x: Inputs of some examples.
        whole: Returns the inputs of a full batch, on which a network that fails is tried again.

    Raises:
        UnsupportedModuleError: The network cannot be trained with per-example privacy.
        DataError: The network cannot take the inputs.
    """
    try:
        require_valid(network, x)
        with inference(network), preserve_state(network):
            return outputs_of(network, x)
    except DPModelError:
        raise
    except Exception as error:
        inputs = None if whole is None or _runs(network, x) else whole()
        fixed = inputs is not None and _runs(network, inputs)
        remedy = f"; {fixed_size('the network', first_tensor(inputs).shape[0])}" if fixed else _float_remedy(network, x)
        raise DataError(
            f"{type(network).__name__} cannot take the inputs of the data set ({describe_batch(x)}): {error}{remedy}"
        ) from error


def _float_remedy(network: nn.Module, x: Any) -> str:
    """What to do if the network takes the same inputs as float32; empty if it does not."""
    if not _runs(network, map_tensors(lambda tensor: tensor.float(), x)):
        return ""
    return ". It takes float32: convert the inputs in the data set, with x.float() or, in NumPy, x.astype('float32')"


def _runs(network: nn.Module, x: Any) -> bool:
    with suppress(Exception), inference(network), preserve_state(network):
        outputs_of(network, x)
        return True
    return False


def require_evaluable(
    network: nn.Module, metrics: MetricSet, loss_fn: LossFunction, loader: Any, epochs: int, device: torch.device
) -> None:
    """Compute the metrics on the first validation examples, and reset them.

    All validation examples are used if a metric cannot be computed from a few.

    Args:
        network: Left as it was.
        metrics: The metrics of the model; reset afterwards.
        loss_fn: The user's loss.
        loader: The validation data.
        epochs: Number of times that they will be read.
        device: Where the network is.

    Raises:
        DataError: The data are empty or can be read only once, or the metrics cannot be computed on them.
    """
    if isinstance(loader, Iterator):
        if epochs > 1:
            raise DataError(
                f"valid_loader is an iterator, which can be read once, but there are {epochs} epochs; pass a "
                "DataLoader, a data set, or (inputs, targets)"
            )
        return
    pair = next(iter(evaluation_batches(loader, TRIED)), None)
    if pair is None or not len(first_tensor(pair[0])):
        raise DataError("valid_loader holds no example; leave it out, or pass held-out data")
    x, y = (to_device(map_tensors(itemgetter(slice(TRIED)), value), device) for value in pair)
    with _trying(network, metrics, loss_fn, x, "on the validation data"):
        require_class_targets(getattr(loader, "dataset", loader), outputs_of(network, x), loss_fn)
        metrics.measure(network, x, y)
        if metrics.try_compute() is None:
            return
        metrics.reset()
        for pair in evaluation_batches(loader):
            metrics.measure(network, *(to_device(value, device) for value in pair))
        error = metrics.try_compute()
        if error is not None:
            raise error


def require_measurable(
    network: nn.Module, metrics: MetricSet, loss_fn: LossFunction, x: Any, y: Any, *, asked: bool = True
) -> str | None:
    """Compute the metrics on some training examples if there are no validation data, and reset them.

    Args:
        network: Left as it was.
        metrics: The metrics of the model; reset afterwards.
        loss_fn: The user's loss.
        x: Inputs of a few examples.
        y: Their targets.
        asked: Whether the user named the metrics. Training needs none: detection models compute their losses in
            training mode only.

    Returns:
        A note for the user if the default metrics cannot be computed; otherwise None.

    Raises:
        DataError: The metrics cannot be computed on them, or one of them is not a single number.
    """
    try:
        with _trying(network, metrics, loss_fn, x, "on the first training examples"):
            metrics.measure(network, x, y)
            metrics.try_compute()  # a metric may need more than a few examples
    except DPModelError as error:
        if asked:
            raise
        return f"evaluate() cannot compute the loss: {error}. Name other metrics: DPModel(..., metrics=...)"
    return None


@contextmanager
def _trying(network: nn.Module, metrics: MetricSet, loss_fn: LossFunction, x: Any, where: str) -> Iterator[None]:
    metrics.forget()
    try:
        with inference(network), preserve_state(network, loss_fn):
            yield
    except DPModelError:
        raise
    except Exception as error:
        raise DataError(
            f"the metrics {', '.join(metrics.names)} cannot be computed {where} ({describe_batch(x)}): {error}"
        ) from error
    finally:
        metrics.forget()
