import ctypes
import os
import sys

import numpy as np
import pytest

from mechanisms.fork import process_identity
from mechanisms.rng import SecureGenerator

FORKS = [
    pytest.param(os.fork, id="fork of Python"),
    pytest.param(
        lambda: ctypes.PyDLL(None).fork(),
        id="fork of other code",
        marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux clears memory in a child"),
    ),
]


def in_child(fork, action):
    """Bytes that ``action`` returns in a forked child."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.write(writer, action())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read()
    os.waitpid(child, 0)
    return found


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("seed", [0, 9])
def test_a_child_with_the_process_id_of_its_parent_draws_a_different_stream(monkeypatch, fork, seed):
    number = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: number)  # as in a PID namespace, where both may be process 1
    generator = SecureGenerator(seed)
    generator.words(1)
    theirs = np.frombuffer(in_child(fork, lambda: generator.words(8).tobytes()), dtype=np.uint64)
    assert len(theirs) == 8
    assert not np.isin(theirs, generator.words(16)).any()


@pytest.mark.parametrize("fork", FORKS)
def test_two_children_of_one_process_draw_different_streams(monkeypatch, fork):
    number = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: number)
    generator = SecureGenerator(9)
    one, other = (in_child(fork, lambda: generator.words(8).tobytes()) for _ in range(2))
    assert len(one) == len(other) == 64
    assert one != other


def test_a_grandchild_has_an_identity_unlike_those_of_its_parents(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    tokens = in_child(os.fork, lambda: process_identity()[1] + in_child(os.fork, lambda: process_identity()[1]))
    found = {process_identity()[1], tokens[:16], tokens[16:]}
    assert len(found) == 3


def test_the_identity_of_a_process_is_constant():
    assert process_identity() == process_identity()
