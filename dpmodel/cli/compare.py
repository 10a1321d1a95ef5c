"""``dpmodel compare``: train variants at equal epsilon and compare their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmodel.cli.exit_codes import after_signal
from dpmodel.cli.options import AsJson, Overrides

if TYPE_CHECKING:
    from rich.console import Console

    from dpmodel.compare import ComparisonResult
    from dpmodel.compare.runner import ComparisonRun

EXAMPLES = """
  dpmodel compare configs/compare_schedules.yaml

  # With a different epsilon and different seeds, two trainings in parallel
  dpmodel compare configs/compare_all.yaml --epsilon 1 --seeds 1,2 --jobs 2

  # A quick trial on part of the data
  dpmodel compare configs/compare_all.yaml --set data.limit=3000 -o runs/trial

  # On another machine, which sees the same folder: help the command that runs
  dpmodel compare configs/compare_all.yaml -o /shared/all --join

  # Show what would be trained and with how much noise, without training
  dpmodel compare configs/compare_all.yaml --dry-run
"""


def compare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML comparison.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Comparison folder \[default: runs/<config>]")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help=r"Trainings in parallel \[default: half of the cores]")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Target epsilon; replaces the one in CONFIG.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds separated by commas, such as 1,2,3; replace those in CONFIG.")
    ] = None,
    join: Annotated[
        bool,
        typer.Option("--join", help="Train runs beside the command that runs in the same folder, maybe elsewhere."),
    ] = False,
    docs: Annotated[Path | None, typer.Option(help="Also write the table to this file, as Markdown.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and calibrate, but do not train.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the variants in CONFIG with each seed, all at the same epsilon, and compare them.

    The initial noise multiplier of each variant is calibrated to the target epsilon. To resume, repeat the command:
    finished runs are reused, and interrupted runs continue from their last saved state. --set changes the base that
    all variants share.
    """
    from rich.console import Console

    from dpmodel.compare import load_comparison

    if join and (dry_run or docs is not None):
        raise typer.BadParameter("--join trains runs only; give --dry-run and --docs to the first command")
    _require_comparison(config)
    comparison = load_comparison(config, overrides, **_changes(config, epsilon, seeds))
    directory = output if output is not None else comparison.directory
    console = Console(stderr=True, quiet=quiet or as_json)
    if dry_run:
        _dry_run(comparison, console, as_json)
        return
    from dpmodel.cli.comparison_view import ComparisonView
    from dpmodel.compare import join_comparison, run_comparison

    if join:
        with ComparisonView(console) as view:
            _conclude_joined(join_comparison(comparison, directory, jobs=jobs, watcher=view), as_json=as_json)
        return
    with ComparisonView(console) as view:
        run = run_comparison(comparison, directory, jobs=jobs, watcher=view)
    if run.result is not None:
        _write(run, docs, console)
    if as_json:
        typer.echo(json.dumps(_summary(run)))
    else:
        _show(Console(), run)
    if not run.ok:
        raise typer.Exit(after_signal(run.signal))


def _require_comparison(path: Path) -> None:
    from dpmodel.compare.base import read_marked
    from dpmodel.config.kinds import require_kind

    values = read_marked(path).values
    if isinstance(values, dict):
        require_kind("comparison", values, str(path))


def _changes(config: Path, epsilon: float | None, seeds: str | None) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if epsilon is not None:
        from dpmodel.compare.comparison import stated_target

        changes["target"] = {**stated_target(config), "epsilon": epsilon}
    if seeds is not None:
        try:
            changes["seeds"] = [int(text) for text in seeds.split(",")]
        except ValueError as error:
            raise typer.BadParameter(f"--seeds takes integers separated by commas, got {seeds!r}") from error
    return changes


def _dry_run(comparison: Any, console: Console, as_json: bool) -> None:
    from dpmodel.compare.equal_epsilon import calibrate_variants

    tried = 0
    if comparison.search is not None:
        tried = len(calibrate_variants(comparison.search.trials, None)) * len(comparison.search.trials.definition.seeds)
        comparison = comparison.search.finals
    found = calibrate_variants(comparison, None)
    rows = [
        {
            "variant": variant.name,
            "epsilon": variant.epsilon,
            "initial_noise_multiplier": variant.plan.noise_multiplier,
            "last_noise_multiplier": variant.plan.release.noise.noise_multiplier(variant.plan.steps - 1),
            "steps": variant.plan.steps,
        }
        for variant in found
    ]
    if as_json:
        typer.echo(json.dumps({"name": comparison.name, "variants": rows, "tune_trainings": tried}))
        return
    from rich.console import Console
    from rich.table import Table

    del console
    table = Table(title=f"{comparison.name}: what would be trained", title_justify="left")
    for heading in ("variant", "epsilon", "first multiplier", "last multiplier", "steps"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        name, *numbers = row.values()
        table.add_row(str(name), *(f"{number:.6g}" for number in numbers))
    Console().print(table, highlight=False)
    if tried:
        typer.echo(f"one of these for each variant, after {tried} trainings that choose it (tune)")


def _write(run: ComparisonRun, docs: Path | None, console: Console) -> None:
    from dpmodel.compare.output import write_outputs
    from dpmodel.compare.tables import to_markdown
    from monitors.atomic import SHARED_FILE, write_atomically

    assert run.result is not None
    with console.status("drawing figures"):
        write_outputs(run.result, run.folder)
    if docs is not None:
        write_atomically(docs, to_markdown(run.result), mode=SHARED_FILE)


def _conclude_joined(run: ComparisonRun, *, as_json: bool) -> None:
    trained = sum(outcome.finished and not outcome.reused for outcome in run.outcomes)
    faults = {outcome.job.label: outcome.fault for outcome in run.faults}
    if as_json:
        summary = {"folder": str(run.folder.path), "joined": True, "trained": trained, "missing": run.missing}
        typer.echo(json.dumps({**summary, "interrupted": run.interrupted, "faults": faults}))
    else:
        for label, fault in faults.items():
            typer.echo(f"failed: {label}: {fault}")
        runs = "1 run" if trained == 1 else f"{trained} runs"
        typer.echo(f"trained {runs}; the command that was joined writes the results into {run.folder.path}")
    if faults or run.interrupted:
        raise typer.Exit(after_signal(run.signal))


def _summary(run: ComparisonRun) -> dict[str, Any]:
    return {
        "folder": str(run.folder.path),
        "ok": run.ok,
        "reused": run.reused,
        "missing": run.missing,
        "busy": {str(path): words for path, words in run.busy.items()},
        "interrupted": run.interrupted,
        "faults": {outcome.job.label: outcome.fault for outcome in run.faults},
        "comparison": None if run.result is None else run.result.to_dict(),
    }


def _show(console: Console, run: ComparisonRun) -> None:
    if run.result is not None:
        _show_table(console, run.result)
        console.print(f"report: {run.folder.html}", highlight=False, markup=False, soft_wrap=True)
    for outcome in run.faults:
        console.print(f"failed: {outcome.job.label}: {outcome.fault}", highlight=False, markup=False, soft_wrap=True)
    for path, words in run.busy.items():
        text = f"{path} is still trained by {words}, so no results are written; repeat the command when it is done"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if run.missing and not run.busy:
        text = f"{run.missing} runs are not finished; repeat the command to continue"
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show_table(console: Console, result: ComparisonResult) -> None:
    from rich import box
    from rich.table import Table

    from dpmodel.compare.html_report import headline
    from dpmodel.compare.tables import compact

    target = result.comparison.definition.target
    title = f"{result.comparison.name}: epsilon {target.epsilon:g} at delta {target.delta:g} ({target.accountant})"
    caption = "second line of a cell: 95 % interval"
    table = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, title_justify="left")
    names, rows = compact(result)
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    for text in (headline(result), *result.caveats):
        console.print(f"- {text}", highlight=False, markup=False, soft_wrap=True)
