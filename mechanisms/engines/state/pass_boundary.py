"""The boundary of a pass over private data: nothing created inside survives the pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from random import Random, SystemRandom
from typing import Any
from weakref import ref

import torch
from torch import nn

from mechanisms.engines.batch import Batch, all_tensors
from mechanisms.engines.isolation.shared_draws import SharedDraws
from mechanisms.engines.losses import ExampleLosses
from mechanisms.engines.state.escapes import Escapes
from mechanisms.engines.state.generators import GeneratorKind, each_once, global_generators
from mechanisms.engines.state.holders import Holder
from mechanisms.engines.state.operators import FollowedOperators
from mechanisms.engines.state.outside import Outside
from mechanisms.engines.state.python_state import MOST_BYTES, MOST_OBJECTS, PythonState, attributes_of
from monitors.errors import UnprotectedUpdateError

#: Passes that are watched for escaped tensors: the first ones, and a secretly drawn share of all later ones.
FIRST_WATCHED = 2
WATCHED_SHARE = 0.005

#: A reason why passes vary.
DRAWS = "the network or the loss draws random numbers"

#: What to do in a training if state cannot be restored.
TRUST = " If you know that it keeps nothing, isolation='trust' takes your word for it, and the report says so"

#: Whether the isolation of examples is verified; "trust" takes the user's word for it.
ISOLATION = ("verified", "trust")


class PassBoundary:
    """Restores the Python state of network and loss after each pass, and finds tensors that escaped from it.

    The network sees one example at a time. With its state restored, there is no place to keep information about an
    example for others or for later, so the example can affect the clipped sum through its own gradient only.

    Args:
        by_value: Compare tensors in the state by value. Needed if the network's code can read values, unlike in an
            isolated pass, whose tensors cannot be written into others.
        remedy: Last sentence of a refusal of state that cannot be restored.

    Attributes:
        isolation: ``"verified"``; or ``"trust"``: state is not restored, and escapes are not searched for.
        put_back: Names of the state that passes have changed and that was restored.
        written: The parameters and buffers among them, since the list was last emptied.
        varies: Why a pass may differ from the last one in more than its data, for the same Python state: it changed
            state or drew random numbers; None if neither.
    """

    def __init__(self, *, by_value: bool = False, remedy: str = TRUST) -> None:
        self.isolation = "verified"
        self.put_back: set[str] = set()
        self.written: list[str] = []
        self.varies: str | None = None
        self._by_value, self._remedy = by_value, remedy
        self._state: PythonState | None = None
        self._of: tuple[Any, ...] = ()
        self._copied: list[Holder] = []
        self._generators: list[tuple[Any, GeneratorKind]] = []
        self._seeds = Random()
        self._draws = SharedDraws()
        self._passes = 0
        self._escapes: Escapes | None = None

    def begin_step(self, network: nn.Module, losses: ExampleLosses | None = None) -> None:
        """Record the state in which each pass of a step begins.

        Args:
            network: The network.
            losses: The loss; None if passes compute none.

        Raises:
            UnprotectedUpdateError: There is too much state to compare after each pass.
        """
        if self.isolation == "trust":
            self._draws.begin()
            return
        loss_fn = None if losses is None else losses.loss_fn
        known = self._state is not None and self._of[0]() is network and self._of[1] is loss_fn
        if self._state is None or not known or not self._state.is_current():
            self._of = (ref(network), loss_fn)
            self._state = PythonState(network, loss_fn, by_value=self._by_value, weights=self._by_value)
        # The loss is copied for each step.
        self._copied = [] if losses is None else attributes_of(losses.unreduced)
        self._require_followed(self._state.unfollowed)
        if not self._state.complete:
            raise UnprotectedUpdateError(
                f"the network and the loss refer to more than {MOST_OBJECTS:,} Python objects, or to more than "
                f"{MOST_BYTES / 2**20:.0f} MiB of tensors that are neither parameters nor buffers, which is too much "
                "to check after each pass for information about the data. Remove references to data from both, or "
                "register large tensors as buffers"
            )

        if self._by_value:
            self._generators = each_once([*_generators_of(network), *self._state.generators])
            self._seeds.seed(int(torch.randint(2**63 - 1, (), device="cpu")))
            self._reseed()
        else:
            self._draws.begin(self._state.generators)

    @property
    def state(self) -> PythonState | None:
        """The recorded state; the same object as long as the state is the same. None if isolation is not verified."""
        return self._state

    @contextmanager
    def around(self, batch: Batch, *, watched: bool = False) -> Iterator[None]:
        """Surround one pass, from the first access to the examples until their clipped sum is computed.

        Args:
            batch: The batch.
            watched: Look for escaped tensors; False: in a random share of the passes.

        Raises:
            UnprotectedUpdateError: Tensors computed from the examples are alive afterwards, or code that can read
                values keeps state that cannot be restored.
        """
        if self._is_watched() or watched:
            network = self._of[0]()
            known = (*network.parameters(), *network.buffers(), *(self._state.tensors if self._state else ()))
            self._escapes = Escapes(all_tensors((batch.x, batch.y)), known)
        try:
            with ExitStack() as stack:
                for guard in self._guards():
                    stack.enter_context(guard)
                yield
        finally:
            escapes, self._escapes = self._escapes, None
            self.varies = DRAWS if self._draws.used() else None
            if self._state is not None and self.isolation != "trust":
                changed = self._state.restore()
                self.written += self._state.weights.intersection(changed)
                changed += [name for holder in self._copied if not holder.is_current() for name in holder.put_back()]
                self.put_back.update(changed)
                if changed:
                    self.varies = f"a pass changes {changed[0]}"
                self._reseed()
                self._require_followed(self._state.kept)
        if escapes is not None and escapes.count():
            raise UnprotectedUpdateError(
                f"{escapes.count()} tensors computed from private examples outlive the pass that computed them: the "
                "network, the loss or a hook keeps them where dpmodel cannot restore the state (globals of a different "
                "module, a thread, an extension). Information about one example could reach the gradients of others. "
                "Keep no tensors, or keep them only on the network itself"
            )

    @contextmanager
    def user_code(self) -> Iterator[None]:
        """Surround the calls of network and loss inside a pass."""
        if self._escapes is None:
            yield
        else:
            with self._escapes:
                yield

    def _guards(self) -> tuple[AbstractContextManager[Any], ...]:
        if not self._by_value:
            return (self._draws.of_step(),)
        return () if self.isolation == "trust" else (Outside(), FollowedOperators())

    def _reseed(self) -> None:
        """Seed the generators for the next example, so that no other example affects them.

        The seeds are drawn before any example is seen: neither the number of draws of one example nor its own seeding
        of a generator changes what the others draw.
        """
        for generator, kind in self._generators:
            kind.seed(generator, self._seeds.getrandbits(63))

    def _require_followed(self, unfollowed: list[str]) -> None:
        if unfollowed:
            raise UnprotectedUpdateError(
                f"{unfollowed[0]} cannot be restored after an example, because it hides its state (iterator, open "
                "file, thread, sparse tensor, compiled extension): information about one example could reach the "
                "gradients of others. Use a number, a container or a plain object instead, or remove it." + self._remedy
            )

    def _is_watched(self) -> bool:
        number, self._passes = self._passes, self._passes + 1
        return self.isolation != "trust" and (number < FIRST_WATCHED or SystemRandom().random() < WATCHED_SHARE)


def _generators_of(network: nn.Module) -> list[Any]:
    """The global generators of the devices of a network."""
    on_gpus = {value.device.index for value in network.parameters() if value.device.type == "cuda"}
    return [*global_generators(), *(torch.cuda.default_generators[index] for index in on_gpus)]
