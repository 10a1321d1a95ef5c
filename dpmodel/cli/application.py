"""The commands and the one place where errors become messages and exit codes."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from dpmodel.cli import (
    attack,
    audit,
    budget,
    card,
    compare,
    evaluate,
    init,
    plot,
    predict,
    serve,
    student,
    teachers,
    train,
    tune,
)
from dpmodel.cli.exit_codes import BAD_USAGE, FAILED, OK
from dpmodel.cli.streams import make_patient
from dpmodel.distributed.launch import launched_processes
from monitors.errors import ConfigError, DPModelError

INTERRUPTED = 130
DEBUG_VARIABLE = "DPMODEL_DEBUG"

app = typer.Typer(
    help="Train PyTorch models with differential privacy, with an epsilon that holds.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """Prints its epilog, the examples, line by line: some versions of Typer would wrap or join the lines."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, then the examples."""
        examples, self.epilog = self.epilog, None
        super().format_help(ctx, formatter)
        self.epilog = examples
        typer.echo(f" {typer.style('Examples', bold=True)}\n")
        typer.echo(textwrap.indent(inspect.cleandoc(examples or ""), "   ") + "\n")


def _add(name: str, command: Callable[..., None], examples: str) -> None:
    # Typer keeps the line breaks of a docstring; paragraphs should fill the terminal instead. Brackets are no markup.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    text = escape("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))
    app.command(name, help=text, epilog=examples, cls=_Command)(command)


_add("init", init.init, init.EXAMPLES)
_add("train", train.train, train.EXAMPLES)
_add("eval", evaluate.evaluate, evaluate.EXAMPLES)
_add("audit", audit.audit, audit.EXAMPLES)
_add("attack", attack.attack, attack.EXAMPLES)
_add("card", card.card, card.EXAMPLES)
_add("budget", budget.budget, budget.EXAMPLES)
_add("predict", predict.predict, predict.EXAMPLES)
_add("serve", serve.serve, serve.EXAMPLES)
_add("compare", compare.compare, compare.EXAMPLES)
_add("plot", plot.plot, plot.EXAMPLES)
_add("tune", tune.tune, tune.EXAMPLES)
_add("teachers", teachers.teachers, teachers.EXAMPLES)
_add("student", student.student, student.EXAMPLES)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    if version:
        import dpmodel

        typer.echo(f"dpmodel {dpmodel.__version__}")
        raise typer.Exit
    processes = launched_processes()
    if processes > 1 and context.invoked_subcommand != "train":
        raise ConfigError(
            f"torchrun has started {processes} processes, which only `dpmodel train` shares; start `dpmodel "
            f"{context.invoked_subcommand}` without torchrun (compare and tune have --jobs)"
        )


@functools.cache
def _command(app: typer.Typer) -> Any:
    # Typer reads the signatures of all commands at each call, which takes tens of milliseconds.
    return typer.main.get_command(app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: Default: ``sys.argv[1:]``.
    """
    make_patient()
    try:
        _command(app)(args=None if arguments is None else list(arguments), prog_name="dpmodel")
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt) or stop.code == INTERRUPTED:
            _say(KeyboardInterrupt("interrupted"), FAILED)
        return stop.code if isinstance(stop.code, int) else FAILED
    except ConfigError as error:
        return _say(error, BAD_USAGE)
    except KeyboardInterrupt:
        return _say(KeyboardInterrupt("interrupted"), FAILED)
    except (DPModelError, OSError) as error:
        return _say(error, FAILED)
    except Exception as error:
        hint = f"this is a bug in dpmodel or in your own code; set {DEBUG_VARIABLE}=1 to see the traceback"
        return _say(RuntimeError(f"{type(error).__name__}: {error} ({hint})"), FAILED, error)
    return OK


def _say(error: BaseException, code: int, cause: BaseException | None = None) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(cause or error)
    rank = f"rank {os.environ['RANK']}: " if launched_processes() > 1 else ""
    print(f"dpmodel: {rank}error: {error}", file=sys.stderr)
    return code
