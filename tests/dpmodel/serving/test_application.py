"""The server over real sockets: one budget over all clients, and refusals that cost nothing."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
from contextlib import suppress

import pytest
import torch
from torch import nn

from dpmodel.prediction import query_status
from dpmodel.prediction.logits import POST_PROCESSING
from dpmodel.serving.application import Limits
from dpmodel.serving.clients import Tokens

from .conftest import Client, predictor_for, running

ROW = [0.5, -1.0, 2.0, 0.0]
TOKENS = ["first-token-of-a-client", "second-token-of-a-client"]


@pytest.fixture
def served(folder):
    """Port of a server, and its predictor."""
    predictor = predictor_for(folder)
    with running(predictor) as port:
        yield port, predictor


def test_rows_are_answered_and_charged(served, folder):
    client = Client(served[0])
    status, answer = client.post({"rows": [ROW, ROW], "probabilities": True, "top_k": 2, "threshold": 0.9})
    assert status == 200
    assert list(answer) == ["labels", "probabilities", "top_k", "confident"]
    for label, row, top, confident in zip(*answer.values(), strict=True):
        assert sum(row) == pytest.approx(1.0)
        assert row.index(max(row)) == label == top[0]
        assert confident == (label if max(row) >= 0.9 else -1)
    assert query_status(folder).asked == 2


def test_logits_are_never_given(served):
    predictor = served[1]
    query, given = predictor.mechanism.query, []
    predictor.mechanism.query = lambda *args: given.append(query(*args)) or given[-1]
    client = Client(served[0])
    _, answer = client.post({"rows": [ROW], "probabilities": True, "top_k": 3})
    scores = given[0].scores[0]
    shown = [
        value for values in answer.values() for row in values for value in (row if isinstance(row, list) else [row])
    ]
    assert not any(value == score for value in shown for score in scores.tolist())
    assert answer["probabilities"][0] == pytest.approx(scores.softmax(0).tolist())
    exact = predictor.mechanism.network(torch.tensor([ROW]))[0]
    assert not torch.allclose(scores.float(), exact - exact.mean(), atol=1e-3)
    assert client.post({"rows": [ROW], "logits": True})[0] == 422


def test_the_budget_is_stated_and_enforced_over_clients(folder):
    with running(predictor_for(folder, epsilon=1.0)) as port:
        first, second = Client(port), Client(port)
        left = first.get("/budget")[1]["left"]
        assert first.post({"rows": [ROW] * (left - 3)})[0] == 200
        status, refusal = second.post({"rows": [ROW] * 4})
        assert status == 429
        assert (refusal["error"], refusal["asked"], refusal["left"]) == ("budget_exhausted", 4, 3)
        assert 0 < refusal["spent"] <= refusal["epsilon"] == 1.0
        assert second.post({"rows": [ROW] * 3})[0] == 200
        assert first.post({"rows": [ROW]})[1]["left"] == 0
        status, budget = second.get("/budget")
        assert (status, budget["asked"], budget["left"], budget["free"]) == (200, left, 0, False)
        assert "Gaussian release" in budget["claim"]
    assert query_status(folder).asked == left


def test_concurrent_clients_never_get_more_than_the_budget(folder):
    predictor = predictor_for(folder, epsilon=1.0)
    left, given, refused = predictor.left, [], []

    def load(port):
        client = Client(port)
        for _ in range(left // 4):
            status, answer = client.post({"rows": [ROW]})
            (given if status == 200 else refused).append(answer)

    with running(predictor) as port:
        threads = [threading.Thread(target=load, args=(port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(given) == left == query_status(folder).asked
    assert {answer["error"] for answer in refused} == {"budget_exhausted"}


BAD = {
    "shape": {"rows": [[1.0, 2.0]]},
    "ragged": {"rows": [ROW, [1.0]]},
    "no rows": {"rows": []},
    "not a list": {"rows": 3},
    "text": {"rows": [["a", "b", "c", "d"]]},
    "null": {"rows": [[None, 1, 2, 3]]},
    "booleans": {"rows": [[True, False, True, True]]},
    "infinite": {"rows": [[1e39, 0, 0, 0]]},
    "huge": {"rows": [[10**400, 0, 0, 0]]},
    "NaN": b'{"rows": [[NaN, 0, 0, 0]]}',
    "too many": {"rows": [ROW] * 101},
    "too many classes": {"rows": [ROW], "top_k": 4},
    "no classes": {"rows": [ROW], "top_k": 0},
    "threshold": {"rows": [ROW], "threshold": 1.5},
    "a number as a flag": {"rows": [ROW], "probabilities": 1},
    "unknown": {"rows": [ROW], "temperature": 0.1},
    "nothing": b"",
    "no JSON": b"rows",
    "no object": b"[]",
    "too deep": b'{"rows": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "deep": b'{"rows": ' + b"[" * 100 + b"]" * 100 + b"}",
    "not UTF-8": b'{"rows": "\xff"}',
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server for requests that change nothing."""
    predictor = predictor_for(tmp_path_factory.mktemp("served") / "queries")
    with running(predictor) as port:
        yield port, predictor


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_and_costs_nothing(shared, kind):
    status, refusal = Client(shared[0]).post(BAD[kind])
    assert status == 422
    assert refusal["error"] == "bad_input"
    assert "nothing was charged" in refusal["detail"] or "top_k" in refusal["detail"]
    assert "1e+39" not in refusal["detail"]
    assert shared[1].ledger.asked == 0


def test_other_requests_are_refused_and_cost_nothing(shared):
    client = Client(shared[0])
    assert client.send("POST", "/predict", json.dumps({"rows": [ROW]}), {"Content-Type": "text/plain"})[0] == 415
    assert client.post({"rows": [ROW]}, Host="evil.example")[0] == 400
    assert client.get("/predict")[0] == 405
    assert client.get("/nothing")[0] == 404
    assert Client(shared[0]).post(b" " * 2**20)[0] == 413
    assert shared[1].ledger.asked == 0


def test_a_body_of_unknown_length_is_limited(shared):
    head = ("POST /predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    with socket.create_connection(("127.0.0.1", shared[0]), timeout=30) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        with suppress(ConnectionError):  # the server closes the connection before it has read everything
            for _ in range(4):
                connection.sendall(chunk)
        with suppress(ConnectionError), connection.makefile("rb") as answer:
            assert b"413" in answer.readline()
    assert Client(shared[0]).get("/health") == (200, {"status": "ok"})


def test_the_page_of_the_interface_needs_no_other_server(shared):
    client = Client(shared[0])
    status, page = client.get("/docs")
    assert status == 200
    assert "https://" not in page.replace('"https://fastapi', "")
    status, schema = client.get("/openapi.json")
    assert {"/predict", "/budget", "/health"} <= schema["paths"].keys()
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["rows"]
    script = page.partition('src="')[2].partition('"')[0]
    assert client.get(script)[0] == 200


def test_tokens_are_required(folder):
    predictor = predictor_for(folder)
    with running(predictor, Limits(Tokens(TOKENS), None)) as port:
        for client in (Client(port), Client(port, "a-token-that-is-wrong"), Client(port, TOKENS[0][:-1])):
            assert client.post({"rows": [ROW]})[0] == 401
            assert client.answer_headers["www-authenticate"] == "Bearer"
            assert client.get("/budget")[0] == 401
            assert client.get("/health")[0] == 200
        assert predictor.ledger.asked == 0
        for token in TOKENS:
            assert Client(port, token).post({"rows": [ROW]}, Host="service.example")[0] == 200


def test_each_token_has_a_limit_of_requests(folder):
    predictor = predictor_for(folder)
    with running(predictor, Limits(Tokens(TOKENS), 2)) as port:
        client = Client(port, TOKENS[0])
        assert [client.post({"rows": [ROW]})[0] for _ in range(2)] == [200, 200]
        status, refusal = client.post({"rows": [ROW]})
        assert (status, refusal["error"]) == (429, "too_many_requests")
        assert 0 < int(client.answer_headers["retry-after"]) <= 30
        assert Client(port, TOKENS[1]).post({"rows": [ROW]})[0] == 200
        assert predictor.ledger.asked == 3


def test_answers_after_private_training_are_exact_and_free(tmp_path):
    predictor = predictor_for(tmp_path / "queries")
    predictor.mechanism.why_free, predictor.mechanism.noise = POST_PROCESSING, None
    predictor.close()
    predictor.mechanism.ledger = None
    with running(predictor) as port:
        client = Client(port)
        status, answer = client.post({"rows": [ROW], "probabilities": True})
        exact = predictor.mechanism.network(torch.tensor([ROW])).double().softmax(1)
        assert status == 200
        assert answer["probabilities"][0] == pytest.approx(exact[0].tolist(), rel=1e-5)
        budget = client.get("/budget")[1]
        assert budget["free"] is True
        assert budget["claim"].startswith(POST_PROCESSING)


def test_repeated_queries_are_free_with_the_cache(folder):
    predictor = predictor_for(folder, cache=True)
    with running(predictor) as port:
        asked = {"rows": [ROW], "probabilities": True}
        answers = [Client(port).post(asked)[1] for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        assert predictor.ledger.asked == 1


class Picky(nn.Linear):
    """Fails on a row of zeros."""

    def forward(self, x):
        if (x == 0).all(1).any():
            raise IndexError("index out of range in self")
        return super().forward(x)


def test_rows_that_the_network_cannot_take_are_bad_input(folder):
    predictor = predictor_for(folder, network=Picky(4, 3))
    with running(predictor) as port:
        status, refusal = Client(port).post({"rows": [[0, 0, 0, 0]]})
        assert (status, refusal["error"]) == (422, "bad_input")
        assert "index out of range" not in refusal["detail"]
        assert Client(port).post({"rows": [ROW]})[0] == 200
        assert predictor.ledger.asked == 1


def test_broken_logits_are_charged_and_answered_with_noise(folder):
    network = nn.Linear(4, 3)
    nn.init.constant_(network.weight, math.nan)
    predictor = predictor_for(folder, network=network)
    with running(predictor) as port:
        status, answer = Client(port).post({"rows": [ROW], "probabilities": True})
    assert status == 200
    assert sum(answer["probabilities"][0]) == pytest.approx(1.0)
    assert query_status(folder).asked == 1


def test_a_charge_that_cannot_be_written_ends_all_answers(folder, monkeypatch):
    predictor = predictor_for(folder)
    with running(predictor) as port:
        client = Client(port)

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        status, refusal = client.post({"rows": [ROW]})
        monkeypatch.undo()
        assert (status, refusal["error"]) == (503, "unavailable")
        assert "No space" not in refusal["detail"]
        assert client.post({"rows": [ROW]})[0] == 503
        assert client.get("/health")[0] == 503
    assert query_status(folder).asked <= 1


def test_a_stopped_server_has_closed_its_ledger(folder):
    predictor = predictor_for(folder)
    with running(predictor) as port:
        Client(port).post({"rows": [ROW]})
    assert not predictor.ledger.is_open
    assert predictor_for(folder).ledger.asked == 1
