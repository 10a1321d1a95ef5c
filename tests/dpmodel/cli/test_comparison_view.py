import io

import pytest
from rich.console import Console

from dpmodel.cli.comparison_view import ComparisonView
from dpmodel.compare.jobs import Job, JobOutcome

JOB = Job(number=0, variant="fixed", seed=1, steps=3, directory="nowhere", begun="", settings="")


def shown(terminal, outcome=None):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with ComparisonView(console) as view:
        view.training([JOB], 0)
        view.began(JOB)
        if outcome is not None:
            view.ended(outcome)
    return console.file.getvalue()


def test_a_terminal_shows_progress():
    assert "1 training" in shown(terminal=True)


def test_no_progress_view_is_written_to_a_file():
    assert shown(terminal=False) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failure_is_shown_everywhere(terminal):
    assert "the disk is on fire" in shown(terminal, JobOutcome(JOB, "the disk is on fire"))
