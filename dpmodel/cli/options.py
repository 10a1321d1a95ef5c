"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="Override a setting, e.g. --set training.epochs=5. Repeatable."),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the code that the configuration in RUN_DIR names (network.module, features.module, plugins), "
        "even if RUN_DIR was not made here. Only for authors you trust.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration.", show_default=False)]
Style = Annotated[str, typer.Option(help="Figure style: light or dark.")]
Size = Annotated[
    float | None, typer.Option(help="Figure width in inches: about 3.4 for a column of a paper, 7 for a page.")
]
