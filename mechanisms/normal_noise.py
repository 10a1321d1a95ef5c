"""Which events state normal noise, and how much of it: what samples are compared with before a training."""

from __future__ import annotations

import math
from functools import singledispatch

from monitors.events import ComposedEvent, GaussianEvent, PrivacyEvent, RepeatedEvent
from monitors.gaussian import combined_multiplier


@singledispatch
def stated_multiplier(event: PrivacyEvent) -> float | None:
    """Standard deviation over the sensitivity of the independent normal noise that ``event`` states.

    None where it states something else: noise of such an event is tried for less. A third party's event of normal
    noise registers a rule here.

    Example:
        >>> stated_multiplier(GaussianEvent(1.5)), stated_multiplier(PrivacyEvent())
        (1.5, None)
    """
    del event
    return None


@stated_multiplier.register
def _(event: GaussianEvent) -> float | None:
    return event.noise_multiplier


@stated_multiplier.register
def _(event: ComposedEvent) -> float | None:
    parts = [stated_multiplier(part) for part in event.events]
    known = [part for part in parts if part is not None]
    return combined_multiplier(known) if len(known) == len(parts) else None


@stated_multiplier.register
def _(event: RepeatedEvent) -> float | None:
    once = stated_multiplier(event.event)
    return None if once is None else once / math.sqrt(event.count)
