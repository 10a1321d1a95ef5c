"""Where a network's trainable parameters live: the modules that the book-keeping engine has to watch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mechanisms.engines.layers.rewrites import rewrite_for
from mechanisms.engines.layers.rules import rule_for, runs_torchs_forward
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.ways import ByExample, ByRewrite, ByRule, Way
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Site:
    """One module to watch, with all the trainable parameters that its calls use.

    Args:
        name: Dotted name in the network.
        module: The module.
        parameters: Position in the flat layout of each trainable parameter, by its dotted name inside ``module``.
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


def find_sites(network: nn.Module) -> list[Site]:
    """The sites of a network; each trainable parameter lies in at least one.

    Raises:
        UnsupportedModuleError: A layer mixes examples, or has no per-example gradient as it is set up.
    """
    positions = {id(value): index for index, value in enumerate(trainable_parameters(network).values())}
    _refuse_mixing(network)
    sites: list[Site] = []
    _walk(network, "", positions, sites, set())
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


def _walk(module: nn.Module, name: str, positions: dict[int, int], sites: list[Site], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    named = {key: value for key, value in module.named_parameters() if id(value) in positions}
    if not named:
        return
    direct = any("." not in key for key in named)
    if direct or rewrite_for(module) is not None or parametrize.is_parametrized(module):
        found = {key: positions[id(value)] for key, value in named.items()}
        sites.append(Site(name, module, found, tuple(named.values()), _way(module, name, found)))
        return
    for key, child in module.named_children():
        _walk(child, f"{name}.{key}" if name else key, positions, sites, seen)


def _way(module: nn.Module, name: str, parameters: dict[str, int]) -> Way:
    if parametrize.is_parametrized(module) or "forward" in vars(module):
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
