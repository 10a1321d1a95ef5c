"""Which claim holds for which weights: the ledger follows the parameters, whatever model holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from dpmodel.claims.claim import Claim
from dpmodel.claims.snapshot import digest

#: Names of parameters and buffers, and a digest of their values.
_State = tuple[tuple[str, ...], int]


@dataclass(frozen=True)
class _Trained:
    """What is known of a parameter that was trained privately.

    Args:
        claim: The claim of its training.
        before: The network's state before its first private training; None if that is not known.
    """

    claim: Claim
    before: _State | None


#: Parameters by identity, as long as they live. Values copied into other modules are other parameters.
_TRAINED = WeakTensorKeyDictionary()


def record_training(network: nn.Module, claim: Claim) -> None:
    """From now on ``claim`` holds for the trainable parameters of ``network``."""
    known = [entry.before for entry in _entries(network)]
    # With releases on the ledger they may be in the weights already, as those of a resumed training are.
    first = None if len(claim.ledger) else _state_of(network)
    before = known[0] if known else first
    for parameter in network.parameters():
        if parameter.requires_grad:
            _TRAINED[parameter] = _Trained(claim, before)


def claims_of(network: nn.Module) -> list[Claim]:
    """The claims of the private trainings that parameters of ``network`` went through in this process.

    There is none if parameters and buffers are again what they were before the first of them.
    """
    entries = list(_entries(network))
    befores = {entry.before for entry in entries} - {None}
    if befores and _state_of(network) in befores:
        return []
    return list(dict.fromkeys(entry.claim.current for entry in entries))


def claim_for(network: nn.Module, own: Claim | None = None) -> Claim:
    """The claim with which the weights of ``network`` are trained next.

    Args:
        network: The network.
        own: The claim of the model so far. One that the user chose is kept; a note says so on its ledger where the
            weights have been trained on others. Any other one is joined with those of the weights.

    Raises:
        UnprotectedUpdateError: Several trainings under way would have to be joined.
    """
    claim = own
    for found in claims_of(network):
        if claim is None or (claim is own and not own.chosen and not len(own.ledger) and not own.ledger.notes):
            claim = found if claim is None else found.join(claim)
        elif claim is found:
            continue
        elif claim.chosen or found.chosen:
            claim.note_if_missing(found)
        else:
            claim = claim.join(found)
    return Claim() if claim is None else claim


def _state_of(network: nn.Module) -> _State:
    state = {name: value for name, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    return tuple(state), digest(state.values())


def _entries(network: nn.Module) -> Iterator[_Trained]:
    for parameter in network.parameters():
        if parameter in _TRAINED:
            yield _TRAINED[parameter]
