"""Who may ask, and how often: tokens and limits of requests."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from monitors import checks
from monitors.errors import ConfigError
from monitors.untrusted import read_text

#: Fewest characters of a token.
FEWEST_CHARACTERS = 16

_SECONDS = 60.0

_HOW_TO_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Tokens:
    """The tokens of clients; only their digests are kept, and all are compared in constant time.

    Args:
        tokens: At least one, each of at least 16 characters without spaces.

    Raises:
        ConfigError: One is too short or holds spaces, two are equal, or there is none.

    Example:
        >>> tokens = Tokens(["a-long-enough-token", "another-long-token"])
        >>> tokens.client("Bearer another-long-token"), tokens.client("Bearer wrong"), tokens.client(None)
        (1, None, None)
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        listed = list(tokens)
        for number, token in enumerate(listed, start=1):
            if len(token) < FEWEST_CHARACTERS or len(token.split()) != 1:
                raise ConfigError(
                    f"token {number} must have at least {FEWEST_CHARACTERS} characters and no spaces; make one with "
                    f"{_HOW_TO_MAKE}"
                )
        if not listed or len(set(listed)) != len(listed):
            raise ConfigError(f"there must be at least one token, and no two equal ones; make one with {_HOW_TO_MAKE}")
        self._digests = [_digest(token) for token in listed]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Tokens:
        """The tokens in a file: one a line; empty lines and lines that begin with # are skipped.

        Raises:
            ConfigError: The file cannot be read, is readable by other users, or holds no valid tokens.
        """
        file = Path(path)
        try:
            mode = file.stat().st_mode
            lines = [line.strip() for line in read_text(file).splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"the token file {file} cannot be read: {error}") from error
        if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
            raise ConfigError(f"the token file {file} is readable by other users; chmod 600 {file}")
        try:
            return cls(line for line in lines if line and not line.startswith("#"))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    def client(self, authorization: str | None) -> int | None:
        """The number of the client whose token an ``Authorization`` header holds; None if it holds none of them."""
        scheme, _, token = (authorization or "").partition(" ")
        given, found = _digest(token.strip()), None
        for number, digest in enumerate(self._digests):  # all of them, so that the time tells nothing
            if hmac.compare_digest(given, digest):
                found = number
        return found if scheme.lower() == "bearer" else None


class RequestLimit:
    """Lets each client send a number of requests a minute; unused ones may follow at once, up to that number.

    Args:
        per_minute: Requests a minute; None: no limit.
        clock: Seconds that never run backwards.

    Example:
        >>> limit = RequestLimit(2, clock=lambda: 0.0)
        >>> limit.wait("a"), limit.wait("a"), limit.wait("a"), limit.wait("b")
        (0.0, 0.0, 30.0, 0.0)
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        checks.positive_int(**{} if per_minute is None else {"per_minute": per_minute})
        self._per_minute, self._clock = per_minute, clock
        self._left: dict[object, tuple[float, float]] = {}

    def wait(self, client: object) -> float:
        """Seconds until ``client`` may send a request; 0 lets it through, and counts it."""
        if self._per_minute is None:
            return 0.0
        now, rate = self._clock(), self._per_minute / _SECONDS
        left, since = self._left.get(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - since) * rate)
        if left < 1.0:
            self._left[client] = left, now
            return (1.0 - left) / rate
        self._left[client] = left - 1.0, now
        return 0.0


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
