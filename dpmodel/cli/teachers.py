"""``dpmodel teachers``: train an ensemble on disjoint parts of the data, for private answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmodel.cli.exit_codes import after_signal
from dpmodel.cli.options import AsJson, ConfigFile, Overrides
from dpmodel.config import load_config
from dpmodel.config.faults import locating_file_errors

if TYPE_CHECKING:
    from rich.console import Console

    from dpmodel.prediction import TeachersRun

EXAMPLES = """
  dpmodel teachers run.yaml --parts 250 --output runs/teachers

  # Four at a time; after Ctrl-C or a crash, the same command continues
  dpmodel teachers run.yaml --parts 250 --output runs/teachers --jobs 4

  # A quick trial
  dpmodel teachers run.yaml --parts 20 -o runs/trial --set training.epochs=1
"""


def teachers(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    parts: Annotated[int, typer.Option(help="Number of parts of the training data, and of teachers.")] = 250,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Folder of the teachers \[default: runs/<config>_teachers]")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help=r"Processes in parallel \[default: half of the cores]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train one network per part of the training data, WITHOUT privacy, for private answers by vote.

    Data, features, network, loss, optimizer and epochs are those of CONFIG; its sections privacy, callbacks and output
    are not used. The parts are drawn in secret. The folder is as private as the data: only noisy answers may leave it,
    such as those of `dpmodel student`.

    To resume, repeat the command: teachers that are trained are kept.
    """
    from rich.console import Console

    from dpmodel.cli.comparison_view import ComparisonView
    from dpmodel.prediction import train_teachers
    from dpmodel.prediction.teachers import UNUSED
    from dpmodel.runs.train import RUNS

    settings = load_config(config, overrides)
    directory = output if output is not None else RUNS / f"{config.stem}_teachers"
    console = Console(stderr=True, quiet=quiet or as_json)
    console.print(UNUSED, highlight=False, markup=False, soft_wrap=True)
    with locating_file_errors(settings), ComparisonView(console) as view:
        run = train_teachers(settings, directory, parts, jobs=jobs, watcher=view)
    if as_json:
        typer.echo(json.dumps(_summary(run)))
    else:
        _show(Console(), run)
    if not run.ok:
        raise typer.Exit(after_signal(run.signal))


def _summary(run: TeachersRun) -> dict[str, object]:
    return {
        "folder": str(run.folder.path),
        "ok": run.ok,
        "parts": run.parts,
        "reused": run.reused,
        "missing": run.missing,
        "interrupted": run.interrupted,
        "faults": {outcome.job.label: outcome.fault for outcome in run.faults},
    }


def _show(console: Console, run: TeachersRun) -> None:
    for outcome in run.faults:
        console.print(f"failed: {outcome.job.label}: {outcome.fault}", highlight=False, markup=False, soft_wrap=True)
    if run.missing:
        text = f"{run.missing} of {run.parts} teachers are not trained; repeat the command to continue"
    else:
        reused = f", {run.reused} of them earlier" if run.reused else ""
        text = f"{run.parts} teachers{reused}: {run.folder.path} (not private: only noisy answers may leave it)"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
