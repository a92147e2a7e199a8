"""The course of a sign-in: what a person is shown, and what is done with the login that comes of it.

Law: a login that comes in when nobody wants it any more is ended at the server; one that was saved stays.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from rich.console import Console

from grok_oauth_proxy.cli.callback import Answer, CallbackPage, callback_page
from grok_oauth_proxy.cli.service.managers import start_line
from grok_oauth_proxy.cli.surroundings import has_browser, ssh_target
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.control_plane import authorization_server, control_plane
from grok_oauth_proxy.credentials.client_id import known_client_id
from grok_oauth_proxy.credentials.oauth import AuthorizationServer
from grok_oauth_proxy.credentials.own import OwnStore
from grok_oauth_proxy.credentials.sign_in import (
    BrowserLogin,
    Pending,
    poll_device,
    refused,
    request_device_code,
    revoke,
)
from grok_oauth_proxy.credentials.token import Grant
from grok_oauth_proxy.egress import tls_context
from grok_oauth_proxy.errors import ProxyError, SignInFailed, StoreProblem
from grok_oauth_proxy.moving.surroundings import forget_keys
from grok_oauth_proxy.settings import Settings

_BROWSER_LIMIT: Final = 180.0
_KILLS: Final = (signal.SIGTERM, signal.SIGHUP)

console = Console(highlight=False, soft_wrap=True, markup=False)
Obtain = Callable[[AuthorizationServer, str], Awaitable[Grant]]
T = TypeVar("T")


@dataclass
class SignIn:
    """One sign-in. `saved`: the login is on the disk, so that it is too late to give up."""

    settings: Settings
    saved: bool = False
    replaces: bool = False

    def __post_init__(self) -> None:
        self.store = OwnStore.beside(self.settings.grok_proxy_auth_state)

    async def run(self, obtain: Obtain) -> None:
        """Get a login by `obtain` and save it as the proxy's own; raises `ProxyError`."""
        _end_like_ctrl_c()
        client_id = known_client_id(self.settings)
        _make_ready(self.store)
        self.replaces = self.store.is_there()
        async with control_plane(self.settings, tls_context()) as http:
            server = authorization_server(self.settings, http, Clock())
            await server.discover()
            grant = await obtain(server, client_id)
            try:
                async with self.store.lock():
                    self._save(grant, client_id)
            finally:
                if not self.saved:
                    await _end(server, grant, client_id)

    def _save(self, grant: Grant, client_id: str) -> None:
        try:
            self.store.replace(grant, client_id)
        except OSError as error:
            raise _unwritable(self.store, error) from None
        self.saved = True
        _hear_no_more()

    def tell(self) -> None:
        """Say that it is saved, and what comes next."""
        console.print(
            f"✓ Signed in. The login is the proxy's own, in {self.store.file.path}; Hermes' is not touched."
        )
        source, interval = self.settings.credential_source, self.settings.hermes_poll_interval
        if source not in ("auto", "own"):
            console.print(f"  CREDENTIAL_SOURCE is {source}: unset it, so that this one is used.")
        console.print(f"  A running proxy uses it within {interval:g} s. To start one: {start_line()}")
        if self.replaces:
            console.print(
                "  The login that was here before is not used any more; end it in your xAI account."
            )


def _end_like_ctrl_c() -> None:
    """A terminal that is closed and a `kill` leave nothing behind either."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    for number in _KILLS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup
            loop.add_signal_handler(number, task.cancel if task else loop.stop)


def _hear_no_more() -> None:
    """Whoever gives up now is too late: the login is there, and is told."""
    loop = asyncio.get_running_loop()
    for number in _KILLS:
        loop.remove_signal_handler(number)
    for number in (signal.SIGINT, *_KILLS):
        signal.signal(number, signal.SIG_IGN)


def _make_ready(store: OwnStore) -> None:
    """Before anybody signs in for nothing."""
    for repaired in store.file.prepare():
        console.print(repaired)
    if (kept := store.file.set_aside_if_corrupt()) is not None:
        console.print(kept)
    try:
        store.rehearse()
    except OSError as error:
        raise _unwritable(store, error) from None


def _unwritable(store: OwnStore, error: OSError) -> StoreProblem:
    return StoreProblem(
        f"{store.file.path} cannot be written: {error.strerror}. Make its folder writable, free some space.",
        code="state_unusable",
    )


async def by_code(server: AuthorizationServer, client_id: str) -> Grant:
    """With a code, in any browser on any device."""
    code = await request_device_code(server, client_id)
    console.print("Open this page on any device, sign in to Grok there, and check that it shows this code:\n")
    console.print(f"  {code.page}\n  {code.user_code}\n")
    interval, until = code.interval, time.monotonic() + code.expires_in
    async with _countdown("Waiting for you to confirm.", until):
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(interval, left))
            asking = poll_device(server, client_id, code, interval, now=time.time())
            match await _unless_given_up(server, client_id, asking):
                case Pending(interval=longer):
                    interval = longer
                case grant:
                    return grant
    raise refused("expired_token")


async def by_browser(server: AuthorizationServer, client_id: str) -> Grant:
    """With a browser that comes back to a page of ours."""
    grant = None
    try:
        async with callback_page() as page:
            question = BrowserLogin(client_id, page.address)
            _show(question.page(server), page.address)
            answer = await _waited_for(question, page)
            grant = await _redeemed(server, client_id, question, answer)
    except BaseException:
        if grant is not None:  # given up before it could be saved
            await _end(server, grant, client_id)
        raise
    return grant


async def _waited_for(question: BrowserLogin, page: CallbackPage) -> Answer:
    try:
        async with (
            _countdown("Waiting for the browser.", time.monotonic() + _BROWSER_LIMIT),
            asyncio.timeout(_BROWSER_LIMIT),
        ):
            return await _answer_to(question, page)
    except TimeoutError:
        raise SignInFailed(
            f"Nobody came back from the page within {_BROWSER_LIMIT:.0f} s. Try again, or run "
            "`grok-oauth-proxy login` without --browser, which works from any device.",
            code="expired",
        ) from None


async def _redeemed(
    server: AuthorizationServer, client_id: str, question: BrowserLogin, answer: Answer
) -> Grant:
    try:
        if "code" not in answer.query:
            raise refused(answer.query.get("error", "no_code"))
        asking = question.redeem(server, answer.query["code"], now=time.time())
        grant = await _unless_given_up(server, client_id, asking)
    except ProxyError as error:
        answer.tell(400, error.message)
        raise
    answer.tell(200, "You are signed in. This page can be closed.")
    return grant


async def _answer_to(question: BrowserLogin, page: CallbackPage) -> Answer:
    """The first answer that belongs to this sign-in."""
    told = False
    while True:
        answer = await page.answers.get()
        if question.is_answered_by(answer.query.get("state", "")):
            return answer
        if not told:  # once: any page may send as many as it likes
            console.print("An answer that belongs to another sign-in came, and was refused.")
            told = True
        answer.tell(400, "This answer belongs to another sign-in. Start again.")


def _show(page: str, address: str) -> None:
    port = address.split(":")[2].partition("/")[0]
    if (target := ssh_target()) is not None:
        console.print("Over ssh, run this first on the machine with the browser, and leave it open:\n")
        console.print(f"  ssh -N -L {port}:127.0.0.1:{port} {target}\n")
    console.print(f"Open this page in the browser and sign in to Grok:\n\n  {page}\n")
    if has_browser():
        forget_keys()
        # Some browsers return only when they are closed.
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()


@asynccontextmanager
async def _countdown(waiting: str, until: float) -> AsyncIterator[None]:
    """Show what is waited for and how long still; on a terminal only."""
    with console.status("") as status:

        async def tick() -> None:
            while True:
                left = max(0, round(until - time.monotonic()))
                status.update(f"{waiting} {left // 60}:{left % 60:02} left; Ctrl-C gives up.")
                await asyncio.sleep(1)

        ticking = asyncio.create_task(tick(), name="countdown")
        try:
            yield
        finally:
            ticking.cancel()


async def _unless_given_up(server: AuthorizationServer, client_id: str, asking: Coroutine[Any, Any, T]) -> T:
    """The result; a login that comes after Ctrl-C is ended at the server."""
    task = asyncio.create_task(asking, name="sign-in")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(ProxyError):
            if isinstance(grant := await task, Grant):
                await _end(server, grant, client_id)
        raise


async def _end(server: AuthorizationServer, grant: Grant, client_id: str) -> None:
    with suppress(SignInFailed):
        await revoke(server, grant, client_id)
