"""Watches that nothing un-noised reaches the optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from mechanisms.engines.parameters import trainable_parameters
from monitors.errors import UnprotectedUpdateError

#: Parameters and buffers of at most so many bytes are compared by value in each step; larger ones now and then.
COMPARED_BYTES = 2**16
COMPARED_STEPS = 100

#: Parameters that an error names; the others are counted.
NAMED_PARAMETERS = 5


class UpdateGuard:
    """Compares the parameters before each step with those that the last protected update left.

    Steps of any optimizer over the parameters are counted too: fused ones change a parameter, but not its version.

    Args:
        network: The network that is trained.
        optimizer: Its optimizer.
        loss_fn: The loss; what it keeps as a module (buffers, parameters) is watched too.

    Raises:
        UnprotectedUpdateError: The optimizer does not hold exactly the trainable parameters of the network.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, loss_fn: object = None) -> None:
        self.network = network
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        #: The trainable parameters by name.
        self.parameters = trainable_parameters(network)
        self._known = {id(parameter) for parameter in self.parameters.values()}
        self._require_same_parameters()
        self._steps = self._passes = 0
        held = sum(value.numel() * value.element_size() for _, value in self._state())
        self._compared_every = 1 if held <= COMPARED_BYTES else COMPARED_STEPS
        _GUARDS.add(self)
        self.protected()

    def check(self) -> None:
        """Call before each step.

        Raises:
            UnprotectedUpdateError: A gradient, an update or a parameter appeared that dpmodel did not make; named.
        """
        current = trainable_parameters(self.network)
        if current.keys() != self.parameters.keys() or any(
            current[name] is not value for name, value in self.parameters.items()
        ):
            changed = sorted(current.keys() ^ self.parameters.keys()) or ["(replaced under the same name)"]
            raise UnprotectedUpdateError(
                f"trainable parameters changed during training: {', '.join(changed)}. Add, replace, freeze or unfreeze "
                "parameters between two calls of fit, and give the optimizer the same ones"
            )
        for name, parameter in self._updated():
            if parameter.grad is not None:
                raise UnprotectedUpdateError(
                    f"parameter {name!r} has a gradient that dpmodel did not make (a backward() outside of it?): it is "
                    "not clipped, noised or accounted. Call optimizer.zero_grad(set_to_none=True) first"
                )
        if self._versions() != self._protected_versions or self._steps != self._protected_steps:
            raise UnprotectedUpdateError(
                "parameters were changed between two private steps (an optimizer.step() or load_state_dict() outside "
                "of dpmodel, or a layer that writes to its weights in the forward pass?). Make such changes between "
                "two calls of fit"
            )

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Hold during the passes over private data.

        What goes by ``.data`` leaves no trace but the values, which are compared in each pass of a small network, and
        in one of ``COMPARED_STEPS`` of a large one.

        Raises:
            UnprotectedUpdateError: They changed a parameter or a buffer, which would keep something of the data.
        """
        before = {name: (value, value._version) for name, value in self._state()}
        copies = self._copies() if self._passes % self._compared_every == 0 else {}
        self._passes += 1
        yield
        self.check()
        for name, value in self._state():
            known, version = before.get(name, (None, -1))
            copied = copies.get(name)
            if value is not known or value._version != version or not (copied is None or _same(value, copied)):
                raise UnprotectedUpdateError(
                    f"the forward pass changed {name!r}: what it keeps of the data is neither noised nor accounted, "
                    "and would be saved with the weights. Use a layer that keeps no statistics of the data"
                )

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.network.named_parameters()
        yield from self.network.named_buffers()
        if isinstance(self.loss_fn, nn.Module):
            yield from self.loss_fn.named_parameters("loss_fn")
            yield from self.loss_fn.named_buffers("loss_fn")

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._state() if value.layout == torch.strided}

    def protected(self) -> None:
        """Call after each protected update: what is there now is accounted for."""
        for _, parameter in self._updated():
            parameter.grad = None
        self._protected_versions = self._versions()
        self._protected_steps = self._steps

    def stepped(self, optimizer: Optimizer) -> None:
        """Call after each step of any optimizer."""
        if any(id(value) in self._known for group in optimizer.param_groups for value in group["params"]):
            self._steps += 1

    def _updated(self) -> Iterator[tuple[str, Tensor]]:
        # Frozen ones too: an optimizer goes by the gradient that it finds, not by requires_grad.
        yield from self.network.named_parameters()
        for group in self.optimizer.param_groups:
            for value in group["params"]:
                yield "of the optimizer alone", value

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self.parameters.values()]

    def _require_same_parameters(self) -> None:
        held = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self.parameters.items() if id(p) not in held]
        if missing and not any(id(p) in held for p in self.network.parameters()):
            raise UnprotectedUpdateError(
                "the optimizer holds no parameter of this network: it was built from another one (before fix()?); "
                "build it from network.parameters()"
            )
        if missing:
            raise UnprotectedUpdateError(
                f"the optimizer does not hold trainable parameter(s) {_some(missing)} of the network; build it "
                "from network.parameters(), or freeze them with requires_grad_(False)"
            )
        foreign = [p for key, p in held.items() if p.requires_grad and key not in self._known]
        if foreign:
            raise UnprotectedUpdateError(
                f"the optimizer holds {len(foreign)} trainable parameter(s) that are not the network's, the first of "
                f"shape {tuple(foreign[0].shape)}; they would get no clipped, noised gradient"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_PARAMETERS} more" if len(names) > NAMED_PARAMETERS else ""
    return ", ".join(names[:NAMED_PARAMETERS]) + more


def _same(value: Tensor, other: Tensor) -> bool:
    if torch.equal(value, other):
        return True
    return value.is_floating_point() and torch.equal(value.nan_to_num(), other.nan_to_num())


#: The guards that live. One hook tells them all and stays: to remove a hook when its guard is collected, perhaps in the
#: middle of an optimizer's step, would change the hooks that the step goes through.
_GUARDS: weakref.WeakSet[UpdateGuard] = weakref.WeakSet()


def _tell_guards(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    for guard in tuple(_GUARDS):
        guard.stepped(optimizer)


register_optimizer_step_post_hook(_tell_guards)
