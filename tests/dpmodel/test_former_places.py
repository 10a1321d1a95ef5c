import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dpmodel.former_places import FORMER


@pytest.mark.parametrize(("former", "name"), FORMER.items())
def test_a_module_is_found_by_its_former_name_with_a_warning(former, name):
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=f"{former} is now {name}"):
        found = import_module(former)
    assert found is import_module(name)
    assert found.__name__ == found.__spec__.name == name


@pytest.mark.slow
def test_documented_names_keep_working():
    code = "from dpmodel.job import train_from_config; from dpmodel.release import ReleasePlan; import dpmodel\n"
    code += "assert (train_from_config, ReleasePlan) == (dpmodel.train_from_config, dpmodel.ReleasePlan)"
    subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code], check=True, cwd=Path(__file__).parents[2]
    )


def test_other_modules_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"dpmodel\.nothing"):
        import_module("dpmodel.nothing")
