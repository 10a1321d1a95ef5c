"""``dpmodel plot``: the figures of run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dpmodel.cli.options import AsJson, Size, Style, TrustCode

EXAMPLES = """
  dpmodel plot runs/lenet5_mnist

  # Several runs in one figure
  dpmodel plot runs/lenet5_mnist runs/lenet5_mnist_adaptive --output figures

  # For a column of a paper, or for dark slides
  dpmodel plot runs/lenet5_mnist --format pdf --size 3.4
  dpmodel plot runs/lenet5_mnist --style dark --format png --output slides
"""


def plot(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_DIR...", help="Folders written by `dpmodel train` or `fit(output=...)`."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Folder for the figures \[default: RUN_DIR/figures]")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help=r"Test metric to plot \[default: the first that all runs have]")
    ] = None,
    style: Style = "light",
    formats: Annotated[
        list[str], typer.Option("--format", help=r"png, svg or pdf. Repeatable. \[default: png and svg]")
    ] = [],  # noqa: B006 - typer copies it
    size: Size = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Plot one or more run folders.

    Draws the test metric against the epsilon spent; the noise multiplier and norm bound against the step; epsilon
    against the step; and the training curve of each run.

    No network is built. The plugins of a RUN_DIR that was not made here are imported only with --trust-code, which is
    needed only if a plugin has events of its own.
    """
    from dpmodel.figures.files import DEFAULT_FORMATS
    from dpmodel.figures.gallery import METRIC_FIGURE
    from dpmodel.figures.runs import draw_runs

    kinds = formats or DEFAULT_FORMATS
    written = draw_runs(run_dirs, output, metric, style=style, formats=kinds, size=size, trust_code=trust_code)
    if as_json:
        typer.echo(json.dumps({"written": [str(path) for path in written]}))
        return
    for path in written:
        typer.echo(f"figure: {path}")
    if METRIC_FIGURE not in {path.stem for path in written}:
        typer.echo(f"not drawn: {METRIC_FIGURE}, because there is no test metric in {', '.join(map(str, run_dirs))}")
