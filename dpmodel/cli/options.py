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

Mechanism = Annotated[
    str | None, typer.Option(help="Noise for answers that cost budget: dp_logits. Not needed after private training.")
]
BudgetEpsilon = Annotated[
    float | None, typer.Option(help=r"Budget of all queries together \[default: that of the ledger]")
]
BudgetDelta = Annotated[float | None, typer.Option(help=r"Delta of the budget \[default: that of the ledger, or 1e-5]")]
NoiseMultiplier = Annotated[float, typer.Option(help="Standard deviation of the noise over the sensitivity.")]
QueryNormBound = Annotated[float, typer.Option("--norm-bound", help="L2 norm to which centred logits are clipped.")]
Sensitivity = Annotated[
    str,
    typer.Option(
        help="auto, worst_case, convex, a number (your claim, not verified), or none (an empirical defence without "
        "guarantee)."
    ),
]
LedgerFolder = Annotated[
    Path | None, typer.Option("--ledger", help=r"Folder of the query ledger \[default: RUN_DIR/queries]")
]
Cache = Annotated[bool, typer.Option("--cache", help="Answer an identical query again, for free.")]
