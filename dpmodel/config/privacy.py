"""The section of the configuration that determines epsilon, together with epochs and batch size."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from dpmodel.config.fields import (
    FromList,
    NamedSection,
    NonNegativeInt,
    OpenUnitFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)
from monitors.accountant import DEFAULT_DELTA

_NOT_AN_OPTION = {
    "initial_noise_multiplier": "privacy.noise_multiplier, or privacy.target_epsilon to calibrate it",
    "norm_bound": "privacy.norm_bound, to which the noise is scaled",
}


class MechanismSection(NamedSection):
    """A noise or clip mechanism by name; other keys are its arguments."""

    @model_validator(mode="after")
    def _one_place_for_each_number(self) -> MechanismSection:
        for key, place in _NOT_AN_OPTION.items():
            if key in self.options:
                raise ValueError(f"{key}={self.options[key]!r} does not belong here; set {place}")
        return self


class NoiseSection(MechanismSection):
    """Noise mechanism: ``Gaussian``, ``AdaGaussian`` (``decay_policy``, ``noise_decay_rate``) or another one.

    ``BandedMF`` takes ``bands``, ``ShapedGaussian`` the shape; a plugin may register others.
    """

    name: str = "Gaussian"


class ClipSection(MechanismSection):
    """Clip mechanism: ``Fixed``, ``Gaussian`` (adaptive quantile), ``Automatic``, ``PerLayer``, or one of a plugin."""

    name: str = "Fixed"


class MonitorSection(Section):
    """The monitor that watches the ledger during training.

    Args:
        per_print_times: Steps between two printed lines.
        max_eps: Stop before the step that would exceed this epsilon; null never stops.
    """

    per_print_times: PositiveInt = 50
    max_eps: PositiveFloat | None = None


class PrivacySection(Section):
    """Settings that affect privacy.

    Args:
        noise_multiplier: Standard deviation of the noise over the norm bound at the first step. Give this or
            ``target_epsilon``.
        target_epsilon: Epsilon that the whole training may spend; the noise multiplier is calibrated for the schedule,
            clipping and sampling in use.
        delta: Delta of every epsilon, strictly between 0 and 1; choose it well below one over the number of examples.
        accountant: ``rdp``, ``pld`` or ``zcdp``.
        sampling: ``poisson``, ``shuffle`` (which claims no amplification), or ``cyclic_poisson`` and ``fixed_order``
            for correlated noise.
        num_examples_public: A public number of examples that sets the sampling rate and the steps of an epoch, so that
            neither depends on the private number of rows. null: the number of rows is treated as public.
        micro_batches: Number of groups per batch whose mean gradients are clipped; null clips each example.
        norm_bound: Initial L2 norm bound.
        noise: Noise mechanism; null trains WITHOUT privacy, as a baseline.
        clip: Clip mechanism.
        monitor: Monitor.
        spent: Files of ledgers with earlier releases about the same data, such as private statistics. The target
            epsilon covers them, and the ledger of the training continues them.
        sampling_seed: Null: secret sampling. An integer makes sampling reproducible and voids the guarantee (tests
            only).
    """

    noise_multiplier: PositiveFloat | None = None
    target_epsilon: PositiveFloat | None = None
    delta: OpenUnitFloat = DEFAULT_DELTA
    accountant: str = "rdp"
    sampling: str = "poisson"
    num_examples_public: PositiveInt | None = None
    micro_batches: PositiveInt | None = None
    norm_bound: PositiveFloat = 1.0
    noise: NoiseSection | None = NoiseSection()
    clip: ClipSection = ClipSection()
    monitor: MonitorSection = MonitorSection()
    spent: Annotated[tuple[str, ...], FromList] = ()
    sampling_seed: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _one_privacy_statement(self) -> PrivacySection:
        given = {"noise_multiplier": self.noise_multiplier, "target_epsilon": self.target_epsilon}
        stated = [f"{name}={value:g}" for name, value in given.items() if value is not None]
        if self.noise is None and stated:
            raise ValueError(f"noise is null (no privacy), but {stated[0]} is given; remove one of them")
        if self.noise is not None and len(stated) != 1:
            found = f"{' and '.join(stated)}; set the other to null" if stated else "neither"
            raise ValueError(
                "give exactly one of noise_multiplier (to get its epsilon) and target_epsilon (to get its multiplier), "
                f"got {found}"
            )
        most, target = self.monitor.max_eps, self.target_epsilon
        if most is not None and target is not None and most < target:
            raise ValueError(
                f"monitor.max_eps={most:g} is below target_epsilon={target:g}: the monitor would stop the training "
                f"before it reaches the epsilon that it was calibrated for; use target_epsilon: {most:g}"
            )
        return self
