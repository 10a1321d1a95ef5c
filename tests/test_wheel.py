"""The wheel as a user gets it: built from the clone, installed elsewhere, used outside the clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("monitors", "mechanisms", "dpmodel")

pytestmark = pytest.mark.slow


def _run(*command, cwd, **environment):
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=own | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the clone's own ``build`` folder can neither be written nor packed."""
    copy = tmp_path_factory.mktemp("clone")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", copy / "dist", copy, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel, and the current dependencies without the editable install."""
    place = tmp_path_factory.mktemp("elsewhere")
    _run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=place)
    # A folder named in a .pth file is added to the path, but .pth files in it (the editable install) are not read.
    (own,) = (place / "venv" / "lib").glob("python*/site-packages")
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (own / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    return place


def test_the_wheel_contains_only_the_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert all(f"{package}/py.typed" in names for package in PACKAGES)


def test_the_packages_are_imported_from_the_wheel(installed):
    code = f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})), sep='\\n')"
    found = _run(installed / "venv/bin/python", "-c", code, cwd=installed).split()
    assert len(found) == 3
    assert all(Path(path).is_relative_to(installed / "venv") for path in found)


def test_the_command_lists_its_subcommands(installed):
    text = _run(installed / "venv/bin/dpmodel", "--help", cwd=installed)
    assert all(command in text for command in ("train", "eval", "budget", "compare", "plot", "init"))


def test_a_configuration_given_by_path_trains_outside_the_clone(installed):
    config = shutil.copy(ROOT / "configs" / "lenet5_mnist_short.yaml", installed / "mine.yaml")
    shorter = ("data.limit=640", "data.test_limit=100", "training.epochs=1", "training.batch_size=64", "network=mlp")
    settings = [f"data.root={ROOT / 'examples' / 'data'}", *shorter]
    options = [part for setting in settings for part in ("--set", setting)]
    _run(installed / "venv/bin/dpmodel", "train", config, *options, "--output", "folder", "--quiet", cwd=installed)
    report = json.loads((installed / "folder" / "privacy_report.json").read_text())
    assert 2.9 < report["epsilon"] <= 3.0
    assert (installed / "folder" / "checkpoint.safetensors").is_file()
