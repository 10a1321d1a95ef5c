import sys
import sysconfig
from pathlib import Path

import pytest

from dpmodel.config.user_code import import_named, is_own, source_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, which is not on the path."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_source_of_a_module_is_found_without_running_it(here):
    (here / "outer" / "inner").mkdir(parents=True)
    for file in (here / "outer" / "__init__.py", here / "outer" / "inner" / "leaf.py", here / "single.py"):
        file.write_text("raise AssertionError('imported')\n")
    assert source_of("single") == here / "single.py"
    assert source_of("outer") == here / "outer" / "__init__.py"
    assert source_of("outer.inner") == here / "outer" / "inner"
    assert source_of("outer.inner.leaf") == here / "outer" / "inner" / "leaf.py"
    assert source_of("single.leaf") is source_of("outer.missing") is source_of("nowhere_at_all.leaf") is None
    assert not {"outer", "single"} & set(sys.modules)


@pytest.mark.parametrize("name", ["", ".", "..a", "a..b", "\0", "a b", "/", "os.path"])
def test_a_name_without_a_source_is_no_error(name):
    assert source_of(name) is None or source_of(name).exists()


def test_code_is_a_users_own_outside_of_python_and_its_packages(tmp_path):
    assert is_own(tmp_path / "nets.py")
    assert not is_own(tmp_path / "site-packages" / "nets.py")
    assert not is_own("/usr/lib/python3/dist-packages/torch/nn/__init__.py")
    assert not is_own(Path(sysconfig.get_path("stdlib")) / "json" / "__init__.py")
    assert not is_own(None)


def test_the_current_folder_is_searched_only_for_a_module_that_is_nowhere_else(here):
    (here / "numpy.py").write_text("raise AssertionError('imported')\n")
    (here / "only_in_this_folder.py").write_text("value = 1\n")
    assert import_named("numpy", "plugin 'numpy'").__name__ == "numpy"
    assert str(here) not in sys.path
    assert import_named("only_in_this_folder", "plugin").value == 1
    assert sys.path[-1] == str(here)
