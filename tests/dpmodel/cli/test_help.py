"""Examples in the help can be pasted into a shell."""

import shlex

import pytest
import typer

from dpmodel.cli.application import app, run

COMMANDS = typer.main.get_command(app).commands
NARROW = 80


@pytest.mark.parametrize("name", COMMANDS)
def test_each_example_in_the_help_is_one_line_that_the_command_understands(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(NARROW))
    monkeypatch.setenv("TERMINAL_WIDTH", str(NARROW))
    run([name, "--help"])
    shown = [line.strip() for line in capsys.readouterr().out.partition("Examples")[2].splitlines() if line.strip()]
    examples = [line for line in shown if not line.startswith("#")]
    assert examples
    for line in examples:
        words = shlex.split(line)
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        program, command, *arguments = words
        assert (program, command) == ("dpmodel", name)
        COMMANDS[name].make_context(name, arguments)
