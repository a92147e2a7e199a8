"""What is read from a token, and the times that follow from it."""

from __future__ import annotations

import math

import pytest
from pydantic import SecretStr

from grok_oauth_proxy.credentials.token import Token, fresh_token, jwt_claims, read_token
from tests.credentials.fakes import HOUR, NOW, encoded, jwt, link


def token(*, issued: float = NOW, expires: float | None = NOW + HOUR) -> Token:
    return Token(SecretStr("t"), issued_at=issued, expires_at=expires)


@pytest.mark.parametrize(
    ("now", "remaining"),
    [
        (NOW, HOUR),
        (NOW + HOUR - 0.001, 0.001),
        (NOW + HOUR, 0.0),
        (NOW + HOUR + 0.001, -0.001),
        (NOW - 10, HOUR + 10),
    ],
    ids=["issued", "just-before", "at", "just-after", "clock-behind"],
)
def test_remaining(now: float, remaining: float) -> None:
    """What is left is counted to the very second of expiry, and beyond it as negative."""
    assert token().remaining(now) == pytest.approx(remaining, abs=1e-6)


def test_unknown_expiry() -> None:
    """A token that does not tell its expiry has no end, and no moment to refresh it at."""
    endless = token(expires=None)
    assert endless.remaining(NOW) == math.inf
    assert endless.lifetime == math.inf
    assert endless.remaining(NOW) > endless.refresh_window(300)


@pytest.mark.parametrize(
    ("lifetime", "configured", "window"),
    [
        (6 * HOUR, 300, 300),
        (6 * HOUR, HOUR, HOUR),
        (6 * HOUR, 2 * HOUR, 1.5 * HOUR),
        (15 * 60, 300, 225),
        (15 * 60, HOUR, 225),
        (1200, 300, 300),
        (1196, 300, 299),
        (40, 300, 10),
        (0, 300, 0),
        (-5, 300, 0),
        (6 * HOUR, 0, 1),
        (6 * HOUR, 0.5, 1),
        (10, 0, 0.5),
    ],
)
def test_refresh_window(lifetime: float, configured: float, window: float) -> None:
    """A token is refreshed no earlier than a quarter of its life before its end, and never too late."""
    assert token(expires=NOW + lifetime).refresh_window(configured) == window


HOSTILE_TIMES = {
    "text": "1800021600",
    "true": True,
    "null": None,
    "list": [NOW],
    "object": {"at": NOW},
    "zero": 0,
    "negative": -1,
    "beyond-all-calendars": 10**11,
    "huge": 10**400,
    "not-a-number": math.nan,
    "infinite": math.inf,
}


@pytest.mark.parametrize("value", HOSTILE_TIMES.values(), ids=HOSTILE_TIMES.keys())
def test_hostile_times(value: object) -> None:
    """A time of another type or out of all bounds counts as not told."""
    read = read_token(jwt(exp=value, iat=value))
    assert read.expires_at is None
    assert read.issued_at == 0.0


@pytest.mark.parametrize("value", [1, NOW, NOW + 0.5, 10**11 - 1])
def test_times(value: float) -> None:
    """A number of seconds is taken as it is."""
    read = read_token(jwt(exp=value, iat=value))
    assert (read.expires_at, read.issued_at) == (value, value)


CLIENTS = {
    "client-id": ({"client_id": "c", "aud": "a"}, "c"),
    "audience": ({"aud": "a"}, "a"),
    "audience-list": ({"aud": ["a", "b"]}, "a"),
    "empty-list": ({"aud": []}, None),
    "list-of-numbers": ({"aud": [1]}, None),
    "empty-text": ({"client_id": "", "aud": ""}, None),
    "empty-then-audience": ({"client_id": "", "aud": "a"}, "a"),
    "number": ({"client_id": 7, "aud": {"a": 1}}, None),
    "control-character": ({"client_id": "a\nb"}, None),
    "too-long": ({"client_id": "c" * 257}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize(("claims", "client"), CLIENTS.values(), ids=CLIENTS.keys())
def test_client_id(claims: dict[str, object], client: str | None) -> None:
    """The client is `client_id`, else the first `aud`; what could not be one counts as absent."""
    assert read_token(jwt(**claims)).client_id == client


@pytest.mark.parametrize(("claims", "client"), CLIENTS.values(), ids=CLIENTS.keys())
def test_client_id_of_the_id_token(claims: dict[str, object], client: str | None) -> None:
    """The id token names the client where the access token does not."""
    assert read_token("opaque", id_token=jwt(**claims)).client_id == client
    assert read_token(jwt(client_id="own"), id_token=jwt(**claims)).client_id == "own"


def test_principal() -> None:
    """A team's principal is read, and only from text."""
    read = read_token(jwt(principal_type="Team", principal_id="team-7"))
    assert (read.principal_type, read.principal_id) == ("Team", "team-7")
    read = read_token(jwt(principal_type=["Team"], principal_id=7))
    assert (read.principal_type, read.principal_id) == (None, None)


NOT_A_JWT = {
    "empty": "",
    "opaque": "xai-opaque-token",
    "two-segments": f"{encoded({})}.{encoded({'exp': 1})}",
    "four-segments": f"{jwt(exp=1)}.more",
    "not-base64": "a.!!!.c",
    "not-json": f"a.{encoded('{')}.c",
    "not-utf-8": "a._w.c",
    "not-ascii": "a.é.c",
    "a-surrogate": "a.\ud800.c",
    "a-list": f"a.{encoded([{'exp': 1}])}.c",
    "text": f"a.{encoded('')}.c",
    "a-number": f"a.{encoded(1)}.c",
    "deeply-nested": f"a.{encoded('[' * 40_000)}.c",
    "deep-and-closed": f"a.{encoded('[' * 20_000 + ']' * 20_000)}.c",
    "number-of-5000-digits": f"a.{encoded('9' * 5000)}.c",
    "too-long": f"a.{encoded({'exp': 1, 'x': 'y' * 65536})}.c",
}


@pytest.mark.parametrize("text", NOT_A_JWT.values(), ids=NOT_A_JWT.keys())
def test_not_a_jwt(text: str) -> None:
    """What is no JWT has no claims; the token is still usable, its expiry unknown."""
    assert jwt_claims(text) == {}
    assert read_token(text).expires_at is None
    assert read_token(text).bearer.get_secret_value() == text


@pytest.mark.parametrize("length", range(20, 24))
def test_padding(length: int) -> None:
    """Claims are read whatever padding their length lacks."""
    assert jwt_claims(jwt(sub="x" * length)) == {"sub": "x" * length}


FRESH = {
    # claims of the JWT, expires_in, seconds from now to the expiry that is used
    "clocks-agree": ({"iat": NOW, "exp": NOW + 6 * HOUR}, 21600, 6 * HOUR),
    "no-expires-in": ({"iat": NOW, "exp": NOW + 6 * HOUR}, None, 6 * HOUR),
    "exp-beats-expires-in": ({"iat": NOW, "exp": NOW + 6 * HOUR}, 60, 6 * HOUR),
    "local-clock-a-little-ahead": ({"iat": NOW - 90, "exp": NOW + 6 * HOUR - 90}, 21600, 6 * HOUR - 90),
    "half-a-life-ahead": ({"iat": NOW - 3 * HOUR, "exp": NOW + 3 * HOUR}, None, 3 * HOUR),
    "more-than-half-ahead": ({"iat": NOW - 3.1 * HOUR, "exp": NOW + 2.9 * HOUR}, None, 6 * HOUR),
    "looks-expired": ({"iat": NOW - 24 * HOUR, "exp": NOW - 18 * HOUR}, None, 6 * HOUR),
    "local-clock-behind": ({"iat": NOW + 24 * HOUR, "exp": NOW + 30 * HOUR}, None, 6 * HOUR),
    "no-iat": ({"exp": NOW + 6 * HOUR}, 21600, 6 * HOUR),
    "no-iat-looks-expired": ({"exp": NOW - HOUR}, 900, 900),
    "no-iat-no-expires-in": ({"exp": NOW + HOUR}, None, HOUR),
    "no-exp": ({"iat": NOW}, 900, 900),
    "no-exp-no-expires-in": ({"iat": NOW}, None, None),
    "nothing": ({}, None, None),
}


@pytest.mark.parametrize(("claims", "expires_in", "left"), FRESH.values(), ids=FRESH.keys())
def test_fresh_token(claims: dict[str, object], expires_in: float | None, left: float | None) -> None:
    """`exp` decides, unless the local clock is out by more than half the token's life."""
    fresh = fresh_token(jwt(**claims), expires_in=expires_in, now=NOW)
    assert fresh.issued_at == NOW
    assert fresh.expires_at == (None if left is None else pytest.approx(NOW + left, abs=0.01))


def test_fresh_token_keeps_what_it_says() -> None:
    """Client and principal of a new token are those of its claims."""
    fresh = fresh_token(jwt(client_id="c", principal_type="Team", principal_id="t"), expires_in=1, now=NOW)
    assert (fresh.client_id, fresh.principal_type, fresh.principal_id) == ("c", "Team", "t")


def test_fingerprint() -> None:
    """A link is named by its refresh token alone, and the name does not reveal it."""
    one = link("refresh-canary")
    assert one.fingerprint == link("refresh-canary", issued=NOW + 9).fingerprint
    assert one.fingerprint != link("refresh-canary2").fingerprint
    assert len(one.fingerprint) == 32
    assert "canary" not in one.fingerprint


def test_repr_hides_secrets() -> None:
    """Printing a grant shows neither of its tokens."""
    grant = link("refresh-canary")
    assert "canary" not in repr(grant)
    assert grant.token.bearer.get_secret_value() not in f"{grant!r} {grant} {grant.token!r}"
