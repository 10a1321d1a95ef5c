"""Privacy accounting: events, the ledger, accountants, calibration and monitors. This package never imports torch.

Names load on first use, so ``import monitors`` is cheap; ``__init__.pyi`` lists them.
"""

from __future__ import annotations

from monitors.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(globals())
