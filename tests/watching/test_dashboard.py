"""The dashboard and the alert rules, asked of a real Prometheus that watches a real proxy at work."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from grok_oauth_proxy.events import REJECTIONS
from tests.harness import (
    PATIENCE,
    Home,
    Output,
    Proxy,
    ending,
    environment,
    provider_store,
    proxy_running,
)
from tests.sim.harness import Sim, client, running
from tests.test_keys import make

SERVICES = Path(__file__).parents[2] / "services"
BOARD = json.loads((SERVICES / "grafana/grok-oauth-proxy.json").read_text())
VARIABLES = {"job": "grok-oauth-proxy", "instance": ".+", "__rate_interval": "1m"}
REFUSED = ("entitlement", "spending-limit", "permission-denied", "content", "quota-429", "rate-429")
LOAD = (
    *(f"reject={kind}" for kind in REFUSED),
    "reject=no-credentials",
    "status=403",
    "reject=stale-401;times=1;key=saved",
    "cut=head",
    "status=503",
)


@dataclass
class Prometheus:
    """A running Prometheus."""

    http: httpx.Client

    def ask(self, query: str) -> list[Any]:
        """The samples of now that are numbers; fails on a query that is none."""
        answer = self.http.get("/api/v1/query", params={"query": query})
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # it is not ready
            return []
        found = answer.json()
        assert found["status"] == "success", (query, found)
        return [sample for sample in found["data"]["result"] if not math.isnan(float(sample["value"][1]))]

    def rules(self) -> list[dict[str, Any]]:
        [group] = self.http.get("/api/v1/rules").json()["data"]["groups"]
        rules: list[dict[str, Any]] = group["rules"]
        return rules


def poll(holds: Callable[[], bool], why: Callable[[], object]) -> None:
    """Until it holds: nobody tells when Prometheus has looked."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


def configuration(proxy: Proxy) -> str:
    """The example of the repository, with the key, for this proxy, five times a second."""
    text = (SERVICES / "prometheus/prometheus.yml").read_text()
    address = proxy.url.removeprefix("http://").replace("0.0.0.0", "127.0.0.1")
    for written, meant in (
        ("127.0.0.1:9996", address),
        ("interval: 15s", "interval: 200ms"),
        ("# authorization:", "authorization:"),
        ("#   credentials_file:", "  credentials_file:"),
        ("- alerts.yml", f"- {SERVICES}/prometheus/alerts.yml"),
    ):
        assert written in text
        text = text.replace(written, meant)
    return text


@contextmanager
def prometheus(proxy: Proxy, key: str, folder: Path) -> Iterator[Prometheus]:
    (folder / "prometheus.yml").write_text(configuration(proxy))
    (folder / "grok-oauth-proxy.key").write_text(key + "\n")
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
    ]
    with ending(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        address = Output(process.stderr).wait_for(r'msg="Listening on" address=(\S+)')[1]
        with client(f"http://{address}", timeout=PATIENCE) as http:
            watching = Prometheus(http)
            poll(lambda: bool(watching.ask("up == 1")), lambda: watching.ask("up"))
            yield watching


def work(proxy: Proxy, named: str, sim: Sim) -> None:
    """Some of everything: answers, streams and one too many, refusals of every kind, failures, a refresh that
    fails and one that does not."""
    question = {"model": "grok-4", "messages": [{"role": "user", "content": "x"}]}
    key = {"authorization": f"Bearer {named}"}
    for stream in (False, True):
        answer = proxy.http.post("/v1/chat/completions", json={**question, "stream": stream}, headers=key)
        assert answer.status_code == 200
    streamed = {**question, "stream": True}
    held = proxy.http.stream("POST", "/v1/chat/completions", json=streamed, headers={**key, "x-sim": "hang"})
    with held as answer:
        assert answer.status_code == 200
        assert proxy.http.post("/v1/chat/completions", json=streamed, headers=key).status_code == 503
    for number, directive in enumerate(LOAD):
        proxy.http.post(f"/v1/echo/{number}", headers={**key, "x-sim": directive})
    proxy.http.get("/v1/models")  # without the key
    sim.http.get("/_sim/wait?counter=refreshes&n=1&timeout=30", timeout=PATIENCE).raise_for_status()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen a proxy at work."""
    home = Home(tmp_path_factory.mktemp("home"))
    with running() as sim:
        sim.patch(chunk_delay=0)
        home.write_store(provider_store(sim.login(access_lifetime=4)))
        sim.http.post("/_sim/token-faults", json={"kind": "502-html", "times": 1}).raise_for_status()
        key = make(environment(home, sim), "prometheus")
        with (
            proxy_running(home, sim, PROXY_HOST="0.0.0.0", PROXY_MAX_STREAMS=1) as proxy,
            prometheus(proxy, key, tmp_path_factory.mktemp("prometheus")) as watching,
        ):
            work(proxy, key, sim)
            yield watching


def queries() -> list[str]:
    """Every query of the dashboard, variables filled in."""
    written = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
    return [re.sub(r"\$(\w+)", lambda name: VARIABLES.get(name[1], name[0]), query) for query in written]


def test_every_panel_shows_something(watched: Prometheus) -> None:
    """No query of the dashboard is empty, once the proxy has met what it shows."""
    empty = set(queries())
    assert len(empty) >= len(BOARD["panels"]) > 0

    def all_filled() -> bool:
        empty.difference_update([query for query in empty if watched.ask(query)])
        return not empty

    poll(all_filled, lambda: empty)


def test_every_kind_is_seen(watched: Prometheus) -> None:
    """Refusals of every kind, a refresh that failed and one that did not count above zero."""

    def kinds() -> set[str]:
        return {sample["metric"]["kind"] for sample in watched.ask("proxy_upstream_rejections_total > 0")}

    poll(lambda: kinds() == {*REJECTIONS}, kinds)
    for query in (
        "proxy_oauth_refresh_success_total > 0",
        'proxy_oauth_refresh_failure_total{reason="http_502"} > 0',
        'proxy_upstream_errors_total{kind="broken_off"} > 0',
        "proxy_oauth_401_refresh_success_total > 0",
        "proxy_rate_limit_remaining_requests < proxy_rate_limit_requests",
    ):
        poll(lambda query=query: bool(watched.ask(query)), lambda query=query: query)  # type: ignore[misc]  # its default


def test_alerts_know_the_metrics(watched: Prometheus) -> None:
    """Prometheus evaluates every rule without a fault, each series that they name is there, and one fires."""
    poll(lambda: all(rule["health"] == "ok" for rule in watched.rules()), watched.rules)
    for rule in watched.rules():
        for name in set(re.findall(r"\b(?:up|proxy_\w+|process_\w+)\b", rule["query"])):
            poll(lambda name=name: bool(watched.ask(name)), lambda name=name: name)  # type: ignore[misc]  # its default
    states = {rule["name"]: rule["state"] for rule in watched.rules()}
    assert states["GrokProxyAccountRefused"] == "firing"
    assert states["GrokProxyDown"] == "inactive"


def test_every_metric_is_explained(watched: Prometheus) -> None:
    """The page about them names every metric that the proxy tells."""
    page = (SERVICES.parent / "docs/watching.md").read_text()
    named = set(re.findall(r"`((?:proxy|process)_\w+)`", page))
    named |= {f"proxy_oauth_401_refresh_{outcome}_total" for outcome in ("success", "failure")}
    told = {
        re.sub(r"_(bucket|sum|count)$", "", sample["metric"]["__name__"])
        for sample in watched.ask('{job="grok-oauth-proxy", __name__=~"(proxy|process)_.+"}')
    }
    assert told <= named


def test_board_can_be_imported() -> None:
    """What Grafana wants of a dashboard: panels with ids of their own, and its data source as a variable."""
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids)) > 20
    known = {variable["name"] for variable in BOARD["templating"]["list"]} | {"__rate_interval", "__range"}
    assert {"datasource", "job", "instance"} <= known
    for panel in BOARD["panels"]:
        assert panel["type"] in ("row", "stat", "timeseries")
        for target in panel.get("targets", []):
            assert (
                target["datasource"]
                == panel["datasource"]
                == {
                    "type": "prometheus",
                    "uid": "${datasource}",
                }
            )
            assert set(re.findall(r"\$(\w*[a-z]\w*)", target["expr"])) <= known
            assert 'job=~"$job", instance=~"$instance"' in target["expr"]
