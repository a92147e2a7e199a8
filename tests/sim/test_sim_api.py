"""The endpoints that do not stream: one sample of each shape, and how requests are recorded."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

import httpx
import pytest

from .harness import Sim, client

CHAT = {"model": "grok-4", "messages": [{"role": "user", "content": "Grüße, 世界"}]}


def test_chat(sim: Sim) -> None:
    """A chat answer echoes the last message and carries usage, quota and correlation headers."""
    reply = sim.http.post("/v1/chat/completions", json=CHAT, headers=sim.bearer())
    body = reply.json()
    assert "Grüße, 世界" in body["choices"][0]["message"]["content"]
    assert (
        body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    )
    assert {"cost_in_usd_ticks", "num_sources_used"} <= body["usage"].keys()
    for kind in ("limit-requests", "limit-tokens", "remaining-requests", "remaining-tokens"):
        assert reply.headers[f"x-ratelimit-{kind}"].isdigit()
    assert {"x-request-id", "x-metrics-e2e-ms", "alt-svc"} <= reply.headers.keys()
    assert len(reply.headers.get_list("set-cookie")) == 2


def test_quota_goes_down(sim: Sim) -> None:
    """The remaining requests shrink with every completion and are not told on other endpoints."""
    headers = sim.bearer()
    left = [
        sim.http.post("/v1/chat/completions", json=CHAT, headers=headers).headers[
            "x-ratelimit-remaining-requests"
        ]
        for _ in range(2)
    ]
    assert left == ["479", "478"]
    assert "x-ratelimit-limit-requests" not in sim.http.get("/v1/models", headers=headers).headers


@pytest.mark.parametrize(
    ("path", "request_body", "key"),
    [
        ("/responses", {"input": "hi"}, "output"),
        ("/responses/compact", {"input": "hi"}, "output"),
        (
            "/messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            "content",
        ),
        ("/complete", {"prompt": "hi"}, "completion"),
        ("/completions", {"prompt": "hi"}, "choices"),
        ("/embeddings", {"input": ["a", "b"]}, "data"),
        ("/tokenize-text", {"text": "a b"}, "token_ids"),
        ("/documents/search", {"query": "a"}, "matches"),
        ("/images/generations", {"prompt": "a"}, "data"),
        ("/batches", {"name": "a"}, "batch_id"),
    ],
)
def test_json_posts(sim: Sim, path: str, request_body: dict[str, object], key: str) -> None:
    """Each POST endpoint answers JSON of its own shape and refuses other content types with plain text."""
    headers = sim.bearer()
    assert key in sim.http.post(f"/v1{path}", json=request_body, headers=headers).raise_for_status().json()
    refused = sim.http.post(f"/v1{path}", content=b"{}", headers={**headers, "content-type": "text/csv"})
    assert (refused.status_code, refused.headers["content-type"][:10]) == (415, "text/plain")
    broken = sim.http.post(
        f"/v1{path}", content=b"{", headers={**headers, "content-type": "application/json"}
    )
    assert broken.status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/models/grok-4",
        "/language-models",
        "/language-models/grok-4",
        "/image-generation-models",
        "/video-generation-models",
        "/embedding-models",
        "/me",
        "/api-key",
        "/files",
        "/batches",
        "/skills",
        "/custom-voices",
    ],
)
def test_json_gets(sim: Sim, path: str) -> None:
    """Each GET endpoint answers JSON, HEAD its head alone, another method 405, OPTIONS the methods."""
    headers = sim.bearer()
    got = sim.http.get(f"/v1{path}", headers=headers).raise_for_status()
    head = sim.http.head(f"/v1{path}", headers=headers)
    assert isinstance(got.json(), dict)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert sim.http.put(f"/v1{path}", headers=headers).status_code == 405
    assert "GET" in sim.http.options(f"/v1{path}").headers["allow"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "", "/models/grok-4/more", "/models/none", "/files/none", "/videos/none"]
)
def test_missing(sim: Sim, path: str) -> None:
    """An unknown path is 404."""
    assert sim.http.get(f"/v1{path}", headers=sim.bearer()).status_code == 404


def test_stored_response(sim: Sim) -> None:
    """A response can be fetched, asked for its input, deleted, and is then gone."""
    headers = sim.bearer()
    made = sim.http.post("/v1/responses", json={"input": "hello"}, headers=headers).json()
    path = f"/v1/responses/{made['id']}"
    assert sim.http.get(path, headers=headers).json() == made
    items = sim.http.get(f"{path}/input_items", headers=headers).json()
    assert items["data"][0]["content"][0]["text"] == "hello"
    assert sim.http.delete(path, headers=headers).json()["deleted"] is True
    assert sim.http.get(path, headers=headers).status_code == 404


def test_deferred_chat(sim: Sim) -> None:
    """A deferred chat is 202 without a body as often as configured, then the completion."""
    sim.patch(deferred_polls=2)
    headers = sim.bearer()
    made = sim.http.post("/v1/chat/completions", json={**CHAT, "deferred": True}, headers=headers).json()
    path = f"/v1/chat/deferred-completion/{made['request_id']}"
    polls = [sim.http.get(path, headers=headers) for _ in range(3)]
    assert [poll.status_code for poll in polls] == [202, 202, 200]
    assert polls[0].content == b""
    assert polls[2].json()["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("kind", "body"), [("videos", {"prompt": "a"}), ("images", {"prompt": "a", "deferred": True})]
)
def test_deferred_media(sim: Sim, kind: str, body: dict[str, object]) -> None:
    """Videos, and images when asked, are polled through 202 to 200."""
    headers = sim.bearer()
    made = sim.http.post(f"/v1/{kind}/generations", json=body, headers=headers).json()
    polls = [sim.http.get(f"/v1/{kind}/{made['request_id']}", headers=headers) for _ in range(2)]
    assert [poll.status_code for poll in polls] == [202, 200]


def test_file_round_trip(sim: Sim) -> None:
    """A file comes back as the very bytes uploaded, chunked, and can be deleted."""
    headers = sim.bearer()
    content = bytes(range(256)) * 1000 + b"\r\n--not-the-boundary\r\n"
    made = sim.http.post(
        "/v1/files", headers=headers, files={"file": ("a;b.bin", content)}, data={"purpose": "batch"}
    ).json()
    assert (made["bytes"], made["filename"], made["purpose"]) == (len(content), "a;b.bin", "batch")
    path = f"/v1/files/{made['id']}"
    got = sim.http.get(f"{path}/content", headers=headers)
    assert got.content == content
    assert got.headers["transfer-encoding"] == "chunked"
    assert got.headers["content-type"] == "application/octet-stream"
    assert sim.http.get(path, headers=headers).json() == made
    assert sim.http.delete(path, headers=headers).json()["deleted"] is True
    assert sim.http.get(path, headers=headers).status_code == 404


def test_too_large_upload(sim: Sim) -> None:
    """An upload above the limit is 413; the limit is 50 MB unless configured."""
    headers = sim.bearer()
    assert sim.http.get("/_sim/state").json()["config"]["max_upload_bytes"] == 50 * 1024 * 1024
    sim.patch(max_upload_bytes=1_000_000)
    sizes = {1_000_000: 200, 1_000_001: 413, 3_000_000: 413}
    for size, status in sizes.items():
        reply = sim.http.post("/v1/files", headers=headers, files={"file": ("a", b"x" * size)})
        assert reply.status_code == status, size
        assert sim.requests()[-1]["body_length"] > size


def test_early_refusal(sim: Sim) -> None:
    """With early the answer does not wait for the body."""

    def endless() -> object:
        yield b"x"
        yield from (b"x" * 65536 for _ in range(10_000))

    headers = sim.bearer(x_sim="early;status=413")
    with client(sim.url) as http:
        sent = http.build_request("POST", "/v1/files", headers=headers, content=endless())  # type: ignore[arg-type]
        assert http.send(sent).status_code == 413
    assert sim.requests()[-1]["body_length"] is None


def test_stt_wants_the_file_last(sim: Sim) -> None:
    """Speech recognition refuses a form whose file is not the last part."""
    headers = sim.bearer()
    good = sim.http.post(
        "/v1/stt", headers=headers, data={"language": "en"}, files={"file": ("a.wav", b"RIFF")}
    )
    assert good.json()["fields"] == ["language", "file"]
    wrong = sim.http.post(
        "/v1/stt", headers=headers, files=[("file", ("a.wav", b"RIFF")), ("language", (None, b"en"))]
    )
    assert wrong.status_code == 400


def test_voices_skills_and_speech(sim: Sim) -> None:
    """A recording comes back as sent, a skill is listed, and speech is audio bytes."""
    headers = sim.bearer()
    voice = sim.http.post(
        "/v1/custom-voices", headers=headers, data={"name": "me"}, files={"file": ("a", b"\0\xff")}
    ).json()
    assert sim.http.get(f"/v1/custom-voices/{voice['voice_id']}/audio", headers=headers).content == b"\0\xff"
    skill = sim.http.post("/v1/skills", headers=headers, files={"file": ("SKILL.md", b"# hi")}).json()
    assert skill in sim.http.get("/v1/skills", headers=headers).json()["data"]
    speech = sim.http.post("/v1/tts", headers=headers, json={"text": "hi"})
    assert speech.headers["content-type"] == "audio/mpeg"
    assert speech.content.startswith(b"ID3")


def test_batch_cancel_has_a_colon(sim: Sim) -> None:
    """The literal colon routes, also when percent-encoded, and is recorded as it was sent."""
    headers = sim.bearer()
    batch = sim.http.post("/v1/batches", headers=headers, json={"name": "b"}).json()["batch_id"]
    for colon in (":", "%3A"):
        reply = sim.http.post(f"/v1/batches/{batch}{colon}cancel", headers=headers)
        assert reply.json()["state"] == "cancelled"
        assert sim.requests()[-1]["target"] == f"/v1/batches/{batch}{colon}cancel"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/echo",
        "/v1/echo?",
        "/v1/echo/a%2Fb%20c/%E4%B8%96;x=1?q=%20+&&=&q=2",
        "/v1/echo//double/../dots?a?b",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PROPFIND"])
def test_echo(sim: Sim, target: str, method: str) -> None:
    """Echo tells method, raw target, ordered headers with duplicates, and the body's digest."""
    sent = [("X-One", "1"), ("x-two", "2"), ("X-One", "3"), *sim.bearer().items()]
    request = httpx.Request(
        method, sim.url, headers=sent, content=b"body", extensions={"target": target.encode()}
    )
    seen = sim.http.send(request).json()
    assert (seen["method"], seen["target"], seen["http_version"]) == (method, target, "1.1")
    assert [h for h in seen["headers"] if h[0].startswith("x-")] == [
        ["x-one", "1"],
        ["x-two", "2"],
        ["x-one", "3"],
    ]
    assert ["authorization", "bearer:known"] in seen["headers"]
    assert (seen["body_length"], seen["body_sha256"]) == (4, hashlib.sha256(b"body").hexdigest())


def test_records(sim: Sim) -> None:
    """Requests are recorded in order with masked bearer, status and which token they carried."""
    pair = sim.login()
    fresh = sim.refresh(pair["refresh_token"]).json()
    for token in (pair["access_token"], fresh["access_token"], "foreign"):
        sim.status_of(token)
    sim.http.get("/v1/me", headers={"authorization": "Basic eDp5"})
    older, newer, foreign, basic = sim.requests()
    assert newer["bearer_serial"] == older["bearer_serial"] + 1
    assert foreign["bearer_serial"] is None
    assert [r["status"] for r in (older, newer, foreign, basic)] == [200, 200, 401, 401]
    masks = [dict(r["headers"])["authorization"] for r in (older, newer, foreign, basic)]
    assert masks == ["bearer:known", "bearer:known", "bearer:unknown", "Basic eDp5"]
    assert not any(record["aborted"] for record in sim.requests())
    sim.http.delete("/_sim/requests").raise_for_status()
    assert sim.requests() == []


def test_gzip(sim: Sim) -> None:
    """x-sim: gzip compresses a JSON answer and says so."""
    with sim.http.stream("GET", "/v1/models", headers=sim.bearer(x_sim="gzip")) as reply:
        raw = b"".join(reply.iter_raw())
    assert reply.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(raw))["object"] == "list"


def test_br(sim: Sim) -> None:
    """x-sim: br answers in Brotli, to those who accept it."""
    accepting = {**sim.bearer(x_sim="br"), "accept-encoding": "br"}
    with sim.http.stream("GET", "/v1/models", headers=accepting) as reply:
        raw = b"".join(reply.iter_raw())
    plain = sim.http.get("/v1/models", headers={**accepting, "accept-encoding": "identity"})
    assert reply.headers["content-encoding"] == "br"
    assert raw[3:-1] == plain.content
    assert "content-encoding" not in plain.headers


def test_redirect(sim: Sim) -> None:
    """x-sim: redirect answers 307 with a location."""
    reply = sim.http.get("/v1/models", headers=sim.bearer(x_sim="redirect"))
    assert (reply.status_code, reply.headers["location"]) == (307, "/v1/echo/redirected")


def test_delay(sim: Sim) -> None:
    """x-sim: delay holds the head back and shows in x-metrics-e2e-ms."""
    reply = sim.http.get("/v1/models", headers=sim.bearer(x_sim="delay=0.1"))
    assert int(reply.headers["x-metrics-e2e-ms"]) >= 100


def test_bodiless_status(sim: Sim) -> None:
    """A status without a body is sent without one."""
    reply = sim.http.get("/v1/models", headers=sim.bearer(x_sim="status=204"))
    assert (reply.status_code, reply.content) == (204, b"")
    assert re.fullmatch(r"[0-9a-f-]{36}", reply.headers["x-request-id"])
