import functools
import re
import sys
from types import ModuleType

import pytest
from torch import nn

from dpmodel.nets import build_network
from dpmodel.nets.user_module import import_network

#: What a configuration can name from the user's own module, which imports what many scripts import.
OWN = """\
import functools
import os
import pathlib
import pickle
import subprocess
import torch
import torchvision
from os import popen, system
from runpy import run_path
from shutil import rmtree
from torch import hub, load, nn
from torch.fx import GraphModule
from torch.fx.graph_module import reduce_graph_module
from torch.jit import ScriptModule
from torch.nn import *
from torchvision.models import resnet18, get_model
from dpmodel.config.plugins import import_plugin
from dpmodel import load_checkpoint
from timm import create_model

class Net(nn.Linear):
    def __init__(self, width=3):
        super().__init__(width, 2)

    @classmethod
    def wide(cls, width=30):
        return cls(width)

    @staticmethod
    def narrow(width=1):
        return Net(width)

    class Inner(nn.Linear):
        def __init__(self, width=4):
            super().__init__(width, 2)

class Runner:
    def __init__(self, command):
        raise AssertionError("called")
    def __call__(self, command):
        raise AssertionError("called")

class Meta(type):
    def __call__(cls, *args, **kwargs):
        raise AssertionError("called")

class Odd(metaclass=Meta):
    pass

class Holder:
    @property
    def net(self):
        raise AssertionError("called")
    run = os.system
    load = staticmethod(torch.load)

def build(width=5):
    return Net(width)

@functools.lru_cache
def cached(width=6):
    return Net(width)

@functools.wraps(os.getcwd)
def wrapped(width=7):
    return Net(width)

@torch.no_grad()
def decorated(width=8):
    return Net(width)

tiny = functools.partial(Net, width=9)
tinier = functools.partial(functools.partial(build), width=2)
short = lambda width=11: Net(width)
half = functools.partial(system)
quarter = functools.partial(functools.partial(pickle.loads))
runner = Runner.__new__(Runner)
network = Net()
bound = network.load_state_dict
text = "Net"
"""

HOSTILE = [
    # the standard library, also through submodules and other spellings
    "os:system",
    "os.path:join",
    "posix:system",
    "subprocess:run",
    "subprocess:Popen",
    "builtins:eval",
    "builtins:exec",
    "builtins:__import__",
    "importlib:import_module",
    "runpy:run_path",
    "pickle:load",
    "pickle:Unpickler",
    "shutil:rmtree",
    "ctypes:CDLL",
    "code:interact",
    "antigravity:fly",
    "this:s",
    "__main__:Net",
    "pip.__main__:main",
    "test.support:run_in_subinterp",
    # functions and classes of installed packages that read files or run what their arguments say
    "torch:load",
    "torch:compile",
    "torch.hub:load",
    "torch.jit:load",
    "torch.jit:ScriptModule",
    "torch.fx:GraphModule",
    "torch.fx.graph_module:reduce_graph_module",
    "torch.package:PackageImporter",
    "torch.utils.cpp_extension:load",
    "torch.serialization:load",
    "torch.nn:Parameter",
    "torch.nn.utils.parametrizations:orthogonal",
    "numpy:load",
    "numpy:fromfile",
    "torchvision.models:get_model",
    "torchvision.io:read_file",
    "timm:create_model",
    "timm.models:load_checkpoint",
    "safetensors.torch:load_model",
    "setuptools:setup",
    # dunders, and attributes reached through modules or objects
    "torch.nn:Module.__init_subclass__",
    "torch.nn:Module.__subclasses__",
    "torch.nn:Module.__dict__",
    "torch.nn:modules.module.torch.load",
    "torch.nn:Linear.forward.__globals__",
    # dpmodel's own functions
    "dpmodel.config.plugins:import_plugin",
    "dpmodel.nets:build_network",
    "dpmodel.nets.user_module:import_network",
    "dpmodel:load_checkpoint",
    "dpmodel.cli.application:run",
    "dpmodel:DPModel",
    # names that the user's own module has imported, or that are not networks
    "{own}:os",
    "{own}:os.system",
    "{own}:system",
    "{own}:popen",
    "{own}:rmtree",
    "{own}:run_path",
    "{own}:pickle.loads",
    "{own}:subprocess.Popen",
    "{own}:pathlib.Path",
    "{own}:load",
    "{own}:hub.load",
    "{own}:torch.load",
    "{own}:GraphModule",
    "{own}:ScriptModule",
    "{own}:reduce_graph_module",
    "{own}:import_plugin",
    "{own}:load_checkpoint",
    "{own}:get_model",
    "{own}:create_model",
    "{own}:functools.partial",
    "{own}:half",
    "{own}:quarter",
    "{own}:Runner",
    "{own}:runner",
    "{own}:Odd",
    "{own}:Holder",
    "{own}:Holder.net",
    "{own}:Holder.run",
    "{own}:Holder.load",
    "{own}:network",
    "{own}:network.forward",
    "{own}:bound",
    "{own}:text",
    "{own}:text.format",
    "{own}:build.__globals__",
    "{own}:Net.mro",
    "{own}:Net.to",
    "{own}:Net.load_state_dict",
    # malformed
    "{own}",
    ":Net",
    "{own}:",
    "{own}:Net.",
    "{own}:.Net",
    "{own}:Net()",
    "{own}:Net:Inner",
    ".{own}:Net",
    "..{own}:Net",
    "./{own}:Net",
    "/tmp/{own}.py:Net",
    "{own}.py:Net",
    "{own}/../os:system",
    "os\0:system",
    " os:system",
    "\uff4f\uff53:system",
    "O\u017f:system",
]

HONEST = {
    "{own}:Net": 3,
    "{own}:Net.Inner": 4,
    "{own}:Net.wide": 30,
    "{own}:Net.narrow": 1,
    "{own}:build": 5,
    "{own}:cached": 6,
    "{own}:wrapped": 7,
    "{own}:decorated": 8,
    "{own}:tiny": 9,
    "{own}:tinier": 2,
    "{own}:short": 11,
    "own_package:Net": 3,
    "own_package:build": 5,
    "own_package.inner:build": 5,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the user's modules, on the path; the name of the module is unlike any other."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own_nets_of_a_user.py").write_text(OWN)
    (folder / "own_package").mkdir()
    (folder / "own_package" / "__init__.py").write_text("from own_package.inner import Net, build\n")
    (folder / "own_package" / "inner.py").write_text("from own_nets_of_a_user import Net\ndef build(): return Net(5)\n")
    for standard in ("antigravity", "this", "sched"):
        (folder / f"{standard}.py").write_text("raise AssertionError('imported')\n")
    sys.path.append(str(folder))
    yield "own_nets_of_a_user"
    sys.path.remove(str(folder))


_DEEDS = {"os.system", "os.fork", "os.exec", "os.posix_spawn", "subprocess.Popen", "shutil.rmtree", "pickle.find_class"}
_seen = None


@pytest.fixture(scope="module", autouse=True)
def _watch():
    # An audit hook cannot be removed, so it is added once and listens to `watched`.
    sys.addaudithook(lambda event, _: _seen.append(event) if _seen is not None and event in _DEEDS else None)


@pytest.fixture
def watched():
    """What the process does while a test runs that a network has no reason to do."""
    global _seen
    _seen = found = []
    yield found
    _seen = None


@pytest.mark.parametrize("spec", HOSTILE)
def test_what_builds_no_network_is_refused_before_it_is_called(project, watched, spec):
    loaded = set(sys.modules)
    with pytest.raises(ValueError, match="module") as refused:
        build_network(module=spec.replace("{own}", project), command="true")
    assert "called" not in str(refused.value).replace("was not called", "")
    assert "\n" not in str(refused.value)
    assert not watched
    standard = {name for name in set(sys.modules) - loaded if name in {"antigravity", "this", "code", "pip.__main__"}}
    assert not standard


@pytest.mark.parametrize(("spec", "width"), HONEST.items())
def test_classes_and_functions_of_the_project_build_networks(project, spec, width):
    assert build_network(module=spec.replace("{own}", project)).in_features == width


@pytest.mark.parametrize(
    "spec",
    [
        "torchvision.models:resnet18",
        "torchvision.models:vit_b_16",
        "torchvision.models.segmentation:fcn_resnet50",
        "timm.models:resnet18",
        "timm.models.vision_transformer:vit_tiny_patch16_224",
        "{own}:resnet18",
    ],
)
def test_annotated_functions_of_installed_packages_are_accepted(project, spec):
    pytest.importorskip(spec.split(":")[0].split(".")[0].replace("{own}", "torchvision"))
    assert callable(import_network(spec.replace("{own}", project)))


@pytest.mark.parametrize("name", [name for name in dir(nn) if isinstance(getattr(nn, name), type)])
def test_every_network_class_of_torch_is_accepted_and_no_other(name):
    if issubclass(getattr(nn, name), nn.Module):
        assert import_network(f"torch.nn:{name}") is getattr(nn, name)
    else:
        with pytest.raises(ValueError, match=r"not a torch\.nn\.Module"):
            import_network(f"torch.nn:{name}")


def test_a_file_that_shadows_the_standard_library_is_not_imported(project):
    del project
    with pytest.raises(ValueError, match="A file of your own must have a different name"):
        build_network(module="sched:Net")


def test_a_script_of_the_installation_is_not_imported(monkeypatch, tmp_path):
    (tmp_path / "activate_everything.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("dpmodel.config.user_code._SCRIPTS", tmp_path.resolve())
    with pytest.raises(ValueError, match="belongs to the Python installation"):
        build_network(module="activate_everything:Net")


def test_a_module_that_exits_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "script_that_exits.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="importing 'script_that_exits' failed: SystemExit"):
        build_network(module="script_that_exits:Net")


@pytest.mark.parametrize(
    ("annotation", "accepted"),
    [
        ("Installed", True),
        ("'Installed'", True),
        ("networks.Installed", True),
        ("nn.Module", False),
        ("nn.Sequential", False),
        ("GraphModule", False),
        ("Installed | None", False),
        ("dict", False),
        ("missing.Name", False),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_an_installed_function_must_return_a_network_class_of_its_package(
    tmp_path, monkeypatch, annotation, accepted, late
):
    name = f"installed_{abs(hash((annotation, late)))}"
    folder = tmp_path / "site-packages" / name
    folder.mkdir(parents=True)
    first = "from __future__ import annotations\n" if late else ""
    if annotation == "missing.Name" and not late:
        annotation = "'missing.Name'"
    (folder / "__init__.py").write_text(
        f"{first}import sys\nfrom torch import nn\nfrom torch.fx import GraphModule\n"
        "class Installed(nn.Linear): pass\n"
        "networks = sys.modules[__name__]\n"
        f"def build(n=3) -> {annotation}:\n    return Installed(n, 2)\n"
        "def unstated(n=3):\n    return Installed(n, 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    if accepted:
        assert build_network(module=f"{name}:build").in_features == 3
    else:
        with pytest.raises(ValueError, match="was not called: it is not known to build a network"):
            build_network(module=f"{name}:build")
    with pytest.raises(ValueError, match="was not called"):
        build_network(module=f"{name}:unstated")


def test_what_a_function_returns_must_be_a_network(monkeypatch, tmp_path):
    (tmp_path / "builds_a_dict.py").write_text("def build():\n    return {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=re.escape("built dict, which is not a torch.nn.Module")):
        build_network(module="builds_a_dict:build")


def test_an_object_that_pretends_to_be_a_network_is_refused(monkeypatch):
    class Pretender:
        __class__ = nn.Module  # type: ignore[assignment]

        def __call__(self):
            raise AssertionError("called")

    module = ModuleType("pretends_to_build")
    module.pretender = Pretender()
    module.partial = functools.partial(Pretender())
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "pretends_to_build", module)
    for name in ("pretender", "partial"):
        with pytest.raises(ValueError, match="module 'pretends_to_build"):
            build_network(module=f"pretends_to_build:{name}")
