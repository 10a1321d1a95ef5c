"""``dpmodel eval``: the metrics and the privacy claim of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmodel.cli.options import AsJson, Overrides, TrustCode

if TYPE_CHECKING:
    from dpmodel.runs.folder import RunFolder

EXAMPLES = """
  dpmodel eval runs/lenet5_mnist

  dpmodel eval runs/lenet5_mnist --json

  dpmodel eval runs/lenet5_mnist --set performance.device=cpu
"""


def evaluate(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A folder written by `dpmodel train`.", show_default=False)
    ],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate the network in RUN_DIR on its test data and state the privacy that its ledger records as spent.

    If the test data differ from those of the training, they are evaluated with a warning.

    If RUN_DIR was not made here and its configuration names code (network.module, features.module, plugins), that code
    runs only with --trust-code.
    """
    from dpmodel.runs.evaluate import evaluate_run

    result, progress = evaluate_run(run_dir, overrides, trust_code=trust_code), _progress(run_dir)
    if as_json:
        privacy = result.spent.to_dict()
        answer = {"run": str(run_dir), "training": progress, "metrics": result.metrics, "privacy": privacy}
        typer.echo(json.dumps({**answer, "test_data": result.test_data.to_dict()}))
        return
    from rich.console import Console

    from dpmodel.cli.result_view import result_table

    console = Console()
    console.print(str(run_dir), style="italic", highlight=False, markup=False, soft_wrap=True)
    warnings = [text for text in (result.test_data.warning, _incomplete(run_dir, progress)) if text is not None]
    table = result_table(
        None,
        result.metrics,
        result.spent,
        result.num_examples,
        stopped=_stopped(progress),
        warnings=warnings,
    )
    console.print(table, highlight=False)


def _progress(path: Path) -> dict[str, Any]:
    """How far the training in a run folder got: status (None if it wrote no report), steps and planned steps."""
    from dpmodel.config import load_config
    from dpmodel.planning.spent_ledgers import without_spent
    from dpmodel.planning.training_plan import plan_training
    from dpmodel.runs.folder import RunFolder

    folder = RunFolder(path)
    report = _report(folder)
    if report:
        return report
    plan = plan_training(without_spent(load_config(folder.config, import_plugins=False)))
    return {"status": None, "steps": _last_step(folder, plan.config.privacy.delta), "planned_steps": plan.steps}


def _report(folder: RunFolder) -> dict[str, Any]:
    """Status and steps in the report of the folder.

    Empty if the folder has no report, or one of an earlier part of the training.
    """
    from monitors import checks
    from monitors.untrusted import read_json

    try:
        report = read_json(folder.report)
        if report["ledger_digest"] != folder.read_ledger().digest():
            return {}
        checks.non_negative_int(steps=report["steps"], planned_steps=report["planned_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {"status": str(report.get("status")), "steps": report["steps"], "planned_steps": report["planned_steps"]}


def _incomplete(path: Path, progress: dict[str, Any]) -> str | None:
    """What to do with a folder without a current report; None if it has one."""
    from dpmodel.runs.folder import RunFolder

    if progress["status"] is not None:
        return None
    folder = RunFolder(path)
    remedy = "`dpmodel train` with --resume writes it" if folder.state.is_file() else "the training cannot be resumed"
    return f"{folder.report.name} is missing, or states an earlier part of the training; {remedy}"


def _last_step(folder: RunFolder, delta: float) -> int | None:
    """The step after which the weights were written; None if no history was written."""
    from dpmodel.training.history import History
    from monitors.errors import ConfigError

    if not folder.history.is_file():
        return None
    try:
        steps = History.from_csv(folder.history, delta).column("step")
    except ValueError as error:
        raise ConfigError(f"{error}; remove the file to evaluate without it") from error
    return int(steps[-1]) if steps else 0


def _stopped(progress: dict[str, Any]) -> str | None:
    status, steps, planned = progress["status"], progress["steps"], progress["planned_steps"]
    if status == "finished":
        return None
    reached = f"step {steps:,}" if steps is not None else "an unknown step"
    return f"stopped at {reached} of {planned:,} ({status or 'still running, or killed'})"
