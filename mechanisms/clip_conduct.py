"""What the privacy claim asks of a clip mechanism, tried before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mechanisms.clipping import ClipMechanism
from mechanisms.units import ClippedUnit
from monitors.errors import UnprotectedUpdateError

#: Norms of the trial over the norm bound: units that are clipped and units that are not.
_TRIAL_NORMS = (0.0, 0.03, 0.5, 1.0, 2.0, 40.0)


def require_sound_clip(clip: ClipMechanism, names: Sequence[str], unit: ClippedUnit, step: int = 0) -> None:
    """Refuse a mechanism by which one unit could move the sum further than its own clipped gradient, or unaccounted.

    Args:
        clip: A started clip mechanism.
        names: Names of the trained parameters, in order.
        unit: The clipped unit.
        step: The next step.

    Raises:
        UnprotectedUpdateError: A unit's factors depend on other units, or the next bound is chosen from norms by a
            mechanism that states no event for it.
    """
    norms = _trial_norms(clip, max(clip.blocks(names)) + 1)
    together = clip.factors(norms.clone())
    alone = torch.cat([clip.factors(row.clone()) for row in norms.split(1)])
    if together.shape != norms.shape or not torch.allclose(together, alone, rtol=1e-4, equal_nan=True):
        raise UnprotectedUpdateError(
            f"{type(clip).__name__}.factors gives a unit another factor when other units are there, so that one "
            "example would move what all others add, and not its own clipped gradient alone; let each row of the "
            f"factors depend on the same row of the norms only (shape {tuple(norms.shape)})"
        )
    _require_blind_update(clip, norms, unit, step)


def _trial_norms(clip: ClipMechanism, blocks: int) -> torch.Tensor:
    scale = torch.tensor(_TRIAL_NORMS, dtype=torch.float32, device="cpu").unsqueeze(1)
    return scale * torch.linspace(1.0, 1.5, blocks, dtype=torch.float32, device="cpu") * clip.norm_bound


def _require_blind_update(clip: ClipMechanism, norms: torch.Tensor, unit: ClippedUnit, step: int) -> None:
    if type(clip).update is ClipMechanism.update or clip.event(step, unit) is not None:
        return
    state = clip.state_dict()
    try:
        clip.update(norms[:0], unit, step)
    except Exception as error:
        raise UnprotectedUpdateError(
            f"{type(clip).__name__}.update looks at the norms of the examples, but its event is None: nothing on the "
            f"ledger pays for it. State what it releases in event, or let the bound follow the step alone ({error})"
        ) from error
    finally:
        clip.load_state_dict(state)
