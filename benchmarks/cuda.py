"""Private training on a GPU: correctness first, then steps beside plain torch and Opacus, noise, and whole fits.

    PYTHONPATH=. python benchmarks/cuda.py [--minutes 8] [--only tests lenet5 noise] [--output FILE] [--raw FOLDER]
    PYTHONPATH=. python benchmarks/cuda.py --device cpu --quick     # whether the script works; no figures

Each section runs in a process of its own, with its share of the minutes; what it has found is on the page at once, so
that a crash or a limit loses nothing. Opacus rows need `pip install opacus` and fail with the reason without it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    from cuda_sections import main

    main(__doc__)
else:
    # A script's own folder comes first where modules are looked for, and torch imports a package of the name of this
    # file (cuda.bindings). What is imported is that package, then.
    __path__ = [str(Path(folder) / "cuda") for folder in sys.path if (Path(folder) / "cuda").is_dir()]
