"""The composition root: builds the parts from the settings, and runs them for as long as they are needed."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from grok_oauth_proxy.asgi import Application, Receive, Scope, Send
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.control_plane import authorization_server, control_plane
from grok_oauth_proxy.credentials.api_key import ApiKey
from grok_oauth_proxy.credentials.chain import Chain
from grok_oauth_proxy.credentials.client_keys import KeysFile
from grok_oauth_proxy.credentials.hermes import HermesStore
from grok_oauth_proxy.credentials.logins import Logins
from grok_oauth_proxy.credentials.manager import TokenManager
from grok_oauth_proxy.credentials.oauth import AuthorizationServer
from grok_oauth_proxy.credentials.own import OwnStore
from grok_oauth_proxy.credentials.state import StateFile
from grok_oauth_proxy.egress import egress_proxy, tls_context
from grok_oauth_proxy.errors import ConfigurationError
from grok_oauth_proxy.events import (
    Event,
    Observer,
    RequestStarted,
    SettingsReloaded,
    StreamCounted,
)
from grok_oauth_proxy.observe.log import log_event
from grok_oauth_proxy.observe.metrics import Metrics
from grok_oauth_proxy.observe.news import News
from grok_oauth_proxy.proxy import retry
from grok_oauth_proxy.proxy.admission import Admission, Limits
from grok_oauth_proxy.proxy.body import Keep
from grok_oauth_proxy.proxy.fallback import KeyFallback
from grok_oauth_proxy.proxy.front_door import FrontDoor
from grok_oauth_proxy.proxy.handler import Proxy
from grok_oauth_proxy.proxy.key_ring import KeyRing
from grok_oauth_proxy.proxy.recovery import Recovery
from grok_oauth_proxy.proxy.upstream import Api, Upstream
from grok_oauth_proxy.safe_start import heeded, prepare_state
from grok_oauth_proxy.settings import RELOADED, Settings
from grok_oauth_proxy.tasks.background import background
from grok_oauth_proxy.tasks.prewarm import keep_connections_warm, keep_token_fresh
from grok_oauth_proxy.tasks.watcher import StoreWatcher
from grok_oauth_proxy.web.cors import with_cors
from grok_oauth_proxy.web.gateway import Gateway
from grok_oauth_proxy.web.pages import create_pages
from grok_oauth_proxy.web.ping import ping_models

if TYPE_CHECKING:
    from grok_oauth_proxy.observe.tracing import Tracing


class Service:
    """The application, and what may change about it while it runs. ASGI."""

    def __init__(
        self,
        settings: Settings,
        make: Callable[[Settings], Application],
        watchers: Sequence[StoreWatcher],
        observer: Observer,
    ) -> None:
        self.settings = settings
        self.observer = observer
        self._make = make
        self._app = make(settings)
        self._watchers = watchers

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._app(scope, receive, send)

    def heed(self, wanted: Settings) -> SettingsReloaded:
        """Go by `wanted` from the next request on, as far as that may change.

        Raises `StartRefused` for what no start would be allowed with; then all is as before.
        """
        changed = {
            name for name in Settings.model_fields if getattr(wanted, name) != getattr(self.settings, name)
        }
        new = heeded(self.settings, wanted)
        self._app, self.settings = self._make(new), new
        return SettingsReloaded(tuple(sorted(changed & RELOADED)), tuple(sorted(changed - RELOADED)))

    async def look_at_stores(self) -> None:
        """Use a login that has changed there."""
        for watcher in self._watchers:
            await watcher.look()


@asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[Service]:
    """The application, its credentials loaded and its background tasks running.

    Raises `StoreProblem` or `StartRefused` when there is no grant to serve with.
    """
    clock = Clock()
    news = News(clock)
    metrics = Metrics(lambda: login.status(), news, shared=settings.proxy_workers > 1)
    tracing = _tracing(settings)
    observer = _broadcast(metrics, news, tracing)
    prepare_state(settings, observer)
    tls = tls_context()
    async with (
        aclosing(tracing) if tracing else nullcontext(),
        control_plane(settings, tls) as http,
        aclosing(_upstream(settings, tls, clock)) as upstream,
    ):
        login, watchers = _login(settings, authorization_server(settings, http, clock), observer, clock)
        await login.start()
        wanted = settings.api_key_fallback == "entitlement" and settings.credential_source != "api-key"
        key = settings.xai_api_key if wanted else None
        recovery = Recovery(
            login, KeyFallback(key, observer), observer, clock, replay_limit=settings.replay_body_limit
        )
        pages = create_pages(
            status=login.status,
            news=news,
            ping=partial(ping_models, login, upstream, clock),
            metrics=metrics.render,
            api_base=settings.xai_base_url,
            key_set=key is not None,
        )
        ring = KeyRing(KeysFile(settings.keys_file), observer, clock.monotonic)
        ring.open()
        make = partial(
            _application,
            ring=ring,
            admission=Admission(_limits(settings), observer, clock),
            keep=Keep(settings.replay_body_limit),
            recovery=recovery,
            api=tracing.attempts(upstream) if tracing else upstream,
            pages=pages,
            tracing=tracing,
            observer=observer,
            clock=clock,
        )
        service = Service(settings, make, watchers, observer)
        async with (
            aclosing(login),
            background(
                prewarm=partial(keep_token_fresh, login),
                warm=partial(keep_connections_warm, upstream, settings.upstream_warm_connections),
                **{f"watcher-{number}": watcher.run for number, watcher in enumerate(watchers)},
            ),
        ):
            yield service
            metrics.settle()


def _login(
    settings: Settings, server: AuthorizationServer, observer: Observer, clock: Clock
) -> tuple[Logins | ApiKey, list[StoreWatcher]]:
    """What requests are sent with, and who looks after the files it comes from."""
    if settings.credential_source == "api-key" and settings.xai_api_key:
        return ApiKey(settings.xai_api_key, observer), []
    state_file = StateFile(settings.grok_proxy_auth_state)
    own, hermes = OwnStore.beside(state_file.path), HermesStore(settings.hermes_stores)
    places: dict[str, list[tuple[OwnStore | HermesStore, StateFile]]] = {
        "own": [(own, own.file)],
        "hermes": [(hermes, state_file)],
    }
    places["auto"] = places["own"] + places["hermes"]
    watched: list[tuple[OwnStore | HermesStore, TokenManager]] = []
    for source, file in places[settings.credential_source]:
        chain = Chain(source, file, observer, client_id=settings.xai_oauth_client_id)
        window = settings.token_refresh_window
        watched.append((source, TokenManager(chain, server, window=window, observer=observer, clock=clock)))
    logins = Logins([manager for _, manager in watched], observer)
    interval = settings.hermes_poll_interval
    return logins, [
        StoreWatcher(source, partial(logins.reload, manager), interval=interval, observer=observer)
        for source, manager in watched
    ]


def _application(
    settings: Settings,
    *,
    ring: KeyRing,
    admission: Admission,
    keep: Keep,
    recovery: Recovery,
    api: Api,
    pages: Application,
    tracing: Tracing | None,
    observer: Observer,
    clock: Clock,
) -> Application:
    """What is made of settings that may change, around what lasts."""
    admission.limits = _limits(settings)
    proxy = Proxy(
        admission,
        recovery,
        api,
        policy=retry.Policy(settings.upstream_retry_attempts, settings.upstream_retry_delay),
        keep=keep,
        observer=observer,
        clock=clock,
    )
    door = FrontDoor(
        api_key=settings.proxy_api_key.get_secret_value() if settings.proxy_api_key else None,
        ring=ring,
        allowed_hosts=settings.proxy_allowed_hosts,
        allowed_origins=settings.proxy_allowed_origins,
        bound_host=settings.proxy_host,
    )
    gateway = Gateway(door, proxy, pages, observer=observer, clock=clock)
    app = with_cors(gateway, settings.proxy_allowed_origins, observer=observer, clock=clock)
    return tracing.around(app) if tracing else app


def _limits(settings: Settings) -> Limits:
    return Limits(settings.proxy_max_requests, settings.proxy_max_streams)


def _upstream(settings: Settings, tls: ssl.SSLContext, clock: Clock) -> Upstream:
    return Upstream(
        settings.xai_base_url,
        proxy=egress_proxy(settings.xai_base_url),
        tls=tls,
        connect_timeout=settings.upstream_connect_timeout,
        read_timeout=settings.upstream_read_timeout,
        clock=clock,
        context=settings.proxy_trace_upstream,
    )


def _tracing(settings: Settings) -> Tracing | None:
    """None where no traces are wanted: nothing that makes them is loaded then."""
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    try:
        from grok_oauth_proxy.observe.tracing import Tracing

        return Tracing()
    except ImportError:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but what sends traces is not installed. Install "
            "grok-oauth-proxy[otel], or unset it."
        ) from None
    except (ValueError, OSError) as error:  # some OTEL_ variables are read as soon as the SDK is imported
        raise ConfigurationError(
            f"Traces cannot be sent ({type(error).__name__}). Correct the OTEL_ variables, or unset "
            "OTEL_EXPORTER_OTLP_ENDPOINT."
        ) from None


def _broadcast(metrics: Metrics, news: News, tracing: Tracing | None) -> Observer:
    def tell(event: Event, /) -> None:
        metrics(event)
        if not isinstance(event, RequestStarted | StreamCounted):  # most of all events, and only numbers
            log_event(event)
            news(event)

    if tracing is None:
        return tell

    def tell_tracing_too(event: Event, /) -> None:
        tell(event)
        tracing(event)

    return tell_tracing_too
