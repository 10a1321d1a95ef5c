"""The documentation: every setting is described, every snippet is real, every link leads somewhere."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from dpmodel.compare.comparison import make_comparison
from dpmodel.config import Config, make_config
from dpmodel.config.faults import _model_in
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.tuning.search import make_tuning

ROOT = Path(__file__).parents[1]
BESIDE_THE_CONFIGS = str(ROOT / "configs" / "snippet.yaml")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _settings(model: type[BaseModel]):
    for name, field in model.model_fields.items():
        yield name
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from _settings(inner)


@pytest.mark.parametrize("setting", sorted(set(_settings(Config))))
def test_every_setting_is_in_the_reference(setting):
    assert re.search(rf"\b{setting}\b", (ROOT / "docs" / "config.md").read_text())


def _snippets(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_in_the_documentation_are_valid(page):
    for snippet in _snippets(page, "yaml"):
        values = read_yaml(snippet, page.name).values
        if "variants" in values:
            make_comparison(values, BESIDE_THE_CONFIGS)
        elif "search" in values:
            make_tuning(values, BESIDE_THE_CONFIGS)
        else:
            make_config(values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_documentation_compiles_and_its_imports_exist(page):
    for snippet in _snippets(page, "python"):
        compile(snippet, page.name, "exec")
        for statement in re.findall(r"^from .+ import .+$|^import .+$", snippet, flags=re.MULTILINE):
            exec(statement, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".ci" / "run"], ids=lambda page: page.name)
def test_commands_in_the_documentation_name_options_that_exist(page, capsys):
    from dpmodel.cli.application import app, run

    known = {}
    for command in app.registered_commands:
        run([command.name, "--help"])
        known[command.name] = capsys.readouterr().out
    for name, rest in re.findall(rf"dpmodel ({'|'.join(known)})\b([^\n#`]*)", page.read_text()):
        for option in re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", rest):
            assert option in known[name], f"dpmodel {name} {option}"


def test_the_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "pip install -e . && dpmodel train configs/lenet5_mnist.yaml" in text
    assert 'pip install -e ".[dev]" && pytest' in text
