"""MindArmour's factories over the registries: mechanisms by name, also those of other people's packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

from mechanisms import adaptive_clipping, shaped_noise
from mechanisms.clipping import CLIP, ClipMechanism
from mechanisms.noise import NOISE, NoiseMechanism
from monitors import checks
from monitors.registry import Registry

B = TypeVar("B", bound=type)

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

__all__ = ["ClipMechanismsFactory", "NoiseMechanismsFactory"]

del adaptive_clipping, shaped_noise  # imported so that its mechanisms are registered


class _Factory:
    """What both factories share: registration, listing, and building with the arguments a mechanism takes."""

    registry: ClassVar[Registry[Any]]

    @classmethod
    def register(cls, name: str) -> Callable[[B], B]:
        """Decorator that files a mechanism class under ``name``."""
        return cls.registry.register(name)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All known names, those of installed extensions included."""
        return cls.registry.names()

    @classmethod
    def _build(cls, name: str, stated: dict[str, Any], extra: dict[str, Any], always: frozenset[str]) -> Any:
        builder = cls.registry.get(name)
        accepted = inspect.signature(builder).parameters
        free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        arguments = {key: value for key, value in stated.items() if key in accepted or free}
        ignored = {key: value for key, value in stated.items() if key not in arguments and key not in always}
        unknown = {key: value for key, value in extra.items() if key not in accepted and not free}
        for key, value in {**ignored, **unknown}.items():
            hint = checks.nearest_hint(key, accepted) or ";"
            raise ValueError(
                f"{key}={value!r} has no meaning for {cls.registry.kind} {name!r}{hint} "
                f"it takes {', '.join(accepted) or 'no arguments'}"
            )
        missing = [
            key
            for key, value in accepted.items()
            if value.default is value.empty and value.kind in _NAMED and key not in {*arguments, *extra}
        ]
        own = [key for key, value in accepted.items() if value.kind is not value.VAR_KEYWORD]
        takes = ", ".join(dict.fromkeys([*own, *arguments]))
        if missing:
            raise ValueError(f"{cls.registry.kind} {name!r} needs {', '.join(missing)}; it takes {takes}")
        try:
            return builder(**arguments, **extra)
        except TypeError as error:
            # A builder that passes its arguments on finds a wrong one only by itself.
            raise ValueError(f"{cls.registry.kind} {name!r} cannot be built: {error}. It takes {takes}") from error


def _given(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value != defaults[key]}


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
        noise_decay_rate: float = 6e-6,
        decay_policy: str | None = None,
        **options: Any,
    ) -> NoiseMechanism:
        """Build a noise mechanism.

        Args:
            name: ``"Gaussian"``, ``"AdaGaussian"``, or a registered name.
            norm_bound: None, or the bound believed to be in force; ``DPModel`` refuses one that contradicts the clip
                mechanism.
            initial_noise_multiplier: Noise standard deviation over the norm bound at the first step, positive.
            seed: 0 (or None) for fresh secure entropy; any other number voids the guarantee and is for tests.
            noise_decay_rate: Per step, for ``"AdaGaussian"``.
            decay_policy: ``"Time"``, ``"Step"`` or ``"Exp"`` for ``"AdaGaussian"`` (default ``"Exp"``).
            **options: Further arguments of a registered mechanism.

        Raises:
            ValueError: Unknown name, a value out of range, or an argument that the mechanism does not take.
        """
        values = {"noise_decay_rate": noise_decay_rate, "decay_policy": decay_policy}
        stated: dict[str, Any] = _given(values, {"noise_decay_rate": 6e-6, "decay_policy": None})
        common = {"norm_bound": norm_bound, "initial_noise_multiplier": initial_noise_multiplier, "seed": seed or 0}
        usual = {"norm_bound": None, "initial_noise_multiplier": 1.0, "seed": 0}
        mechanism: NoiseMechanism = cls._build(
            name, stated | common, options, frozenset(usual) - set(_given(common, usual))
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
        decay_policy: str = "Linear",
        learning_rate: float = 0.001,
        target_unclipped_quantile: float = 0.9,
        fraction_stddev: float = 0.01,
        seed: int | None = 0,
        **options: Any,
    ) -> ClipMechanism:
        """Build a clip mechanism; its norm bound is given to ``DPModel``.

        Args:
            name: ``"Fixed"``, ``"Gaussian"`` (adaptive quantile), ``"Automatic"``, ``"PerLayer"``, or a registered
                name.
            decay_policy: ``"Linear"`` or ``"Geometric"`` bound update.
            learning_rate: Of the bound, positive.
            target_unclipped_quantile: In [0, 1].
            fraction_stddev: Noise of the released unclipped fraction, positive.
            seed: 0 (or None) for fresh secure entropy.
            **options: Further arguments: ``min_norm_bound``, ``max_norm_bound`` of ``"Gaussian"``, ``stability`` of
                ``"Automatic"``, or those of a registered mechanism.

        Raises:
            ValueError: Unknown name, a value out of range, or an argument that the mechanism does not take.
        """
        defaults = {
            "decay_policy": "Linear",
            "learning_rate": 0.001,
            "target_unclipped_quantile": 0.9,
            "fraction_stddev": 0.01,
        }
        values = {
            "decay_policy": decay_policy,
            "learning_rate": learning_rate,
            "target_unclipped_quantile": target_unclipped_quantile,
            "fraction_stddev": fraction_stddev,
        }
        stated = _given(values, defaults) | {"seed": seed}
        mechanism: ClipMechanism = cls._build(name, stated, options, frozenset({"seed"}))
        return mechanism
