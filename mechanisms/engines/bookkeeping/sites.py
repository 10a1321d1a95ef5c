"""The modules that the book-keeping engine watches: those that own trainable parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mechanisms.engines.bookkeeping.call_modes import ByExample, ByOwnParameters, ByRewrite, ByRule, CallMode
from mechanisms.engines.bookkeeping.layers.rewrites import rewrite_for
from mechanisms.engines.bookkeeping.layers.rules import is_patched, rule_for, runs_torchs_forward
from mechanisms.engines.parameters import trainable_parameters
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Site:
    """One module to watch, with the trainable parameters that its calls use.

    Args:
        name: Dotted name in the network.
        module: The module.
        flat_index: Position in the flat layout of each trainable parameter, by its dotted name inside ``module``;
            parameters of submodules that are sites themselves are left out.
        values: Those parameters, in the same order.
        how: How its calls are run.
    """

    name: str
    module: nn.Module
    flat_index: dict[str, int]
    values: tuple[Tensor, ...]
    how: CallMode

    def entries(self, position: int) -> int:
        """Number of entries of the parameter at ``position`` of the flat layout."""
        return self.values[list(self.flat_index.values()).index(position)].numel()


def find_sites(network: nn.Module, *, whole: bool = False) -> list[Site]:
    """The sites of a network; each trainable parameter belongs to at least one.

    Args:
        network: Any module.
        whole: Whether a module with its own parameters forms one site with all its submodules. Otherwise its submodules
            are sites themselves, which requires that only their own forward passes use their parameters.

    Raises:
        UnsupportedModuleError: A layer mixes examples, or has no per-example gradient with its settings.
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
                f"layer {name!r} ({type(module).__name__}) mixes the examples of a batch, so the gradient of a single "
                "example is not defined; replace it with GroupNorm"
            )
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise UnsupportedModuleError(
                f"module {name!r} ({type(module).__name__}) is compiled, so its layers cannot be watched; pass the "
                "network before compilation"
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
        how = ByOwnParameters() if apart else _mode_for(module, name, found)
        sites.append(Site(name, module, found, tuple(kept.values()), how))
        if not apart:
            return
    for key, child in module.named_children():
        _walk(child, f"{name}.{key}" if name else key, positions, sites, seen, whole)


#: Modules of PyTorch that only hold other modules.
_HOLDING = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a plain user-defined one: no special layer of PyTorch, not patched, not parametrized."""
    of_torch = [base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules.")]
    strange = parametrize.is_parametrized(module) or is_patched(module) or rewrite_for(module) is not None
    return not strange and all(base in _HOLDING for base in of_torch)


def _mode_for(module: nn.Module, name: str, parameters: dict[str, int]) -> CallMode:
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
    """Names that a rule may use: all that the module owns, unless its weight is computed from other parameters."""
    own = set(module._parameters)
    return set() if hasattr(module, "weight") and "weight" not in own else own
