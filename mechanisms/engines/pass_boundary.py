"""The boundary of a pass over private data: nothing that was made inside of it is there afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import Any
from weakref import ref

from torch import nn

from mechanisms.engines.batch import Batch, all_tensors
from mechanisms.engines.escapes import Escapes
from mechanisms.engines.losses import ExampleLosses
from mechanisms.engines.python_state import MOST_BYTES, MOST_OBJECTS, Holder, PythonState, attributes_of
from monitors.errors import UnprotectedUpdateError

#: Passes that are watched for escapes: the first ones, and of all later ones a secretly drawn share.
FIRST_WATCHED = 2
WATCHED_SHARE = 0.005

#: Whether what an engine does to examples must be shown: "trust" takes the user's word for it.
ISOLATION = ("verified", "trust")


class PassBoundary:
    """Puts the Python state of network and loss back after each pass, and finds tensors that were carried out of it.

    With this, and with one example at a time in what the network sees, an example can reach the clipped sum by its own
    gradient alone: there is no place to keep something of it for the others, or for later.

    Args:
        by_value: Compare tensors that the state holds by value. Needed where the code of the network sees numbers and
            not only the tensors of an isolated pass, which cannot be written into others.

    Attributes:
        isolation: ``"verified"``, or ``"trust"``: the state is left as the pass leaves it, and nothing is looked for.
        put_back: Names of the state that passes have changed and that was put back.
    """

    def __init__(self, *, by_value: bool = False) -> None:
        self.isolation = "verified"
        self.put_back: set[str] = set()
        self._by_value = by_value
        self._state: PythonState | None = None
        self._of: tuple[Any, ...] = ()
        self._copied: list[Holder] = []
        self._passes = 0
        self._escapes: Escapes | None = None

    def begin_step(self, network: nn.Module, losses: ExampleLosses) -> None:
        """Record the state that every pass of a step begins with.

        Raises:
            UnprotectedUpdateError: There is too much of it to be compared after every pass.
        """
        if self.isolation == "trust":
            return
        known = self._state is not None and self._of[0]() is network and self._of[1] is losses.loss_fn
        if self._state is None or not known or not self._state.is_current():
            self._of = (ref(network), losses.loss_fn)
            self._state = PythonState(network, losses.loss_fn, by_value=self._by_value)
        self._copied = attributes_of(losses.unreduced)  # a copy of the loss, made for this step
        if self._state.unfollowed:
            raise UnprotectedUpdateError(
                f"{self._state.unfollowed[0]} cannot be put back after an example (generator, sparse tensor): "
                "what it was sent of one example could reach the gradients of others. Use a plain object or none"
            )
        if not self._state.complete:
            raise UnprotectedUpdateError(
                f"network and loss reach more than {MOST_OBJECTS:,} Python objects, or {MOST_BYTES / 2**20:.0f} MiB of "
                "tensors that are neither parameters nor buffers: whether a pass keeps something of the data in them "
                "cannot be followed. Take references to data out of both, or register large tensors as buffers"
            )

    @contextmanager
    def around(self, batch: Batch) -> Iterator[None]:
        """Around one pass, from the first look at the examples until their clipped sum is made.

        Raises:
            UnprotectedUpdateError: Tensors computed from the examples are alive afterwards.
        """
        watch = self._is_watched()
        if watch:
            network = self._of[0]()
            watched = (*network.parameters(), *network.buffers(), *(self._state.tensors if self._state else ()))
            self._escapes = Escapes(all_tensors((batch.x, batch.y)), watched)
        try:
            yield
        finally:
            escapes, self._escapes = self._escapes, None
            if self._state is not None and self.isolation != "trust":
                self.put_back.update(self._state.restore())
                for holder in self._copied:
                    if not holder.is_current():
                        self.put_back.update(holder.put_back())
        if escapes is not None and escapes.count():
            raise UnprotectedUpdateError(
                f"{escapes.count()} tensors computed from private examples outlive the pass that made them: the "
                "network, the loss or a hook keeps them where dpmodel cannot put the state back (another module's "
                "globals, a thread, an extension). What is kept of one example could reach the gradients of others. "
                "Keep no tensors, or only on the network itself"
            )

    @contextmanager
    def user_code(self) -> Iterator[None]:
        """Around the calls of network and loss within a pass."""
        if self._escapes is None:
            yield
        else:
            with self._escapes:
                yield

    def _is_watched(self) -> bool:
        number, self._passes = self._passes, self._passes + 1
        return self.isolation != "trust" and (number < FIRST_WATCHED or SystemRandom().random() < WATCHED_SHARE)
