"""Which releases one ledger holds and another lacks: equal ones, or the very same ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from monitors.events import DisjointEvent, PrivacyEvent
from monitors.origins import Origins

Rows = Iterable[tuple[PrivacyEvent, int]]

#: The events of one partition, counted, with partition number 0.
_Part = frozenset[tuple[PrivacyEvent, int]]


def equal_ones_lacking(rows: Rows, others: Rows) -> list[tuple[PrivacyEvent, int]]:
    """The releases in ``rows`` that have no equal in ``others``; those of a partition have partition number 0.

    A partition costs as much as its largest release. Several partitions of ``others`` may therefore stand for one of
    ``rows``, but one of them never stands for two.

    Example:
        >>> from monitors.events import GaussianEvent
        >>> release = GaussianEvent(2.0)
        >>> one_epoch = [(DisjointEvent(0, release), 2)]
        >>> two_epochs = [(DisjointEvent(0, release), 1), (DisjointEvent(1, release), 1)]
        >>> sum(count for _, count in equal_ones_lacking(two_epochs, one_epoch))
        1
    """
    (plain, parts), (known, offered) = _grouped(rows), _grouped(others)
    found = list((plain - known).items())
    left, free = parts - offered, offered - parts
    for part in sorted(left.elements(), key=_size, reverse=True):
        events = Counter(dict(part))
        while best := _most_alike(events, free):
            free -= Counter([best])
            events -= Counter(dict(best))
        found += events.items()
    return found


def same_ones_lacking(
    rows: Rows, origins: Origins, others: Rows, other_origins: Origins
) -> list[tuple[PrivacyEvent, int]]:
    """The releases in ``rows`` that are not themselves in ``others``.

    Releases of ``others`` without an identity may be any that equal them.

    Args:
        rows: The rows of a ledger.
        origins: The identities of its releases.
        others: The rows of the other ledger.
        other_origins: The identities of the releases there.
    """
    rows, others = list(rows), list(others)
    counts, other_counts = [count for _, count in rows], [count for _, count in others]
    if not any(origins.missing([sum(counts)], other_origins)):
        return []
    missing = zip(rows, origins.missing(counts, other_origins), strict=True)
    unknown = zip(others, other_origins.unknown(other_counts), strict=True)
    return equal_ones_lacking(
        [(event, count) for (event, _), count in missing if count],
        [(event, count) for (event, _), count in unknown if count],
    )


def apart(rows: Rows) -> Iterator[tuple[PrivacyEvent, int]]:
    """``rows`` with each release that belongs to a partition in a partition of its own.

    Example:
        >>> from monitors.events import GaussianEvent
        >>> [event.partition for event, _ in apart([(DisjointEvent(0, GaussianEvent(2.0)), 2)])]
        [0, 1]
    """
    partition = 0
    for event, count in rows:
        if not isinstance(event, DisjointEvent):
            yield event, count
            continue
        for _ in range(count):
            yield event.in_partition(partition), 1
            partition += 1


def _grouped(rows: Rows) -> tuple[Counter[PrivacyEvent], Counter[_Part]]:
    """Releases outside of partitions, and the partitions, counted."""
    plain: Counter[PrivacyEvent] = Counter()
    parts: dict[int, Counter[PrivacyEvent]] = defaultdict(Counter)
    for event, count in rows:
        if isinstance(event, DisjointEvent):
            parts[event.partition][event.in_partition(0)] += count
        else:
            plain[event] += count
    return plain, Counter(frozenset(part.items()) for part in parts.values())


def _most_alike(events: Counter[PrivacyEvent], parts: Iterable[_Part]) -> _Part | None:
    """The part that has most in common with ``events``, the smallest of equals; None if none has anything."""
    common = {part: (events & Counter(dict(part))).total() for part in parts}
    found = max(common, key=lambda part: (common[part], -_size(part)), default=None)
    return found if found is not None and common[found] else None


def _size(part: _Part) -> int:
    return sum(count for _, count in part)
