"""TLS, between a connection's protocol and its socket.

asyncio and uvloop bring their own, but keep 256 KB for each connection, and do not tell an end in order from
a cut.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

_LARGEST_RECORD: Final = 16 * 1024
"""Bytes that one read can give (RFC 8446 §5.1)."""
_STEP: Final = 2 * _LARGEST_RECORD
"""Bytes that go through OpenSSL's buffers at once: they keep the size they ever had."""


class Tls(asyncio.Protocol, asyncio.Transport):
    """The protocol of a socket, and the transport of `protocol`, which is told nothing before `established`.

    `wrap` makes the side of TLS that it is to be. Law: `eof_received` is called when the peer said goodbye
    (close_notify, RFC 8446 §6.1), and only then; what came before any end is told before it.
    """

    def __init__(
        self, wrap: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject], protocol: asyncio.Protocol
    ) -> None:
        super().__init__()
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises `ssl.SSLError` or `OSError` when the handshake failed."""
        self.established.add_done_callback(_hear)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = wrap(self._incoming, self._outgoing)
        self._protocol: asyncio.BaseProtocol = protocol
        self._ended = False

    @property
    def session(self) -> ssl.SSLSession | None:
        """What another handshake can resume; servers give it along with their first bytes.

        Not to be read without need: each time costs more than 6 KB that CPython (3.10 to 3.13) never frees.
        """
        return self._tls.session

    @property
    def resumed(self) -> bool:
        """The handshake went on with an earlier session."""
        return bool(self._tls.session_reused)

    def trim(self) -> None:
        """Free 16 KB that OpenSSL took to read a session and keeps until something is written."""
        with suppress(ssl.SSLError):
            self._tls.write(b"")  # sends nothing

    # What the socket's transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        if not self.established.done():
            self._incoming.write(data)
            self._shake_hands()
        elif not self._ended:
            self._read(data)

    def eof_received(self) -> None:
        """A cut, of which `connection_lost` tells; what is still to be sent is not waited for."""
        self._socket.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_established:
            cast(asyncio.Protocol, self._protocol).connection_lost(exc)
        elif not self.established.done():
            self.established.set_exception(exc or ConnectionResetError())
        del self._protocol  # it knows this, and a circle would wait for the garbage collector

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # What the protocol calls.

    def write(self, data: Any) -> None:
        """Encrypt and send `data`; nothing once the connection is closing."""
        try:
            for start in range(0, len(data), _STEP):
                if self.is_closing():
                    return
                self._tls.write(data[start : start + _STEP])
                self._flush()
        except ssl.SSLError:
            self.abort()

    def close(self) -> None:
        """Say goodbye, and close when all is sent; what still comes is not waited for."""
        if not self.is_closing():
            with suppress(ssl.SSLError):  # the peer has not said goodbye itself
                self._tls.unwrap()
            self._flush()
        self._socket.close()

    def abort(self) -> None:
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._socket.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket.get_extra_info(name, default)

    # Between the two.

    @property
    def _is_established(self) -> bool:
        done = self.established.done() and not self.established.cancelled()
        return done and self.established.exception() is None

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._flush()  # why, for the peer
            self.established.set_exception(error)
            self._socket.close()
        else:
            self._flush()
            self.established.set_result(None)
            self._protocol.connection_made(self)
            self._read(b"")

    def _read(self, data: bytes) -> None:
        """Tell what has come in whole records, in one piece."""
        pieces: list[bytes] = []
        failed = False
        try:
            self._decrypt(data[:_STEP], pieces)
            for start in range(_STEP, len(data), _STEP):
                if not self._ended:
                    self._decrypt(data[start : start + _STEP], pieces)
        except ssl.SSLError:
            failed = True
        if self._outgoing.pending:
            self._flush()  # keys are renewed, or why it failed
        protocol = cast(asyncio.Protocol, self._protocol)
        if pieces:
            protocol.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if failed:
            self.abort()
        elif self._ended:
            protocol.eof_received()
            self.close()

    def _decrypt(self, data: bytes, pieces: list[bytes]) -> None:
        tls, incoming = self._tls, self._incoming
        incoming.write(data)
        try:
            while size := tls.pending() or incoming.pending:
                if piece := tls.read(min(size, _LARGEST_RECORD)):
                    pieces.append(piece)
                else:
                    self._ended = True
                    return
        except ssl.SSLWantReadError:
            return  # the rest of a record is still to come

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())


def _hear(established: asyncio.Future[None]) -> None:
    """Whoever waited for it may have left; asyncio would complain that nobody heard of a failure."""
    if not established.cancelled():
        established.exception()
