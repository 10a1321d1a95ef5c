"""A server that is killed under load has charged at least what its clients received."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time

import pytest
import torch

from dpmodel.prediction import query_status
from dpmodel.serving.application import Limits
from dpmodel.serving.server import bound_socket, serve

from .conftest import Client, predictor_for

CLIENTS, ROWS = 4, 2


class Load:
    """Clients that ask as fast as they can until the server is gone, and count the rows that they received."""

    def __init__(self, port):
        self.received = self.sent = 0
        self._guard = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(port,)) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, port):
        client = Client(port)
        while True:
            with self._guard:
                self.sent += ROWS
            try:
                status, answer = client.post({"rows": [[0.5, 1.0, 2.0, 3.0]] * ROWS})
            except (OSError, http.client.HTTPException):
                return
            if status != 200:
                return
            with self._guard:
                self.received += len(answer["labels"])

    def wait_for(self, rows):
        deadline = time.monotonic() + 60
        while self.received < rows:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def join(self):
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def answer(folder, printed):
    """A server, until a signal ends it; writes its port, and a last line."""
    torch.set_num_threads(1)
    predictor = predictor_for(folder, epsilon=1e4)
    with bound_socket("127.0.0.1", 0, has_tokens=False) as listening:
        os.write(printed, b"%d\n" % listening.getsockname()[1])
        serve(predictor, listening, Limits(requests_per_minute=None))
    os.write(printed, b"closed\n")


def start(folder):
    """A server in a process of its own, what it writes, and its port."""
    read, printed = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            answer(folder, printed)
            code = 0
        finally:
            os._exit(code)
    os.close(printed)
    output = os.fdopen(read)
    return process, output, int(output.readline())


def end_under_load(folder, rows, number):
    """Rows that were received and rows that were sent before the signal ended the server, and what it printed last."""
    process, output, port = start(folder)
    with output:
        load = Load(port)
        load.wait_for(rows)
        os.kill(process, number)
        load.join()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return load.received, load.sent, output.read(), code


def kills(folder, moments):
    received = sent = 0
    for rows in moments:
        more = end_under_load(folder, rows, signal.SIGKILL)
        received, sent = received + more[0], sent + more[1]
        assert more[3] == -signal.SIGKILL
        assert received <= query_status(folder).asked <= sent


def test_a_killed_server_has_charged_all_that_was_received(folder):
    kills(folder, [60])


@pytest.mark.slow
def test_no_kill_under_load_leaves_too_small_a_charge(folder):
    kills(folder, [1 + 37 * number % 400 for number in range(12)])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_answers_what_has_begun_and_closes_the_ledger(folder, number):
    received, sent, printed, code = end_under_load(folder, 40, number)
    assert (printed, code) == ("closed\n", 0)
    assert received <= query_status(folder).asked <= sent
    assert not (folder / ".lock").exists()
