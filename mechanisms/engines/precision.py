"""The precision of the forward and backward pass, and that in which clipped gradients are added up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from monitors.errors import ConfigError

#: Names of full float32 precision in torch; "none" means that it was never set.
_FULL = ("none", "ieee")

#: Settings of the library behind torch's CPU products, of which torch itself is not aware.
_VARIABLES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


@dataclass(frozen=True)
class Precision:
    """The precision of a forward and backward pass; norms, factors and sums are always in full float32.

    Args:
        autocast: Autocast type of the forward pass; None: the parameters' own type.
        products: Name of the precision of float32 matrix products in torch: ``"highest"``; or ``"high"``, which is TF32
            on a GPU. On a CPU, few processors have such products.

    Example:
        >>> with PRECISIONS["tf32"].of_products():
        ...     torch.get_float32_matmul_precision()
        'high'
    """

    autocast: torch.dtype | None = None
    products: str = "highest"

    @contextmanager
    def of_products(self) -> Iterator[None]:
        """Matrix products have this precision inside, and the full one afterwards, whatever was set inside."""
        _set_products(self.products)
        try:
            yield
        finally:
            _set_full_precision()

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Matrix products have full precision inside, and this one afterwards."""
        _set_full_precision()
        try:
            yield
        finally:
            _set_products(self.products)


def _stated_products() -> str:
    """The precision of float32 matrix products in torch; ``"mixed"`` if its backends have different ones."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # a setting of one kind of products, such as torch.backends.cuda.matmul.fp32_precision
        return "mixed"


def _set_products(products: str) -> None:
    if _stated_products() != products:  # otherwise, settings of the user that say the same would be replaced
        torch.set_float32_matmul_precision(products)


def _set_full_precision() -> None:
    """Compute products, and convolutions on the CPU, in full float32, whatever a network has set."""
    _set_products("highest")
    convolutions = getattr(torch.backends.mkldnn, "conv", None)
    if convolutions is not None and convolutions.fp32_precision not in _FULL:
        convolutions.fp32_precision = "ieee"


#: Values of ``precision``.
PRECISIONS = {"fp32": Precision(), "tf32": Precision(products="high"), "bf16": Precision(autocast=torch.bfloat16)}


def require_full_products() -> None:
    """Refuse torch's faster, reduced-precision float32 products: clipped gradients could exceed their bound.

    An example is clipped by a norm in full precision; rounded to 8 or 10 bits in the sum, it could exceed the bound by
    a thousandth or more. ``precision="tf32"`` and ``"bf16"`` are the safe way to speed: they reduce precision in the
    forward and backward pass only. Convolutions on a GPU are not checked: no sum of clipped gradients uses them.

    Raises:
        ConfigError: Matrix products, or convolutions on the CPU, do not run in full float32.
    """
    for variable in _VARIABLES:
        if os.environ.get(variable, "STRICT").upper() not in ("STRICT", ""):
            raise ConfigError(
                f"the environment variable {variable}={os.environ[variable]} allows reduced-precision float32 "
                "products, in which sums of clipped gradients could exceed their bound; unset it, and use "
                "precision='tf32' or 'bf16' for speed"
            )
    stated = _stated_products()
    if stated != "highest":
        raise ConfigError(
            f"float32 matrix products are set to precision {stated!r}, in which sums of clipped gradients could exceed "
            "their bound; call torch.set_float32_matmul_precision('highest'), and use precision='tf32' or 'bf16' for "
            "speed"
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
    """Compute convolutions and recurrent layers on a GPU in full float32 inside; restore the settings afterwards.

    By default, torch rounds their factors to 11 bits (TF32). That is good enough for training, but two ways to compute
    the same gradient then differ by a hundredth, as much as a real error. Matrix products are in full float32 anyway;
    see ``require_full_products``.

    Example:
        >>> with full_float32():
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    before = [(place, name, getattr(place, name)) for place, name in coarse_settings()]
    for place, name, value in before:
        setattr(place, name, "ieee" if isinstance(value, str) else False)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def coarse_settings() -> list[tuple[Any, str]]:
    """Attributes that set the precision of cuDNN: one switch, or one per kind of layer if the user has set them."""
    try:
        torch.backends.cudnn.allow_tf32  # noqa: B018 - raises if the kinds have different settings
    except RuntimeError:
        return [(getattr(torch.backends.cudnn, kind), "fp32_precision") for kind in ("conv", "rnn")]
    return [(torch.backends.cudnn, "allow_tf32")]
