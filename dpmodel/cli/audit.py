"""``dpmodel audit``: train with canaries, and compare what is released with the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dpmodel.cli.exit_codes import FAILED
from dpmodel.cli.options import AsJson, ConfigFile, Overrides

EXAMPLES = """
  dpmodel audit configs/lenet5_mnist_gaussian.yaml

  # Write audit.json, audit.md and audit.png
  dpmodel audit configs/lenet5_mnist_gaussian.yaml -o audits/lenet5

  # For the privacy card of a run: it finds the report there
  dpmodel audit runs/lenet5/config.resolved.yaml -o audits/lenet5

  # With more canaries, which give tighter bounds
  dpmodel audit configs/lenet5_mnist_gaussian.yaml --canaries 5000

  # Of a different engine
  dpmodel audit configs/lenet5_mnist_gaussian.yaml --set performance.engine=vmap --json
"""


def audit(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Folder of the report \[default: written nowhere]")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help=r"Largest number of ordinary examples to use \[default: 1000]")
    ] = None,
    canaries: Annotated[int | None, typer.Option(help=r"Number of canaries, at least 100 \[default: 2000]")] = None,
    steps: Annotated[int | None, typer.Option(help=r"Steps, rounded up to whole epochs \[default: 120]")] = None,
    rate: Annotated[
        float | None, typer.Option(help=r"Expected fraction of the rows in a step, at most 0.5 \[default: 0.2]")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help=r"Target of the ledger's epsilon, 0.1 to 20 \[default: 4.0]")
    ] = None,
    delta: Annotated[float | None, typer.Option(help=r"Delta of all epsilons \[default: 1e-05]")] = None,
    as_json: AsJson = False,
) -> None:
    """Train what CONFIG describes on part of its data and on canaries, and compare what is released with the ledger.

    Network, loss, mechanisms, unit, sampling, engine and optimizer are those of CONFIG; the noise is chosen for
    --epsilon. The defaults suit epsilon 4 and take less than a minute for LeNet5. The exit code is 1 if a line of the
    report contradicts the ledger, which happens to a correct training with a probability of at most 0.00002. No run
    folder is changed. The report is not private.
    """
    from rich.console import Console

    from dpmodel.audit import audit as carry_out
    from dpmodel.audit.request import require_no_folder
    from dpmodel.config import load_config
    from dpmodel.runs.folder import require_outside_runs

    asked: dict[str, float | None] = {"examples": examples, "canaries": canaries, "steps": steps}
    asked |= {"rate": rate, "epsilon": epsilon, "delta": delta}
    chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    require_no_folder(config)
    if output is not None:
        require_outside_runs(output, "output", "an audit")
    with Console(stderr=True, quiet=as_json).status("training with canaries"):
        report = carry_out(load_config(config, overrides), **chosen)
    files = [] if output is None else report.save(output)
    if as_json:
        typer.echo(json.dumps({**report.to_dict(), "files": [str(path) for path in files]}))
    else:
        console = Console()
        console.print(report.table(), highlight=False)
        for name, words in report.description.items():
            console.print(f"{name}: {words}", highlight=False, markup=False, soft_wrap=True)
        for text in (f"{report.verdict}, {report.seconds:.0f} s", report.limits, *map(str, files)):
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(FAILED)
