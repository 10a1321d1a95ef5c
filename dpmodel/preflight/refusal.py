"""Words that refusals share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from monitors.errors import DPModelError

if TYPE_CHECKING:
    from torch import Tensor

#: Ends every such refusal: nothing was released, but the refusal itself says something about the data.
HAS_READ = "The check read private examples; the refusal itself is not accounted for"

#: Names that an error lists; the others are counted.
MOST_LISTED = 5


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are.

    Example:
        >>> listed("abcdefg")
        'a, b, c, d, e and 2 more'
    """
    found = list(names)
    more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return ", ".join(found[:MOST_LISTED]) + more


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with an entry that is NaN or infinite."""
    return [name for name, value in tensors.items() if not bool(value.isfinite().all())]


def say_also(error: BaseException, sentence: str) -> None:
    """Add ``sentence`` to the message of ``error``, once.

    Example:
        >>> error = ValueError("the loss is detached")
        >>> say_also(error, "Nothing was released")
        >>> str(error)
        'the loss is detached. Nothing was released'
    """
    text = str(error)
    if sentence not in text:
        error.args = (f"{text.rstrip('.')}. {sentence}", *error.args[1:])


@contextmanager
def reading_examples() -> Iterator[None]:
    """Errors raised inside say that private examples were read.

    Example:
        >>> from monitors.errors import DataError
        >>> with reading_examples():
        ...     raise DataError("example 3 has no target")
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: example 3 has no target. The check read private examples; the refusal itself is ...
    """
    try:
        yield
    except DPModelError as error:
        say_also(error, HAS_READ)
        raise
