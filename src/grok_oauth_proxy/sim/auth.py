"""The authorization server: discovery, tokens, device and code logins, revocation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from html import escape
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from grok_oauth_proxy.sim import jwt
from grok_oauth_proxy.sim.flows import AuthorizationCode
from grok_oauth_proxy.sim.grants import DeniedError, Pair, Principal
from grok_oauth_proxy.sim.rejections import cloudflare_page
from grok_oauth_proxy.sim.token_faults import Hangup, answer_instead, delay_after
from grok_oauth_proxy.sim.world import World

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
FORM = "application/x-www-form-urlencoded"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_STORE = {"cache-control": "no-store", "pragma": "no-cache"}  # RFC 6749 §5.1
ALL_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

Form = Mapping[str, str]
Handler = Callable[[Request], Awaitable[Response]]


def token_reply(world: World, pair: Pair, *, refreshed: bool = False) -> dict[str, object]:
    """The JSON of a successful token request (RFC 6749 §5.1), less what the config omits."""
    reply: dict[str, object] = {
        "access_token": pair.access_token,
        "refresh_token": pair.refresh_token,
        "id_token": pair.id_token,
        "token_type": "Bearer",
        "expires_in": int(pair.expires_in),
        "scope": pair.grant.scope,
    }
    config = world.config
    omitted = {
        "expires_in": config.omit_expires_in,
        "id_token": config.omit_id_token,
        "refresh_token": config.omit_refresh_token and refreshed,
    }
    return {key: value for key, value in reply.items() if value is not None and not omitted.get(key)}


async def read_form(request: Request) -> Form:
    """The form-encoded body. Raises DeniedError for another content type or a repeated parameter."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if kind != FORM:
        raise DeniedError("invalid_request", f"The content type must be {FORM}")
    pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    form = dict(pairs)
    if len(form) != len(pairs):
        raise DeniedError("invalid_request", "A parameter is repeated")
    return form


def required(form: Form, name: str) -> str:
    """The value of `name`. Raises DeniedError if it is missing or empty."""
    value = form.get(name, "")
    if not value:
        raise DeniedError("invalid_request", f"{name} is missing")
    return value


def refusal(denied: DeniedError) -> Response:
    """RFC 6749 §5.2."""
    reply = {"error": denied.error, "error_description": denied.description}
    return JSONResponse(reply, 400, headers=NO_STORE)


def discovery(world: World) -> Handler:
    base = world.issuer
    document = {
        "issuer": base,
        "authorization_endpoint": f"{base}/oauth2/authorize",
        "token_endpoint": f"{base}/oauth2/token",
        "device_authorization_endpoint": f"{base}/oauth2/device/code",
        "revocation_endpoint": f"{base}/oauth2/revoke",
        "jwks_uri": f"{base}/oauth2/jwks",
        "grant_types_supported": ["authorization_code", "refresh_token", DEVICE_GRANT],
        "response_types_supported": ["code"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "scopes_supported": ["openid", "profile", "email", "offline_access", "grok-cli:access", "api:access"],
    }

    async def get(_request: Request) -> Response:
        return JSONResponse(document)

    return get


@dataclass(frozen=True)
class TokenEndpoint:
    """POST /oauth2/token."""

    world: World

    async def post(self, request: Request) -> Response:
        world = self.world
        world.counters.token_requests += 1
        world.counters.open_token_requests += 1
        try:
            return await self._answer(request)
        finally:
            world.counters.open_token_requests -= 1

    async def _answer(self, request: Request) -> Response:
        world = self.world
        fault = world.token_faults.popleft() if world.token_faults else None
        await request.body()
        await asyncio.sleep(world.config.token_delay)
        if fault and (instead := answer_instead(fault)):
            return instead
        try:
            reply: Response = JSONResponse(self._grant(await read_form(request)), headers=NO_STORE)
        except DeniedError as denied:
            reply = refusal(denied)
        if fault == "drop-after":
            return Hangup()
        await asyncio.sleep(delay_after(fault))
        return reply

    def _grant(self, form: Form) -> dict[str, object]:
        """The token reply for one of the three grant types. Raises DeniedError."""
        world, client_id = self.world, required(form, "client_id")
        now, lifetime = world.now(), world.config.access_lifetime
        match required(form, "grant_type"):
            case "refresh_token":
                return token_reply(world, self._refresh(form, client_id), refreshed=True)
            case "authorization_code":
                values = [required(form, name) for name in ("code", "redirect_uri", "code_verifier")]
                pair = world.codes.redeem(values[0], client_id, values[1], values[2], now, lifetime)
                return token_reply(world, pair)
            case kind if kind == DEVICE_GRANT:
                device_code = required(form, "device_code")
                return token_reply(world, world.devices.poll(device_code, client_id, now, lifetime))
        raise DeniedError("unsupported_grant_type", "The grant type is not supported")

    def _refresh(self, form: Form, client_id: str) -> Pair:
        config = self.world.config
        named = Principal(form.get("principal_type", ""), form.get("principal_id", ""))
        return self.world.ledger.refresh(
            required(form, "refresh_token"),
            client_id,
            self.world.now(),
            config.access_lifetime,
            grace=config.grace,
            principal=named if config.require_principal else None,
            rotate=not config.omit_refresh_token,
        )


@dataclass(frozen=True)
class DeviceEndpoints:
    """POST /oauth2/device/code and the page a person opens."""

    world: World

    async def code(self, request: Request) -> Response:
        world, config = self.world, self.world.config
        try:
            form = await read_form(request)
            client_id = required(form, "client_id")
        except DeniedError as denied:
            return refusal(denied)
        device = world.devices.start(
            client_id,
            form.get("scope", ""),
            world.now(),
            expires_in=config.device_expires_in,
            interval=config.device_interval,
            approved=config.device_approval == "auto",
        )
        page = f"{world.issuer}/oauth2/device"
        reply = {
            "device_code": device.device_code,
            "user_code": device.user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?{urlencode({'user_code': device.user_code})}",
            "expires_in": int(config.device_expires_in),
            "interval": _whole(config.device_interval),
        }
        return JSONResponse(reply, headers=NO_STORE)

    async def page(self, request: Request) -> Response:
        user_code = request.query_params.get("user_code", "")
        if not user_code:
            return HTMLResponse(
                '<form><label>Code <input name="user_code"></label><button>Continue</button></form>'
            )
        if not self.world.devices.decide(user_code, "approved"):
            return HTMLResponse(f"<h1>Unknown code {escape(user_code)}</h1>", 404)
        return HTMLResponse("<h1>Device approved</h1><p>You may close this page.</p>")


def authorize(world: World) -> Handler:
    """GET /oauth2/authorize: consent is given at once."""

    async def get(request: Request) -> Response:
        query = request.query_params
        try:
            code = _authorization(query, world.now())
        except DeniedError as denied:
            return refusal(denied)
        answer = {"code": world.codes.issue(code), "state": query["state"]}
        if world.config.authorize_outcome == "deny":
            answer = {"error": "access_denied", "state": query["state"]}
        elif world.config.authorize_outcome == "bad-state":
            answer["state"] = "not-the-state-you-sent"
        joint = "&" if "?" in code.redirect_uri else "?"
        return RedirectResponse(f"{code.redirect_uri}{joint}{urlencode(answer)}", 302)

    return get


def _authorization(query: Mapping[str, str], now: float) -> AuthorizationCode:
    """What a redeemer must show. Raises DeniedError for a request the real server turns away."""
    expected = {"response_type": "code", "plan": "generic", "code_challenge_method": "S256"}
    for name, value in expected.items():
        if query.get(name) != value:
            raise DeniedError("invalid_request", f"{name} must be {value}")
    required(query, "state")
    uri = required(query, "redirect_uri")
    parts = urlsplit(uri)
    if parts.scheme != "http" or parts.hostname not in LOOPBACK:
        raise DeniedError("invalid_request", "redirect_uri must be a loopback address")
    return AuthorizationCode(
        client_id=required(query, "client_id"),
        redirect_uri=uri,
        challenge=required(query, "code_challenge"),
        scope=query.get("scope", ""),
        nonce=required(query, "nonce"),
        issued_at=now,
    )


def revoke(world: World) -> Handler:
    """POST /oauth2/revoke answers 200 whether or not the token existed (RFC 7009 §2.2)."""

    async def post(request: Request) -> Response:
        try:
            world.ledger.revoke_token(required(await read_form(request), "token"))
        except DeniedError as denied:
            return refusal(denied)
        return Response(status_code=200)

    return post


async def jwks(_request: Request) -> Response:
    return JSONResponse(jwt.key_set())


async def retired(_request: Request) -> Response:
    """The old token endpoint, which Cloudflare answers."""
    return HTMLResponse(cloudflare_page(403), 403)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def authorization_server(world: World) -> Starlette:
    """Everything that lives on auth.x.ai."""
    devices = DeviceEndpoints(world)
    return Starlette(
        routes=[
            Route("/.well-known/openid-configuration", discovery(world)),
            Route("/oauth2/token", TokenEndpoint(world).post, methods=["POST"]),
            Route("/oauth2/device/code", devices.code, methods=["POST"]),
            Route("/oauth2/device", devices.page),
            Route("/oauth2/authorize", authorize(world)),
            Route("/oauth2/revoke", revoke(world), methods=["POST"]),
            Route("/oauth2/jwks", jwks),
            Route("/oauth/token", retired, methods=ALL_METHODS),
        ]
    )
