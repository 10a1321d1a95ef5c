"""Fixtures and small models that many tests share."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections import Counter

import pytest
import torch
from torch import nn
from torch._library.custom_ops import OPDEFS
from torch.utils.data import DataLoader, TensorDataset


def pytest_configure():
    """Tests leave no marks in the user's folder, and SIGHUP reaches them, also under nohup."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ["DPMODEL_MARKS"] = os.path.join(tempfile.gettempdir(), f"dpmodel-test-marks-{os.getuid()}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Run every n-th case of a test marked ``sample(n)`` as a quick test, and mark the others as slow."""
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("sample")
        if mark is None or item.get_closest_marker("slow"):
            continue
        test = (item.path, item.originalname)
        if seen[test] % mark.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[test] += 1


#: Operators that test modules register when they are imported.
OPERATORS = {}


def pytest_collection_finish():
    """A training follows the operators of the whole process; those of other tests would make it slow."""
    OPERATORS.update((name, made) for name, made in OPDEFS.items() if made._init_fn.__module__.startswith("tests."))
    for name in OPERATORS:
        OPDEFS.pop(name, None)


@pytest.fixture(autouse=True)
def _operators(request):
    """Registers the operators of the test's own module, and of the part of a zoo from which its member is."""
    member = request.node.callspec.params.get("member") if hasattr(request.node, "callspec") else None
    for name, made in OPERATORS.items():
        home = made._init_fn.__module__
        kinds = {other.kind for other in getattr(sys.modules[home], "MEMBERS", ())}
        if home == request.module.__name__ or getattr(member, "kind", None) in kinds:
            OPDEFS[name] = made
    yield
    for name in OPERATORS:
        OPDEFS.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Nothing is kept in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPMODEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _fixed_public_randomness():
    """Weights and test data are the same in each run. Secret streams (noise, sampling) are not affected."""
    torch.manual_seed(0)


@pytest.fixture
def make_data():
    """Builds a small classification set that a linear model can learn."""

    def build(n=64, features=4, classes=3):
        x = torch.randn(n, features)
        centres = torch.randn(features, classes)
        return TensorDataset(x, (x @ centres).argmax(dim=1))

    return build


@pytest.fixture
def make_model():
    """Builds a small ``DPModel``; keyword arguments override its settings."""
    from dpmodel import DPModel, NoiseMechanismsFactory

    def build(network=None, loss_fn=None, lr=0.5, **options):
        network = network or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = options.pop("optimizer", None) or torch.optim.SGD(network.parameters(), lr=lr)
        options.setdefault("noise_mech", NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0))
        return DPModel(network, loss_fn or nn.CrossEntropyLoss(), optimizer, **options)

    return build


@pytest.fixture
def loader(make_data):
    """A plain shuffled loader of 64 examples in batches of 16."""
    return DataLoader(make_data(), batch_size=16, shuffle=True)


@pytest.fixture
def frequent_switches():
    """Let threads take turns often, so that they meet in the middle of a step."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)
