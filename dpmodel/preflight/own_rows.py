"""Data sets that are read before a training: each example must depend on its own row only."""

from __future__ import annotations

from dpmodel.data.loader import PrivateLoader
from dpmodel.data.row_choice import require_each_row_once
from dpmodel.preflight.batches import require_unmixed_batches
from dpmodel.preflight.rows import require_no_memory, require_separate_rows


def require_own_rows(loader: PrivateLoader) -> None:
    """Refuse a data set that mixes, repeats or remembers: ``fit`` would see only what was made of it.

    Raises:
        DataError, UnsupportedLoaderError: An example depends on several rows, or a row counts more than once.
    """
    require_each_row_once(loader.dataset)
    if not loader.fetcher.plain:
        require_no_memory(loader, secret=True)
        require_separate_rows(loader)
        require_unmixed_batches(loader)
