"""The way of one request: check, get a token, send, copy the answer back, finish.

Raw ASGI. What happens is told in events; counting and logging is done by whoever hears them.
"""

from __future__ import annotations

import asyncio

from grok_oauth_proxy.asgi import Receive, Scope, Send
from grok_oauth_proxy.bugs import log_bug
from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.credentials.token import Token
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.events import Observer, RequestStarted, StaleTokenRetry, UpstreamFailed
from grok_oauth_proxy.proxy import retry
from grok_oauth_proxy.proxy.admission import Admission
from grok_oauth_proxy.proxy.body import ClientGone, Keep
from grok_oauth_proxy.proxy.exchange import Exchange
from grok_oauth_proxy.proxy.headers import request_headers, response_headers, response_trailers
from grok_oauth_proxy.proxy.limits import limits_told
from grok_oauth_proxy.proxy.peek import Peeked, peek
from grok_oauth_proxy.proxy.recovery import CURABLE, Recovery, Step
from grok_oauth_proxy.proxy.rejections import RATE_LIMIT, STALE_TOKEN
from grok_oauth_proxy.proxy.replies import unavailable
from grok_oauth_proxy.proxy.target import upstream_target
from grok_oauth_proxy.proxy.upstream import Api, Request, UpstreamFailure


class Proxy:
    """The ASGI application for /v1. `keep`: the room for bodies that may be sent again."""

    def __init__(
        self,
        admission: Admission,
        recovery: Recovery,
        upstream: Api,
        *,
        policy: retry.Policy,
        keep: Keep,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._recovery = recovery
        self._upstream = upstream
        self._policy = policy
        self._keep = keep
        self._observer = observer
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._clock, keep=self._keep)
        self._observer(RequestStarted(exchange.key))
        try:
            await self._admission.enter(exchange)
            await self._answer(exchange)
        except ClientGone:
            exchange.ending = "client_gone"
        except ProxyError as error:
            await exchange.refuse(error)
        except UpstreamFailure as failure:
            # A body broke off, or a switch of protocols was none.
            self._observer(UpstreamFailed(failure.kind))
            await exchange.give_up(unavailable(failure))
        except asyncio.CancelledError:
            if not await exchange.was_ended():
                # The time for open answers is over.
                exchange.cut_short()
                raise
        except Exception as error:  # noqa: BLE001 - a bug in one request must not look like an answer
            log_bug("A request failed.", error)
            await exchange.give_up(
                ProxyError("The proxy failed to handle this request.", code="internal_error")
            )
        finally:
            self._admission.leave(exchange)
            self._observer(exchange.finished())

    async def _answer(self, exchange: Exchange) -> None:
        if exchange.client.wants_websocket:
            exchange.shake_hands()
        peeked = await self._obtain(exchange)
        answer = peeked.answer
        try:
            if answer.switched:
                await exchange.converse(answer)
                return
            exchange.body.abandon()
            headers = response_headers(answer.headers)
            self._admission.note_answer(exchange, headers)
            await exchange.start(answer.status, headers)
            if peeked.prefix or not answer.ready:
                exchange.write(peeked.prefix)
            rest = await answer.pour(exchange)
            exchange.end(rest, response_trailers(answer.trailers))
        finally:
            await answer.aclose()

    async def _obtain(self, exchange: Exchange) -> Peeked:
        """Send, and send again for as long as there is a next step; the answer to deliver."""
        target = upstream_target(exchange.client.target, self._upstream.base_path)
        secret = exchange.brings_secret
        token = await self._recovery.first(at_least=exchange.life_needed, brings_secret=secret)
        outcome = await self._send(exchange, target, token)
        if isinstance(outcome, Peeked) and outcome.answer.status < 400:
            self._recovery.note_accepted(exchange.raw_path)
            return outcome
        # A token newer than the request has cost a refresh already; one from the future tells of a clock.
        renewed = exchange.began_at <= token.issued_at <= self._clock.wall()
        attempt = retry.Attempt(exchange.method, refreshes=int(renewed))
        stale = False
        while True:
            try:
                step = await self._next_step(exchange, outcome, token, attempt)
            except BaseException:
                if isinstance(outcome, Peeked):
                    await outcome.answer.aclose()
                raise
            stale = stale or (isinstance(outcome, Peeked) and outcome.rejection is STALE_TOKEN)
            if step is not None:
                if isinstance(outcome, Peeked):
                    await outcome.answer.aclose()
                token, attempt = step
                outcome = await self._send(exchange, target, token)
            elif isinstance(outcome, UpstreamFailure):
                raise unavailable(outcome)
            else:
                if stale and outcome.rejection is not STALE_TOKEN:
                    self._observer(StaleTokenRetry("success"))
                return outcome

    async def _send(self, exchange: Exchange, target: bytes, token: Token) -> Peeked | UpstreamFailure:
        try:
            request, asked = self._request(exchange, target, token), self._clock.monotonic()
            answer = await self._upstream.send(request)
            exchange.upstream_took = self._clock.monotonic() - asked
            if (told := limits_told(answer.headers, at=self._clock.wall())) is not None:
                self._observer(told)
            if answer.status < 400:
                return Peeked(answer)
            peeked = await peek(answer)
        except UpstreamFailure as failure:
            self._observer(UpstreamFailed(failure.kind))
            return failure
        if peeked.unreadable and exchange.body.kept_whole:
            peeked = await self._ask_plainly(peeked, self._request(exchange, target, token, plain=True))
        if (rejection := peeked.rejection) is not None:
            self._observer(rejection.told(exchange.raw_path, self._clock.wall()))
        return peeked

    async def _ask_plainly(self, refused: Peeked, request: Request) -> Peeked:
        """The refusal did no work, and whether it speaks of the token must be known."""
        try:
            plain = await peek(await self._upstream.send(request))
        except UpstreamFailure as failure:
            self._observer(UpstreamFailed(failure.kind))
            return refused
        except BaseException:
            await refused.answer.aclose()
            raise
        await refused.answer.aclose()
        return plain

    def _request(self, exchange: Exchange, target: bytes, token: Token, *, plain: bool = False) -> Request:
        to, handshake = self._upstream, exchange.handshake
        added = handshake.headers if handshake else exchange.framing
        bearer = None if exchange.brings_secret else token.bearer.get_secret_value().encode("ascii")
        headers = request_headers(exchange.headers, added, to=to, bearer=bearer, plain=plain)
        body = exchange.body.outgoing() if exchange.framing else None
        return Request(exchange.method, target, headers, body, upgrade=handshake is not None)

    async def _next_step(
        self, exchange: Exchange, outcome: Peeked | UpstreamFailure, token: Token, attempt: retry.Attempt
    ) -> Step | None:
        """The token and attempt to go on with, after waiting where that is called for; None to stop here."""
        if isinstance(outcome, UpstreamFailure):
            if outcome.kind == "timeout":
                return None  # the time is not spent once more
            decision = retry.after_failure(attempt, self._policy, sent=outcome.sent, stale=outcome.stale)
        elif outcome.rejection in CURABLE:
            if exchange.brings_secret:
                return None
            kept, path = exchange.body.kept_whole, exchange.raw_path
            return await self._recovery.step(token, attempt, outcome.rejection, path=path, can_resend=kept)
        else:
            if outcome.answer.status < 500:
                self._recovery.note_accepted(exchange.raw_path)
            status = outcome.answer.status
            if status not in retry.TEMPORARY or outcome.rejection not in (None, RATE_LIMIT):
                return None
            wait = outcome.retry_after(self._clock.wall())
            decision = retry.after_answer(attempt, self._policy, status=status, retry_after=wait)
        if not isinstance(decision, retry.Resend) or not exchange.body.kept_whole:
            return None
        await asyncio.sleep(decision.delay)
        return token, attempt.retried()
