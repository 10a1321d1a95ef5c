"""The HTTP interface: queries, the budget, and whether the server can answer."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dpmodel.runs.predict import RunPredictor
from dpmodel.serving.batcher import QueryBatcher
from dpmodel.serving.clients import RequestLimit, Tokens
from dpmodel.serving.messages import Answers, Budget, Query, Refusal
from monitors import checks
from monitors.errors import BudgetExhausted, DataError, DPModelError

#: Hosts that a server without tokens answers for: a page of another site that points its name here is refused.
LOCAL_HOSTS = ("127.0.0.1", "localhost")

#: Most bytes of a body, per number of its rows and besides.
_BYTES_PER_NUMBER, _FURTHER_BYTES = 32, 2**16

_ABOUT = """
Labels, probabilities and top-k of a trained network.

After private training, answers are exact and free. Otherwise they follow from noisy logits, and each row is charged to
one budget for all clients, on the disk, before it is answered. Logits are never given.
"""


@dataclass(frozen=True)
class Limits:
    """Who may ask, and how much.

    Args:
        tokens: Tokens of the clients; None: everyone on this machine.
        requests_per_minute: Requests of each client; None: no limit.
        max_rows: Most rows of one request.

    Raises:
        ValueError: A number is not positive.
    """

    tokens: Tokens | None = None
    requests_per_minute: int | None = 600
    max_rows: int = 100

    def __post_init__(self) -> None:
        checks.positive_int(max_rows=self.max_rows)


class _RefusedError(Exception):
    """A request that is not answered, with its HTTP status."""

    def __init__(
        self, status: int, error: str, detail: str, *, headers: dict[str, str] | None = None, **budget: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers
        self.content = {"error": error, "detail": detail, **budget}


class _Service:
    """Checks requests and answers them.

    Args:
        predictor: The network and its budget.
        limits: Who may ask, and how much.
    """

    def __init__(self, predictor: RunPredictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.batcher = QueryBatcher(predictor.query, self._asked)
        self._limit = RequestLimit(limits.requests_per_minute)
        numbers = limits.max_rows * math.prod(predictor.inputs.shape)
        self._most_bytes = _BYTES_PER_NUMBER * numbers + _FURTHER_BYTES

    def admit(self, request: Request) -> None:
        """Refuse unknown clients, and those that ask too often."""
        client: int | None = -1
        if self.limits.tokens is not None:
            client = self.limits.tokens.client(request.headers.get("authorization"))
        if client is None:
            words = "send a valid token: Authorization: Bearer TOKEN"
            raise _RefusedError(401, "unauthorized", words, headers={"WWW-Authenticate": "Bearer"})
        wait = self._limit.wait(client)
        if wait > 0:
            words = f"at most {self.limits.requests_per_minute} requests a minute; try again in {math.ceil(wait)} s"
            raise _RefusedError(429, "too_many_requests", words, headers={"Retry-After": str(math.ceil(wait))})

    async def answer(self, request: Request) -> dict[str, Any]:
        """The answers to a request."""
        query = _parsed(await self._body(request))
        if len(query.rows) > self.limits.max_rows:
            words = f"at most {self.limits.max_rows} rows per request, got {len(query.rows)}; nothing was charged"
            raise _RefusedError(422, "bad_input", words)
        if query.top_k is not None and query.top_k > self.predictor.classes:
            raise _RefusedError(
                422, "bad_input", f"top_k must be at most {self.predictor.classes}, the number of classes"
            )
        try:
            found = await self.batcher.ask(self.predictor.rows(query.rows))
        except BudgetExhausted as error:
            budget = {name: getattr(error, name) for name in ("asked", "left", "spent", "epsilon", "delta")}
            raise _RefusedError(429, "budget_exhausted", str(error), **budget) from error
        except DataError as error:
            raise _RefusedError(422, "bad_input", f"{error}; nothing was charged") from error
        except (DPModelError, OSError) as error:
            words = "the server cannot record what it answers, so it answers nothing; its operator can see the reason"
            raise _RefusedError(503, "unavailable", words) from error
        return found.to_dict(probabilities=query.probabilities, top_k=query.top_k, threshold=query.threshold)

    def budget(self) -> dict[str, Any]:
        """What was charged, and what is left."""
        ledger = self.predictor.ledger
        found = {"free": self.predictor.mechanism.why_free is not None, "claim": self.predictor.explain()}
        if ledger is None:
            return found
        sums = {"asked": ledger.asked, "left": self.predictor.left, "spent": ledger.spent}
        return {**found, **sums, "epsilon": ledger.epsilon, "delta": ledger.delta}

    @property
    def is_ready(self) -> bool:
        """Whether queries can be charged."""
        return self.predictor.ledger is None or self.predictor.ledger.is_open

    async def close(self) -> None:
        """Answer what is waiting, then close the ledger."""
        await self.batcher.close()
        self.predictor.close()

    def _asked(self) -> int:
        return 0 if self.predictor.ledger is None else self.predictor.ledger.asked

    async def _body(self, request: Request) -> bytes:
        # A page of another site may send a form or plain text to a server on this machine, but no JSON.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise _RefusedError(415, "not_json", "send JSON, with the header Content-Type: application/json")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._most_bytes:
                words = f"a request has at most {self._most_bytes:,} bytes: {self.limits.max_rows} rows"
                raise _RefusedError(413, "too_large", words, headers={"Connection": "close"})
        return bytes(body)


def create_app(predictor: RunPredictor, limits: Limits | None = None) -> FastAPI:
    """The application; it closes the predictor when it ends.

    Args:
        predictor: The network and its budget.
        limits: Who may ask, and how much. Default: everyone on this machine.
    """
    service = _Service(predictor, Limits() if limits is None else limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPIOffline(redoc_url=None, title="dpmodel", description=_ABOUT, lifespan=lifespan)
    if service.limits.tokens is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_HOSTS))
    app.add_exception_handler(_RefusedError, _refused)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: _Service) -> None:
    schema = {"content": {"application/json": {"schema": Query.model_json_schema()}}, "required": True}
    token = [] if service.limits.tokens is None else [Depends(HTTPBearer(auto_error=False))]
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal} for status in (401, 413, 415, 422, 429, 503)
    }

    @app.post(
        "/predict",
        response_model=Answers,
        responses=refusals,
        openapi_extra={"requestBody": schema},
        dependencies=token,
        summary="Answer rows; each row is charged unless answers are free",
    )
    async def predict(request: Request) -> JSONResponse:
        service.admit(request)
        return JSONResponse(await service.answer(request))

    @app.get(
        "/budget",
        response_model=Budget,
        responses={401: refusals[401], 429: refusals[429]},
        dependencies=token,
        summary="What was charged over all clients, and what is left",
    )
    async def budget(request: Request) -> JSONResponse:
        service.admit(request)
        return JSONResponse(service.budget())

    @app.get("/health", summary="Whether queries can be answered", responses={503: {}})
    async def health() -> JSONResponse:
        ready = service.is_ready
        return JSONResponse({"status": "ok" if ready else "the ledger is closed"}, 200 if ready else 503)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, _RefusedError)
    return JSONResponse(error.content, error.status, headers=error.headers)


def _parsed(body: bytes) -> Query:
    try:
        return Query.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        words = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:5])
        raise _RefusedError(422, "bad_input", f"{words}; nothing was charged") from error
