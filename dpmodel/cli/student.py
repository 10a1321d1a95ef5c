"""``dpmodel student``: train a network on public inputs and on the private labels of teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmodel.cli.options import AsJson, ConfigFile, Overrides
from dpmodel.config import load_config

if TYPE_CHECKING:
    from dpmodel.prediction import Student

EXAMPLES = """
  dpmodel student run.yaml --teachers runs/teachers --queries 1000 --budget-epsilon 2

  # Answers only where about 200 teachers agree
  dpmodel student run.yaml --teachers runs/teachers --queries 500 --threshold 200 --threshold-noise 99

  # The public inputs are the training examples of another data set
  dpmodel student public.yaml --teachers runs/teachers --queries 1000 --budget-epsilon 2 --public train
"""


def student(
    config: ConfigFile,
    teachers: Annotated[Path, typer.Option(help="Folder of `dpmodel teachers`.", show_default=False)],
    queries: Annotated[int, typer.Option(help="Number of public inputs that the teachers label.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    budget_epsilon: Annotated[
        float | None, typer.Option(help=r"Epsilon of all answers on the ledger \[default: that of the ledger]")
    ] = None,
    budget_delta: Annotated[float, typer.Option(help="Delta of the budget, with --budget-epsilon.")] = 1e-5,
    ledger: Annotated[
        Path | None, typer.Option(help=r"Folder of the query ledger \[default: queries in the folder of the teachers]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Folder of the student \[default: runs/<config>_student]")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help=r"Noise multiplier of an answer \[default: the smallest that fits the budget]")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Answer only queries on which about this many teachers agree.")
    ] = None,
    threshold_noise: Annotated[
        float | None, typer.Option(help="Noise multiplier of that comparison; required with --threshold.")
    ] = None,
    public: Annotated[str, typer.Option(help="The public examples of CONFIG: test or train.")] = "test",
    rounds: Annotated[int, typer.Option(help="Rounds of self-training on all public inputs.")] = 0,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run code that the folder of the teachers names, even if foreign.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let teachers label public inputs privately, and train the network of CONFIG on these labels.

    Each answer is charged to the query ledger before it is given, and the student is as private as the whole ledger.
    CONFIG gives network, loss, optimizer, epochs, and the data set with the public inputs; its section privacy is not
    used. The student is evaluated on public examples that were not queried.

    The folder holds student.safetensors, labels.safetensors and student.json. If it holds labels of the same queries,
    they are used again, at no cost.
    """
    if (threshold is None) != (threshold_noise is None):
        raise typer.BadParameter("--threshold and --threshold-noise belong together; give both, or none")
    from dpmodel.prediction import Confidence, QueryLedger, train_student
    from dpmodel.prediction.teachers_folder import TeachersFolder
    from dpmodel.runs.train import RUNS

    settings = load_config(config, overrides)
    directory = output if output is not None else RUNS / f"{config.stem}_student"
    folder = TeachersFolder(teachers)
    folder.require_trained()
    compared = None
    if threshold is not None and threshold_noise is not None:
        compared = Confidence(threshold, threshold_noise)
    budget = (None, None) if budget_epsilon is None else (budget_epsilon, budget_delta)
    with QueryLedger(ledger if ledger is not None else folder.queries, *budget) as opened:
        trained = train_student(
            settings,
            teachers,
            queries=queries,
            ledger=opened,
            noise_multiplier=noise_multiplier,
            confidence=compared,
            public=public,
            rounds=rounds,
            output=directory,
            trust_code=trust_code,
        )
    if as_json:
        typer.echo(json.dumps({"folder": str(directory), **trained.to_dict()}))
    else:
        _show(trained, directory)


def _show(trained: Student, directory: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from monitors.spent import epsilon_text

    table = Table(title="Student", title_justify="left", show_header=False)
    again = ", used again" if trained.reused else ""
    labels = f"{trained.answered:,} of {len(trained.labels.rows):,} queries{again}"
    for name, value in (
        ("labels", labels),
        ("labels that are right", f"{trained.label_accuracy:.2%}"),
        ("accuracy", f"{trained.accuracy:.2%} of {trained.held_out:,} public examples that were not queried"),
        ("epsilon", f"{epsilon_text(trained.epsilon)} at delta {trained.delta:g}, of all answers on the query ledger"),
        *(("note", note) for note in trained.notes),
    ):
        table.add_row(name, value)
    console = Console()
    console.print(table, highlight=False)
    console.print(f"student: {directory}", highlight=False, markup=False, soft_wrap=True)
