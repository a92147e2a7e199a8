"""The container file and the Compose example: what they would run, run here with the settings they give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its types are a package of their own

from tests.harness import Home, environment, provider_store, proxy_running, run
from tests.sim.harness import Sim

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "services/container"
KEY = "canary-of-the-proxy-key"


def instructions() -> list[tuple[str, str]]:
    """The container file's instructions in order, each in one line."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def of(name: str) -> list[str]:
    return [text for instruction, text in instructions() if instruction == name]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return loaded


def test_the_image(home: Home, shared_sim: Sim) -> None:
    """As image and Compose set it, it answers to LiteLLM's name for it, and its health check passes."""
    variables = dict(word.split("=", 1) for word in " ".join(of("ENV")).split())
    service = compose()["services"]["grok-oauth-proxy"]
    variables |= {name: value for name, value in service["environment"].items() if value}
    assert variables.pop("GROK_PROXY_AUTH_STATE").startswith("/state/")
    assert variables.pop("HERMES_HOME") == "/hermes"
    for name in ("PATH", "HOME"):
        variables.pop(name)
    settings: dict[str, Any] = variables | {"PROXY_API_KEY": KEY, "PROXY_PORT": "0"}

    home.write_store(provider_store(shared_sim.login()))
    front = compose()["services"]["litellm"]
    litellm = yaml.safe_load((FOLDER / "litellm.yaml").read_text())["model_list"][0]["litellm_params"]
    host = litellm["api_base"].removeprefix("http://").removesuffix("/v1")
    assert front["depends_on"]["grok-oauth-proxy"]["condition"] == "service_healthy"
    check = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    command = json.loads(of("ENTRYPOINT")[0]) + json.loads(of("CMD")[0])
    assert (command, check[0]) == (["grok-oauth-proxy", "serve"], command[0])
    with proxy_running(home, shared_sim, **settings) as proxy:
        headers = {"host": host, "authorization": f"Bearer {KEY}"}
        assert proxy.http.get("/v1/models", headers=headers).status_code == 200
        assert run(environment(home, shared_sim, **settings), *check[1:]).returncode == 0


def test_its_walls() -> None:
    """Not root, a read-only root file system with its state in volumes, and time for the drain."""
    assert of("USER") == ["10001:10001"]
    volumes = json.loads(of("VOLUME")[0])
    service = compose()["services"]["grok-oauth-proxy"]
    assert [volume.partition(":")[2] for volume in service["volumes"]] == volumes
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert (of("STOPSIGNAL"), service["stop_grace_period"]) == (["SIGTERM"], "90s")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    built = [word for text in of("COPY") if not text.startswith("--from") for word in text.split()[:-1]]
    assert [name for name in built if not (ROOT / name).exists()] == []
