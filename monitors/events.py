"""Privacy statements as data: what was released, from which sample of the data, and how releases compose.

An event carries what an accountant needs and nothing else. Events are frozen. The meaning of a type never changes; a
new meaning gets a new type. An accountant refuses a type that it does not know, by name. The idea follows
dp_accounting's ``DpEvent``.

``noise_multiplier`` is always the standard deviation of the noise over the L2 sensitivity of the released sum (for
Laplace noise: its scale over the L1 sensitivity), for the neighbour relation "add or remove one example" unless the
run's report says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from monitors import checks
from monitors.errors import UnsupportedEventError

E = TypeVar("E", bound="type[PrivacyEvent]")

#: Most events around an event in a file; dpmodel nests about four.
MAX_DEPTH = 16

_TYPES: dict[str, type[PrivacyEvent]] = {}


@dataclass(frozen=True)
class PrivacyEvent:
    """Base of all events. A subclass is a frozen dataclass whose fields are numbers, strings, or other events."""

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON values, with the name of its type under ``"type"``."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"type": type(self).__name__, **values}


def register_event(cls: E) -> E:
    """Class decorator that makes events of type ``cls`` readable from a ledger file.

    Raises:
        ValueError: A different class of that name is registered.

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
            f"event type {cls.__name__!r} is already registered by {known.__module__}; choose a different name"
        )
    _TYPES[cls.__name__] = cls
    return cls


@register_event
@dataclass(frozen=True)
class GaussianEvent(PrivacyEvent):
    """One Gaussian release, with noise of standard deviation ``noise_multiplier`` x sensitivity.

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
    """One Laplace release, with noise of scale ``noise_multiplier`` x L1 sensitivity on each number.

    On its own, it is ``1 / noise_multiplier``-private with a delta of 0.

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
        sampling_rate: In (0, 1]; 1 means the whole data set and no amplification.
        event: What was released from the sample.
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
    """Several releases of the same data or, inside a sampled event, of the same drawn sample.

    Args:
        events: The releases, at least one.
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

    At most one event of a partition touches each example, so a partition costs as much as its largest event, not the
    sum of its events. One epoch of shuffled batches is a partition. The claim holds for replacing the contribution of
    one example by zero (zero-out). For replacing the example by an arbitrary one, the sensitivity doubles; this event
    does not change.

    Args:
        partition: Number of the partition within its ledger (``Ledger.next_partition`` returns a free one).
        event: What was released from the part.
    """

    partition: int
    event: PrivacyEvent

    def __post_init__(self) -> None:
        checks.non_negative_int(partition=self.partition)
        _require_events(event=self.event)

    def in_partition(self, partition: int) -> DisjointEvent:
        """The same release as a part of a different partition."""
        return dataclasses.replace(self, partition=partition)


@register_event
@dataclass(frozen=True)
class CorrelatedEvent(DisjointEvent):
    """A part of a partition whose noise is correlated with that of the ``bands - 1`` steps before it.

    The noise of the steps is ``sigma C^-1 z`` for white noise z and a lower-triangular C with ``bands`` diagonals and
    columns of norm at most 1. The steps of one partition (a round, or a pass over the data) share no example, and two
    steps that share one are at least ``bands`` steps apart. The released steps then cost as much as their partitions
    would with independent noise of standard deviation sigma: one ``event`` for each partition, the most expensive of
    its steps (Choquette-Choo et al. 2023, theorem 4). This holds for any number of steps.

    The relation is add or remove one example if ``event`` is Poisson-sampled, otherwise zero-out.

    Args:
        partition: Number of the round or pass within its ledger.
        event: What one step of it costs.
        bands: Number of diagonals of C, at least 2.
    """

    bands: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int(bands=self.bands)
        if self.bands < 2:
            raise ValueError(f"bands must be at least 2, got {self.bands}: noise of 1 band is independent")


@register_event
@dataclass(frozen=True)
class NonPrivateEvent(PrivacyEvent):
    """A release without any privacy (no noise): every accountant returns an infinite epsilon."""


@register_event
@dataclass(frozen=True)
class ViolationEvent(NonPrivateEvent):
    """The guarantee was violated: private data may have been released without noise.

    For a ledger with such an event, every accountant returns an infinite epsilon, and a delta of 1 at any epsilon.

    Args:
        reason: What was found, and from which step on the claim is void; one line of text.

    Example:
        >>> ViolationEvent("the weights were changed after step 7")
        ViolationEvent(reason='the weights were changed after step 7')
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise ValueError(
                f"reason must be a non-empty string that says what was found, got {checks.shown(self.reason)}"
            )


@register_event
@dataclass(frozen=True)
class RepeatedEvent(PrivacyEvent):
    """``count`` independent releases of ``event`` on the same data, such as the runs of a hyper-parameter search.

    By composition, publishing all k runs, or the best of them, costs no more than this.

    Args:
        event: What was released each time.
        count: Number of releases, at least 1.
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

    The number of runs must actually be drawn from the distribution and never be revealed. The choice among the runs
    must depend on their outputs only.

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
            raise ValueError(
                f"expected_runs must be above 1, because at least one run always happens; got {self.expected_runs!r}"
            )
        object.__setattr__(self, "expected_runs", float(self.expected_runs))


def parts_of(event: PrivacyEvent) -> tuple[PrivacyEvent, ...]:
    """The events directly inside ``event``.

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


def reasons_of(event: PrivacyEvent) -> Iterator[str]:
    """The reasons of all violations in ``event``."""
    if isinstance(event, ViolationEvent):
        yield event.reason
    for part in parts_of(event):
        yield from reasons_of(part)


def holds_partition(event: PrivacyEvent) -> bool:
    """Whether ``event`` is a part of a partition, or contains one."""
    return isinstance(event, DisjointEvent) or any(map(holds_partition, parts_of(event)))


def compose(events: Iterable[PrivacyEvent]) -> PrivacyEvent:
    """One event for releases of the same data: a single event is returned as it is, several as a ``ComposedEvent``.

    Example:
        >>> compose([GaussianEvent(1.0)])
        GaussianEvent(noise_multiplier=1.0)
    """
    parts = tuple(events)
    return parts[0] if len(parts) == 1 else ComposedEvent(parts)


def event_from_dict(values: Mapping[str, Any], depth: int = 0) -> PrivacyEvent:
    """Read back what ``PrivacyEvent.to_dict`` wrote.

    Args:
        values: The plain values.
        depth: Number of events around this one.

    Raises:
        UnsupportedEventError: The type is unknown (import the package that defines it first).
        ValueError: A field is missing, unknown, or out of range.
    """
    if not isinstance(values, Mapping) or depth > MAX_DEPTH:
        what = (
            "an event must be a mapping" if depth <= MAX_DEPTH else f"events are nested deeper than {MAX_DEPTH} levels"
        )
        raise ValueError(f"{what}, got {checks.shown(values)}")
    fields = dict(values)
    name = fields.pop("type", None)
    if not isinstance(name, str) or name not in _TYPES:
        hint = checks.nearest_hint(name, _TYPES) or ";"
        raise UnsupportedEventError(
            f"unknown event type {checks.shown(name)}{hint} known: {', '.join(sorted(_TYPES))}. "
            "If an extension defines it, import that extension before reading the ledger."
        )
    try:
        return _TYPES[name](**{key: _revive(value, depth + 1) for key, value in fields.items()})
    except TypeError as error:
        reason = checks.shortened(" ".join(str(error).split()))  # it repeats the keys, whatever they are
        raise ValueError(f"event {name!r} cannot be read from {checks.shown(values)}: {reason}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, PrivacyEvent):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


def _revive(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return event_from_dict(value, depth)
    if isinstance(value, list):
        return tuple(_revive(part, depth) for part in value)
    return value


def _require_events(**named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, PrivacyEvent):
            raise ValueError(f"{name} must be a PrivacyEvent, got {checks.shown(value)} of type {type(value).__name__}")
