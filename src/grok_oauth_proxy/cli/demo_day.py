"""The day that `grok-oauth-proxy demo` plays: each step does something and says what came of it."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import click
import httpx
from rich.console import Console

from grok_oauth_proxy.cli.demo_stage import Stage, StepFailed, sign_in, stage

_CLIENTS = 8
_LOAD_REFRESHES = 2
_LOAD_LIMIT = 30.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

console = Console(highlight=False)


def play(*, keep: bool) -> NoReturn:
    """Play it, and exit with 0 when each step held. `keep`: both run on afterwards, until a signal."""
    began = time.monotonic()
    # Ended either way, nothing may stay behind. SIGINT too: a shell's background jobs start with it ignored.
    for number in _ENDING:
        signal.signal(number, signal.default_int_handler)
    try:
        with stage() as world:
            console.print(f"A simulated xAI runs at {world.sim}, the real proxy at {world.api}.\n")
            held = sum([_play(title, step, world) for title, step in _DAY])
            took = time.monotonic() - began
            console.print(f"\n{held} of {len(_DAY)} steps held, in {took:.1f} s.", style="bold")
            if keep:
                _keep(world)
    except StepFailed as failure:
        console.print(f"The demo could not start. {failure}", style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nEnded; nothing is left behind.")
        sys.exit(130)
    sys.exit(0 if held == len(_DAY) else 1)


def _play(title: str, step: Callable[[Stage, httpx.Client], str], world: Stage) -> bool:
    console.print(f"[bold]{title}[/bold]")
    began = time.monotonic()
    try:
        with httpx.Client(base_url=world.api, trust_env=False, timeout=20) as client:
            told = step(world, client)
    except (StepFailed, httpx.HTTPError, KeyError, ValueError) as failure:
        console.print(f"  [red]✗[/red] {type(failure).__name__}: {failure}", markup=True)
        for line in world.proxy_log[-3:]:
            console.print(f"    {line}", markup=False)
        return False
    console.print(f"  [green]✓[/green] {told} [dim]({(time.monotonic() - began) * 1000:.0f} ms)[/dim]")
    return True


def _health(_world: Stage, client: httpx.Client) -> str:
    report = client.get("/health").raise_for_status().json()
    _expect(report["status"] == "ok", f"health says {report['status']}")
    return f"Healthy. The login comes from {report['credential_source'].title()}, its token is kept fresh."


def _models(_world: Stage, client: httpx.Client) -> str:
    names = [model["id"] for model in client.get("/v1/models").raise_for_status().json()["data"]]
    _expect("grok-4" in names, "grok-4 is not among the models")
    return f"{len(names)} models, among them {names[0]}."


def _chat(_world: Stage, client: httpx.Client) -> str:
    reply = client.post("/v1/chat/completions", json=_question("Good morning")).raise_for_status().json()
    answer: str = reply["choices"][0]["message"]["content"]
    _expect("Good morning" in answer, "the answer does not fit the question")
    return f"“{answer}”"


def _chat_stream(_world: Stage, client: httpx.Client) -> str:
    arrivals, finished = [], False
    console.print("  ", end="")
    for data in _events(client, "/v1/chat/completions", _question("Tell me something nice")):
        finished = data == "[DONE]"
        delta = {} if finished else (json.loads(data)["choices"] or [{"delta": {}}])[0]["delta"]
        if text := delta.get("content"):
            console.print(text, end="", markup=False)
            arrivals.append(time.monotonic())
    console.print()
    _expect(finished, "the stream had no end")
    _expect(len(arrivals) > 3 and arrivals[-1] - arrivals[0] > 0.02, "the words came all at once")
    return f"{len(arrivals)} pieces, spread over {(arrivals[-1] - arrivals[0]) * 1000:.0f} ms as they came."


def _responses_stream(_world: Stage, client: httpx.Client) -> str:
    question = {"model": "grok-4", "input": "And the Responses API?", "stream": True}
    kinds = [
        json.loads(data)["type"] for data in _events(client, "/v1/responses", question) if data != "[DONE]"
    ]
    _expect(kinds[0] == "response.created", "it does not begin with response.created")
    _expect(kinds[-1] == "response.completed", "it does not end with response.completed")
    return f"{len(kinds)} events, from {kinds[0]} to {kinds[-1]}."


def _expiry_under_load(world: Stage, _client: httpx.Client) -> str:
    before = world.counters()
    statuses: list[int] = []
    stop = threading.Event()
    workers = [threading.Thread(target=_ask_until, args=(stop, world.api, statuses)) for _ in range(_CLIENTS)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + _LOAD_LIMIT
    while world.counters()["refreshes"] < before["refreshes"] + _LOAD_REFRESHES:
        if stop.wait(0.2) or time.monotonic() > deadline:
            break
    stop.set()
    for worker in workers:
        worker.join()
    after = world.counters()
    refreshes = after["refreshes"] - before["refreshes"]
    failed = sum(status != 200 for status in statuses)
    _expect(refreshes >= _LOAD_REFRESHES, "the token was not refreshed")
    _expect(failed == 0, f"{failed} of {len(statuses)} requests failed")
    _expect(after["reuses"] == 0, "a spent refresh token was sent again")
    return f"{len(statuses):,} requests by {_CLIENTS} clients over {refreshes} refreshes, none failed."


def _ask_until(stop: threading.Event, api: str, statuses: list[int]) -> None:
    with httpx.Client(base_url=api, trust_env=False, timeout=20) as client:
        while not stop.is_set():
            try:
                statuses.append(client.post("/v1/chat/completions", json=_question("Hi")).status_code)
            except httpx.HTTPError:
                statuses.append(0)


def _revoked(world: Stage, client: httpx.Client) -> str:
    httpx.post(f"{world.sim}/_sim/revoke", trust_env=False).raise_for_status()
    answer = client.post("/v1/chat/completions", json=_question("Are you there?"))
    _expect(answer.status_code == 503, f"status {answer.status_code} instead of 503")
    error = answer.json()["error"]
    spent = world.counters()["token_requests"]
    for _ in range(20):
        client.get("/v1/models")
    _expect(world.counters()["token_requests"] == spent, "the dead login was sent again")
    _expect(client.get("/health").json()["status"] == "unauthenticated", "health does not say so")
    return (
        f"503 {error['code']}: “{error['message']}” Asked 20 times more, the dead login was not sent again."
    )


_DAY: tuple[tuple[str, Callable[[Stage, httpx.Client], str]], ...] = (
    ("Is it healthy?", _health),
    ("Which models are there?", _models),
    ("A question and an answer", _chat),
    ("A streamed answer, as it arrives", _chat_stream),
    ("A Responses API stream", _responses_stream),
    ("Access tokens expire under load", _expiry_under_load),
    ("The login is revoked", _revoked),
)


def _question(text: str) -> dict[str, object]:
    return {"model": "grok-4", "messages": [{"role": "user", "content": text}]}


def _events(client: httpx.Client, path: str, question: dict[str, object]) -> Iterator[str]:
    """The data of each server-sent event, as it arrives."""
    with client.stream("POST", path, json=question | {"stream": True}) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield line.removeprefix("data:").strip()


def _expect(held: bool, otherwise: str) -> None:
    if not held:
        raise StepFailed(otherwise)


def _keep(world: Stage) -> None:
    # The day ended with a revoked login; a new one is picked up like any login in Hermes.
    sign_in(world.home, world.sim)
    deadline = time.monotonic() + _LOAD_LIMIT
    while httpx.get(f"{world.api}/health", trust_env=False).status_code != 200:
        if time.monotonic() > deadline:
            raise StepFailed("The new login was not picked up.")
        time.sleep(0.2)
    # Held back until they are waited for, so that none is lost in between.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    console.print("\nBoth keep running until Ctrl-C. Try:\n")
    click.echo(f"curl {world.api}/health\n")
    click.echo(
        f"curl -N {world.api}/v1/chat/completions -H 'content-type: application/json' \\\n"
        """  -d '{"model":"grok-4","stream":true,"messages":[{"role":"user","content":"Hello"}]}'\n"""
    )
    click.echo("With the OpenAI SDK (pip install openai):\n")
    click.echo(
        f"""python -c 'from openai import OpenAI
client = OpenAI(base_url="{world.api}/v1", api_key="unused")
print(client.responses.create(model="grok-4", input="Hello").output_text)'\n"""
    )
    signal.sigwait(_ENDING)
    raise KeyboardInterrupt
