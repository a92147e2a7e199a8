"""What the authorization server's answers mean, and what it is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import httpx
import pytest
from pydantic import SecretStr

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.oauth import (
    AuthorizationServer,
    NotEntitled,
    Outcome,
    Refreshed,
    Terminal,
    Transient,
    judge,
)
from grok_oauth_proxy.credentials.token import Grant, read_token
from grok_oauth_proxy.sim.rejections import cloudflare_page
from tests.credentials.fakes import HOUR, LIFETIME, NOW, bearer, jwt, link, name_of
from tests.sim.harness import CLIENT, NO_CERTIFICATES, Json, Sim, running

OLD = link("refresh-old")
ACCESS = bearer("new")


def said(reply: object) -> bytes:
    return json.dumps(reply).encode()


def judged(status: int, body: bytes, **headers: str) -> Outcome:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return judge(OLD, status, httpx.Headers(raw), body, now=NOW)


HTML = cloudflare_page(403)

VERDICTS: dict[str, tuple[int, bytes, Outcome]] = {
    "invalid-grant": (400, said({"error": "invalid_grant"}), Terminal("invalid_grant")),
    "invalid-grant-401": (401, said({"error": "invalid_grant"}), Terminal("invalid_grant")),
    "invalid-grant-403": (403, said({"error": "invalid_grant"}), Terminal("invalid_grant")),
    "invalid-client": (401, said({"error": "invalid_client"}), Terminal("invalid_client")),
    "revoked": (
        400,
        said({"error": "invalid_grant", "error_description": "Refresh token has been revoked"}),
        Terminal("invalid_grant"),
    ),
    "not-entitled": (403, said({"error": "access_denied"}), NotEntitled()),
    "not-entitled-without-error": (403, said({"message": "no"}), NotEntitled()),
    "403-html": (403, HTML, Transient("not_json")),
    "403-html-quoting-a-verdict": (403, b'<p>{"error":"invalid_grant"}</p>', Transient("not_json")),
    "403-empty": (403, b"", Transient("empty_reply")),
    "403-json-text": (403, said("invalid_grant"), Transient("not_json")),
    "403-json-list": (403, said(["invalid_grant"]), Transient("not_json")),
    "400-html": (400, HTML, Transient("not_json")),
    "400-empty": (400, b"", Transient("empty_reply")),
    "400-torn": (400, b'{"error": "invalid_gr', Transient("not_json")),
    "400-text": (400, b"invalid_grant", Transient("not_json")),
    "400-deep": (400, b"[" * 100_000, Transient("not_json")),
    "400-not-utf-8": (400, b'{"error": "\xff"}', Transient("not_json")),
    "nested": (400, said({"error": {"code": "invalid_grant"}}), Transient("http_400")),
    "error-number": (400, said({"error": 400}), Transient("http_400")),
    "error-list": (400, said({"error": ["invalid_grant"]}), Transient("http_400")),
    "error-boolean": (400, said({"error": True}), Transient("http_400")),
    "error-null": (400, said({"error": None}), Transient("http_400")),
    "error-in-description": (400, said({"error_description": "invalid_grant"}), Transient("http_400")),
    "error-upper-case": (400, said({"error": "INVALID_GRANT"}), Transient("http_400")),
    "error-with-blank": (400, said({"error": "invalid_grant "}), Transient("http_400")),
    "invalid-request": (400, said({"error": "invalid_request"}), Transient("http_400")),
    "unauthorized-client": (400, said({"error": "unauthorized_client"}), Transient("http_400")),
    "unavailable": (400, said({"error": "temporarily_unavailable"}), Transient("http_400")),
    "429": (429, said({"error": "slow_down"}), Transient("http_429")),
    "429-invalid-grant": (429, said({"error": "invalid_grant"}), Transient("http_429")),
    "500-invalid-grant": (500, said({"error": "invalid_grant"}), Transient("http_500")),
    "502-html": (502, cloudflare_page(502), Transient("http_502")),
    "503-invalid-client": (503, said({"error": "invalid_client"}), Transient("http_503")),
    "530": (530, b"", Transient("http_530")),
    "redirect": (302, b"", Transient("empty_reply")),
    "created": (201, said({"access_token": ACCESS}), Transient("http_201")),
    "200-empty": (200, b"", Transient("malformed_reply")),
    "200-torn": (200, b'{"access_token": "eyJ', Transient("malformed_reply")),
    "200-html": (200, HTML, Transient("malformed_reply")),
    "200-list": (200, said([ACCESS]), Transient("malformed_reply")),
    "200-object": (200, said({}), Transient("malformed_reply")),
    "200-invalid-grant": (200, said({"error": "invalid_grant"}), Transient("malformed_reply")),
    "no-access-token": (200, said({"refresh_token": "r", "expires_in": 9}), Transient("malformed_reply")),
    "access-token-number": (200, said({"access_token": 7}), Transient("malformed_reply")),
    "access-token-empty": (200, said({"access_token": ""}), Transient("malformed_reply")),
    "access-token-null": (200, said({"access_token": None}), Transient("malformed_reply")),
    "access-token-line-break": (200, said({"access_token": "a\r\nb"}), Transient("malformed_reply")),
    "access-token-blank": (200, said({"access_token": "a b"}), Transient("malformed_reply")),
    "access-token-not-ascii": (200, said({"access_token": "é"}), Transient("malformed_reply")),
    "access-token-endless": (200, said({"access_token": "a" * 300_000}), Transient("malformed_reply")),
}


@pytest.mark.parametrize(("status", "body", "outcome"), VERDICTS.values(), ids=VERDICTS.keys())
def test_verdict(status: int, body: bytes, outcome: Outcome) -> None:
    """Two codes end a grant, 403 with JSON means not entitled, and whatever else is no token is transient."""
    assert judged(status, body) == outcome


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("86400", 300.0),
        ("9" * 400, 300.0),
        ("-1", None),
        ("1.5", None),
        ("\u00b2", None),
        ("soon", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_retry_after(status: int, value: str, seconds: float | None) -> None:
    """Retry-After counts in whole seconds, up to five minutes; what is no number is not obeyed."""
    assert judged(status, b"", **{"retry-after": value}) == Transient(f"http_{status}", seconds)


def accepted(**fields: object) -> Refreshed:
    outcome = judged(200, said({"access_token": ACCESS, **fields}))
    assert isinstance(outcome, Refreshed)
    return outcome


def test_rotation() -> None:
    """A whole reply gives the new link, its expiry by the JWT."""
    outcome = accepted(
        refresh_token="refresh-new", id_token="identity", token_type="Bearer", expires_in=21600, scope="x"
    )
    grant = outcome.grant
    assert outcome.rotated
    assert grant.token.bearer.get_secret_value() == ACCESS
    assert grant.token.issued_at == NOW
    assert grant.token.expires_at == NOW + LIFETIME
    assert name_of(grant) == "refresh-new"
    assert grant.id_token == SecretStr("identity")
    assert (grant.token_type, grant.expires_in) == ("Bearer", 21600)


@pytest.mark.parametrize("value", [None, "", 7, [], {}, "a\nb"], ids=repr)
def test_refresh_token_is_kept(value: object) -> None:
    """Without a usable refresh token in the reply the old one stays, and nothing has rotated."""
    for outcome in (accepted(refresh_token=value), accepted()):
        assert name_of(outcome.grant) == "refresh-old"
        assert not outcome.rotated


def test_same_refresh_token() -> None:
    """A server that repeats the refresh token has not rotated it."""
    assert not accepted(refresh_token="refresh-old").rotated


def test_id_token_is_kept() -> None:
    """The id token stays when the reply has none."""
    old = Grant(OLD.token, OLD.refresh_token, id_token=SecretStr("identity"))
    outcome = judge(old, 200, httpx.Headers(), said({"access_token": ACCESS}), now=NOW)
    assert isinstance(outcome, Refreshed)
    assert outcome.grant.id_token == SecretStr("identity")


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        -1,
        10**9,
        10**400,
        1e999,
        "21600",
        [],
        True,
    ],
    ids=["absent", "zero", "negative", "30-years", "huge", "infinite", "text", "list", "true"],
)
def test_absurd_expires_in(value: object) -> None:
    """A lifetime that can't be meant is no lifetime; the JWT's `exp` stands, and nothing breaks."""
    grant = accepted(expires_in=value).grant
    assert grant.expires_in is None
    assert grant.token.expires_at == NOW + LIFETIME


def test_opaque_token() -> None:
    """An access token that is no JWT lives as long as the reply says, or until it is refused."""
    for fields, expiry in (({"expires_in": 900}, NOW + 900), ({}, None)):
        outcome = judged(200, said({"access_token": "opaque", **fields}))
        assert isinstance(outcome, Refreshed)
        assert outcome.grant.token.expires_at == expiry


# Over a real socket, against the simulator.


@pytest.fixture(scope="module")
def sim_process() -> Iterator[Sim]:
    with running() as sim:
        yield sim


@pytest.fixture
def sim(sim_process: Sim) -> Sim:
    sim_process.reset()
    return sim_process


@asynccontextmanager
async def authorization_server(
    issuer: str, *, allow_loopback: bool = True, patience: float = 5.0
) -> AsyncIterator[AuthorizationServer]:
    async with httpx.AsyncClient(trust_env=False, verify=NO_CERTIFICATES) as client:
        yield AuthorizationServer(
            client, issuer, allow_loopback=allow_loopback, connect_timeout=patience, clock=Clock()
        )


async def refreshed(server: AuthorizationServer, grant: Grant, client_id: str) -> Outcome:
    """What the manager does: find out where to ask, then ask."""
    await server.discover()
    return await server.refresh(grant, client_id)


def grant_of(tokens: Json) -> Grant:
    return Grant(token=read_token(tokens["access_token"]), refresh_token=SecretStr(tokens["refresh_token"]))


def fault(sim: Sim, kind: str) -> None:
    sim.http.post("/_sim/token-faults", json={"kind": kind}).raise_for_status()


@pytest.mark.anyio
async def test_refresh_for_real(sim: Sim) -> None:
    """A refresh spends the link once and brings one that works."""
    grant = grant_of(sim.login())
    async with authorization_server(sim.url) as server:
        first = await refreshed(server, grant, CLIENT)
        assert isinstance(first, Refreshed)
        assert first.rotated
        assert sim.status_of(first.grant.token.bearer.get_secret_value()) == 200
        second = await refreshed(server, first.grant, CLIENT)
        assert isinstance(second, Refreshed)
    counters = sim.counters()
    assert (counters["refreshes"], counters["reuses"], counters["token_requests"]) == (2, 0, 2)


@pytest.mark.anyio
async def test_team(sim: Sim) -> None:
    """A team's grant is refreshed with its principal named; without it the server would refuse."""
    grant = grant_of(sim.login(principal_type="Team", principal_id="team-7"))
    async with authorization_server(sim.url) as server:
        assert isinstance(await refreshed(server, grant, CLIENT), Refreshed)
    unnamed = sim.login(principal_type="Team", principal_id="team-7")
    assert sim.refresh(unnamed["refresh_token"]).status_code == 400


@pytest.mark.anyio
async def test_wrong_client(sim: Sim) -> None:
    """What the server says of a client it does not know is a verdict."""
    async with authorization_server(sim.url) as server:
        assert isinstance(await refreshed(server, grant_of(sim.login()), "somebody-else"), Terminal)


FAULTS = {
    "429": Transient("http_429", 1.0),
    "500": Transient("http_500"),
    "502-html": Transient("http_502"),
    "403-json": NotEntitled(),
    "403-html": Transient("not_json"),
    "empty": Transient("malformed_reply"),
    "malformed": Transient("malformed_reply"),
    "nested-error": Transient("http_400"),
    "nonstring-error": Transient("http_400"),
    "temporarily_unavailable": Transient("http_503"),
    "invalid_grant": Terminal("invalid_grant"),
    "invalid_client": Terminal("invalid_client"),
    "drop-before": Transient("broken_off"),
    "drop-after": Transient("broken_off"),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("kind", "outcome"), FAULTS.items(), ids=FAULTS.keys())
async def test_fault(sim: Sim, kind: str, outcome: Outcome) -> None:
    """Each way the token endpoint may misbehave becomes one outcome after one request, never an exception."""
    grant = grant_of(sim.login())
    fault(sim, kind)
    async with authorization_server(sim.url) as server:
        assert await refreshed(server, grant, CLIENT) == outcome
    assert sim.counters()["token_requests"] == 1


# Against servers the simulator does not play.


@dataclass
class Wire:
    """A server that answers each path with given bytes and keeps what it was sent."""

    answers: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def json(self, path: str, value: object, status: str = "200 OK") -> None:
        self.answers[path] = answer(status, said(value))

    def discovers(self, endpoint: object) -> None:
        self.json("/.well-known/openid-configuration", {"token_endpoint": endpoint})

    def forms(self, path: str) -> list[dict[str, list[str]]]:
        return [parse_qs(body) for asked, body in self.requests if asked == path]

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


def answer(status: str, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    heard = Wire()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            path = head.split()[1]
            heard.requests.append((path, (await reader.readexactly(length)).decode()))
            writer.write(heard.answers.get(path, answer("404 Not Found", b"{}")))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        heard.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        yield heard


@pytest.mark.anyio
async def test_discovery_is_asked_once() -> None:
    """The token endpoint is learned once and used from then on."""
    async with wire() as heard, authorization_server(heard.url) as server:
        assert server.token_endpoint == f"{heard.url}/oauth2/token"
        heard.discovers(f"{heard.url}/elsewhere")
        heard.json("/elsewhere", {"access_token": ACCESS, "refresh_token": "refresh-new"})
        for _ in range(2):
            assert isinstance(await refreshed(server, OLD, CLIENT), Refreshed)
        assert heard.paths == ["/.well-known/openid-configuration", "/elsewhere", "/elsewhere"]
        assert server.token_endpoint == f"{heard.url}/elsewhere"


@pytest.mark.anyio
async def test_form() -> None:
    """What is sent is what RFC 6749 §6 asks for, and no more for a person's grant."""
    async with wire() as heard, authorization_server(heard.url) as server:
        await refreshed(server, link("refresh+old/&=%"), CLIENT)
        person = Grant(read_token(jwt(principal_type="User", principal_id="u")), OLD.refresh_token)
        await refreshed(server, person, CLIENT)
        team = Grant(read_token(jwt(principal_type="TEAM", principal_id="team-7")), OLD.refresh_token)
        await refreshed(server, team, CLIENT)
        nameless = Grant(read_token(jwt(principal_type="Team")), OLD.refresh_token)
        await refreshed(server, nameless, CLIENT)
        plain = {"grant_type": ["refresh_token"], "client_id": [CLIENT], "refresh_token": ["refresh-old"]}
        assert heard.forms("/oauth2/token") == [
            plain | {"refresh_token": ["refresh+old/&=%"]},
            plain,
            plain | {"principal_type": ["TEAM"], "principal_id": ["team-7"]},
            plain,
        ]


ELSEWHERE = [
    "https://x.ai.evil.com/oauth2/token",
    "https://evil.com/oauth2/token",
    "http://auth.x.ai/oauth2/token",
    "https://auth.x.ai@evil.com/",
    "/oauth2/token",
    "",
]


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", ELSEWHERE)
async def test_untrusted_endpoint(endpoint: str) -> None:
    """A token endpoint outside x.ai is not sent the refresh token, and neither is any other then."""
    async with wire() as heard, authorization_server(heard.url) as server:
        heard.discovers(endpoint)
        assert await refreshed(server, OLD, CLIENT) == Transient("untrusted_token_endpoint")
        assert heard.paths == ["/.well-known/openid-configuration"]
        assert not any("refresh-old" in body for _, body in heard.requests)


@pytest.mark.anyio
async def test_loopback_endpoint_needs_permission() -> None:
    """A discovery document cannot send the refresh token to a port of this machine by itself."""
    async with wire() as heard, authorization_server(heard.url, allow_loopback=False) as server:
        heard.discovers(f"{heard.url}/oauth2/token")
        assert await refreshed(server, OLD, CLIENT) == Transient("untrusted_token_endpoint")
        assert heard.forms("/oauth2/token") == []


@pytest.mark.anyio
async def test_redirects_are_not_followed() -> None:
    """Neither discovery nor the token endpoint can send the refresh token on to another address."""
    async with wire() as heard, wire() as evil, authorization_server(heard.url) as server:
        away = answer("307 Temporary Redirect", b"", f"location: {evil.url}/oauth2/token")
        heard.answers |= {"/.well-known/openid-configuration": away, "/oauth2/token": away}
        assert await refreshed(server, OLD, CLIENT) == Transient("empty_reply")
        assert evil.requests == []


DISCOVERIES: dict[str, Callable[[Wire], object]] = {
    "404": lambda _: None,
    "html": lambda heard: heard.answers.update({"/.well-known/openid-configuration": answer("200 OK", HTML)}),
    "error": lambda heard: heard.json(
        "/.well-known/openid-configuration", {"token_endpoint": "https://evil.com"}, "500 Oops"
    ),
    "list": lambda heard: heard.json("/.well-known/openid-configuration", ["https://evil.com"]),
    "number": lambda heard: heard.discovers(7),
    "null": lambda heard: heard.discovers(None),
    "oversized": lambda heard: heard.json(
        "/.well-known/openid-configuration", {"token_endpoint": "https://auth.x.ai/" + "x" * 300_000}
    ),
    "broken-off": lambda heard: heard.answers.update({"/.well-known/openid-configuration": b""}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("arrange", DISCOVERIES.values(), ids=DISCOVERIES.keys())
async def test_discovery_fails(arrange: Callable[[Wire], object]) -> None:
    """Without a discovery document the documented endpoint is used, and discovery tried again next time."""
    async with wire() as heard, authorization_server(heard.url) as server:
        arrange(heard)
        heard.json("/oauth2/token", {"access_token": ACCESS})
        assert isinstance(await refreshed(server, OLD, CLIENT), Refreshed)
        heard.discovers(f"{heard.url}/oauth2/token2")
        heard.json("/oauth2/token2", {"access_token": ACCESS})
        assert isinstance(await refreshed(server, OLD, CLIENT), Refreshed)
        assert heard.paths[1::2] == ["/oauth2/token", "/oauth2/token2"]


@pytest.mark.anyio
async def test_oversized_reply() -> None:
    """A reply without end is not read to its end."""
    async with wire() as heard, authorization_server(heard.url) as server:
        heard.json("/oauth2/token", {"access_token": ACCESS, "filling": "x" * 300_000})
        assert await refreshed(server, OLD, CLIENT) == Transient("broken_off")


@pytest.mark.anyio
async def test_nobody_listens() -> None:
    """A refused connection is unreachable."""
    async with wire() as gone:
        url = gone.url
    async with authorization_server(url) as server:
        assert await refreshed(server, OLD, CLIENT) == Transient("unreachable")


@pytest.mark.anyio
async def test_not_http() -> None:
    """Something that does not speak HTTP breaks off."""
    async with wire() as heard, authorization_server(heard.url) as server:
        heard.answers["/oauth2/token"] = b"220 smtp ready\r\n\r\n"
        assert await refreshed(server, OLD, CLIENT) == Transient("broken_off")


@pytest.mark.anyio
async def test_half_a_reply() -> None:
    """A reply that ends before its length is no reply, even where what came is whole JSON."""
    async with wire() as heard, authorization_server(heard.url) as server:
        body = said({"access_token": ACCESS})
        heard.answers["/oauth2/token"] = answer("200 OK", body + b" " * 10)[:-10]
        assert await refreshed(server, OLD, CLIENT) == Transient("broken_off")


@pytest.mark.anyio
async def test_undecodable_reply() -> None:
    """A reply whose compression is broken is no verdict and no exception."""
    async with wire() as heard, authorization_server(heard.url) as server:
        heard.answers["/oauth2/token"] = answer("200 OK", b"not gzip", "content-encoding: gzip")
        assert await refreshed(server, OLD, CLIENT) == Transient("broken_off")


@pytest.mark.anyio
async def test_impossible_endpoint() -> None:
    """A token endpoint that is below x.ai, but no address at all, is no exception."""
    async with wire() as heard, authorization_server(heard.url) as server:
        heard.discovers("https://\u2028.x.ai/oauth2/token")
        assert isinstance(await refreshed(server, OLD, CLIENT), Transient)


@pytest.mark.anyio
async def test_expiry_is_counted_from_the_answer() -> None:
    """A token's life begins when its answer came, by the wall clock of this machine."""
    async with wire() as heard, httpx.AsyncClient(trust_env=False, verify=NO_CERTIFICATES) as client:
        server = AuthorizationServer(
            client, heard.url, allow_loopback=True, connect_timeout=5, clock=Clock(wall=lambda: NOW + HOUR)
        )
        heard.json("/oauth2/token", {"access_token": "opaque", "expires_in": 60})
        outcome = await refreshed(server, OLD, CLIENT)
        assert isinstance(outcome, Refreshed)
        assert outcome.grant.token.expires_at == NOW + HOUR + 60
