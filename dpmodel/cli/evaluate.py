"""``dpmodel eval``: metrics and privacy claim of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dpmodel.cli.options import AsJson, Overrides

EXAMPLES = """
[b]Examples[/b]

  dpmodel eval runs/lenet5_mnist

  dpmodel eval runs/lenet5_mnist --json

  dpmodel eval runs/lenet5_mnist --set performance.device=cpu
"""


def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of `dpmodel train`.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Measure the trained network of RUN_DIR on its test data and state what its ledger says was spent."""
    from dpmodel.evaluation import evaluate_run

    result = evaluate_run(run_dir, overrides)
    if as_json:
        typer.echo(json.dumps({"run": str(run_dir), "metrics": result.metrics, "privacy": result.spent.to_dict()}))
        return
    from rich.console import Console

    from dpmodel.cli.result_view import result_table

    Console().print(result_table(str(run_dir), result.metrics, result.spent), highlight=False)
