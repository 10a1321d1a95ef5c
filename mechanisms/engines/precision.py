"""In which precision clipped gradients are added up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from monitors.errors import ConfigError

#: What torch calls the precision of full float32; "none" is what nobody has set.
_FULL = ("none", "ieee")

#: Settings of the library under torch's products on the CPU, which torch itself does not know of.
_VARIABLES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


def require_full_products() -> None:
    """Refuse torch's faster, coarser products of float32: they would make a clipped gradient longer than its bound.

    An example is clipped by a norm in full precision; rounded to 8 or 10 bits in the sum, it could exceed the bound by
    up to a thousandth or more. ``precision="bf16"`` is the safe way to speed: it is coarse in the forward and backward
    pass alone. Convolutions of a GPU are not asked about: no sum of clipped gradients is made by them.

    Raises:
        ConfigError: Matrix products, or convolutions on the CPU, are not those of full float32.
    """
    for variable in _VARIABLES:
        if os.environ.get(variable, "STRICT").upper() not in ("STRICT", ""):
            raise ConfigError(
                f"the environment variable {variable}={os.environ[variable]} allows coarse products of float32, in "
                "which sums of clipped gradients could exceed their bound; unset it, and use precision='bf16' for speed"
            )
    try:
        stated = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not sum up settings that were made backend by backend
        stated = "of several kinds"
    if stated != "highest":
        raise ConfigError(
            f"float32 matrix products are set to precision {stated!r}, in which sums of clipped gradients could exceed "
            "their bound; call torch.set_float32_matmul_precision('highest'), and use precision='bf16' for speed"
        )
    convolutions = getattr(getattr(torch.backends.mkldnn, "conv", None), "fp32_precision", "none")
    if convolutions not in _FULL:
        raise ConfigError(
            f"float32 convolutions on the CPU are set to precision {convolutions!r}, in which sums of clipped "
            "gradients could exceed their bound; set torch.backends.mkldnn.conv.fp32_precision = 'ieee', and use "
            "precision='bf16' for speed"
        )


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and recurrent layers of a GPU are computed in full float32 within, and as before afterwards.

    By torch's default they round their factors to 11 bits (TF32). That is good enough to train by, but two ways to one
    gradient then differ by a hundredth, as faults do. Products of matrices are in full float32 anyway, see
    ``require_full_products``.

    Example:
        >>> with full_float32():
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    before = [(place, name, getattr(place, name)) for place, name in _coarse_settings()]
    for place, name, value in before:
        setattr(place, name, "ieee" if isinstance(value, str) else False)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _coarse_settings() -> list[tuple[Any, str]]:
    """Where the precision of cuDNN is set: in one switch, or kind by kind where a user has set the kinds apart."""
    try:
        torch.backends.cudnn.allow_tf32  # noqa: B018 - torch refuses to sum up settings that differ
    except RuntimeError:
        return [(getattr(torch.backends.cudnn, kind), "fp32_precision") for kind in ("conv", "rnn")]
    return [(torch.backends.cudnn, "allow_tf32")]
