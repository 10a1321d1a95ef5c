"""The loss of single examples, tried before anything is spent."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dpmodel.data.loader import Pair, PrivateLoader
from dpmodel.network_mode import inference, mode
from dpmodel.preflight.loss_weights import weight_notes
from dpmodel.tensor_nest import describe_batch
from dpmodel.training import to_device
from dpmodel.trial_passes import fixed_size
from mechanisms.engines.batch import Batch, call_network, outputs_of
from mechanisms.engines.choose import require_no_reentrant
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.undisturbed import shaken, undisturbed
from monitors.errors import DataError, DPModelError, UnsupportedModuleError

_NO_GRADIENT = (
    "so that training would add noise alone; look for detach(), .item(), torch.no_grad(), argmax, round() or sign() in "
    "the network and the loss, and for a network that does not use its parameters"
)

_REMEDY = (
    "Private training clips the gradient of each example by itself, so it would spend the budget on noise. Let an "
    "example hold everything that it is compared with (anchor, positive and negatives in a dimension of their own), or "
    "use a loss of single examples"
)


#: Further examples, from all over the data set, on which a loss is tried.
SPREAD = 16


def try_loss(
    network: nn.Module, loss_fn: LossFunction, loader: PrivateLoader, device: torch.device, norm_bound: float
) -> list[str]:
    """Try the loss on some examples, as ``require_trainable`` does; what to tell the user about it.

    Args:
        network: Left as it was.
        loss_fn: The user's loss.
        loader: Of the training data.
        device: Where the network is.
        norm_bound: To which the gradient of an example is clipped.
    """

    def batch(pair: Pair) -> Batch:
        return Batch(*(to_device(value, device) for value in pair))

    spread = batch(loader.spread(SPREAD))
    with mode(network, training=True):
        try:
            note = require_trainable(network, loss_fn, batch(loader.example(1)), spread)
        except DataError as error:
            whole = batch(loader.spread(loader.batch_size))
            if not _works(network, loss_fn, whole):
                raise
            raise DataError(f"{error}; {fixed_size('the loss', whole.size)}") from error
    with inference(network), undisturbed(network, loss_fn):
        outputs = outputs_of(network, spread.x)
        notes = list(weight_notes(loss_fn, Batch(outputs, spread.y), norm_bound))
    return notes if note is None else [note, *notes]


def _works(network: nn.Module, loss_fn: LossFunction, batch: Batch) -> bool:
    with suppress(Exception), undisturbed(network, loss_fn):
        loss_fn(call_network(network, batch.x), batch.y)
        return True
    return False


class _Gradients(NamedTuple):
    """Gradients of a loss, None for those that it does not depend on.

    Args:
        parameters: With respect to the trainable parameters.
        outputs: With respect to the outputs of the network.
    """

    parameters: list[Tensor | None]
    outputs: list[Tensor | None]

    @property
    def usable(self) -> bool:
        """Whether the gradient of the parameters is finite and not zero."""
        found = [value for value in self.parameters if value is not None]
        return all(bool(value.isfinite().all()) for value in found) and any(bool(value.any()) for value in found)

    @property
    def finite(self) -> bool:
        """Whether the gradient of the parameters is finite."""
        return all(bool(value.isfinite().all()) for value in self.parameters if value is not None)


class _Look(NamedTuple):
    """What was seen of the gradients of some examples.

    Args:
        usable: Whether that of one example by itself is finite and not zero.
        usable_together: Whether that of all examples in one batch is.
        finite: Whether those of single examples are finite.
        reaches_outputs: Whether that of the outputs of the network, for a single example, is not zero.
    """

    usable: bool
    usable_together: bool
    finite: bool
    reaches_outputs: bool


def require_trainable(
    network: nn.Module, loss_fn: LossFunction, example: Batch, more: Batch | None = None
) -> str | None:
    """Refuse a loss that cannot be computed, or whose gradients for single examples are of no use.

    A training without gradients would spend its whole budget on noise.

    Args:
        network: In training mode; left as it was.
        loss_fn: The user's loss.
        example: One example.
        more: Further examples, looked at if the gradient of ``example`` is zero or not finite.

    Returns:
        What to tell the user if all these gradients are zero, though it may be for the examples' targets; else None.

    Raises:
        DataError: The loss fails on the network's output and the example's target.
        UnsupportedModuleError: It is no tensor, depends on no trainable parameter, or needs other examples.
    """
    with undisturbed(network, loss_fn):
        found = _gradients(network, loss_fn, example)
    if all(gradient is None for gradient in found.parameters):
        raise UnsupportedModuleError(f"the loss depends on no trainable parameter of the network, {_NO_GRADIENT}")
    if found.usable or more is None:
        return None
    first = _look(network, loss_fn, more)
    if first.usable:
        return None
    second = first
    # What lies behind weights of zero has no gradient yet. Weights may have a domain that moving them leaves.
    with suppress(Exception), shaken(network):
        second = _look(network, loss_fn, more)
    return None if second.usable else _explained(first, second, more.size)


def _explained(first: _Look, second: _Look, size: int) -> str | None:
    finite = first.finite and second.finite
    if first.usable_together or second.usable_together:
        kind = "exactly zero" if finite else "zero or not finite"
        raise UnsupportedModuleError(
            f"the loss needs other examples: its gradient is {kind} for each of {size} examples by itself, but not for "
            f"all of them together (a contrastive loss, in-batch negatives, a ranking, a statistic of the batch). "
            f"{_REMEDY}"
        )
    if not finite:
        return None  # examples without a finite gradient are counted, and announced, when they are trained
    if first.reaches_outputs or second.reaches_outputs:
        raise UnsupportedModuleError(
            f"the network passes no gradient on to its parameters: it is exactly zero for each of {size} examples, "
            f"also at moved weights, {_NO_GRADIENT}"
        )
    return (
        f"the gradient of the loss is exactly zero for each of the {size} examples that were tried. If it is for all "
        "(targets that the loss ignores, a saturated loss, round() or sign() in it), training adds noise alone"
    )


def _look(network: nn.Module, loss_fn: LossFunction, examples: Batch) -> _Look:
    finite, reaches_outputs = True, False
    for row in range(examples.size):
        with undisturbed(network, loss_fn):
            single = _gradients(network, loss_fn, examples.select(slice(row, row + 1)))
        if single.usable:
            return _Look(True, True, True, True)
        finite = finite and single.finite
        reaches_outputs = reaches_outputs or any(bool(value.any()) for value in single.outputs if value is not None)
    together = False
    with suppress(Exception), undisturbed(network, loss_fn):  # it may take single examples only
        together = _gradients(network, loss_fn, examples, together=True).usable
    return _Look(False, together, finite, reaches_outputs)


def _gradients(network: nn.Module, loss_fn: LossFunction, batch: Batch, *, together: bool = False) -> _Gradients:
    parameters = list(trainable_parameters(network).values())
    with torch.enable_grad():
        outputs = call_network(network, batch.x)
        require_no_reentrant(outputs)
        loss = loss_fn(outputs, batch.y).sum() if together else _tried(loss_fn, outputs, batch.y)
        leaves = [value for value in tree_leaves(outputs) if isinstance(value, Tensor) and value.requires_grad]
        if not loss.requires_grad:
            return _Gradients([None] * len(parameters), [])
        found = torch.autograd.grad(loss, [*parameters, *leaves], allow_unused=True)
    return _Gradients(list(found[: len(parameters)]), list(found[len(parameters) :]))


def _tried(loss_fn: LossFunction, outputs: Any, targets: Any) -> Tensor:
    try:
        return ExampleLosses(loss_fn)(outputs, targets).sum()
    except DPModelError:
        raise
    except Exception as error:
        raise DataError(
            f"loss_fn(outputs, targets) fails for outputs {describe_batch(outputs)} and targets "
            f"{describe_batch(targets)}: {error}{_remedy(targets)}"
        ) from error


def _remedy(targets: Any) -> str:
    column = isinstance(targets, Tensor) and targets.dim() == 2 and targets.shape[1] == 1
    return ". Where each target is one class, let it have no dimension of its own: targets.squeeze(1)" if column else ""
