"""``dpmodel card``: the privacy card of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dpmodel.cli.options import AsJson, Overrides, TrustCode

EXAMPLES = """
  dpmodel card runs/lenet5_mnist

  # All forms, the figure and the distribution of the privacy loss
  dpmodel card runs/lenet5_mnist -o cards/lenet5_mnist

  # A model card for the Hugging Face Hub
  dpmodel card runs/lenet5_mnist --format huggingface

  # Declare what only you know
  dpmodel card runs/lenet5_mnist --set card.contributions_per_person=3 --set card.governance.owner=ACME
"""


def card(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="A folder of `dpmodel train` or `fit(output=...)`.", show_default=False),
    ],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=r"Folder of the card \[default: print one form]")
    ] = None,
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            help="markdown, json, html, huggingface, registry or registry_csv. Repeatable with --output. "
            r"\[default: markdown, or all with --output]",
        ),
    ] = [],  # noqa: B006 - typer copies it
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Make the privacy card of RUN_DIR: what was spent, what an attacker can reach, and under which conditions.

    Every figure is computed from the ledger in RUN_DIR, which is not changed. What only you know is declared in the
    section card of the configuration, or with --set. A report of `dpmodel audit` counts if it names this ledger.
    """
    from dpmodel.runs.card import card_of_run
    from dpmodel.runs.folder import RunFolder, require_outside_runs
    from dpmodel.runs.report.formats import card_formats, write_card
    from monitors.errors import ConfigError

    chosen = card_formats((["json"] if as_json and output is None else None) or formats or None)
    if output is None:
        if len(formats) > 1:
            raise ConfigError(f"{len(formats)} formats cannot be printed at once; use --output DIR, or one --format")
        report = card_of_run(run_dir, overrides, trust_code=trust_code)
        form = chosen["json"] if as_json else chosen[formats[0] if formats else "markdown"]
        typer.echo(form(report), nl=False)
        return
    require_outside_runs(output, "output", "a card")
    report = card_of_run(run_dir, overrides, trust_code=trust_code)
    written = write_card(report, RunFolder(run_dir).read_ledger(), output, chosen)
    if as_json:
        typer.echo(json.dumps({"written": [str(path) for path in written], "guarantee": report.guarantee}))
        return
    for path in written:
        typer.echo(str(path))
