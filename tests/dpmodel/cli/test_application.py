import io
import os
import sys
from pathlib import Path

import pytest
import typer

from dpmodel.cli import application, main
from dpmodel.cli.exit_codes import BAD_USAGE, FAILED, OK
from dpmodel.cli.streams import make_patient
from monitors.errors import BudgetExceededError, ConfigError


@pytest.fixture
def raising(monkeypatch):
    """A command line whose only command raises the given error."""

    def prepare(error):
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def fail():
            raise error

        monkeypatch.setattr(application, "app", app)

    return prepare


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("a.yaml:3: wrong"), BAD_USAGE, "dpmodel: error: a.yaml:3: wrong"),
        (BudgetExceededError("spent"), FAILED, "dpmodel: error: spent"),
        (FileNotFoundError("gone"), FAILED, "dpmodel: error: gone"),
        (KeyError("x"), FAILED, "KeyError: 'x' (this is a bug in dpmodel"),
    ],
)
def test_an_error_is_one_message_and_an_exit_code(raising, capsys, error, code, words):
    raising(error)
    assert application.run([]) == code
    captured = capsys.readouterr().err
    assert words in captured
    assert "Traceback" not in captured


def test_a_traceback_is_shown_on_request(raising, capsys, monkeypatch):
    monkeypatch.setenv(application.DEBUG_VARIABLE, "1")
    raising(KeyError("x"))
    assert application.run([]) == FAILED
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_command_suggests_the_nearest(command):
    code, _, error = command("budgt")
    assert code == BAD_USAGE
    assert "budget" in error


def test_without_a_command_the_help_is_shown(command):
    code, text, _ = command("--help")
    assert code == OK
    for name in ("train", "eval", "budget"):
        assert name in text


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("train", "[default: runs/<config>]"),
        ("compare", "[default: half of the cores]"),
        ("tune", "[default: runs/<config>]"),
        ("plot", "[default: RUN_DIR/figures]"),
        ("budget", "[default: 1e-5]"),
    ],
)
def test_help_states_the_defaults(command, monkeypatch, name, default):
    monkeypatch.setenv("COLUMNS", "100")
    code, text, _ = command(name, "--help")
    assert code == OK
    assert default in " ".join(text.replace("│", " ").split())


def test_brackets_in_the_help_are_shown(command):
    assert 'pip install -e ".[serve]"' in " ".join(command("serve", "--help")[1].split())


def test_help_paragraphs_are_wrapped_to_the_terminal(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, text, _ = command("train", "--help")
    lines = [line.strip() for line in text.splitlines()]
    assert "(as JSON and in words), the history, the weights and the training curve." in lines


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("runs/räks", "ascii", b"runs/r\\xe4ks"),
        ("\u2026 \U0001f600", "ascii", b"\\u2026 \\U0001f600"),
        ("runs/r\udce4ks", "ascii", b"runs/r\xe4ks"),
        ("runs/r\udce4ks ä", "utf-8", b"runs/r\xe4ks \xc3\xa4"),
    ],
    ids=["accents", "symbols", "bytes in ascii", "bytes in utf-8"],
)
def test_a_path_that_the_terminal_cannot_show_stays_readable(monkeypatch, text, encoding, shown):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    make_patient()
    print(text, end="", file=screen, flush=True)
    assert screen.buffer.getvalue() == shown


def test_threads_of_a_command_wait_passively_unless_the_user_chose(monkeypatch):
    monkeypatch.setattr(application, "run", lambda arguments: 0)
    for chosen, found in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if chosen:
            monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
        with pytest.raises(SystemExit):
            main([])
        assert os.environ["OMP_WAIT_POLICY"] == found


@pytest.mark.parametrize("name", ["compare", "tune"])
def test_zero_parallel_trainings_are_bad_usage(command, tiny, name):
    code, _, error = command(name, tiny, "--jobs", "0")
    assert code == BAD_USAGE
    assert "--jobs" in error


def test_an_interrupt_is_reported_in_one_word_without_a_traceback(raising, capsys):
    raising(KeyboardInterrupt())
    assert application.run([]) != OK
    error = capsys.readouterr().err
    assert "dpmodel: error: interrupted" in error
    assert "Traceback" not in error


def test_an_interrupt_during_imports_is_reported_in_one_word_too(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "dpmodel.cli.application":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dpmodel.cli.application")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    # An interrupt that is not caught would end all tests.
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stop:
        main([])
    assert stop.type is SystemExit
    assert stop.value.code == FAILED
    assert capsys.readouterr().err == "dpmodel: error: interrupted\n"


CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("command_name", "file", "kind", "remedy"),
    [
        ("train", "compare_all.yaml", "a comparison", "compare"),
        ("budget", "tune_lenet5.yaml", "a search", "tune"),
        ("compare", "lenet5_mnist.yaml", "the configuration of one training", "train"),
        ("compare", "tune_lenet5.yaml", "a search", "tune"),
        ("tune", "compare_all.yaml", "a comparison", "compare"),
        ("tune", "lenet5_mnist.yaml", "the configuration of one training", "train"),
    ],
)
def test_a_file_of_a_different_kind_is_refused_with_its_command(command, command_name, file, kind, remedy):
    path = CONFIGS / file
    code, _, error = command(command_name, path)
    assert code == BAD_USAGE
    assert f"{path}: this is {kind}, not " in error
    assert f"use `dpmodel {remedy} {path}`" in error
    assert len(error.splitlines()) == 1
