"""``dpmodel attack``: membership inference on the network of a run folder, beside what its ledger allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dpmodel.cli.exit_codes import FAILED
from dpmodel.cli.options import AsJson, Overrides, TrustCode

EXAMPLES = """
  dpmodel attack runs/lenet5_mnist

  # No shadow models: seconds
  dpmodel attack runs/lenet5_mnist --method loss_threshold

  # Write attack.json, attack.md and attack.png; keep the shadows
  dpmodel attack runs/lenet5_mnist -o attacks/lenet5 --cache attacks/shadows

  # Shadows in turn, with members and others of one population
  dpmodel attack run.yaml --targets shadows --examples 2000 --jobs 2
"""


def attack(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR", help="A folder written by `dpmodel train`, or a YAML configuration.", show_default=False
        ),
    ],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            "-m",
            help="loss_threshold, lira, lira_offline, rmia or label_only_sampling. Repeatable "
            r"\[default: all but lira_offline]",
        ),
    ] = [],  # noqa: B006 - typer copies it
    shadows: Annotated[
        int | None, typer.Option(help=r"Number of shadow models, if an attack needs any \[default: 16]")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="run: the network of RUN_DIR. shadows: each shadow in turn, with the help of the others "
            r"\[default: run for a RUN_DIR, shadows for a configuration]"
        ),
    ] = None,
    noise: Annotated[bool, typer.Option("--noise/--no-noise", help="Train the shadows with noise.")] = True,
    examples: Annotated[
        int | None,
        typer.Option(help=r"Largest number of training examples, and of held-out examples, to attack \[default: all]"),
    ] = None,
    rates: Annotated[
        list[float], typer.Option("--fpr", help=r"False-positive rate. Repeatable \[default: 0.01 and 0.001]")
    ] = [],  # noqa: B006 - typer copies it
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Folder of the report \[default: written nowhere]")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", metavar="FILE", help="Write the score of EVERY example as CSV.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help=r"Folder in which shadows are kept \[default: a temporary one]")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help=r"Processes in parallel \[default: half of the cores]")
    ] = None,
    trust_code: TrustCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try to tell the training examples of RUN_DIR from held-out ones, and compare with what its ledger allows.

    Shadow models are trained with the run's own configuration on random halves of these examples; finished ones in
    --cache are reused. RUN_DIR is not changed. The exit code is 1 if an attack reaches more than the ledger allows,
    beyond chance.

    The report contains statistics of private data: it is for their holder. An attack that fails proves nothing.
    """
    from rich.console import Console

    from dpmodel.attack import attack as carry_out
    from dpmodel.cli.comparison_view import ComparisonView
    from dpmodel.runs.folder import require_outside_runs

    for path, option in ((output, "output"), (scores, "scores"), (cache, "cache")):
        if path is not None:
            require_outside_runs(path, option, "an attack")
    asked: dict[str, Any] = {"shadows": shadows, "targets": targets, "jobs": jobs, "examples": examples, "cache": cache}
    asked |= {"methods": method or None, "rates": rates or None}
    chosen = {name: value for name, value in asked.items() if value is not None}
    with ComparisonView(Console(stderr=True, quiet=quiet or as_json)) as view:
        report = carry_out(run_dir, noise=noise, overrides=overrides, trust_code=trust_code, watcher=view, **chosen)
    files = [] if output is None else report.save(output)
    files += [] if scores is None else [report.save_scores(scores)]
    if as_json:
        typer.echo(json.dumps({**report.to_dict(), "files": [str(path) for path in files]}))
    else:
        console = Console()
        console.print(report.table(), highlight=False)
        lines = [f"{name}: {words}" for name, words in report.description.items()]
        lines += [*report.notes, f"{report.verdict}, {report.seconds:.0f} s", report.limits, *map(str, files)]
        for text in lines:
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(FAILED)
