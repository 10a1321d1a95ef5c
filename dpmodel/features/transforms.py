"""Features by name: fixed transforms and frozen networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dpmodel.config.paths import CHECKPOINTS
from dpmodel.features.mirrored import Mirrored
from dpmodel.features.scattering import Scattering2D
from dpmodel.nets.networks import build_network, check_network
from dpmodel.nets.scattering_linear import feature_norm
from dpmodel.saving.checkpoint import read_checkpoint
from monitors import checks
from monitors.arguments import check_arguments
from monitors.errors import ConfigError, DataError
from monitors.registry import Registry

#: Builders of networks that are applied once to each example; each gets facts about the data first: see
#: ``build_features``.
FEATURES: Registry[Callable[..., nn.Module]] = Registry("features")


@FEATURES.register("scattering")
def scattering(
    data: Mapping[str, Any],
    J: int = 2,  # noqa: N803
    L: int = 8,  # noqa: N803
    mirrored: bool = False,
    num_groups: int = 0,
) -> nn.Module:
    """Scattering coefficients as an image of more channels: (C, H, W) -> (C * channels, H / 2^J, W / 2^J).

    Args:
        data: Facts about the data.
        J: Number of scales.
        L: Number of angles.
        mirrored: Whether to take the mean with the coefficients of the mirror image; see ``Mirrored``.
        num_groups: Groups of channels that are normalised together, in each example by itself; see
            ``dpmodel.nets.ScatteringLinear``. 0: no normalisation.

    Raises:
        DataError: The examples are not images.
        ValueError: ``num_groups`` does not divide the channels.
    """
    shape = data["example_shape"]
    if len(shape) != 3:
        raise DataError(f"scattering needs images (channels, height, width), but the examples have shape {shape}")
    checks.one_of((False, True), mirrored=mirrored)
    transform = Scattering2D(J, shape[1:], L)
    layers: list[nn.Module] = [Mirrored(transform) if mirrored else transform, nn.Flatten(1, 2)]
    if num_groups:
        layers.append(feature_norm(shape[0] * transform.channels, num_groups))
    return nn.Sequential(*layers)


@FEATURES.register("network")
def frozen_network(
    data: Mapping[str, Any],
    network: str | None = None,
    module: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    **args: Any,
) -> nn.Module:
    """The outputs of a network with PUBLIC weights.

    Args:
        data: Facts about the data; those that the network takes are passed to it.
        network: A registered network; give this or ``module``.
        module: ``"package.module:Class"``.
        weights: A file of ``save_checkpoint``, with the ending ``.safetensors`` or ``.ckpt``. Any other value is passed
            to the network (``DEFAULT`` for those of torchvision). None: the initial weights.
        seed: Seed of the initial weights.
        **args: Arguments of the network.

    Raises:
        ValueError: See ``build_network``.
        CheckpointError: The weights are damaged or belong to a different network.
        ConfigError: The weights come from a private training.
    """
    file = weights if _is_checkpoint(weights) else None
    if weights is not None and file is None:
        args = {**args, "weights": weights}
    defaults = {key: value for key, value in data.items() if key != "example_shape"}
    built = build_network(network, module, seed=seed, defaults=defaults, **args)
    if file is not None:
        checkpoint = read_checkpoint(file)
        if checkpoint.info.ledger_total:
            raise ConfigError(
                f"weights {file!r} come from a private training of {checkpoint.info.ledger_total:,} releases, which "
                "the ledger of a training on their features would not contain. If that training was on other data, "
                "save the network alone: save_checkpoint(path, network)"
            )
        checkpoint.restore(built)
    return built


def build_features(name: str, data: Mapping[str, Any], **args: Any) -> nn.Module:
    """Build the network of ``name`` that computes features.

    Args:
        name: ``"scattering"``, ``"network"``, or any other registered name.
        data: Public facts about the data: ``example_shape``, ``num_classes``, ``in_features``, and for images
            ``in_channels`` and ``image_size``.
        **args: Arguments of the builder.

    Raises:
        ValueError: An unknown name or argument.

    Example:
        >>> build_features("scattering", {"example_shape": (1, 28, 28)}, J=3)
        Sequential(
          (0): Scattering2D(J=3, shape=(28, 28), L=8)
          (1): Flatten(start_dim=1, end_dim=2)
        )
    """
    builder = FEATURES.get(name)
    check_arguments(builder, args, f"features {name!r}", provided=["data"])
    built = builder(data, **args)
    if not isinstance(built, nn.Module):
        raise ValueError(f"features {name!r} built {type(built).__name__}, which is not a torch.nn.Module")
    return built


def check_features(name: str, args: Mapping[str, Any]) -> None:
    """Refuse unknown features or arguments.

    Raises:
        ValueError: See ``build_features``.
    """
    check_arguments(FEATURES.get(name), args, f"features {name!r}", provided=["data"])
    if name == "network":
        own = {key: value for key, value in args.items() if key not in ("network", "module", "seed", "weights")}
        if (args.get("network") is None) == (args.get("module") is None):
            raise ValueError(
                "features 'network' needs either network (a registered name) or module ('package.module:Class'), got "
                f"network={args.get('network')!r} and module={args.get('module')!r}"
            )
        check_network(args.get("network"), args.get("module"), own)


def _is_checkpoint(weights: Any) -> bool:
    return isinstance(weights, str) and weights.endswith(CHECKPOINTS)
