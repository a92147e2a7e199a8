"""How clients reach this proxy: the address and the key, and a working snippet for each kind of client. Pure.

A snippet holds the key where there is one. It stands in files or on standard input, never among the
arguments of a command, where every user of the machine could read it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from grok_oauth_proxy.errors import ProxyError

NO_KEY: Final = "sk-no-key-needed"
"""What clients send when the proxy asks for no key; most of them insist on having one, some on its `sk-`."""

UNKNOWN_KEY: Final = "YOUR-KEY"
"""Stands in a snippet for a key that was made with `grok-oauth-proxy keys add`, and which nobody kept."""

MODEL: Final = "grok-4"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`base_url` ends in /v1; `key` is the value of PROXY_API_KEY, visible ASCII, or `UNKNOWN_KEY`, or None.

    `socket`: the path of the Unix socket to go through, None where the address is a port. `certificate`: the
    path of the one that the proxy shows, None without TLS.
    """

    base_url: str
    key: str | None
    socket: str | None = None
    certificate: str | None = None

    @property
    def key_to_send(self) -> str:
        return self.key or NO_KEY

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r})"


# The SDKs read the first and the last. Aider, LangChain and LiteLLM know the middle one too, the name that
# version 0 of the SDK had for the address, and some of them prefer it: a left-over would lead them elsewhere.
VARIABLES: Final = ("OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_KEY")


def exports(endpoint: Endpoint, shell: str) -> str:
    """Commands for `shell` (a key of `SHELLS`) that set `VARIABLES`, one a line. Raises `ProxyError`."""
    if endpoint.socket:
        raise socket_refusal(endpoint, "clients by these variables")
    values = (endpoint.base_url, endpoint.base_url, endpoint.key_to_send)
    export = SHELLS[shell]
    known = zip(VARIABLES, values, strict=True)
    return "".join(export(name, value) + "\n" for name, value in known if value != UNKNOWN_KEY)


def _posix(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _fish(name: str, value: str) -> str:
    return f"set -gx {name} '" + re.sub(r"([\\'])", r"\\\1", value) + "'"


def _powershell(name: str, value: str) -> str:
    return f"$env:{name} = '" + value.replace("'", "''") + "'"


SHELLS: Final[dict[str, Callable[[str, str], str]]] = {
    "sh": _posix,
    "bash": _posix,
    "zsh": _posix,
    "fish": _fish,
    "powershell": _powershell,
}


def socket_refusal(endpoint: Endpoint, what: str) -> ProxyError:
    """For what can only be led to a port."""
    return ProxyError(
        f"The proxy listens on the Unix socket {endpoint.socket} alone, to which {what} cannot be led. Set "
        "PROXY_TCP=true to have a port beside it.",
        code="no_port",
    )


def _litellm(endpoint: Endpoint) -> str:
    if endpoint.socket:
        raise socket_refusal(endpoint, "LiteLLM")
    return f"""\
# In LiteLLM's config.yaml: every Grok model by its own name.
model_list:
  - model_name: "grok-*"
    litellm_params:
      model: "openai/grok-*"
      api_base: {_quoted(endpoint.base_url)}
      api_key: {_quoted(endpoint.key_to_send)}
"""


def _hermes(endpoint: Endpoint) -> str:
    if endpoint.socket:
        raise socket_refusal(endpoint, "Hermes")
    return f"""\
# In ~/.hermes/config.yaml, in place of the `model:` that stands there.
model:
  provider: custom
  base_url: {_quoted(endpoint.base_url)}
  api_key: {_quoted(endpoint.key_to_send)}
  default: {MODEL}
"""


def _openai(endpoint: Endpoint) -> str:
    needed = way = trust = ""
    if endpoint.socket:
        transport = f"httpx.HTTPTransport(uds={_quoted(endpoint.socket)})"
        needed, way = "import httpx\n", f"    http_client=httpx.Client(transport={transport}),\n"
    elif endpoint.certificate:
        needed, way = "import ssl\n\nimport httpx\n", "    http_client=httpx.Client(verify=tls),\n"
        trust = (
            f"\ntls = ssl.create_default_context(cafile={_quoted(endpoint.certificate)})"
            "\ntls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN"
        )
    return f"""\
{needed}from openai import OpenAI
{trust}
client = OpenAI(
    base_url={_quoted(endpoint.base_url)},
    api_key={_quoted(endpoint.key_to_send)},
{way})
answer = client.chat.completions.create(
    model="{MODEL}",
    messages=[{{"role": "user", "content": "Hello"}}],
)
print(answer.choices[0].message.content)
"""


def _curl(endpoint: Endpoint) -> str:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]})
    way = f"--unix-socket {shlex.quote(endpoint.socket)} " if endpoint.socket else ""
    if endpoint.certificate:
        way = f"--cacert {shlex.quote(endpoint.certificate)} "
    command = f"""\
curl -sS {way}{shlex.quote(endpoint.base_url + "/chat/completions")} \\
  -H 'content-type: application/json' \\
  -d {shlex.quote(body)}"""
    if endpoint.key is None:
        return command + "\n"
    header = _quoted(f"authorization: Bearer {endpoint.key}")
    return f"{command} \\\n  -K - <<'END'\nheader = {header}\nEND\n"


def _quoted(value: str) -> str:
    """Visible ASCII in double quotes, as JSON, YAML, Python and curl's config files read it alike."""
    return json.dumps(value)


SNIPPETS: Final[dict[str, Callable[[Endpoint], str]]] = {
    "litellm": _litellm,
    "hermes": _hermes,
    "openai": _openai,
    "curl": _curl,
}
