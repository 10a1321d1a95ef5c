"""``dpmodel train``: train from a configuration and write a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmodel.cli.exit_codes import after_signal
from dpmodel.cli.options import AsJson, ConfigFile, Overrides
from dpmodel.config import load_config
from dpmodel.config.faults import locating_file_errors
from dpmodel.distributed.launch import launched

if TYPE_CHECKING:
    from rich.console import Console

    from dpmodel.runs.build import Training
    from dpmodel.runs.folder import RunFolder
    from dpmodel.runs.train import TrainingResult

EXAMPLES = """
  dpmodel train configs/lenet5_mnist.yaml

  # The configuration written by `dpmodel init`, with a different epsilon
  dpmodel train run.yaml --set privacy.target_epsilon=1 --output runs/eps1

  # After Ctrl-C or a crash
  dpmodel train configs/lenet5_mnist.yaml --resume

  # Two processes on this machine, which share each batch
  torchrun --nproc_per_node=2 -m dpmodel train configs/lenet5_mnist.yaml

  # A quick trial on part of the data
  dpmodel train run.yaml --set data.limit=2000 --set training.epochs=1
"""


def train(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    output: Annotated[Path | None, typer.Option("--output", "-o", help=r"Run folder \[default: runs/<config>]")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start over: rename an existing run folder first; nothing is deleted.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the interrupted training in the run folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress while training.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train from CONFIG with differential privacy and write a run folder.

    The folder holds the resolved configuration, the ledger, the privacy report (as JSON and in words), the history,
    the weights and the training curve. Ctrl-C finishes the current step and writes everything; repeat the command with
    --resume to continue. If the process was killed, --resume continues from the last saved state
    (output.save_every_steps); steps that were lost stay charged.
    """
    if force and resume:
        raise typer.BadParameter("--force starts over in a new folder, --resume continues in the old one; give one")
    settings = load_config(config, overrides)
    from rich.console import Console

    from dpmodel.callbacks import ProgressBar, Silence
    from dpmodel.runs.train import train_from_config

    with launched() as rank, locating_file_errors(settings):
        silent = quiet or as_json or rank > 0
        console = Console(stderr=as_json, quiet=silent)
        result = train_from_config(
            settings,
            output,
            force=force,
            resume=resume,
            callbacks=[Silence()] if silent else [ProgressBar(console=console)],
            announce=lambda training, folder: _announce(console, training, folder),
        )
    if as_json and rank == 0:
        typer.echo(json.dumps(_summary(result)))
    elif rank == 0:
        _show(Console(), result)
    if result.interrupted:
        raise typer.Exit(after_signal(result.signal))


def _announce(console: Console, training: Training, folder: RunFolder) -> None:
    plan, privacy = training.plan, training.config.privacy
    release = plan.release
    noise = (
        "no noise: this training is NOT private"
        if privacy.noise is None
        else (
            f"{privacy.noise.name}, multiplier {plan.noise_multiplier:.4g}"
            + (
                f" (solved for epsilon {plan.target_epsilon:g} at delta {privacy.delta:g})"
                if plan.target_epsilon
                else ""
            )
        )
    )
    epochs = training.config.training.epochs
    parameters = sum(parameter.numel() for parameter in training.task.network.parameters())
    lines = [
        f"data      {training.task.data.name}: {training.task.data.describe()}",
        f"network   {type(training.task.network).__name__}, {parameters:,} parameters, on {training.task.device}",
        f"noise     {noise}",
        f"clipping  {privacy.clip.name}, norm bound {privacy.norm_bound:g}, unit: {release.unit.describe()}",
        f"sampling  {release.sampler.describe()}",
        f"steps     {plan.steps:,} in {epochs:,} epoch{'' if epochs == 1 else 's'}",
        f"output    {folder.path}",
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _summary(result: TrainingResult) -> dict[str, object]:
    report = result.report
    return {"run": str(result.folder.path), "metrics": result.metrics, "privacy": report.to_dict()}


def _show(console: Console, result: TrainingResult) -> None:
    from dpmodel.cli.result_view import result_table
    from monitors.spent import epsilon_text

    report, lost = result.report, None
    if report.without_lost is not None:
        least = epsilon_text(report.without_lost.epsilon)
        lost = f"{report.lost_steps:,}, charged; epsilon without them {least}"
    table = result_table(
        "Training " + report.status, result.metrics, report.spent, report.mechanism["num_examples"], lost
    )
    table.add_row("not accounted", "tuning, training loss, test data; see the report")
    console.print(table, highlight=False)
    # On a separate line, not in the table, so that it can be copied from a terminal of any width.
    console.print(f"report: {result.folder.statement}", highlight=False, markup=False, soft_wrap=True)
    if result.interrupted and result.folder.state.is_file():
        console.print("interrupted; repeat the command with --resume to continue", highlight=False)
