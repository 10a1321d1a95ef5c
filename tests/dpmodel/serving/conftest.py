"""A server in a thread of this process, and a client."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager

import pytest
import torch
import uvicorn
from torch import nn

from dpmodel.data.input_form import InputForm
from dpmodel.prediction import DPLogits, QueryLedger
from dpmodel.runs.predict import RunPredictor
from dpmodel.serving.application import Limits, create_app
from dpmodel.serving.server import bound_socket
from monitors import GaussianEvent, Ledger, privacy_spent

FORM = InputForm((4,), "float32", 3)


class Client:
    """Sends requests over one connection, and reads the answers."""

    def __init__(self, port, token=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def get(self, path, **headers):
        return self.send("GET", path, None, headers)

    def post(self, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", "/predict", data, {"Content-Type": "application/json", **headers})

    def send(self, method, path, data, headers):
        self.connection.request(method, path, data, {**self.headers, **headers})
        response = self.connection.getresponse()
        self.answer_headers = response.headers
        text = response.read()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode()


def predictor_for(folder, *, epsilon=8.0, noise_multiplier=20.0, cache=False, network=None):
    """A predictor of a small network that was trained without privacy."""
    torch.manual_seed(0)
    ledger = QueryLedger(folder, epsilon, 1e-5)
    mechanism = DPLogits(network or nn.Linear(4, 3), noise_multiplier=noise_multiplier, ledger=ledger, cache=cache)
    spent = privacy_spent(Ledger().record(GaussianEvent(1.0)), 1e-5)
    return RunPredictor(mechanism, FORM, {}, spent, 3)


@contextmanager
def running(predictor, limits=None):
    """The port of a server that answers with ``predictor``; it is stopped at the end."""
    limits = limits or Limits(requests_per_minute=None)
    listening = bound_socket("127.0.0.1", 0, has_tokens=False)
    config = uvicorn.Config(create_app(predictor, limits), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        predictor.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "queries"
