"""The claim of each trained weight: the ledger follows the parameters, whatever model holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from dpmodel.claims.carried import carried_by, note_options
from dpmodel.claims.claim import Claim, without_guarantee
from dpmodel.claims.held import held_by, own_parameters, parts_of, place_of
from dpmodel.claims.snapshot import digest, is_readable
from dpmodel.data.reachable import reachable
from monitors.errors import UnprotectedUpdateError
from monitors.ledger import Ledger

#: Names of parameters and buffers, and a digest of their values.
_State = tuple[tuple[str, ...], int]


@dataclass(frozen=True)
class _Trained:
    """A parameter that was trained privately, or a buffer of private statistics.

    Args:
        claims: The claims of all its trainings, the latest first. Earlier values can be loaded again, so no claim is
            ever dropped.
        before: The state of the network before its first private training; None if unknown, or for statistics.
        left: A digest of the values that the last training left; None if they are not known.
    """

    claims: tuple[Claim, ...]
    before: _State | None
    left: int | None = None

    def after(self, claim: Claim, before: _State | None) -> _Trained:
        """The entry after one more training."""
        return _Trained((claim, *(known for known in self.claims if known is not claim)), before)

    @property
    def possible(self) -> tuple[Claim, ...]:
        """The claims of trainings that may be in the values."""
        # While a training runs, its guard verifies that the values are its own.
        return self.claims[:1] if self.claims[0].current.in_training else self.claims


_UNTRAINED = _Trained((), None)


#: Parameters by identity, as long as they live. Values copied into other modules are other parameters.
_TRAINED = WeakTensorKeyDictionary()

#: Layers whose own parameters were trained. Torch replaces these by new ones of the same values if a parametrization is
#: added or removed, or if the type is converted under a switch.
_LAYERS: WeakKeyDictionary[nn.Module, _Trained] = WeakKeyDictionary()

#: Digests of all values, frozen ones and buffers included, of the networks that trainings have left, and their claims.
_LEFT: dict[int, WeakSet[Claim]] = {}


def record_training(network: nn.Module, claim: Claim, optimizer: Optimizer | None = None) -> None:
    """Let ``claim`` hold for the trainable parameters of ``network``, and its ``optimizer``, from now on."""
    known = [entry.before for entry in _entries(network)]
    # Releases on the ledger may be in the weights already, as in a resumed training.
    first = None if len(claim.ledger) else _state_of(network)
    before = known[0] if known else first
    for parameter in network.parameters():
        if parameter.requires_grad:
            _TRAINED[parameter] = _TRAINED.get(parameter, _UNTRAINED).after(claim, before)
    for layer in network.modules():
        if any(parameter.requires_grad for parameter in own_parameters(layer)):
            with suppress(TypeError):  # a class that compares its objects by value
                _LAYERS[layer] = _LAYERS.get(layer, _UNTRAINED).after(claim, before)
    if optimizer is not None:
        note_options(optimizer)


def record_result(network: nn.Module, claim: Claim, optimizer: Optimizer | None = None, *others: Any) -> None:
    """State that a training under ``claim`` has just left ``network`` and ``optimizer`` as they are."""
    claim.result = _state_of(network, *others), None if optimizer is None else carried_by(optimizer)
    for parameter in network.parameters():
        if parameter.requires_grad:
            _TRAINED[parameter] = replace(_TRAINED.get(parameter, _UNTRAINED), left=digest([parameter]))
    _keep_digests(network, claim)


def record_statistics(module: nn.Module, ledger: Ledger, *, as_released: bool = True) -> None:
    """State that parameters and buffers of ``module`` are private releases on ``ledger``.

    A model that holds them continues the ledger.

    Args:
        module: What holds them.
        ledger: Where they were recorded.
        as_released: Whether they still have the values that were released, which cost nothing further.
    """
    claim = Claim(ledger)
    for value in (*module.parameters(), *module.buffers()):
        _TRAINED[value] = _TRAINED.get(value, _UNTRAINED).after(claim, None)
    if as_released:
        _keep_digests(module, claim)


def is_as_left(network: nn.Module) -> bool:
    """Whether each tensor and array of ``network`` has values that trainings with a guarantee, or statistics, left."""
    known = [_claims_of_value(found) for found in _digests_of(network)]
    sound = {claim for claim in set[Claim]().union(*known) if without_guarantee(claim.ledger) is None}
    return all(claims & sound for claims in known)


def claims_of(network: nn.Module, optimizer: Optimizer | None = None, *others: Any) -> list[Claim]:
    """The claims of the private trainings that may be in ``network``'s parameters, the latest first.

    Empty if parameters and buffers are again as before the first training. Only one claim if they are exactly what its
    last training left, and otherwise those of all trainings in this process.

    Args:
        network: The network.
        optimizer: The optimizer of the next training. If it holds numbers of earlier steps, such as momentum, they
            must be explained by the same training as the weights.
        *others: What else the next training passes examples through, such as the loss: networks that it holds count.
    """
    entries = list(_entries(network, *others))
    befores = {entry.before for entry in entries} - {None}
    claims = list(dict.fromkeys(claim.current for entry in entries for claim in entry.possible))
    if not befores and len(claims) < 2:
        return claims
    state, carried = _state_of(network, *others), None if optimizer is None else carried_by(optimizer)
    if carried is None and state in befores and not any(claim.in_training for claim in claims):
        return []
    explained = [claim for claim in claims if _explains(claim, state, carried)]
    return explained[:1] or claims


def read_late(network: nn.Module) -> None:
    """Hear the witnesses of the trainings of ``network`` that run now; call it before its weights are saved or copied.

    Raises:
        UnprotectedUpdateError: The weights were changed by something other than dpmodel.
    """
    for claim in dict.fromkeys(claim.current for entry in _entries(network) for claim in entry.claims):
        claim.read_late()


def is_trained_privately(network: nn.Module) -> bool:
    """Whether all that ``network`` computes with is what private trainings in this process left.

    The trainings must have a guarantee. Each tensor and array must have values that the network of such a training, or
    private statistics, had afterwards: frozen parameters and buffers may hold anything, such as training examples.
    Modules that the network holds otherwise, such as in lists, objects or closures, count too. Plain numbers that it
    keeps are not compared.

    Raises:
        UnprotectedUpdateError: One of the trainings is running, or has voided its claim.
    """
    trained = [value for value in held_by(network) if value.requires_grad and value.is_leaf]
    claims = claims_of(network)
    if not trained or not claims or not all(parameter in _TRAINED for parameter in trained):
        return False
    for claim in claims:
        if claim.in_training:
            raise UnprotectedUpdateError("the network is being trained; query it after fit has returned")
        if claim.ledger.violations:
            raise UnprotectedUpdateError(f"the network has no valid claim: {claim.ledger.caveats[0]}")
    untouched = all(_TRAINED[parameter].left == digest([parameter]) for parameter in trained)
    return untouched and is_as_left(network) and all(without_guarantee(claim.ledger) is None for claim in claims)


def claim_for(network: nn.Module, own: Claim | None = None, optimizer: Optimizer | None = None, *others: Any) -> Claim:
    """The claim with which the weights of ``network`` are trained next.

    Args:
        network: The network.
        own: The claim of the model so far. A claim that the user chose is kept, with a note on its ledger if the
            weights have been trained on different ledgers. Any other claim is joined with those of the weights.
        optimizer: The optimizer that trains them next.
        *others: As for ``claims_of``.

    Raises:
        UnprotectedUpdateError: Several running trainings would have to be joined.
    """
    claim = own
    for found in claims_of(network, optimizer, *others):
        if claim is None or (claim is own and not own.chosen and not len(own.ledger) and not own.ledger.notes):
            claim = found if claim is None else found.join(claim)
        elif claim is found:
            continue
        elif claim.chosen or found.chosen:
            claim.note_if_missing(found)
        else:
            claim = claim.join(found)
    return Claim() if claim is None else claim


def _explains(claim: Claim, state: _State, carried: int | None) -> bool:
    if claim.result is None:
        return False
    known, kept = claim.result
    return known == state and carried in (None, kept)


def _state_of(network: nn.Module, *others: Any) -> _State:
    state = {name: value for name, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    # Tensors that a list or a dict hides may be trained too, and are not in the state dict.
    tensors = {id(value): value for value in (*state.values(), *parts_of(network).tensors)}
    trained = _trained_places()
    if trained:
        hidden = (value for value in held_by(network, *others) if place_of(value) in trained)
        tensors |= {id(value): value for value in hidden}
    return tuple(state), digest(tensors.values())


def _claims_of_value(found: int | None) -> set[Claim]:
    return set() if found is None else {claim.current for claim in _LEFT.get(found, ())}


def _keep_digests(network: nn.Module, claim: Claim) -> None:
    for found in _digests_of(network):
        if found is not None:
            _LEFT.setdefault(found, WeakSet()).add(claim)


def _digests_of(network: nn.Module) -> list[int | None]:
    """A digest of each tensor and each array that a network holds; None for those that cannot be read."""
    arrays = (value for value in reachable(network, data=True) if isinstance(value, np.ndarray))
    tensors = (digest([value.detach()]) if is_readable(value) else None for value in held_by(network))
    return [*tensors, *map(_digest_of_array, arrays)]


def _digest_of_array(array: np.ndarray[Any, Any]) -> int | None:
    return None if array.dtype.hasobject else hash((array.dtype.str, array.shape, array.tobytes()))


def _entries(network: nn.Module, *others: Any) -> Iterator[_Trained]:
    """The trained parameters in whose memory tensors of ``network`` and ``others`` lie: buffers may share it."""
    trained = _trained_places()
    if trained or len(_LAYERS):
        held = held_by(network, *others)
        found = (trained.get(place_of(value)) for value in held)
        yield from (entry for entry in found if entry is not None)
        yield from _replaced(held.modules, trained)


def _replaced(modules: Iterable[nn.Module], trained: dict[int | None, _Trained]) -> Iterator[_Trained]:
    """The trained layers whose parameters are others by now, which may have been computed from those."""
    for layer in modules:
        with suppress(TypeError):
            entry = _LAYERS.get(layer)
            if entry is not None and any(place_of(value) not in trained for value in own_parameters(layer)):
                yield entry


def _trained_places() -> dict[int | None, _Trained]:
    return {place_of(parameter): entry for parameter, entry in _TRAINED.items()}
