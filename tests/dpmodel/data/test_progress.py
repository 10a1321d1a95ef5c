import pytest

from dpmodel.data.progress import no_progress, progress


def advance(what="features, training data"):
    with progress(what, 20) as done:
        done(5)
        done(15)


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    advance()
    shown = capsys.readouterr()
    assert "features, training data" in shown.err
    assert "20/20" in shown.err
    assert not shown.out


@pytest.mark.parametrize("hide", [True, False])
def test_a_hidden_bar_or_a_pipe_shows_nothing(hide, monkeypatch, capsys):
    if hide:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with no_progress(hide):
        advance()
    shown = capsys.readouterr()
    assert (shown.err, shown.out) == ("", "")
