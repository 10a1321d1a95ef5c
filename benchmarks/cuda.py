"""Private training on a GPU: correctness first, then steps compared with plain torch and Opacus, noise, and whole fits.

    PYTHONPATH=. python benchmarks/cuda.py [--minutes 8] [--only tests lenet5 noise] [--output FILE] [--raw FOLDER]
    PYTHONPATH=. python benchmarks/cuda.py --device cpu --quick     # only to check that the script works

Each section runs in a separate process, with its share of the minutes. Its results are written to the page as they
arrive, so a crash or a time limit loses nothing. Opacus rows need `pip install opacus`; without it they show why they
failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    from cuda_sections import main

    main(__doc__)
else:
    # The folder of a script comes first on the module path, and torch imports a package with the name of this file
    # (cuda.bindings). Without the folder on the path, that package is found.
    __path__ = [str(Path(folder) / "cuda") for folder in sys.path if (Path(folder) / "cuda").is_dir()]
