"""Connections: who may hold one open for how long, before and after somebody proved who it is.

A stranger's connection passes three doors, and at each the one that came first has to go when there are
too many: a socket that has not sent a byte costs nothing but its number; then comes TLS, with a time
limit; then headers, limited in size and time. A connection on which a signature was found good belongs
to a member and no longer competes with strangers, so a flood cannot push out those who are at work.

uvicorn's protocol parses HTTP; what it leaves open (limits on headers, time limits before the first
request) is closed here.
"""

from __future__ import annotations

import asyncio
import errno
import io
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from httptools import HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from atoll.core.errors import Unreachable
from atoll.server.web.limits import Limits
from atoll.server.web.secured import Secured
from atoll.wire.sealed import Sealed

__all__ = ["Doorman", "Guest", "Speaker"]

_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_SHORT = 1 << 14
"""Bytes of a body that are not worth another way than through the parser."""


class Guest:
    """One connection on its way through the doors.

    Args:
        doorman: who counts it.
        sock: the socket as it was accepted.
    """

    def __init__(self, doorman: Doorman, sock: socket.socket) -> None:
        self._doorman = doorman
        self.sock = sock
        self.timer: asyncio.TimerHandle | None = None
        self.line: Secured | None = None
        self.speaker: Speaker | None = None
        self.member = ""
        self.gone = False
        self.waiting: set[asyncio.Event] = set()

    def prove(self, member: str) -> None:
        """A signature of ``member`` came over this connection."""
        if self.member != member and not self.gone:  # else nobody would take it off the list again
            self._doorman.proved(self, member)

    def left(self) -> None:
        """The other end has hung up: whoever waits for something to tell it need not wait any longer."""
        self.gone = True
        for event in self.waiting:
            event.set()

    def drop(self) -> None:
        """Close the connection, whatever it is doing."""
        if self.line is not None:
            self.line.abort()
        else:
            self._doorman.hang_up(self)


class Speaker(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on the header's size and on the time until it is complete."""

    def __init__(self, guest: Guest, limits: Limits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._guest, self._limits = guest, limits
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0
        self._rest = 0
        self._complete = False
        self._whole: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._guest.speaker = self
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._give_up()
        self._guest.left()
        self._stop()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._guest._doorman.gone(self._guest)

    def data_received(self, data: bytes) -> None:
        """Read on; a header that is too long or takes too long ends the connection."""
        if self.parser is None or self.transport.is_closing():
            return
        if self._rest and not (data := self._more_body(data)):
            return
        super().data_received(data)
        if not self._busy and not self.transport.is_closing():
            self._head += len(data)
            if self._head > self._limits.header:
                self._refuse()
            else:
                self._wait()

    def on_message_begin(self) -> None:
        """A request begins; one before the answer to the last is no honest client's."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
        super().on_message_begin()
        self._complete = False
        self.scope["extensions"] = {"atoll.guest": {"guest": self._guest}}

    def on_headers_complete(self) -> None:
        """The header is here: from now on the application has its own limits."""
        self._stop()
        self._complete = True
        self._head = 0
        size = len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
        if size > self._limits.header:
            self._refuse()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body; none is read for a request that was refused above."""
        if self.cycle is not None:
            super().on_body(body)
            if len(body) > _SHORT:  # the rest waits until somebody wants it
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """A request has ended."""
        if self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Members may keep their connection longer than strangers."""
        limits = self._limits
        known = bool(self._guest.member)
        self.timeout_keep_alive = int(limits.idle_seconds if known else limits.header_seconds)
        super().on_response_complete()

    # Bodies that are wanted whole -----------------------------------------------------------------

    def collect(self, size: int) -> asyncio.Future[bytes] | None:
        """The body of ``size`` bytes, opened where it is to lie; None where it has to be received in parts."""
        cycle, line = self.cycle, self._guest.line
        first = b"" if cycle is None else bytes(cycle.body)
        rest = size - len(first)
        if cycle is None or line is None or line.is_closing() or self._rest or rest < _SHORT:
            return None
        if not cycle.more_body or cycle.waiting_for_100_continue:
            return None
        held = io.BytesIO(first)
        held.seek(size - 1)
        held.write(b"\0")
        whole = self._whole = self.loop.create_future()
        cycle.body.clear()
        cycle.message_event.clear()
        self.parser = HttpRequestParser(self)  # for the next request

        def filled() -> None:
            cycle.more_body, self._whole = False, None
            if not whole.done():
                whole.set_result(held.getvalue())

        line.collect(held.getbuffer()[len(first) :], filled)
        self.flow.resume_reading()
        return whole

    def _give_up(self) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(
                Unreachable("the sender has gone before its body was complete")
            )

    # Threads for long bodies (a Lender) -----------------------------------------------------------

    def lend(self, rest: int) -> Sealed | None:
        """Leave the connection to a thread; from then on the body's bytes are counted here, not parsed."""
        if self._guest.line is None or self.cycle is None or (rest and self.cycle.body):
            return None
        sealed = self._guest.line.lend()
        if sealed is not None and rest:
            self._rest = rest
            self.parser = HttpRequestParser(self)  # for the next request
        return sealed

    def give_back(self, received: int, sent: int) -> None:
        """Go on where the thread has stopped."""
        self.cycle.expected_content_length -= sent
        self._rest -= received
        if received and not self._rest:
            self.on_message_complete()
        if self._guest.line is not None:
            self._guest.line.give_back()

    def cut(self) -> None:
        """End the connection."""
        self._guest.drop()

    def _more_body(self, data: bytes) -> bytes:
        """Take what belongs to the body; returns what comes behind it."""
        part, data = data[: self._rest], data[self._rest :]
        self._rest -= len(part)
        self.on_body(part)
        if not self._rest:
            self.on_message_complete()
        return data

    @property
    def _busy(self) -> bool:
        """Whether the application has a request and no complete answer to it."""
        return self._complete and self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._limits.header_seconds, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self._busy:
            self.transport.abort()

    def _refuse(self) -> None:
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
            b"content-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()


class Doorman:
    """Accepts connections and keeps their number within limits.

    Args:
        context: TLS of the server.
        limits: see there.

    Attributes:
        make: an HTTP protocol for a guest; to be set before :meth:`serve`.
    """

    def __init__(self, context: ssl.SSLContext, limits: Limits) -> None:
        self._context, self._limits = context, limits
        self.make: Callable[[Guest], Speaker] | None = None
        self._knocking: OrderedDict[Guest, None] = OrderedDict()
        self._strangers: OrderedDict[Guest, None] = OrderedDict()
        self._members: dict[str, OrderedDict[Guest, None]] = {}

    @property
    def open(self) -> dict[str, int]:
        """Connections by how far they came."""
        return {
            "knocking": len(self._knocking),
            "stranger": len(self._strangers),
            "member": sum(map(len, self._members.values())),
        }

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled; the listener is the caller's to close."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _FULL:  # no more file numbers: make room, then try again
                    self._make_room()
                    await asyncio.sleep(0.05)
                continue
            guest = Guest(self, sock)
            self._knocking[guest] = None
            loop.add_reader(sock, self._spoke, guest)
            guest.timer = loop.call_later(self._limits.header_seconds, self.hang_up, guest)
            if len(self._knocking) > self._limits.knocking:
                self.hang_up(next(iter(self._knocking)))

    def proved(self, guest: Guest, member: str) -> None:
        """``guest`` belongs to ``member`` from now on, who may hold only so many."""
        self._strangers.pop(guest, None)
        self._forget(guest)
        guest.member = member
        own = self._members.setdefault(member, OrderedDict())
        own[guest] = None
        if len(own) > self._limits.connections:
            next(iter(own)).drop()

    def gone(self, guest: Guest) -> None:
        """``guest`` has left."""
        self._strangers.pop(guest, None)
        self._forget(guest)
        # Each knows the other: buffers are not to wait for the collector.
        guest.speaker = guest.line = None

    def hang_up(self, guest: Guest) -> bool:
        """Close a connection that has not sent a byte; returns whether it was one."""
        if guest not in self._knocking:
            return False
        self._welcome(guest)
        guest.sock.close()
        return True

    def _welcome(self, guest: Guest) -> None:
        """Stop to wait for the first byte."""
        del self._knocking[guest]
        asyncio.get_running_loop().remove_reader(guest.sock)
        if guest.timer is not None:
            guest.timer.cancel()
            guest.timer = None

    def close(self) -> None:
        """Close what nobody works on; the rest is the application's to end."""
        for guest in list(self._knocking):
            self.hang_up(guest)

    async def abort(self) -> None:
        """Close everything at once, and wait until it is closed."""
        self.close()
        for own in [self._strangers, *self._members.values()]:
            for guest in list(own):
                guest.drop()
        await asyncio.sleep(0.02)  # transports close their sockets in the loop's next turns

    def _forget(self, guest: Guest) -> None:
        own = self._members.get(guest.member)
        if own is not None:
            own.pop(guest, None)
            if not own:
                del self._members[guest.member]

    def _make_room(self) -> None:
        for guest in list(self._knocking)[:64]:
            self.hang_up(guest)

    def _spoke(self, guest: Guest) -> None:
        """The first byte is there: worth a TLS handshake."""
        self._welcome(guest)
        self._strangers[guest] = None
        self._greet(guest)
        if len(self._strangers) > self._limits.strangers:
            first, _ = self._strangers.popitem(last=False)
            first.drop()

    def _greet(self, guest: Guest) -> None:
        make, seconds = self.make, self._limits.handshake_seconds
        if make is None:
            raise ValueError("the doorman does not know what speaks HTTP")
        try:
            guest.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            guest.sock.close()
            self.gone(guest)
            return
        sealed = Sealed(guest.sock, self._context)
        guest.line = Secured(sealed, lambda: make(guest), lambda: self.gone(guest), seconds)
