"""Laws of the whole repository: direction of imports, cheap imports, correct lists of names."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: The packages that each package may import.
ARROWS = {"monitors": set(), "mechanisms": {"monitors"}, "dpmodel": {"monitors", "mechanisms"}}
MODULES = [path for package in ARROWS for path in sorted((ROOT / package).rglob("*.py"))]


def _imported(path):
    """Top-level names of everything that a module imports, anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module.split(".")[0]


def _name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_run_one_way_only(path):
    package = path.relative_to(ROOT).parts[0]
    ours = set(_imported(path)) & set(ARROWS)
    assert ours <= ARROWS[package] | {package}


NAMES = {_name(path) for path in MODULES}


def _modules_imported(path):
    """Modules of this repository that a module imports at run time, anywhere in the file; not those for types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in guarded:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                for name in (whole, f"{whole}.__init__", node.module, f"{node.module}.__init__"):
                    if name in NAMES:
                        yield name
                        break


def test_no_imports_are_circular():
    imported = {_name(path): set(_modules_imported(path)) for path in MODULES}
    left = dict(imported)
    while True:
        leaves = {name for name, needs in left.items() if not needs & left.keys()}
        if not leaves:
            break
        left = {name: needs for name, needs in left.items() if name not in leaves}
    needed = set().union(*(needs & left.keys() for needs in left.values())) if left else set()
    assert not left, f"circular imports among {sorted(needed & left.keys())}"


def test_the_accounting_does_not_import_torch():
    for path in (ROOT / "monitors").rglob("*.py"):
        assert not {"torch", "torchvision", "torchmetrics"} & set(_imported(path)), path


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_signatures_are_read_without_evaluating_annotations(path):
    """Some annotations of users cannot be evaluated, which is what ``inspect.signature`` does from Python 3.14 on."""
    if _name(path) != "monitors.signatures":
        assert "inspect.signature(" not in path.read_text(encoding="utf-8")


def _fresh(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "dpmodel",
        "mechanisms",
        "monitors",
        "monitors.factory",
        "dpmodel.config",
        "dpmodel.planning.training_plan",
        "dpmodel.preflight",
        "dpmodel.budget",
    ],
)
def test_importing_loads_no_torch(module):
    assert _fresh(f"import sys, {module}; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("package", ["dpmodel", "mechanisms", "monitors"])
def test_a_star_import_gives_every_listed_name(package):
    code = f"from {package} import *; import {package} as p; print(sorted(n for n in p.__all__ if n not in globals()))"
    assert _fresh(code) == "[]"


@pytest.mark.parametrize("package", ["dpmodel", "mechanisms", "monitors"])
def test_lists_of_names_are_sorted_and_have_no_duplicates(package):
    names = __import__(package).__all__
    assert list(names) == sorted(set(names))


@pytest.mark.parametrize("package", ["dpmodel", "monitors"])
def test_every_name_in_a_stub_file_loads_from_its_module(package):
    tree = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    module = __import__(package)
    listed = [
        (node.module, name.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    ]
    assert sorted(name for _, name in listed) == module.__all__
    for home, name in listed:
        assert getattr(module, name) is getattr(import_module(home), name)


@pytest.mark.slow  # mypy reads the libraries too
def test_type_checkers_know_exactly_the_public_names(tmp_path):
    for package in ARROWS:
        names = [name for name in __import__(package).__all__ if not name.startswith("_")]
        lines = f"from {package} import {', '.join(names)}\nfrom {package} import this_does_not_exist\n"
        (tmp_path / f"known_{package}.py").write_text(lines)
    files = [str(tmp_path / f"known_{package}.py") for package in ARROWS]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert found.count(" error:") == len(ARROWS)
    for package in ARROWS:
        assert f'Module "{package}" has no attribute "this_does_not_exist"' in found


def test_an_unknown_name_raises_an_attribute_error():
    import dpmodel

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = dpmodel.Nothing


def test_the_oldest_versions_that_are_tested_are_those_that_are_stated():
    root = Path(__file__).parents[1]
    required, _, optional = (root / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional")
    constraints = (root / "constraints-oldest.txt").read_text(encoding="utf-8")
    (served,) = re.findall(r"^serve = .*$", optional, re.MULTILINE)
    stated = dict(re.findall(r'^  "([a-z]+)>=([\d.]+)",$', required, re.MULTILINE))
    stated |= dict(re.findall(r'"([a-z-]+)>=([\d.]+)"', served))
    tested = dict(re.findall(r"^([a-z-]+)==([\d.]+)$", constraints, re.MULTILINE))
    padded = {name: version + ".0" * (2 - version.count(".")) for name, version in stated.items()}
    assert tested == padded
