"""Tries the augmentation on a few examples before any budget is spent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dpmodel.augmentation import Augmentation
from dpmodel.preflight.held_examples import is_among
from mechanisms.engines.batch import Batch, all_tensors
from mechanisms.engines.state.python_state import PythonState
from monitors.errors import DataError


def tried_views(augmentation: Any, examples: Batch) -> Batch:
    """Views of ``examples``, as a training draws them; the examples themselves without augmentation.

    Raises:
        ValueError: ``augmentation`` is not an ``Augmentation``.
        DataError: The views cannot be made, are not like the examples, or could contain other examples.
    """
    if augmentation is None:
        return examples
    if not isinstance(augmentation, Augmentation):
        raise ValueError(f"augmentation must be an Augmentation or None, got {augmentation!r}")
    _require_no_pool(augmentation, examples)
    try:
        made = augmentation.drawn(examples).made()
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"the augmentation {augmentation.transforms!r} cannot be applied: {reason}") from error
    for before, after in zip(all_tensors(examples.x), all_tensors(made.x), strict=True):
        _require_alike(augmentation, before, after)
    return made


def _require_no_pool(augmentation: Augmentation, examples: Batch) -> None:
    """Refuse transforms that hold the tried examples, as mixup does with a pool of the training data."""
    held = PythonState(*augmentation.transforms).read
    for tensor in held:
        if any(is_among(example, tensor) for part in all_tensors(examples.x) for example in part):
            raise DataError(
                f"the augmentation {augmentation.transforms!r} holds examples of the training data, which the views of "
                "other examples could contain. One record would move the gradients of several examples, but the ledger "
                "accounts for one. Make views of one example alone, or mix it with public data"
            )


def _require_alike(augmentation: Augmentation, example: Tensor, views: Tensor) -> None:
    expected = (example.shape[0], augmentation.multiplicity, *example.shape[1:])
    if views.shape != expected or views.dtype != example.dtype or views.device != example.device:
        raise DataError(
            f"the augmentation {augmentation.transforms!r} makes views of shape {tuple(views.shape[2:])}, "
            f"{views.dtype} on {views.device}, of examples of shape {tuple(example.shape[1:])}, {example.dtype} on "
            f"{example.device}; both must be alike"
        )
    if bool(example.isfinite().all()) and not bool(views.isfinite().all()):
        raise DataError(f"the augmentation {augmentation.transforms!r} makes values that are NaN or infinite")
