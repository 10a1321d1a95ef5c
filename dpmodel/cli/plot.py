"""``dpmodel plot``: the figures of run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dpmodel.cli.options import AsJson

EXAMPLES = """
[b]Examples[/b]

  dpmodel plot runs/lenet5_mnist

  # Several in one picture
  dpmodel plot runs/lenet5_mnist runs/lenet5_mnist_adaptive --output figures
"""


def plot(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of `dpmodel train`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Folder of the pictures \[default: RUN_DIR/figures]")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help=r"Test metric to draw \[default: the first that all runs have]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the figures of one or more RUN_DIRs as PNG and SVG.

    The metric against epsilon spent, noise multiplier and norm bound against the step, epsilon against the step; of
    each run folder the training curve too.
    """
    from dpmodel.figures.runs import draw_runs

    written = draw_runs(run_dirs, output, metric)
    if as_json:
        typer.echo(json.dumps({"written": [str(path) for path in written]}))
        return
    for path in written:
        typer.echo(f"drawn: {path}")
