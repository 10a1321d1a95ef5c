import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from mechanisms.chacha import backends, tensor_ops
from mechanisms.chacha.backends import Backend, backend_for, difference_in, require_known_answers
from monitors.errors import UnprotectedUpdateError

CPU = torch.device("cpu")
#: A device type for which Triton is tried, but whose tensors are on the CPU.
FIRST = types.SimpleNamespace(type="cuda")


def broken(**functions):
    sound = {name: getattr(tensor_ops, name) for name in ("reserve", "words", "add_singles", "write_coins")}
    return types.SimpleNamespace(**{**sound, **functions})


def wrong_word(key, start, blocks):
    found = tensor_ops.words(key, start, blocks)
    found[3, 17] ^= 1
    return found


def standing_counter(counter, blocks):
    return counter.clone()


def narrow(target, key, start, scale):
    tensor_ops.add_singles(target, key, start, 0.999 * scale)


def unscaled(target, key, start, scale):
    tensor_ops.add_singles(target, key, start, 1.0)


def missing_last(target, key, start, scale):
    tensor_ops.add_singles(target[:-1], key, start, scale)


def not_a_number(target, key, start, scale):
    target.fill_(float("nan"))


def other_threshold(out, key, start, threshold):
    tensor_ops.write_coins(out, key, start, 2**64 - threshold)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"words": wrong_word}, r"\(word, block\) on cpu \(3, 17\) is 0x\w+ instead of 0x\w+ \(1 of 4800 differ\)"),
        ({"reserve": standing_counter}, r"counter on cpu 1 is \d+ instead of \d+ \(1 of 2 differ\)"),
        ({"add_singles": narrow}, r"normal number on cpu \d+ is"),
        ({"add_singles": unscaled}, r"normal number on cpu 0 is"),
        ({"add_singles": missing_last}, r"normal number on cpu"),
        ({"add_singles": not_a_number}, r"normal number on cpu 0 is nan .*\(2997 of 2997 differ\)"),
        ({"write_coins": other_threshold}, r"coin on cpu \d+ is (True|False) instead of"),
    ],
)
def test_a_wrong_backend_is_refused_with_the_first_difference(functions, message):
    require_known_answers(broken(), CPU)
    with pytest.raises(UnprotectedUpdateError, match=message):
        require_known_answers(broken(**functions), CPU)


@pytest.fixture
def modules(monkeypatch):
    """Stand-ins for the backend modules; an exception is raised instead of importing one."""
    given = {}

    def imported(name):
        if isinstance(given[name], Exception):
            raise given[name]
        return given[name]

    monkeypatch.setattr(backends, "importlib", types.SimpleNamespace(import_module=imported))
    monkeypatch.setattr(backends, "require_known_answers", lambda backend, device: require_known_answers(backend, CPU))
    given.update({backends._MODULES["triton"]: broken(), backends._MODULES["torch"]: tensor_ops})
    return given


@pytest.mark.parametrize(
    "fault", [ModuleNotFoundError("No module named 'triton'"), RuntimeError("no C compiler"), broken(words=wrong_word)]
)
def test_if_triton_fails_torch_makes_the_same_stream_with_a_warning(modules, fault):
    modules[backends._MODULES["triton"]] = fault
    with pytest.warns(
        RuntimeWarning, match=r"made by torch operations, because .*(triton|C compiler|0x).*equally secret, but slower"
    ):
        assert backend_for.__wrapped__(FIRST) == ("torch", tensor_ops)


def test_triton_is_preferred_on_a_gpu_and_torch_on_the_cpu(modules, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend_for.__wrapped__(FIRST)[0] == "triton"
    assert backend_for.__wrapped__(CPU)[0] == "torch"


def test_without_a_correct_backend_nothing_is_drawn(modules):
    modules[backends._MODULES["triton"]] = RuntimeError("no C compiler")
    modules[backends._MODULES["torch"]] = broken(words=wrong_word)
    with pytest.warns(RuntimeWarning), pytest.raises(UnprotectedUpdateError, match="not used for noise"):
        backend_for.__wrapped__(FIRST)


def test_both_backends_implement_the_protocol():
    names = [name for name in vars(Backend) if not name.startswith("_")]
    assert names == ["reserve", "words", "add_singles", "write_coins"]
    assert all(callable(getattr(tensor_ops, name)) for name in names)


def test_the_index_of_the_first_difference_is_named():
    one, other = np.zeros((2, 3)), np.zeros((2, 3))
    assert difference_in("x", one, other) == ""
    other[1, 2] = other[1, 0] = 0.5
    assert difference_in("x", one, other, 0.5) == ""
    assert difference_in("x", one, other, 0.4) == "x (1, 0) is 0.0 instead of 0.5 (2 of 6 differ)"
    assert difference_in("x", one, other[:1]) == "x has shape (2, 3) instead of (1, 3)"


@pytest.mark.slow
def test_neither_importing_nor_drawing_on_the_cpu_loads_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; from mechanisms import SecureGenerator; "
        "SecureGenerator().normal(5); SecureGenerator().stream_on(torch.device('cpu')).coins(5, 9); "
        "print('triton' in sys.modules and not before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
