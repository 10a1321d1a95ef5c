"""Builds networks by name, or a user's network by import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dpmodel.nets.cifar_cnn import CifarCNN
from dpmodel.nets.dense import MLP, Linear
from dpmodel.nets.initializers import seeded
from dpmodel.nets.lenet5 import LeNet5
from dpmodel.nets.resnet import resnet18
from dpmodel.nets.scattering_cnn import ScatteringCNN
from dpmodel.nets.scattering_linear import ScatteringLinear
from dpmodel.nets.small_cnn import SmallCNN
from dpmodel.nets.user_module import import_network
from dpmodel.nets.wide_resnet import WideResNet
from monitors.arguments import accepted_names, check_arguments
from monitors.registry import Registry

NETWORKS: Registry[Any] = Registry("network")
NETWORKS.register("lenet5")(LeNet5)
NETWORKS.register("mlp")(MLP)
NETWORKS.register("linear")(Linear)
NETWORKS.register("small_cnn")(SmallCNN)
NETWORKS.register("cifar_cnn")(CifarCNN)
NETWORKS.register("resnet18")(resnet18)
NETWORKS.register("wide_resnet")(WideResNet)
NETWORKS.register("scattering_linear")(ScatteringLinear)
NETWORKS.register("scattering_cnn")(ScatteringCNN)


#: Defaults that are tried with a builder that takes any keyword, such as those of torchvision and timm.
_PASSED_ON = ("num_classes",)


def build_network(
    name: str | None = None,
    module: str | None = None,
    *,
    seed: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    **args: Any,
) -> nn.Module:
    """Build a registered network by ``name``, or the user's own class by ``module``.

    Args:
        name: ``"lenet5"``, ``"small_cnn"``, ``"cifar_cnn"``, ``"resnet18"``, ``"wide_resnet"``, ``"mlp"``,
            ``"linear"``, ``"scattering_linear"``, ``"scattering_cnn"``, or any other registered name.
        module: ``"package.module:Class"``.
        seed: Seed of the initial weights; None uses torch's global generator.
        defaults: Arguments that are passed if the class takes them and ``args`` does not contain them. They follow from
            the data: ``num_classes``, ``in_channels``, ``in_features``, ``image_size``. A builder that takes any
            keyword (``**kwargs``) receives ``num_classes`` if it can be built with it.
        **args: Arguments of the class.

    Raises:
        ValueError: Neither or both of ``name`` and ``module`` are given, the network is not found, an argument is
            unknown or missing, or the result is not a ``torch.nn.Module``.

    Example:
        >>> build_network("mlp", hidden=[16], defaults={"in_features": 4, "num_classes": 3}).layers[2].out_features
        3
    """
    if (name is None) == (module is None):
        raise ValueError(
            f"give either the name of a network or module='package.module:Class', got {name=} and {module=}"
        )
    builder, owner = _builder(name, module)
    known = accepted_names(builder)
    implied = {key: value for key, value in (defaults or {}).items() if key in (_PASSED_ON if known is None else known)}
    check_arguments(builder, {**implied, **args}, owner)
    network = _built(builder, implied, args, seed, owner)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{owner} built {type(network).__name__}, which is not a torch.nn.Module")
    return network


def check_network(name: str | None, module: str | None, args: Mapping[str, Any]) -> None:
    """Refuse an unknown network or argument. Required arguments may follow from the data and are not checked.

    Raises:
        ValueError: See ``build_network``.
    """
    builder, owner = _builder(name, module)
    check_arguments(builder, {**dict.fromkeys(accepted_names(builder) or ()), **args}, owner)


def _builder(name: str | None, module: str | None) -> tuple[Any, str]:
    """The class or function, and a description of what it builds."""
    if name is not None:
        return NETWORKS.get(name), f"network {name!r}"
    return import_network(str(module)), f"network {module!r}"


def _built(builder: Any, implied: dict[str, Any], args: dict[str, Any], seed: int | None, owner: str) -> Any:
    """Call ``builder`` with the arguments, and with those that follow from the data if it takes them."""
    chosen = {**implied, **args}
    try:
        with seeded(seed):
            return builder(**chosen)
    except (TypeError, ValueError, RuntimeError) as error:
        if chosen != args and accepted_names(builder) is None:
            return _built(builder, {}, args, seed, owner)
        raise ValueError(f"{owner} cannot be built from {chosen}: {error}") from error
