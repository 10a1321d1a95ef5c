"""The notebook: what is committed is what a run of its cells gives."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _texts(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_it_was_run_once_from_top_to_bottom_and_is_small(committed):
    nbformat.validate(committed)
    assert [cell.execution_count for cell in _code(committed)] == list(range(1, len(_code(committed)) + 1))
    kinds = [output.output_type for cell in _code(committed) for output in cell.outputs]
    assert kinds.count("display_data") == 1
    assert "error" not in kinds
    assert NOTEBOOK.stat().st_size < 150_000


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("execute_notebook", EXAMPLES / "execute_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_cell_prints_is_one_output_however_slowly_it_comes(script):
    out = [
        nbformat.v4.new_output("stream", name=name, text=text)
        for name, text in [("stdout", "step 1\n"), ("stderr", "careful\n"), ("stdout", "step 2\n"), ("stdout", "3\n")]
    ]
    figure = nbformat.v4.new_output("display_data")
    assert [o.get("text") for o in script._printed_as_one([*out, figure])] == ["step 1\nstep 2\n3\n", None]


@pytest.mark.slow
def test_a_run_gives_the_committed_outputs_but_for_what_is_random(committed, script):
    for before, now in zip(_code(committed), _code(script.executed(NOTEBOOK)), strict=True):
        assert now.source == before.source
        assert [output.output_type for output in now.outputs] == [output.output_type for output in before.outputs]
        assert _figures(_texts(now)) == _figures(_texts(before))


def _figures(text):
    """All but accuracies, which are random, and the version."""
    return re.findall(r"\d+\.\d+", re.sub(r"accuracy [\d.]+|dpmodel [\d.]+", "", text))


def test_its_accuracies_are_those_of_a_network_that_learned(committed):
    found = [float(number) for number in re.findall(r"accuracy ([\d.]+)", "".join(map(_texts, _code(committed))))]
    assert len(found) == 5
    assert found[-1] > 0.8
