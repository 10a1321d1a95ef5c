"""The loss of single examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpmodel.data.loader import PrivateLoader
from dpmodel.preflight.loss_remedies import failed_loss
from dpmodel.preflight.loss_weights import weight_notes
from dpmodel.preflight.outputs import fixed_size
from dpmodel.training.loop import to_device
from mechanisms.engines.batch import Batch, call_network, outputs_of
from mechanisms.engines.choose import require_no_reentrant
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.probing import inference, mode, perturbed_weights, preserve_state
from mechanisms.engines.slices import slices
from monitors.errors import DataError, DPModelError, UnsupportedModuleError

_REMEDY = (
    "Private training clips the gradient of each example separately, so it would spend the budget on noise. Put "
    "everything that an example is compared with into the example (anchor, positive and negatives in a dimension of "
    "their own), or use a loss of single examples (F.one_hot with num_classes, not with the classes in the batch)"
)

#: Examples from all over the data set: those whose losses are computed, and those whose gradients are in doubt.
SPREAD = 16
DOUBTED = 32

#: Examples on which a loss is tried again if it fails for one.
_SEVERAL = 3

#: A loss is refused even if this many of the examples have a usable gradient: a single example must not decide.
_EXCEPTIONS = 1


def try_loss(
    network: nn.Module, loss_fn: LossFunction, loader: PrivateLoader, device: torch.device, norm_bound: float
) -> list[str]:
    """Refuse a loss that cannot train this network on single examples.

    Args:
        network: Left as it was.
        loss_fn: The user's loss.
        loader: Of the training data.
        device: Where the network is.
        norm_bound: Bound of an example's gradient.

    Returns:
        Notes for the user about a loss that is accepted.

    Raises:
        DataError: The loss fails on the network's output and the example's target.
        UnsupportedModuleError: It is not a tensor, depends on no trainable parameter, or needs other examples.
    """

    def spread(count: int) -> Batch:
        return Batch(*(to_device(value, device) for value in loader.spread(count)))

    examples, notes = spread(SPREAD), []
    with mode(network, training=True):
        try:
            usable = [
                require_trainable(network, loss_fn, examples.select(rows)) for rows in (slice(1), slice(-1, None))
            ]
        except DataError as error:
            if any(_works(network, loss_fn, spread(count)) for count in (_SEVERAL, max(1, loader.batch_size - 1))):
                raise DataError(f"{error}; it works with several examples, so it needs others. {_REMEDY}") from error
            if _works(network, loss_fn, spread(loader.batch_size)):
                raise DataError(f"{error}; {fixed_size('the loss', loader.batch_size)}") from error
            raise
        if not all(usable):
            notes = require_single_losses(network, loss_fn, spread(DOUBTED))
    with inference(network), preserve_state(network, loss_fn):
        outputs = outputs_of(network, examples.x)
        return notes + list(weight_notes(loss_fn, Batch(outputs, examples.y), norm_bound))


def _works(network: nn.Module, loss_fn: LossFunction, batch: Batch) -> bool:
    with suppress(Exception), preserve_state(network, loss_fn):
        loss_fn(call_network(network, batch.x), batch.y)
        return True
    return False


def require_trainable(network: nn.Module, loss_fn: LossFunction, example: Batch) -> bool:
    """Refuse a loss that cannot be computed, or that no trainable parameter can change.

    Training without gradients would spend the whole budget on noise.

    Args:
        network: In training mode; left as it was.
        loss_fn: The user's loss.
        example: One example.

    Returns:
        Whether the gradient is finite and not zero.

    Raises:
        DataError: The loss fails on the network's output and the example's target.
        UnsupportedModuleError: It is not a tensor, or depends on no trainable parameter.
    """
    with preserve_state(network, loss_fn):
        found = _gradients(network, loss_fn, example)
    if all(gradient is None for gradient in found):
        raise UnsupportedModuleError(
            "the loss depends on no trainable parameter of the network, so training would add noise only. Look for "
            "detach(), .item(), torch.no_grad() or argmax in the network and the loss, and for a network that does not "
            "use its parameters"
        )
    return _usable(found)


def require_single_losses(network: nn.Module, loss_fn: LossFunction, examples: Batch) -> list[str]:
    """Refuse a loss whose gradient is useless for single examples but not for several of them together.

    Args:
        network: In training mode; left as it was.
        loss_fn: The user's loss.
        examples: Some examples of the training data.

    Returns:
        Notes for the user if the gradients are zero for a different reason, such as the targets.

    Raises:
        UnsupportedModuleError: The loss needs other examples.
    """
    looks = [_look(network, loss_fn, examples)]
    # Layers behind zero weights have no gradient yet. Perturbed weights may leave their domain.
    with suppress(Exception), perturbed_weights(network):
        looks.append(_look(network, loss_fn, examples))
    if any(look.usable > _EXCEPTIONS for look in looks):
        return []
    kind = "exactly zero" if all(look.finite for look in looks) else "zero or not finite"
    if any(look.usable_together for look in looks):
        raise UnsupportedModuleError(
            f"the loss needs other examples: its gradient is {kind} for {examples.size} single examples, but not for "
            "several of them together (contrastive loss, in-batch negatives, ranking, statistics of the batch). "
            f"{_REMEDY}"
        )
    if not all(look.finite for look in looks):
        return []  # training counts and announces examples without a finite gradient
    return [
        f"the gradient of the loss is exactly zero for the {examples.size} examples that were tried. If it is zero for "
        "all examples (targets that the loss ignores, a saturated loss, round() or sign()), training adds noise only"
    ]


class _Look(NamedTuple):
    """The gradients of some examples.

    Args:
        usable: Number of examples whose own gradient is finite and not zero.
        usable_together: Whether the other examples have usable gradients in two batches without a common example.
        finite: Whether the gradients of single examples are finite.
    """

    usable: int
    usable_together: bool
    finite: bool


def _look(network: nn.Module, loss_fn: LossFunction, examples: Batch) -> _Look:
    others, finite = [], True
    for row in range(examples.size):
        with preserve_state(network, loss_fn):
            single = _gradients(network, loss_fn, examples.select(slice(row, row + 1)))
        finite = finite and _finite(single)
        if not _usable(single):
            others.append(row)
        elif row + 1 - len(others) > _EXCEPTIONS:
            break
    half = len(others) // 2
    together = half > 1
    for rows in (others[:half], others[half:]) if together else ():
        together = together and _usable_together(network, loss_fn, examples.select(torch.tensor(rows)))
    return _Look(examples.size - len(others), together, finite)


def _usable_together(network: nn.Module, loss_fn: LossFunction, examples: Batch) -> bool:
    with suppress(Exception), preserve_state(network, loss_fn):  # the loss may take single examples only
        return _usable(_gradients(network, loss_fn, examples, together=True))
    return False


def _finite(gradients: Sequence[Tensor | None]) -> bool:
    return all(bool(part.isfinite().all()) for part in _parts(gradients))


def _usable(gradients: Sequence[Tensor | None]) -> bool:
    return _finite(gradients) and any(bool(part.any()) for part in _parts(gradients))


def _parts(gradients: Sequence[Tensor | None]) -> Iterator[Tensor]:
    return (part for value in gradients if value is not None for (part,) in slices(value.to_dense().reshape(-1)))


def _gradients(
    network: nn.Module, loss_fn: LossFunction, batch: Batch, *, together: bool = False
) -> Sequence[Tensor | None]:
    """The gradient of each trainable parameter; None for a parameter that the loss does not depend on."""
    parameters = list(trainable_parameters(network).values())
    with torch.enable_grad():
        outputs = call_network(network, batch.x)
        require_no_reentrant(outputs)
        loss = loss_fn(outputs, batch.y).sum() if together else _tried(loss_fn, outputs, batch.y)
        if not loss.requires_grad:
            return [None] * len(parameters)
        return torch.autograd.grad(loss, parameters, allow_unused=True)


def _tried(loss_fn: LossFunction, outputs: Any, targets: Any) -> Tensor:
    try:
        return ExampleLosses(loss_fn)(outputs, targets).sum()
    except DPModelError:
        raise
    except Exception as error:
        raise failed_loss(loss_fn, outputs, targets, error) from error
