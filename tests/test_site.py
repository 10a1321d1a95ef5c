"""The documentation site: its pages, its API reference, and its build."""

import ast
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module, util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: Packages whose exported names are all in the reference.
DOCUMENTED = ["monitors", "mechanisms", "mechanisms.engines", "dpmodel", "dpmodel.runs.report"]
DOCUMENTED += [
    f"dpmodel.{name}"
    for name in (
        "attack",
        "audit",
        "augmentation",
        "budget",
        "callbacks",
        "compare",
        "config",
        "data",
        "features",
        "figures",
        "metrics",
        "nets",
        "prediction",
        "starter",
        "statistics",
        "tuning",
    )
]


def _exported(package):
    module = import_module(package)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    statements = ast.parse(Path(module.__file__).read_text()).body
    imports = [statement for statement in statements if isinstance(statement, ast.ImportFrom)]
    return [alias.asname for statement in imports for alias in statement.names if alias.asname]


def _object(path):
    package, _, name = path.rpartition(".")
    return getattr(import_module(package), name)


def _referenced():
    return [
        path
        for page in sorted((DOCS / "api").glob("*.md"))
        for path in re.findall(r"^::: (.+)$", page.read_text(), re.M)
    ]


@pytest.mark.parametrize("package", DOCUMENTED)
def test_every_public_name_is_in_the_reference_once(package):
    count = Counter(id(_object(path)) for path in _referenced())
    times = {name: count[id(_object(f"{package}.{name}"))] for name in _exported(package)}
    assert not {name: number for name, number in times.items() if number != 1}


def test_every_package_that_exports_names_is_included():
    inits = [path for top in ("monitors", "mechanisms", "dpmodel") for path in (ROOT / top).rglob("__init__.py")]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    internal = {"mechanisms.engines.bookkeeping.layers"}
    assert {package for package in packages - internal if _exported(package)} == set(DOCUMENTED)


def _pages(nav):
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else (entry,):
            if isinstance(value, str):
                yield value
            else:
                yield from _pages(value)


def test_every_page_is_in_the_navigation_once():
    nav = list(_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(nav) == len(set(nav))
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} <= set(nav)
    assert all((DOCS / page).is_file() or (ROOT / page).is_file() for page in nav)


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text(encoding="utf-8")), (
            page
        )
    assert (tmp_path / "api" / "monitors" / "index.html").is_file()
