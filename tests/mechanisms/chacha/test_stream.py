import copy
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.chacha.stream import DeviceStream

CPU = torch.device("cpu")
MATERIAL = bytes(range(40))


def stream(start=0):
    return DeviceStream(MATERIAL, CPU, start)


DRAWS = {
    "float32": (lambda made, size: made.add_normal_(torch.zeros(size)), 10),
    "float64": (lambda made, size: made.add_normal_(torch.zeros(size, dtype=torch.float64)), 8),
    "bfloat16": (lambda made, size: made.add_normal_(torch.zeros(size, dtype=torch.bfloat16)), 8),
    "coins": (lambda made, size: made.coins(size, 2**63), 8),
}


@settings(max_examples=60, deadline=None)
@given(draws=st.lists(st.tuples(st.sampled_from(sorted(DRAWS)), st.integers(0, 100)), max_size=6))
def test_no_two_draws_use_the_same_block(draws):
    made, expected = stream(), 0
    for kind, size in draws:
        draw, per_block = DRAWS[kind]
        found = draw(made, size)
        assert torch.equal(found, draw(stream(expected), size))
        expected += -(-size // per_block)
        assert made.blocks == expected


def test_successive_draws_share_no_number():
    made = stream()
    first, second = (made.add_normal_(torch.zeros(1000)) for _ in range(2))
    assert not np.isin(first.numpy(), second.numpy()).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "scale", [0.0, 1e-35, 1e-3, 7.0, 1e35, torch.tensor(7.0), torch.tensor([7.0], dtype=torch.float64)]
)
def test_noise_of_the_stated_scale_is_added_to_the_target(dtype, scale):
    target = torch.full((40, 500), 2.0 * float(scale), dtype=dtype)
    assert stream().add_normal_(target, scale) is target
    numbers = target.double() - 2.0 * float(scale)
    assert float(numbers.std()) == pytest.approx(float(scale), rel=0.03, abs=1e-38)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_cannot_be_copied_or_pickled(copied):
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copied(stream())


def test_a_stream_cannot_be_used_in_a_forked_process():
    made = stream()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            made.add_normal_(torch.zeros(4))
            os.write(writer, b"drew numbers")
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert "forked process" in os.read(reader, 200).decode()


@pytest.mark.parametrize(
    "target", [torch.zeros(4, 4).t()[1:], torch.zeros(4, dtype=torch.int64), torch.zeros(4, device="meta")]
)
def test_an_unsuitable_target_is_refused_and_uses_no_block(target):
    made = stream()
    with pytest.raises(ValueError, match="contiguous floating-point tensor on cpu"):
        made.add_normal_(target)
    assert made.blocks == 0


@pytest.mark.parametrize("scale", [torch.ones(2), torch.ones((), device="meta")])
def test_an_unsuitable_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be a one-element tensor on cpu"):
        stream().add_normal_(torch.zeros(4), scale)


def test_a_key_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="40 bytes together, got 32"):
        DeviceStream(bytes(32), CPU)


def test_a_stream_made_in_inference_mode_also_draws_outside_of_it():
    with torch.inference_mode():
        made = stream()
    assert torch.equal(made.add_normal_(torch.zeros(9)), stream().add_normal_(torch.zeros(9)))
