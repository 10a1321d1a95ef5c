"""In which precision clipped gradients are added up."""

from __future__ import annotations

import os

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
