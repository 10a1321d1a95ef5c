"""Tokens are compared in constant time and never kept; limits refill."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmodel.serving.clients import RequestLimit, Tokens
from monitors.errors import ConfigError

GOOD = ["first-token-of-a-client", "second-token-of-a-client"]


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (f"Bearer {GOOD[0]}", 0),
        (f"bearer  {GOOD[1]} ", 1),
        (f"Basic {GOOD[0]}", None),
        (GOOD[0], None),
        (f"Bearer {GOOD[0][:-1]}", None),
        ("Bearer ", None),
        ("Bearer \udcff", None),
        (None, None),
    ],
)
def test_a_header_names_a_client(header, client):
    assert Tokens(GOOD).client(header) == client


def test_each_token_is_compared_in_constant_time(monkeypatch):
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(other) or compare(one, other))
    tokens = Tokens(GOOD)
    for header in (f"Bearer {GOOD[0]}", "Bearer wrong", None):
        tokens.client(header)
    assert len(compared) == 3 * len(GOOD)


def test_tokens_are_not_kept():
    assert not any(token in str(vars(Tokens(GOOD))) for token in GOOD)


@pytest.mark.parametrize("tokens", [[], ["short"], ["with spaces in the token"], [GOOD[0], GOOD[0]]])
def test_weak_tokens_are_refused(tokens):
    with pytest.raises(ConfigError, match="secrets"):
        Tokens(tokens)


def test_tokens_are_read_from_a_private_file(tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text(f"# clients\n\n{GOOD[0]}\n  {GOOD[1]}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens.read(file)
    file.chmod(0o600)
    assert Tokens.read(file).client(f"Bearer {GOOD[1]}") == 1
    file.write_text("short\n")
    with pytest.raises(ConfigError, match=r"tokens\.txt: token 1"):
        Tokens.read(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.read(tmp_path / "missing")


@given(st.integers(1, 20), st.lists(st.floats(0.0, 30.0), min_size=1, max_size=60))
def test_no_minute_has_more_than_twice_the_requests_and_none_waits_longer_than_told(per_minute, pauses):
    now, let_through = [0.0], []
    limit = RequestLimit(per_minute, clock=lambda: now[0])
    for pause in pauses:
        now[0] += pause
        wait = limit.wait("client")
        if wait:
            assert limit.wait("other") >= 0
            now[0] += wait * (1 + 1e-9)
            assert limit.wait("client") == 0.0
        let_through.append(now[0])
    for start in let_through:
        assert sum(start <= each < start + 60.0 for each in let_through) <= 2 * per_minute


def test_clients_have_limits_of_their_own():
    limit = RequestLimit(1, clock=lambda: 0.0)
    assert limit.wait("a") == 0.0
    assert limit.wait("a") == pytest.approx(60.0)
    assert limit.wait("b") == 0.0
    assert RequestLimit(None).wait("a") == 0.0
    with pytest.raises(ValueError, match="per_minute"):
        RequestLimit(0)
