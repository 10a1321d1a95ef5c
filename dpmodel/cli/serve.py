"""``dpmodel serve``: a server that answers queries and enforces one budget over all clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpmodel.cli.options import (
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

EXAMPLES = """
  dpmodel serve runs/lenet5_mnist
  dpmodel serve runs/plain --mechanism dp_logits --budget-epsilon 5
  dpmodel serve runs/lenet5_mnist --host 0.0.0.0 --token-file tokens.txt --requests-per-minute 60
"""


def serve(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A folder written by `dpmodel train`.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Address; others than 127.0.0.1 need --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="Tokens of the clients, one a line, readable by you alone.")
    ] = None,
    requests_per_minute: Annotated[int, typer.Option(help="Requests a minute of each token; 0 for no limit.")] = 600,
    max_rows: Annotated[int, typer.Option(help="Most rows of one request.")] = 100,
    mechanism: Mechanism = None,
    budget_epsilon: BudgetEpsilon = None,
    budget_delta: BudgetDelta = None,
    noise_multiplier: NoiseMultiplier = 10.0,
    norm_bound: QueryNormBound = 1.0,
    sensitivity: Sensitivity = "auto",
    ledger: LedgerFolder = None,
    cache: Cache = False,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    trust_code: TrustCode = False,
) -> None:
    """Answer queries to the network in RUN_DIR over HTTP; needs `pip install -e ".[serve]"`.

    POST /predict answers rows in JSON, GET /budget says what was charged and what is left, and /docs describes both.
    The options of the mechanism and the budget are those of `dpmodel predict`; one ledger counts for all clients.
    Ctrl-C or SIGTERM answers the requests that have begun, and closes the ledger.
    """
    from dpmodel.serving.server import bound_socket, require_extra
    from dpmodel.serving.server import serve as run_server

    require_extra()
    from dpmodel.runs.predict import QuerySettings, open_predictor, parsed_sensitivity
    from dpmodel.serving.application import Limits
    from dpmodel.serving.clients import Tokens

    parsed = parsed_sensitivity(sensitivity)
    if mechanism is not None and parsed is None:
        raise ConfigError("--sensitivity none has no guarantee, so a server could not limit what its clients learn")
    if requests_per_minute < 0 or max_rows < 1:
        raise ConfigError("--requests-per-minute must be at least 0 and --max-rows at least 1")
    tokens = None if token_file is None else Tokens.read(token_file)
    limits = Limits(tokens, requests_per_minute or None, max_rows)
    settings = QuerySettings(
        mechanism, budget_epsilon, budget_delta, noise_multiplier, norm_bound, parsed, ledger, cache
    )
    with (
        bound_socket(host, port, has_tokens=tokens is not None) as listening,
        open_predictor(run_dir, overrides, settings, trust_code=trust_code) as predictor,
    ):
        place = f"http://{host if ':' not in host else f'[{host}]'}:{listening.getsockname()[1]}"
        typer.echo(f"privacy: {predictor.explain()}")

        def announce() -> None:
            typer.echo(f"serving {run_dir} at {place} (documentation: {place}/docs; Ctrl-C stops)")

        run_server(predictor, listening, limits, announce)
        typer.echo("stopped; the ledger is closed" if predictor.ledger is not None else "stopped")
