"""``dpmodel predict``: answers of the network in a run folder, each charged if it costs something."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmodel.cli.options import (
    AsJson,
    BudgetDelta,
    BudgetEpsilon,
    Cache,
    LedgerFolder,
    Mechanism,
    NoiseMultiplier,
    Overrides,
    QueryNormBound,
    Sensitivity,
    TrustCode,
)
from monitors.errors import ConfigError
from monitors.spent import epsilon_text

if TYPE_CHECKING:
    from dpmodel.prediction.query_ledger import QueryStatus
    from dpmodel.runs.predict import RunPredictor

EXAMPLES = """
  # After private training, answers are exact and free
  dpmodel predict runs/lenet5_mnist digits.npy
  dpmodel predict runs/lenet5_mnist photos/ --top-k 3 --output answers.csv

  # Otherwise each row gets noise and is charged
  dpmodel predict runs/plain digits.npy --mechanism dp_logits --budget-epsilon 5

  dpmodel predict --status runs/plain/queries
"""

ENDINGS = (".csv", ".json")


def predict(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN_DIR", help="A folder written by `dpmodel train`.", show_default=False)
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT", help="A .npy or .npz file, an image, or a folder of images.", show_default=False
        ),
    ] = None,
    mechanism: Mechanism = None,
    budget_epsilon: BudgetEpsilon = None,
    budget_delta: BudgetDelta = None,
    noise_multiplier: NoiseMultiplier = 10.0,
    norm_bound: QueryNormBound = 1.0,
    sensitivity: Sensitivity = "auto",
    ledger: LedgerFolder = None,
    cache: Cache = False,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="The best class of each row.")] = True,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="The probability of each class.")] = False,
    top_k: Annotated[int | None, typer.Option(help="The best K classes.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The best class if its probability is at least this, else -1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the answers to this file: .csv or .json.")
    ] = None,
    status: Annotated[
        Path | None, typer.Option(help="Only print what was charged to the query ledger in this folder.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Answer the rows of INPUT with the network in RUN_DIR.

    After private training, answers are exact and free. Any other network needs --mechanism dp_logits: each row gets
    noise and is charged to the query ledger, on the disk, before it is answered. A batch that does not fit the rest of
    the budget is refused as a whole.

    INPUT is prepared as the configuration in RUN_DIR says. An .npz file holds one array, or one named x. Images of a
    folder are answered in the order of their names.
    """
    if status is not None:
        if run_dir is not None:
            raise ConfigError("--status only reads a query ledger; leave out RUN_DIR and INPUT")
        _show_status(status, as_json)
        return
    if run_dir is None or inputs is None:
        raise ConfigError("give RUN_DIR and INPUT, or --status FOLDER; see `dpmodel predict --help`")
    from dpmodel.runs.predict import QuerySettings, open_predictor, parsed_sensitivity

    wanted: dict[str, Any] = {"labels": labels, "probabilities": probabilities, "top_k": top_k, "threshold": threshold}
    _check_wanted(wanted, output)
    settings = QuerySettings(
        mechanism,
        budget_epsilon,
        budget_delta,
        noise_multiplier,
        norm_bound,
        parsed_sensitivity(sensitivity),
        ledger,
        cache,
    )
    with open_predictor(run_dir, overrides, settings, trust_code=trust_code) as predictor:
        _require_classes(top_k, predictor.classes)
        x, names = predictor.read(inputs)
        before = 0 if predictor.ledger is None else predictor.ledger.asked
        answer = predictor.query(x).to_dict(**wanted)
        result = {"answers": {"file": names, **answer} if names else answer, **_privacy(predictor, before)}
    _show(result, output, as_json)


def _check_wanted(wanted: dict[str, Any], output: Path | None) -> None:
    """Refuse what could fail after the charge."""
    if not wanted["labels"] and not wanted["probabilities"] and wanted["top_k"] is wanted["threshold"] is None:
        raise ConfigError("--no-labels leaves nothing to answer; add --probabilities, --top-k or --threshold")
    if wanted["top_k"] is not None and wanted["top_k"] < 1:
        raise ConfigError(f"--top-k must be at least 1, got {wanted['top_k']}")
    if wanted["threshold"] is not None and not 0.0 < wanted["threshold"] < 1.0:
        raise ConfigError(f"--threshold must be between 0 and 1, got {wanted['threshold']:g}")
    if output is None:
        return
    if output.suffix not in ENDINGS:
        raise ConfigError(f"--output must end in {' or '.join(ENDINGS)}, got {output.name!r}")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ConfigError(f"--output {output} cannot be written: it is a folder, or its folder is missing or read-only")


def _require_classes(top_k: int | None, classes: int) -> None:
    if top_k is not None and top_k > classes:
        raise ConfigError(f"--top-k must be at most the number of classes, {classes}, got {top_k}")


def _privacy(predictor: RunPredictor, before: int) -> dict[str, Any]:
    """What the answers cost, as JSON values."""
    ledger, spent = predictor.ledger, predictor.spent
    found: dict[str, Any] = {"free": predictor.mechanism.why_free is not None, "claim": predictor.explain()}
    if found["free"]:
        found["training"] = spent.to_dict()
    if ledger is not None:
        found["charged"] = ledger.asked - before
        found["budget"] = {
            "asked": ledger.asked,
            "left": predictor.left,
            "spent": ledger.spent,
            "epsilon": ledger.epsilon,
            "delta": ledger.delta,
        }
    return found


def _show(result: dict[str, Any], output: Path | None, as_json: bool) -> None:
    from monitors.atomic import write_atomically

    text = json.dumps(result) + "\n" if as_json or (output and output.suffix == ".json") else _csv(result["answers"])
    if output is not None:
        write_atomically(output, text)
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(f"privacy: {result['claim']}")
    if "budget" in result:
        budget = result["budget"]
        typer.echo(
            f"charged: {result['charged']:,}; {budget['left']:,} such answers are left; epsilon "
            f"{epsilon_text(budget['spent'])} of {budget['epsilon']:g} at delta {budget['delta']:g} is spent"
        )
    if output is not None:
        typer.echo(f"answers: {output}")
    else:
        typer.echo(text, nl=False)


def _csv(answers: dict[str, list[Any]]) -> str:
    """One line per row; the columns of lists are numbered."""
    import csv
    import io

    columns: dict[str, list[Any]] = {}
    for name, values in answers.items():
        width = max((len(value) for value in values if isinstance(value, list)), default=0)
        if not width:
            columns[_singular(name)] = values
        for index in range(width):
            columns[f"{_singular(name)}_{index}"] = ["" if value is None else value[index] for value in values]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", *columns])
    writer.writerows([row, *values] for row, values in enumerate(zip(*columns.values(), strict=True)))
    return stream.getvalue()


#: Names of columns.
_SINGULAR = {"labels": "label", "probabilities": "probability", "top_k": "top"}


def _singular(name: str) -> str:
    return _SINGULAR.get(name, name)


def _show_status(folder: Path, as_json: bool) -> None:
    from dpmodel.prediction.query_ledger import query_status

    found: QueryStatus = query_status(folder)
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(found)))
        return
    left = "unknown before the first" if found.left is None else f"{found.left:,} like the last one"
    typer.echo(f"asked:  {found.asked:,}")
    typer.echo(f"left:   {left}")
    typer.echo(f"spent:  epsilon {epsilon_text(found.spent)} at delta {found.delta:g}")
    typer.echo(f"budget: epsilon {found.epsilon:g} at delta {found.delta:g}")
    for note in found.notes:
        typer.echo(f"note:   {note}")
