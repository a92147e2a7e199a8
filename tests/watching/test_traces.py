"""Traces, as a real collector gets them from the real server."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from grok_oauth_proxy.observe.log import logger
from grok_oauth_proxy.observe.tracing import Deliveries
from tests.harness import Home, Proxy, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim, running
from tests.test_secrets import tokens_of, tokens_of_login
from tests.watching.receiver import Receiver, Span, receiving

SERVER, CLIENT = 2, 3
KEY = "canary-of-the-key"
TRACE, PARENT = "a" * 32, "b" * 16
CONTEXT = {
    "traceparent": f"00-{TRACE}-{PARENT}-01",
    "tracestate": "vendor=canary-state",
    "baggage": "who=canary-baggage",
}
QUESTION = b'{"model": "grok-4", "messages": [{"role": "user", "content": "canary-body"}]}'
CASES: dict[str, dict[str, str]] = {
    "plain": {},
    "continued": CONTEXT,
    "unsampled": {"traceparent": f"00-{'c' * 32}-{PARENT}-00"},
    "malformed": {"traceparent": "00-canary-parent"},
    "stale": {"x-sim": "reject=stale-401;times=1;key=stale"},
    "quota": {"x-sim": "reject=quota-429"},
    "unanswered": {"x-sim": "cut=head"},
    "cut": {"x-sim": "cut=length"},
    "wrong-key": {"authorization": "Bearer canary-wrong"},
}


@dataclass
class Seen:
    """What the collector got of one proxy's life."""

    receiver: Receiver
    ids: dict[str, str]
    statuses: dict[str, int]
    secrets: set[str]
    sim: Sim

    def of(self, case: str) -> tuple[Span, list[Span]]:
        """The span of this request, and those below it in the order of their beginning."""
        spans = self.receiver.spans
        [server] = [span for span in spans if span.attributes.get("grok_proxy.request_id") == self.ids[case]]
        below = [span for span in spans if span.parent == server.id]
        assert {span.trace for span in below} <= {server.trace}
        return server, sorted(below, key=lambda span: span.began)


def ask(proxy: Proxy, case: str) -> httpx.Response:
    headers = {
        "authorization": f"Bearer {KEY}",
        "cookie": "canary-cookie",
        "content-type": "application/json",
    } | CASES[case]
    path = "/v1/chat/completions" if case == "cut" else f"/v1/files/canary-{case}/content?q=canary-query"
    request = proxy.http.build_request("POST", path, headers=headers, content=QUESTION)
    answer = proxy.http.send(request, stream=True)
    try:
        answer.read()
    except httpx.RemoteProtocolError:
        assert case == "cut"
    return answer


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Some requests, and the end of the proxy: that alone sends their spans, so soon after."""
    home = Home(tmp_path_factory.mktemp("home"))
    ids, statuses = {}, {}
    with running() as sim, receiving() as receiver:
        home.write_store(provider_store(sim.login(access_lifetime=600)))
        secrets = tokens_of_login(home)
        with proxy_running(
            home,
            sim,
            PROXY_API_KEY=KEY,
            LOG_LEVEL="debug",
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_EXPORTER_OTLP_HEADERS="x-collector=canary-collector",
            OTEL_BSP_SCHEDULE_DELAY=600000,
        ) as proxy:
            for case in CASES:
                answer = ask(proxy, case)
                ids[case], statuses[case] = answer.headers["x-request-id"], answer.status_code
            proxy.http.get("/health")
            proxy.metric("proxy_requests_in_flight")
            assert receiver.bodies == []
            assert proxy.stop() == 0
            assert "canary-collector" not in proxy.err.text()
        secrets |= tokens_of(home)
        yield Seen(receiver, ids, statuses, secrets, sim)


def test_plain(seen: Seen) -> None:
    """A request is a server span with one client span below: method, route, status, and how it ended."""
    server, [attempt] = seen.of("plain")
    assert (server.name, server.kind, server.parent) == ("POST /v1/files/{id}/content", SERVER, "")
    assert not server.failed
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/files/{id}/content",
        "http.response.status_code": seen.statuses["plain"],
        "http.request.body.size": len(QUESTION),
        "http.response.body.size": server.attributes["http.response.body.size"],
        "grok_proxy.ending": "complete",
        "grok_proxy.request_id": seen.ids["plain"],
    }
    assert (attempt.name, attempt.kind) == ("POST", CLIENT)
    assert attempt.attributes["http.request.method"] == "POST"
    assert attempt.attributes["server.address"] == seen.sim.url.removeprefix("http://")
    assert 0 < attempt.took <= server.took
    assert seen.receiver.services == {"grok-oauth-proxy"}
    assert {head["x-collector"] for head in seen.receiver.heads} == {"canary-collector"}


def test_context(seen: Seen) -> None:
    """A trace that the client began is continued; what is no context begins one; one left out stays out."""
    server, [attempt] = seen.of("continued")
    assert (server.trace, server.parent) == (TRACE, PARENT)
    assert attempt.trace == TRACE
    assert seen.of("malformed")[0].parent == ""
    spans = seen.receiver.spans
    assert not any(span.attributes.get("grok_proxy.request_id") == seen.ids["unsampled"] for span in spans)
    assert not any(span.trace == "c" * 32 for span in spans)


def test_context_ends_here(seen: Seen) -> None:
    """The API hears nothing of the trace unless that is asked for."""
    names = {name.lower() for request in seen.sim.requests() for name, _ in request["headers"]}
    assert "authorization" in names
    assert names & CONTEXT.keys() == set()


def test_attempts(seen: Seen) -> None:
    """Each attempt is a span of its own, refused or not."""
    server, attempts = seen.of("stale")
    assert [span.attributes.get("http.request.resend_count") for span in attempts] == [
        *[None],
        *range(1, len(attempts)),
    ]
    statuses = [span.attributes["http.response.status_code"] for span in attempts]
    assert statuses == [401, server.attributes["http.response.status_code"]]
    assert attempts[0].attributes["error.type"] == "401"
    assert server.attributes["grok_proxy.rejection"] == "stale_token"


@pytest.mark.parametrize(
    ("case", "failed", "error", "attempt_error"),
    [
        ("quota", False, None, "429"),
        ("unanswered", True, "upstream_broken_off", "broken_off"),
        ("cut", True, "truncated", "truncated"),
        ("wrong-key", False, "invalid_api_key", None),
    ],
)
def test_errors(seen: Seen, case: str, failed: bool, error: str | None, attempt_error: str | None) -> None:
    """What went wrong is told by its kind, on the span of whoever it happened to."""
    server, attempts = seen.of(case)
    assert (server.failed, server.attributes.get("error.type")) == (failed, error)
    assert [span.attributes.get("error.type") for span in attempts] == [attempt_error][: len(attempts)]
    assert bool(attempts) == (attempt_error is not None)


def test_nothing_else(seen: Seen) -> None:
    """Its own pages are not traced, and nothing sent holds a token, key, path, query or body."""
    spans = seen.receiver.spans
    names = {span.name for span in spans if span.kind == SERVER}
    assert names == {"POST /v1/files/{id}/content", "POST /v1/chat/completions"}
    sent = b"".join(seen.receiver.bodies).decode("latin-1")
    assert len(seen.secrets) >= 3
    assert not any(secret[:12] in sent for secret in seen.secrets)
    assert set(re.findall(r"canary-[a-z]+", sent)) <= {"canary-state"}


def test_told_upstream_though_the_collector_is_dead(home: Home, own_sim: Sim) -> None:
    """Asked to, the proxy tells the API its part of the client's trace. That the collector is gone is told
    once, holds no request up, and the end only for a moment."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(
        home,
        own_sim,
        PROXY_TRACE_UPSTREAM="true",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://user:canary-password@127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT=0.1,
        OTEL_BSP_SCHEDULE_DELAY=20,
    ) as proxy:
        assert proxy.http.post("/v1/echo", headers=CONTEXT).status_code == 200
        proxy.err.wait_for(r"Traces do not arrive .*\[traces_lost\]$")
        assert [proxy.http.post("/v1/echo").status_code for _ in range(50)] == [200] * 50
        assert proxy.stop() == 0
        log = proxy.err.text()
    assert len(re.findall("traces_lost", log)) == 1
    assert "canary" not in log
    assert "Traceback" not in log
    first = {name.lower(): value for name, value in own_sim.requests()[0]["headers"]}
    told = re.fullmatch(r"00-(\w{32})-(\w{16})-01", first["traceparent"])
    assert told is not None
    assert told[1] == TRACE
    assert told[2] != PARENT
    assert (first["tracestate"], first["baggage"]) == (CONTEXT["tracestate"], CONTEXT["baggage"])


def test_off(home: Home, own_sim: Sim) -> None:
    """Without a collector nothing that makes traces is loaded; a context that may go up goes as it is."""
    home.write_store(provider_store(own_sim.login()))
    with proxy_running(home, own_sim, PROXY_TRACE_UPSTREAM="true", PYTHONPROFILEIMPORTTIME="1") as proxy:
        assert proxy.http.post("/v1/echo", headers=CONTEXT).status_code == 200
        proxy.stop()
        loaded = re.findall(r"^import time: .*\| +(\S+)$", proxy.err.text(), re.MULTILINE)
    assert "prometheus_client" in loaded
    # FastAPI loads OpenTelemetry's interface, which does nothing by itself.
    assert not [name for name in loaded if re.match(r"opentelemetry\.(sdk|exporter)|requests|google", name)]
    first = {name.lower(): value for name, value in own_sim.requests()[0]["headers"]}
    assert {name: first.get(name) for name in CONTEXT} == CONTEXT


def test_extra_is_missing(home: Home, own_sim: Sim, tmp_path: Path) -> None:
    """Traces that are asked for and cannot be made stop the start, and what to install is said."""
    home.write_store(provider_store(own_sim.login()))
    (tmp_path / "opentelemetry/sdk").mkdir(parents=True)
    (tmp_path / "opentelemetry/sdk/__init__.py").touch()  # found before the real one
    env = environment(home, own_sim, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", PYTHONPATH=tmp_path)
    ended = run(env)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Install grok-oauth-proxy[otel]" in ended.stderr


@pytest.mark.parametrize("name", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
def test_setting_of_no_use(home: Home, own_sim: Sim, name: str) -> None:
    """What the SDK cannot make sense of stops the start in one line that shows no value."""
    home.write_store(provider_store(own_sim.login()))
    bad = {name: "-1047"}
    ended = run(environment(home, own_sim, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **bad))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "Correct the OTEL_ variables" in ended.stderr
    assert "1047" not in ended.stderr


def test_deliveries() -> None:
    """That spans do not arrive is told once, however often, and so is that they do again."""
    good, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    outcomes: list[SpanExportResult | OSError] = [good, bad, OSError("canary"), bad, good, good]

    class Exporter(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - none are sent
            outcome = outcomes.pop(0)
            if isinstance(outcome, OSError):
                raise outcome
            return outcome

    lines: list[str] = []
    ear = logging.Handler()
    ear.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]  # it is ours
    deliveries = Deliveries(Exporter())
    before = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        while outcomes:
            deliveries.export([])
    finally:
        logger.removeHandler(ear)
        logger.setLevel(before)
    assert [line.split(" where ")[0] for line in lines] == ["Traces do not arrive", "Traces arrive again."]
