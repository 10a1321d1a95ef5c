"""The loss of each evaluated example: the number that training differentiates, independent of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mechanisms.engines.batch import call_network, first_tensor, lacks_graph, map_tensors, outputs_of
from mechanisms.engines.isolation.isolated import examples_only, isolated
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.outputs import each_row, first_dimensions, row_dimensions
from mechanisms.engines.state.python_state import PythonState

#: Outputs with which a NaN loss is computed again; if it is NaN for all of them, no target of the example counts.
_OTHER_OUTPUTS = (0.5, 0.125, 0.75)


class EvaluationLosses:
    """Per-example losses of a batch, computed as in training: each example is a batch of one.

    The mean of these losses does not depend on how examples are grouped into batches, whatever the loss function does
    with a batch: ``reduction="sum"``, class weights, ``ignore_index``, broadcasting. An example whose targets are all
    ignored has loss 0, as in ``mechanisms.engines.ExampleLosses``.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``.

    Example:
        >>> losses = EvaluationLosses(nn.CrossEntropyLoss(reduction="sum"))
        >>> losses.of_rows(torch.zeros(3, 2), torch.tensor([0, 1, 0])).shape
        torch.Size([3])
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        self._loss_fn = loss_fn
        self._one_by_one: set[str] = set()
        self._differentiates = False

    def __call__(self, network: nn.Module | Callable[..., Any], x: Any, outputs: Any, targets: Any) -> Tensor:
        """Losses of shape (B,).

        Outputs that cannot be split into examples (a loss computed by the network, a cache) are computed again for each
        example separately. So are outputs that the loss differentiates (as physics-informed losses do), with their
        graph.

        Args:
            network: In evaluation mode.
            x: Inputs of B examples.
            outputs: ``network(x)``.
            targets: Targets of the examples.
        """
        if not self._differentiates:
            try:
                return self._of_outputs(network, x, outputs, targets)
            except RuntimeError as error:
                if not lacks_graph(error):
                    raise
        found = self._of_network(network, x, targets, graph=True)
        self._differentiates = True
        return found

    def _of_outputs(self, network: nn.Module | Callable[..., Any], x: Any, outputs: Any, targets: Any) -> Tensor:
        size = first_tensor(targets).shape[0]
        if size == 1 or (isinstance(outputs, Tensor) and outputs.shape[:1] == (size,)):
            return self.of_rows(outputs, targets)
        dims = row_dimensions(outputs, size, outputs_of(network, _row(x, 0)))
        return self._of_network(network, x, targets) if dims is None else self.of_rows(outputs, targets, dims)

    def of_rows(self, outputs: Any, targets: Any, dims: Sequence[int | None] | None = None) -> Tensor:
        """Losses of shape (B,).

        Args:
            outputs: Outputs of B examples.
            targets: Targets of the examples.
            dims: For each leaf of the outputs, the dimension of the examples, or None if the leaf is the same for all
                examples. Default: the first dimension of each tensor for which it is B.
        """
        found = self.unchecked(outputs, targets, dims)
        ignored = found.isnan()
        for value in _OTHER_OUTPUTS:
            if not bool(ignored.any()):
                return found
            other = tree_map(lambda leaf: _filled(leaf, value), outputs)  # noqa: B023
            ignored = ignored & self.unchecked(other, targets, dims).isnan()
        return found.masked_fill(ignored, 0.0)

    def unchecked(self, outputs: Any, targets: Any, dims: Sequence[int | None] | None = None) -> Tensor:
        """Like ``of_rows``, but NaN for an example whose loss is NaN for all outputs."""
        size = first_tensor(targets).shape[0]
        losses = ExampleLosses(self._loss_fn)
        if size == 1:
            with _put_back(self._loss_fn):
                return losses(outputs, targets)
        counted = first_dimensions(outputs, size) if dims is None else dims

        def of_one(output: Any, target: Any) -> Tensor:
            return losses(output, target).squeeze(0)

        def each(*, vectorised: bool) -> Tensor:
            return each_row(of_one, outputs, counted, targets, vectorised=vectorised)

        with _put_back(self._loss_fn):
            return self._tried("rows", each)

    def _of_network(
        self, network: nn.Module | Callable[..., Any], x: Any, targets: Any, *, graph: bool = False
    ) -> Tensor:
        losses = ExampleLosses(self._loss_fn)

        def of_one(example: Any, target: Any) -> Tensor:
            if not graph:
                return losses(outputs_of(network, example), target).squeeze(0)
            with torch.enable_grad():
                return losses(call_network(network, example), target).squeeze(0).detach()

        def each(*, vectorised: bool) -> Tensor:
            if vectorised:
                return isolated(of_one, x, targets)
            size = first_tensor(targets).shape[0]
            return torch.stack([of_one(_row(x, place), _row(targets, place)) for place in range(size)])

        with _put_back(network, self._loss_fn):
            return self._tried("graph" if graph else "network", each)

    def _tried(self, what: str, each: Callable[..., Tensor]) -> Tensor:
        """All examples at once, or one at a time if that is not possible (``.item()``, boolean masks)."""
        if what not in self._one_by_one:
            try:
                with examples_only():
                    return each(vectorised=True)
            except Exception:
                found = each(vectorised=False)  # if the loss is at fault, this raises its own error
                self._one_by_one.add(what)
                return found
        return each(vectorised=False)


@contextmanager
def _put_back(*owners: Any) -> Iterator[None]:
    """Restore the Python state of network and loss, as in training; a vectorised call would leave its tensors there."""
    state = PythonState(*owners, by_value=True)
    try:
        yield
    finally:
        state.restore()


def _row(nest: Any, place: int) -> Any:
    return map_tensors(lambda value: value[place : place + 1], nest)


def _filled(leaf: Any, value: float) -> Any:
    return torch.full_like(leaf, value) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
