"""Where a network's trainable parameters live: the modules that the book-keeping engine has to watch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mechanisms.engines.bookkeeping.call_modes import ByExample, ByOwnParameters, ByRewrite, ByRule, Way
from mechanisms.engines.bookkeeping.layers.rewrites import rewrite_for
from mechanisms.engines.bookkeeping.layers.rules import is_patched, rule_for, runs_torchs_forward
from mechanisms.engines.parameters import trainable_parameters
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Site:
    """One module to watch, with all the trainable parameters that its calls use.

    Args:
        name: Dotted name in the network.
        module: The module.
        parameters: Position in the flat layout of each trainable parameter, by its dotted name inside ``module``;
            without those of modules inside that are sites themselves.
        values: Those parameters, in the same order.
        how: The way its calls are run.
    """

    name: str
    module: nn.Module
    parameters: dict[str, int]
    values: tuple[Tensor, ...]
    how: Way

    def entries(self, position: int) -> int:
        """Number of entries of the parameter at ``position`` of the flat layout."""
        return self.values[list(self.parameters.values()).index(position)].numel()


def find_sites(network: nn.Module, *, whole: bool = False) -> list[Site]:
    """The sites of a network; each trainable parameter lies in at least one.

    Args:
        network: Any module.
        whole: Whether a module with parameters of its own is one site with all modules inside. Else these are sites
            themselves, which needs their parameters to be used by their own forward passes alone.

    Raises:
        UnsupportedModuleError: A layer mixes examples, or has no per-example gradient as it is set up.
    """
    positions = {id(value): index for index, value in enumerate(trainable_parameters(network).values())}
    _refuse_mixing(network)
    sites: list[Site] = []
    _walk(network, "", positions, sites, set(), whole)
    return sites


def _refuse_mixing(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise UnsupportedModuleError(
                f"layer {name!r} ({type(module).__name__}) mixes the examples of a batch, so that an example has no "
                "gradient of its own; replace it with GroupNorm"
            )
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise UnsupportedModuleError(
                f"module {name!r} ({type(module).__name__}) is compiled and its layers cannot be watched; pass the "
                "network as it was before compilation"
            )


def _walk(
    module: nn.Module, name: str, positions: dict[int, int], sites: list[Site], seen: set[int], whole: bool
) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    named = {key: value for key, value in module.named_parameters() if id(value) in positions}
    if not named:
        return
    own = {key: value for key, value in named.items() if "." not in key}
    if own or rewrite_for(module) is not None or parametrize.is_parametrized(module):
        apart = not whole and len(own) < len(named) and _is_plain(module)
        kept = own if apart else named
        found = {key: positions[id(value)] for key, value in kept.items()}
        how = ByOwnParameters() if apart else _way(module, name, found)
        sites.append(Site(name, module, found, tuple(kept.values()), how))
        if not apart:
            return
    for key, child in module.named_children():
        _walk(child, f"{name}.{key}" if name else key, positions, sites, seen, whole)


#: Of torch's modules those that do nothing but hold others.
_HOLDING = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_plain(module: nn.Module) -> bool:
    """Whether nothing is known of a module but the parameters and modules that it has."""
    of_torch = [base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules.")]
    strange = parametrize.is_parametrized(module) or is_patched(module) or rewrite_for(module) is not None
    return not strange and all(base in _HOLDING for base in of_torch)


def _way(module: nn.Module, name: str, parameters: dict[str, int]) -> Way:
    if parametrize.is_parametrized(module) or is_patched(module):
        return ByExample()
    rewritten = rewrite_for(module)
    if rewritten is not None:
        return ByRewrite(rewritten.forward)
    rule = rule_for(module)
    refusal = None if rule is None else rule.refuses(module)
    if refusal is not None:
        raise UnsupportedModuleError(f"layer {name!r} ({type(module).__name__}): {refusal}")
    if rule is None or not set(parameters) <= _own(module):
        return ByExample()
    return ByRule(rule, row_wise=runs_torchs_forward(module))


def _own(module: nn.Module) -> set[str]:
    """Names that a rule may speak of: all that the module owns, unless its weight is made from other parameters."""
    own = set(module._parameters)
    return set() if hasattr(module, "weight") and "weight" not in own else own
