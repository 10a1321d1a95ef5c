"""Data sets that are read before a training: each example must depend on its own row only."""

from __future__ import annotations

from dpmodel.data.loader import PrivateLoader
from dpmodel.data.row_choice import require_each_row_once
from dpmodel.preflight.batches import require_unmixed_batches
from dpmodel.preflight.rows import require_no_memory, require_rows_apart, require_separate_rows


def require_own_rows(loader: PrivateLoader, *, released: bool = False) -> None:
    """Refuse a data set that mixes, repeats or remembers: ``fit`` would see only what was made of it.

    Args:
        loader: Its data set is read.
        released: Whether a release about the rows follows, so that ``fit`` would find rows that repeat too late.

    Raises:
        DataError, UnsupportedLoaderError: An example depends on several rows, or a row counts more than once.
    """
    require_each_row_once(loader.dataset)
    require_rows_apart(loader.dataset)
    if loader.fetcher.plain and not released:
        return
    require_no_memory(loader, secret=True)
    require_separate_rows(loader)
    require_unmixed_batches(loader)
