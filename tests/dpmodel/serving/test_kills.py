"""A server that is killed under load has charged at least what its clients received."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dpmodel.prediction import query_status

from .conftest import Client

ROOT = Path(__file__).parents[3]
CLIENTS, ROWS = 4, 2

SERVER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from dpmodel.serving.application import Limits
from dpmodel.serving.server import bound_socket, serve
from tests.dpmodel.serving.conftest import predictor_for
torch.set_num_threads(1)
predictor = predictor_for(Path(sys.argv[1]), epsilon=1e4)
with bound_socket("127.0.0.1", 0, has_tokens=False) as listening:
    print(listening.getsockname()[1], flush=True)
    serve(predictor, listening, Limits(requests_per_minute=None))
print("closed", flush=True)
"""


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


def start(folder):
    """A server in a process of its own, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER.format(root=str(ROOT)), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return process, int(process.stdout.readline())


def end_under_load(folder, rows, number):
    """Rows that were received and rows that were sent before the signal ended the server, and what it printed last."""
    process, port = start(folder)
    with process:
        load = Load(port)
        load.wait_for(rows)
        process.send_signal(number)
        load.join()
        process.wait(60)
        return load.received, load.sent, process.stdout.read(), process.returncode


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
