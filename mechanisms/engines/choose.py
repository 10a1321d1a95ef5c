"""``engine="auto"``: the fastest engine that can take the network, and the reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mechanisms.engines.base import ENGINES, Engine
from mechanisms.engines.batch import Batch
from mechanisms.engines.losses import LossFunction
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError

#: Fastest first; the last one takes everything.
PREFERENCE: tuple[str, ...] = ("vmap", "loop")


@dataclass(frozen=True)
class Choice:
    """An engine and why it was chosen.

    Args:
        engine: Ready for use.
        reason: One sentence for people.
    """

    engine: Engine
    reason: str


def choose_engine(
    name: str,
    network: nn.Module,
    loss_fn: LossFunction,
    unit: ClippedUnit,
    example: Batch,
    *,
    physical_batch_size: int | None = None,
    preference: Sequence[str] = PREFERENCE,
) -> Choice:
    """The engine called ``name``, or for ``"auto"`` the first of ``preference`` that can take the network.

    Args:
        name: ``"auto"`` or a registered engine.
        network: In the mode it will be trained in.
        loss_fn: The user's loss.
        unit: The clipped unit.
        example: One or two examples with the shapes and types of the data; no result of it is kept.
        physical_batch_size: Passed to the engine.
        preference: Order in which ``"auto"`` tries.

    Raises:
        UnsupportedModuleError: The named engine cannot take the network; says why.
        ValueError: Unknown name.
    """
    if name != "auto":
        refusal = ENGINES.get(name).refuses(network, loss_fn, unit, example)
        if refusal is not None:
            raise UnsupportedModuleError(f"engine {name!r} cannot be used: {refusal}. Use engine='auto' or 'loop'")
        return Choice(ENGINES.create(name, unit, physical_batch_size), f"engine {name!r} was asked for")
    refusals: list[str] = []
    for candidate in preference:
        refusal = ENGINES.get(candidate).refuses(network, loss_fn, unit, example)
        if refusal is None:
            why = f"engine {candidate!r}: the fastest exact one for this network"
            return Choice(
                ENGINES.create(candidate, unit, physical_batch_size), "; ".join([why, *refusals])
            )
        refusals.append(f"not {candidate!r} because {refusal}")
    raise UnsupportedModuleError(f"no engine can take this network: {'; '.join(refusals)}")
