"""Factories that build mechanisms by name, with MindArmour's arguments; extensions can register their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from mechanisms import adaptive_clipping, shaped_noise
from mechanisms.clipping import CLIP, ClipMechanism
from mechanisms.correlated import banded, samplers
from mechanisms.noise import NOISE, NoiseMechanism
from monitors import checks
from monitors.registry import Registry
from monitors.signatures import signature

B = TypeVar("B", bound=type)

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

__all__ = ["ClipMechanismsFactory", "NoiseMechanismsFactory"]

del adaptive_clipping, banded, samplers, shaped_noise  # importing them registered their mechanisms


class _Factory:
    """The common part of both factories: registration, listing, and building with the accepted arguments."""

    registry: ClassVar[Registry[Any]]

    @classmethod
    def register(cls, name: str) -> Callable[[B], B]:
        """Decorator that registers a mechanism class as ``name``."""
        return cls.registry.register(name)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All known names, including those of installed extensions."""
        return cls.registry.names()

    @classmethod
    def _build(
        cls, name: str, arguments: Mapping[str, Any], options: Mapping[str, Any], *, optional: Collection[str]
    ) -> Any:
        """Build a mechanism; one that does not take an ``optional`` argument is built without it."""
        builder = cls.registry.get(name)
        accepted = signature(builder).parameters
        free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        taken = {key: value for key, value in arguments.items() if key in accepted or free or key not in optional}
        for key, value in {**taken, **options}.items():
            if key not in accepted and not free:
                hint = checks.nearest_hint(key, accepted) or ";"
                raise ValueError(
                    f"{key}={value!r} has no meaning for {cls.registry.kind} {name!r}{hint} "
                    f"it takes {', '.join(accepted) or 'no arguments'}"
                )
        missing = [
            key
            for key, value in accepted.items()
            if value.default is value.empty and value.kind in _NAMED and key not in {*taken, *options}
        ]
        own = [key for key, value in accepted.items() if value.kind is not value.VAR_KEYWORD]
        takes = ", ".join(dict.fromkeys([*own, *taken]))
        if missing:
            raise ValueError(f"{cls.registry.kind} {name!r} needs {', '.join(missing)}; it takes {takes}")
        try:
            return builder(**taken, **options)
        except TypeError as error:
            # A builder that forwards its arguments finds a wrong one only when it is called.
            raise ValueError(f"{cls.registry.kind} {name!r} cannot be built: {error}. It takes {takes}") from error


def _stated(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None; a mechanism uses its own defaults for the others."""
    return {key: value for key, value in arguments.items() if value is not None}


class NoiseMechanismsFactory(_Factory):
    """Noise mechanisms by name.

    Example:
        >>> NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.5).noise_multiplier(0)
        1.5
        >>> NoiseMechanismsFactory.create("Gausian")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: unknown noise mechanism 'Gausian'; did you mean 'Gaussian'? Known: ...
    """

    registry = NOISE

    @classmethod
    def create(
        cls,
        name: str,
        norm_bound: float | None = None,
        initial_noise_multiplier: float = 1.0,
        seed: int | None = 0,
        noise_decay_rate: float | None = None,
        decay_policy: str | None = None,
        **options: Any,
    ) -> NoiseMechanism:
        """Build a noise mechanism.

        Args:
            name: ``"Gaussian"``, ``"AdaGaussian"``, ``"ShapedGaussian"``, ``"BandedMF"``, or a registered name.
            norm_bound: None, or the expected norm bound; ``DPModel`` refuses one that contradicts the clip mechanism.
            initial_noise_multiplier: Noise standard deviation over the norm bound at the first step, positive.
            seed: 0 (or None) for secret noise. Any other integer makes it reproducible and voids the guarantee (tests
                only).
            noise_decay_rate: Decay per step, for ``"AdaGaussian"`` (default: 6e-6).
            decay_policy: ``"Time"``, ``"Step"`` or ``"Exp"``, for ``"AdaGaussian"`` (default: ``"Exp"``).
            **options: Further arguments of a registered mechanism.

        Raises:
            ValueError: The name is unknown, a value is out of range, or the mechanism does not take an argument.
        """
        stated = _stated(noise_decay_rate=noise_decay_rate, decay_policy=decay_policy)
        common = {"norm_bound": norm_bound, "initial_noise_multiplier": initial_noise_multiplier, "seed": seed or 0}
        neutral = {"norm_bound": None, "initial_noise_multiplier": 1.0, "seed": 0}
        mechanism: NoiseMechanism = cls._build(
            name,
            stated | common,
            options,
            optional=[key for key, value in common.items() if value == neutral[key]],
        )
        mechanism._rebuild = partial(cls.create, name, norm_bound=norm_bound, seed=seed, **stated, **options)
        return mechanism


class ClipMechanismsFactory(_Factory):
    """Clip mechanisms by name.

    Example:
        >>> ClipMechanismsFactory.create("Gaussian", decay_policy="Geometric", learning_rate=0.2).learning_rate
        0.2
        >>> ClipMechanismsFactory.names()
        ('Automatic', 'Fixed', 'Gaussian', 'PerLayer')
    """

    registry = CLIP

    @classmethod
    def create(
        cls,
        name: str,
        decay_policy: str | None = None,
        learning_rate: float | None = None,
        target_unclipped_quantile: float | None = None,
        fraction_stddev: float | None = None,
        seed: int | None = 0,
        **options: Any,
    ) -> ClipMechanism:
        """Build a clip mechanism; its norm bound is given to ``DPModel``.

        Args:
            name: ``"Fixed"``, ``"Gaussian"`` (adaptive quantile), ``"Automatic"``, ``"PerLayer"``, or a registered
                name.
            decay_policy: ``"Linear"`` or ``"Geometric"`` update of the bound of ``"Gaussian"`` (default: ``"Linear"``).
            learning_rate: Learning rate of that bound, positive (default: 0.001).
            target_unclipped_quantile: Fraction of units that should stay unclipped, in [0, 1] (default: 0.9).
            fraction_stddev: Noise standard deviation of the released unclipped fraction, positive (default: 0.01).
            seed: 0 (or None) for secret noise. Any other integer makes it reproducible and voids the guarantee (tests
                only).
            **options: Further arguments: ``min_norm_bound`` and ``max_norm_bound`` of ``"Gaussian"``, ``stability`` of
                ``"Automatic"``, or those of a registered mechanism.

        Raises:
            ValueError: The name is unknown, a value is out of range, or the mechanism does not take an argument.
        """
        stated = _stated(
            decay_policy=decay_policy,
            learning_rate=learning_rate,
            target_unclipped_quantile=target_unclipped_quantile,
            fraction_stddev=fraction_stddev,
        )
        mechanism: ClipMechanism = cls._build(name, stated | {"seed": seed}, options, optional=["seed"])
        return mechanism
