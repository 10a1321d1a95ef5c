"""Train PyTorch models with differential privacy, with an epsilon that holds.

Names load on first use, so ``import dpmodel`` is cheap and imports no torch; ``__init__.pyi`` lists them.
"""

from __future__ import annotations

from dpmodel.former_places import FormerPlaces
from monitors.lazy_names import lazy_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_names(globals())

FormerPlaces.install()
