"""The commands and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from dpmodel.cli import budget, compare, evaluate, plot, train, tune
from monitors.errors import ConfigError, DPModelError

OK, FAILED, BAD_USAGE = 0, 1, 2
DEBUG_VARIABLE = "DPMODEL_DEBUG"

app = typer.Typer(
    help="Train PyTorch models with differential privacy, with an epsilon that is true.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("budget", epilog=budget.EXAMPLES)(budget.budget)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("plot", epilog=plot.EXAMPLES)(plot.plot)
app.command("tune", epilog=tune.EXAMPLES)(tune.tune)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        import dpmodel

        typer.echo(f"dpmodel {dpmodel.__version__}")
        raise typer.Exit


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: Default: those of the process.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="dpmodel")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except ConfigError as error:
        return _say(error, BAD_USAGE)
    except KeyboardInterrupt:
        return _say(KeyboardInterrupt("interrupted"), FAILED)
    except (DPModelError, OSError) as error:
        return _say(error, FAILED)
    except Exception as error:
        hint = f"this is a fault in dpmodel or in code that it was given; {DEBUG_VARIABLE}=1 shows where"
        return _say(RuntimeError(f"{type(error).__name__}: {error} ({hint})"), FAILED, error)
    return OK


def _say(error: BaseException, code: int, cause: BaseException | None = None) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(cause or error)
    print(f"dpmodel: error: {error}", file=sys.stderr)
    return code
