"""Events that state normal noise, and its scale, against which samples are tested before training."""

from __future__ import annotations

import math
from functools import singledispatch

from monitors.events import ComposedEvent, GaussianEvent, PrivacyEvent, RepeatedEvent
from monitors.gaussian import combined_multiplier


@singledispatch
def stated_multiplier(event: PrivacyEvent) -> float | None:
    """Standard deviation over sensitivity of the independent normal noise that ``event`` states.

    Returns None if the event states anything else; noise of such an event undergoes fewer tests. Register a rule here
    for a custom event of normal noise.

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
