"""``dpmodel tune``: a random search over settings that charges its privacy cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dpmodel.cli.exit_codes import after_signal
from dpmodel.cli.options import AsJson, Overrides

EXAMPLES = """
  dpmodel tune configs/tune_lenet5.yaml

  # Charge every run in full, so that all of them may be published
  dpmodel tune configs/tune_lenet5.yaml --charge all --runs 4

  # On public data, where the search costs no privacy
  dpmodel tune configs/tune_lenet5.yaml --not-accounted
"""


def tune(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML search.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Search folder \[default: runs/<config>]")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Number of runs (its mean, if random); replaces the one in CONFIG.")
    ] = None,
    charge: Annotated[
        str | None, typer.Option(help="How to charge the search: random, all or none; replaces the one in CONFIG.")
    ] = None,
    not_accounted: Annotated[
        bool, typer.Option("--not-accounted", help="Do not charge the search; every report will say so.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help=r"Trainings in parallel \[default: half of the cores]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search for the best values of the settings listed in CONFIG, and charge the privacy cost of the search.

    By default the number of runs is random and secret, and only the best run may be published. The noise of every run
    is calibrated so that the whole search spends the target epsilon. To resume, repeat the command.
    """
    from rich.console import Console

    from dpmodel.tuning import load_tuning

    if not_accounted and charge not in (None, "none"):
        raise typer.BadParameter(f"--not-accounted contradicts --charge {charge}; give one of them")
    changes: dict[str, Any] = {"runs": runs, "charge": "none" if not_accounted else charge}
    tuning = load_tuning(config, overrides, **changes)
    from dpmodel.cli.comparison_view import ComparisonView
    from dpmodel.compare.jobs import received
    from dpmodel.tuning.report import report_in_words
    from dpmodel.tuning.trials import REPORTS, run_tuning
    from monitors.atomic import write_atomically

    with ComparisonView(Console(stderr=True, quiet=quiet or as_json)) as view:
        found = run_tuning(tuning, output, jobs=jobs, watcher=view)
    words = report_in_words(found)
    for name, text in zip(REPORTS, (words, json.dumps(found.to_dict(), indent=1) + "\n"), strict=True):
        write_atomically(found.folder / name, text)
    typer.echo(json.dumps(found.to_dict()) if as_json else words)
    for outcome in found.outcomes:
        if outcome.fault is not None and (quiet or as_json):  # otherwise the view has shown it
            typer.echo(f"failed: {outcome.job.label}: {outcome.fault}", err=True)
    if not found.ok:
        typer.echo("the search is not finished; repeat the command to continue", err=True)
        raise typer.Exit(after_signal(received(found.outcomes)))
