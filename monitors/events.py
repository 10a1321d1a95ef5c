"""Privacy statements as data: what was released, on which sample of the data, composed how.

An event carries all that an accountant needs and nothing else. Events are frozen; the meaning of a type never changes,
a new meaning gets a new type; an accountant that does not know a type refuses it by name. The idea is that of
dp_accounting's ``DpEvent``.

``noise_multiplier`` is always the standard deviation of the noise over the L2 sensitivity of the released sum (of
Laplace noise: its scale over the L1 sensitivity), for the neighbour relation "add or remove one example" unless the
run's report says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from monitors import checks
from monitors.errors import UnsupportedEventError

E = TypeVar("E", bound="type[PrivacyEvent]")

_TYPES: dict[str, type[PrivacyEvent]] = {}


@dataclass(frozen=True)
class PrivacyEvent:
    """Base of all events. A subclass is a frozen dataclass whose fields are numbers, strings, or other events."""

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON values, with its type's name under ``"type"``."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"type": type(self).__name__, **values}


def register_event(cls: E) -> E:
    """Class decorator that lets events of type ``cls`` be read back from a ledger file.

    Raises:
        ValueError: Another class of that name is registered.

    Example:
        >>> from dataclasses import dataclass
        >>> @register_event
        ... @dataclass(frozen=True)
        ... class PureEvent(PrivacyEvent):
        ...     epsilon: float
        >>> event_from_dict({"type": "PureEvent", "epsilon": 0.1})
        PureEvent(epsilon=0.1)
    """
    known = _TYPES.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"event type {cls.__name__!r} is already registered by {known.__module__}; choose another name"
        )
    _TYPES[cls.__name__] = cls
    return cls


@register_event
@dataclass(frozen=True)
class GaussianEvent(PrivacyEvent):
    """One Gaussian release: noise of standard deviation ``noise_multiplier`` x sensitivity was added.

    Args:
        noise_multiplier: Standard deviation over L2 sensitivity; positive and finite.

    Example:
        >>> GaussianEvent(1.5)
        GaussianEvent(noise_multiplier=1.5)
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        checks.positive(noise_multiplier=self.noise_multiplier)
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))


@register_event
@dataclass(frozen=True)
class LaplaceEvent(PrivacyEvent):
    """One Laplace release: noise of scale ``noise_multiplier`` x L1 sensitivity was added to each number.

    It is ``1 / noise_multiplier``-private by itself, with a delta of 0.

    Args:
        noise_multiplier: Scale over L1 sensitivity; positive and finite.

    Example:
        >>> LaplaceEvent(10.0)
        LaplaceEvent(noise_multiplier=10.0)
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        checks.positive(noise_multiplier=self.noise_multiplier)
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))


@register_event
@dataclass(frozen=True)
class PoissonSampledEvent(PrivacyEvent):
    """``event`` applied to a sample that each example joins independently with probability ``sampling_rate``.

    Args:
        sampling_rate: In (0, 1]; 1 is the whole data set, no amplification.
        event: What was released of the sample.
    """

    sampling_rate: float
    event: PrivacyEvent

    def __post_init__(self) -> None:
        checks.sampling_rate(sampling_rate=self.sampling_rate)
        _require_events(event=self.event)
        object.__setattr__(self, "sampling_rate", float(self.sampling_rate))


@register_event
@dataclass(frozen=True)
class ComposedEvent(PrivacyEvent):
    """Several releases of the same data (inside a sampled event: of the same drawn sample).

    Args:
        events: The parts, at least one.
    """

    events: tuple[PrivacyEvent, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))
        if not self.events:
            raise ValueError("events must hold at least one event, got an empty tuple")
        _require_events(**{f"events[{index}]": event for index, event in enumerate(self.events)})


@register_event
@dataclass(frozen=True)
class DisjointEvent(PrivacyEvent):
    """``event`` on one part of a partition of the data; parts of one partition share no example (parallel composition).

    Each example is touched by at most one event of a partition, so a partition costs the largest of its events and not
    their sum. One epoch of shuffled batches is a partition. The claim holds for replacing one example by an
    all-zero one (zero-out); for replace-one the sensitivity, and not this event, doubles.

    Args:
        partition: Number of the partition within its ledger (``Ledger.next_partition`` gives a free one).
        event: What was released of the part.
    """

    partition: int
    event: PrivacyEvent

    def __post_init__(self) -> None:
        checks.non_negative_int(partition=self.partition)
        _require_events(event=self.event)


@register_event
@dataclass(frozen=True)
class NonPrivateEvent(PrivacyEvent):
    """A release without any privacy (no noise): every accountant answers an infinite epsilon."""


@register_event
@dataclass(frozen=True)
class ViolationEvent(NonPrivateEvent):
    """The guarantee was violated: private data may have reached what was released without noise.

    Every accountant answers an infinite epsilon, and a delta of 1 for any epsilon, for a ledger that holds one.

    Args:
        reason: What was found, and since which step the claim is void; one line of text.

    Example:
        >>> ViolationEvent("the weights were changed after step 7")
        ViolationEvent(reason='the weights were changed after step 7')
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise ValueError(f"reason must be a text that says what was found, got {self.reason!r}")


@register_event
@dataclass(frozen=True)
class RepeatedEvent(PrivacyEvent):
    """``count`` independent releases of ``event`` on the same data, such as the trainings of a search.

    Publishing all of k runs, or the best of them, costs no more than this (composition).

    Args:
        event: What was released each time.
        count: How many times, at least 1.
    """

    event: PrivacyEvent
    count: int

    def __post_init__(self) -> None:
        _require_events(event=self.event)
        checks.positive_int(count=self.count)


@register_event
@dataclass(frozen=True)
class RandomStoppingEvent(PrivacyEvent):
    """The best of a RANDOM number of runs of ``event``; only the best is published (Papernot and Steinke 2022).

    The number of runs must really be drawn from the distribution and never be revealed; the choice among the runs must
    look at nothing but their outputs.

    Args:
        event: What one run releases.
        expected_runs: Mean number of runs, above 1 (Poisson: above 0).
        distribution: ``"geometric"``, ``"logarithmic"`` or ``"poisson"``.
    """

    event: PrivacyEvent
    expected_runs: float
    distribution: str = "geometric"

    def __post_init__(self) -> None:
        _require_events(event=self.event)
        checks.positive(expected_runs=self.expected_runs)
        checks.one_of(("geometric", "logarithmic", "poisson"), distribution=self.distribution)
        if self.distribution != "poisson" and self.expected_runs <= 1:
            raise ValueError(f"expected_runs must be above 1, got {self.expected_runs!r}: at least one run is made")
        object.__setattr__(self, "expected_runs", float(self.expected_runs))


def parts_of(event: PrivacyEvent) -> tuple[PrivacyEvent, ...]:
    """The events that ``event`` holds, one level down.

    Example:
        >>> parts_of(PoissonSampledEvent(0.1, GaussianEvent(1.0)))
        (GaussianEvent(noise_multiplier=1.0),)
    """
    found: list[PrivacyEvent] = []
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        candidates = value if isinstance(value, tuple) else (value,)
        found.extend(part for part in candidates if isinstance(part, PrivacyEvent))
    return tuple(found)


def holds_partition(event: PrivacyEvent) -> bool:
    """Whether ``event`` is, or holds, a part of a partition."""
    return isinstance(event, DisjointEvent) or any(map(holds_partition, parts_of(event)))


def compose(events: Iterable[PrivacyEvent]) -> PrivacyEvent:
    """One event for releases of the same data: the event itself when alone, else a ``ComposedEvent``.

    Example:
        >>> compose([GaussianEvent(1.0)])
        GaussianEvent(noise_multiplier=1.0)
    """
    parts = tuple(events)
    return parts[0] if len(parts) == 1 else ComposedEvent(parts)


def event_from_dict(values: Mapping[str, Any]) -> PrivacyEvent:
    """Read back what ``PrivacyEvent.to_dict`` wrote.

    Raises:
        UnsupportedEventError: The type is unknown here (import the package that defines it first).
        ValueError: A field is missing, unknown, or out of range.
    """
    fields = dict(values)
    name = fields.pop("type", None)
    if name not in _TYPES:
        hint = checks.nearest_hint(name, _TYPES) or ";"
        raise UnsupportedEventError(
            f"unknown event type {name!r}{hint} known: {', '.join(sorted(_TYPES))}. "
            "If an extension defines it, import that extension before reading the ledger."
        )
    try:
        return _TYPES[name](**{key: _revive(value) for key, value in fields.items()})
    except TypeError as error:
        raise ValueError(f"event {name!r} cannot be read from {values!r}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, PrivacyEvent):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


def _revive(value: Any) -> Any:
    if isinstance(value, Mapping):
        return event_from_dict(value)
    if isinstance(value, list):
        return tuple(_revive(part) for part in value)
    return value


def _require_events(**named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, PrivacyEvent):
            raise ValueError(f"{name} must be a PrivacyEvent, got {value!r} of type {type(value).__name__}")
