import io

import pytest
from rich.console import Console

from dpmodel.cli.comparison_view import ComparisonView
from dpmodel.compare.jobs import Job, JobOutcome

JOB = Job(number=0, variant="fixed", seed=1, steps=3, directory="nowhere", settings="")


def shown(terminal, outcome=None):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with ComparisonView(console) as view:
        view.training([JOB], 0)
        view.began(JOB)
        if outcome is not None:
            view.ended(outcome)
    return console.file.getvalue()


def test_a_terminal_shows_how_far_it_is():
    assert "1 training" in shown(terminal=True)


def test_a_file_gets_no_picture_of_a_progress_view():
    assert shown(terminal=False) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_fault_is_shown_everywhere(terminal):
    assert "the disk is on fire" in shown(terminal, JobOutcome(JOB, "the disk is on fire"))
