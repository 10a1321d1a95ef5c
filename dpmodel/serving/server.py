"""Runs the application on a socket until a signal stops it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dpmodel.runs.predict import RunPredictor
from monitors.errors import ConfigError

#: Seconds that requests have left when the server is stopped.
GRACE = 10

#: Most connections at a time; further ones get HTTP 503.
CONNECTIONS = 1000

STOPPING = (signal.SIGINT, signal.SIGTERM)


def require_extra() -> None:
    """Refuse to serve without the packages of the extra ``serve``.

    Raises:
        ConfigError: One is missing; says what to install.
    """
    try:
        import fastapi  # noqa: F401
        import fastapi_offline  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'serving needs {error.name}; in the clone of dpmodel, run: pip install -e ".[serve]"'
        ) from error


def bound_socket(host: str, port: int, *, has_tokens: bool) -> socket.socket:
    """A socket that listens on ``host`` and ``port``; port 0 takes a free one.

    Raises:
        ConfigError: The address cannot be used, or is not of this machine alone and there are no tokens.
    """
    from dpmodel.serving.application import LOCAL_HOSTS

    if not has_tokens and host not in LOCAL_HOSTS:
        raise ConfigError(
            f"without a token file, the server answers on {' or '.join(LOCAL_HOSTS)} only, got host {host!r}: everyone "
            "who reaches it could spend the budget. Give tokens with --token-file"
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0] if has_tokens else socket.AF_INET
        # asyncio sends small answers at once only if the protocol is stated.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(CONNECTIONS)
        except BaseException:
            listening.close()
            raise
        return listening
    except (OSError, OverflowError) as error:
        raise ConfigError(f"the server cannot listen on {host} port {port}: {error}") from error


def serve(
    predictor: RunPredictor,
    listening: socket.socket,
    limits: Any,
    announce: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; then answer those that have begun, and close the ledger.

    Args:
        predictor: The network and its budget.
        listening: A socket that listens.
        limits: The ``Limits`` of the application.
        announce: Called when the server is about to accept requests.
    """
    import uvicorn

    from dpmodel.serving.application import create_app

    config = uvicorn.Config(
        create_app(predictor, limits),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(config)
    with _not_ended_by_signals():
        announce()
        server.run(sockets=[listening])


@contextmanager
def _not_ended_by_signals() -> Iterator[None]:
    """Let signals that uvicorn handled, and raises again after its graceful end, do nothing more."""
    before = {number: signal.signal(number, lambda *_: None) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
