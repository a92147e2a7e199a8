"""The composition root: builds the parts from the settings, and runs them for as long as they are needed."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import httpx

from grok_oauth_proxy.asgi import Application
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.credentials.manager import TokenManager
from grok_oauth_proxy.credentials.messages import BLOCKED, READ_ONLY
from grok_oauth_proxy.credentials.oauth import AuthorizationServer
from grok_oauth_proxy.credentials.state import StateFile
from grok_oauth_proxy.egress import EgressTransport, egress_proxy, tls_context
from grok_oauth_proxy.errors import StartRefused
from grok_oauth_proxy.events import Event, Observer, StoreTrouble
from grok_oauth_proxy.observe.log import log_event
from grok_oauth_proxy.observe.metrics import Metrics
from grok_oauth_proxy.origins import is_loopback
from grok_oauth_proxy.proxy import retry
from grok_oauth_proxy.proxy.front_door import FrontDoor
from grok_oauth_proxy.proxy.handler import Proxy
from grok_oauth_proxy.proxy.upstream import Upstream
from grok_oauth_proxy.settings import MIN_API_KEY_LENGTH, Settings
from grok_oauth_proxy.tasks.background import background
from grok_oauth_proxy.tasks.prewarm import keep_connections_warm, keep_token_fresh
from grok_oauth_proxy.tasks.watcher import StoreWatcher
from grok_oauth_proxy.web.cors import with_cors
from grok_oauth_proxy.web.gateway import Gateway
from grok_oauth_proxy.web.pages import create_pages
from grok_oauth_proxy.web.ping import ping_models


def refuse_unsafe_start(settings: Settings) -> None:
    """Raise `StartRefused` for what is known to be wrong before anything is opened."""
    if settings.hermes_cli_required and shutil.which("hermes") is None:
        raise StartRefused(
            "The Hermes CLI (`hermes`) is not on PATH. Install it with `pip install hermes-agent`, or set "
            "HERMES_CLI_REQUIRED=false where only its auth.json is mounted.",
            code="no_hermes_cli",
        )
    key = settings.proxy_api_key.get_secret_value() if settings.proxy_api_key else ""
    if not is_loopback(settings.proxy_host) and len(key) < MIN_API_KEY_LENGTH:
        raise StartRefused(
            f"PROXY_HOST {settings.proxy_host} is open to other machines. Set PROXY_API_KEY to at least "
            f"{MIN_API_KEY_LENGTH} characters, or PROXY_HOST to 127.0.0.1.",
            code="open_without_key",
        )


def prepare_state(settings: Settings, observer: Observer) -> StateFile:
    """Repair the permissions of the state file, and keep it aside if it is damaged; raises `StoreProblem`."""
    state_file = StateFile(settings.grok_proxy_auth_state)
    for repaired in state_file.prepare():
        observer(StoreTrouble("permissions_repaired", repaired))
    if (kept := state_file.set_aside_if_corrupt()) is not None:
        observer(StoreTrouble("state_corrupt", kept))
    return state_file


@asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[tuple[Application, Observer]]:
    """The application, its credentials loaded and its background tasks running, and who hears what happens.

    Raises `StoreProblem` or `StartRefused` when there is no grant to serve with.
    """
    clock = Clock()
    store = HermesStore(settings.hermes_stores)
    metrics = Metrics(lambda: tokens.status().seconds_to_expiry, shared=settings.proxy_workers > 1)
    observer = _broadcast(metrics, log_event)
    state_file = prepare_state(settings, observer)
    tls = tls_context()
    async with (
        _control_plane(settings, tls) as control_plane,
        aclosing(_upstream(settings, tls, clock)) as upstream,
    ):
        server = AuthorizationServer(
            control_plane,
            settings.xai_oauth_issuer,
            allow_loopback=settings.grok_proxy_allow_loopback_upstream,
            connect_timeout=settings.upstream_connect_timeout,
            clock=clock,
        )
        tokens = TokenManager(
            Chain(store, state_file, observer, client_id=settings.xai_oauth_client_id),
            server,
            window=settings.token_refresh_window,
            observer=observer,
            clock=clock,
        )
        watcher = StoreWatcher(
            store, tokens.reload, interval=settings.hermes_poll_interval, observer=observer
        )
        await tokens.start()
        if not tokens.client_id:
            raise StartRefused(BLOCKED["no_client_id"], code="no_client_id")
        if (read_only := store.unwritable()) is not None:
            observer(StoreTrouble("store_read_only", READ_ONLY.format(store=read_only)))
        app = _application(settings, tokens, upstream, metrics, observer, clock)
        async with (
            aclosing(tokens),
            background(
                prewarm=partial(keep_token_fresh, tokens),
                warm=partial(keep_connections_warm, upstream, settings.upstream_warm_connections),
                watcher=watcher.run,
            ),
        ):
            yield app, observer


def _application(
    settings: Settings,
    tokens: TokenManager,
    upstream: Upstream,
    metrics: Metrics,
    observer: Observer,
    clock: Clock,
) -> Application:
    api = Proxy(
        tokens,
        upstream,
        policy=retry.Policy(settings.upstream_retry_attempts, settings.upstream_retry_delay),
        replay_limit=settings.replay_body_limit,
        observer=observer,
        clock=clock,
    )
    pages = create_pages(
        status=tokens.status,
        ping=partial(ping_models, tokens, upstream, clock),
        metrics=metrics.render,
        api_base=settings.xai_base_url,
    )
    door = FrontDoor(
        api_key=settings.proxy_api_key.get_secret_value() if settings.proxy_api_key else None,
        allowed_hosts=settings.proxy_allowed_hosts,
        allowed_origins=settings.proxy_allowed_origins,
        bound_host=settings.proxy_host,
    )
    gateway = Gateway(door, api, pages, observer=observer, clock=clock)
    return with_cors(gateway, settings.proxy_allowed_origins, observer=observer, clock=clock)


def _control_plane(settings: Settings, tls: ssl.SSLContext) -> httpx.AsyncClient:
    proxy = egress_proxy(settings.xai_oauth_issuer)
    transport = EgressTransport(proxy, tls) if proxy else None
    return httpx.AsyncClient(trust_env=False, transport=transport, verify=tls)


def _upstream(settings: Settings, tls: ssl.SSLContext, clock: Clock) -> Upstream:
    return Upstream(
        settings.xai_base_url,
        proxy=egress_proxy(settings.xai_base_url),
        tls=tls,
        connect_timeout=settings.upstream_connect_timeout,
        read_timeout=settings.upstream_read_timeout,
        clock=clock,
    )


def _broadcast(first: Observer, second: Observer) -> Observer:
    def tell(event: Event, /) -> None:
        first(event)
        second(event)

    return tell
