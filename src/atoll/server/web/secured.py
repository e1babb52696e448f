"""A connection with TLS as the event loop sees it, which a thread may borrow for a long body.

asyncio's own TLS does the same for short messages. It keeps the connection to itself, though, and a large
model goes through the one thread of the loop in records of sixteen kilobytes. Here the loop owns the
connection until :meth:`Secured.lend` gives it away, and again from :meth:`Secured.give_back` on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from atoll.core.errors import StateError
from atoll.wire.sealed import Sealed, room

__all__ = ["Secured"]

_PIECE = 1 << 16
"""Opened bytes that the protocol is given at once."""

_HIGH = 1 << 16
"""Sealed bytes that may wait for the socket before the protocol is to pause."""

_IGNORED = 1 << 20
"""Bytes of the other side that are read and thrown away at the end, so that it gets to read the answer."""


_NOWHERE = memoryview(b"")


class _Stage(Enum):
    """How far a connection has come."""

    GREETING = auto()
    OPEN = auto()
    CLOSING = auto()
    LINGERING = auto()
    CLOSED = auto()


class Secured(asyncio.Transport):
    """A transport of asyncio; made in the event loop, it begins with the handshake.

    Args:
        sealed: the connection, before its handshake.
        make: gives the protocol once there is TLS.
        missed: called when there will be none.
        seconds: that a handshake may take, and the other side's hanging up at the end.
    """

    def __init__(
        self,
        sealed: Sealed,
        make: Callable[[], asyncio.Protocol],
        missed: Callable[[], None],
        seconds: float,
    ) -> None:
        super().__init__({"socket": sealed.sock, "sslcontext": sealed.tls.context})
        self._loop = asyncio.get_running_loop()
        self._sealed, self._make, self._missed = sealed, make, missed
        self._seconds = seconds
        self._protocol: asyncio.Protocol | None = None
        self._stage = _Stage.GREETING
        self._paused = self._lent = self._full = self._pushing = False
        self._reads = self._writes = False
        self._into, self._filled = _NOWHERE, _nothing
        self._ignored = 0
        self._error: Exception | None = None
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(seconds, self.abort)
        self._watch()
        self._readable()

    # What a protocol asks of a transport --------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._stage is not _Stage.OPEN

    def is_reading(self) -> bool:
        """Whether the protocol is given what comes."""
        return self._stage is _Stage.OPEN and not self._paused

    def pause_reading(self) -> None:
        """Give the protocol nothing for the time being."""
        self._paused = True
        # The loop goes on to watch until something comes: often it is wanted again before that.

    def resume_reading(self) -> None:
        """Give it what has come, and what will."""
        if self._paused:
            self._paused = False
            self._watch()
            self._loop.call_soon(self._work)  # something may have been opened before the pause

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; what is written in one turn of the loop goes out together."""
        if self._stage is not _Stage.OPEN:
            return
        if self._lent:
            raise StateError("this connection is in the hands of a thread")
        try:
            self._sealed.write(memoryview(data))
        except OSError as error:
            self._end(error)
            return
        if self._sealed.unsent > _HIGH:
            self._push()
        elif not self._pushing:
            self._pushing = True
            self._loop.call_soon(self._push)

    def get_write_buffer_size(self) -> int:
        """Bytes that are still to be sent."""
        return self._sealed.unsent

    def close(self) -> None:
        """Send what was written, say goodbye, and close."""
        if self._stage is _Stage.GREETING:
            self._end(None)
        elif self._stage is _Stage.OPEN:
            self._stage = _Stage.CLOSING
            if not self._lent:
                self._say_goodbye()

    def abort(self) -> None:
        """Close at once."""
        self._end(None)

    def collect(self, into: memoryview, filled: Callable[[], None]) -> None:
        """Open what comes next into ``into``, past the protocol, until that is full; ``filled`` is called then.

        What has been opened so far is with the protocol: to be called before reading is resumed.
        """
        self._into, self._filled = into, filled

    # Lending ------------------------------------------------------------------------------------

    def lend(self) -> Sealed | None:
        """Leave the connection to a thread until :meth:`give_back`; None where it is no longer open."""
        if self._stage is not _Stage.OPEN or self._lent:
            return None
        self._lent = True
        self._watch()
        self._loop.remove_writer(self._sealed.sock)
        self._writes = False
        return self._sealed

    def give_back(self) -> None:
        """The thread has ended; what it left unsent is sent."""
        self._lent = False
        if self._stage is _Stage.CLOSED:
            self._loop.call_soon(self._gone)
        elif self._stage is _Stage.CLOSING:
            self._say_goodbye()
        else:
            self._watch()
            self._push()
            self._loop.call_soon(self._work)

    # How ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Let the loop tell of what comes, where anybody wants to know."""
        early = self._stage in (_Stage.GREETING, _Stage.LINGERING)
        wanted = early or (self._stage is _Stage.OPEN and not self._paused and not self._lent)
        if wanted and not self._reads:
            self._loop.add_reader(self._sealed.sock, self._readable)
        elif not wanted and self._reads:
            self._loop.remove_reader(self._sealed.sock)
        self._reads = wanted

    def _readable(self) -> None:
        if self._paused and self._stage is _Stage.OPEN:
            self._watch()
            return
        try:
            if self._stage is _Stage.LINGERING:
                self._ignore()
                return
            self._sealed.fill()
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        self._work()

    def _work(self) -> None:
        """Do what can be done with what has come."""
        try:
            if self._stage is _Stage.GREETING:
                self._greet()
            self._hand_over()
        except OSError as error:  # TLS's errors are such too
            self._end(error)

    def _greet(self) -> None:
        done = self._sealed.shake()
        self._push()
        if not done or self._stage is not _Stage.GREETING:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stage = _Stage.OPEN
        self._protocol = self._make()
        self._protocol.connection_made(self)

    def _hand_over(self) -> None:
        """Give the protocol what was opened, until it has enough."""
        into = room("opened", _PIECE)
        while self.is_reading() and not self._lent and self._protocol is not None:
            size = self._sealed.read(self._into or into)
            if not size:
                break
            if self._into:
                self._into = self._into[size:] or _NOWHERE
                if not self._into:
                    filled, self._filled = self._filled, _nothing
                    filled()
                continue
            self._protocol.data_received(bytes(into[:size]))
        if self._sealed.ended and self._stage is _Stage.OPEN and not self._lent and self._protocol:
            self._protocol.eof_received()
            self.close()
        elif self._sealed.unsent and self._stage is _Stage.OPEN and not self._lent:
            self._push()

    def _push(self) -> None:
        """Send what is sealed, as far as the socket takes it."""
        self._pushing = False
        if self._lent or self._stage is _Stage.CLOSED:
            return
        try:
            done = self._sealed.flush()
        except OSError as error:
            self._end(error)
            return
        if not done:
            self._loop.add_writer(self._sealed.sock, self._push)
        elif self._writes:
            self._loop.remove_writer(self._sealed.sock)
        self._writes = not done
        full = self._sealed.unsent > (0 if self._full else _HIGH)
        if full != self._full and self._protocol is not None:
            self._full = full
            (self._protocol.pause_writing if full else self._protocol.resume_writing)()
        if done and self._stage is _Stage.CLOSING:
            self._linger()

    def _say_goodbye(self) -> None:
        self._watch()
        self._sealed.finish()
        self._timer = self._loop.call_later(self._seconds, self.abort)
        self._push()

    def _linger(self) -> None:
        """All is sent: wait for the other side, which may still be sending, to see it and hang up."""
        self._stage = _Stage.LINGERING
        with contextlib.suppress(OSError):
            self._sealed.sock.shutdown(socket.SHUT_WR)
        self._watch()

    def _ignore(self) -> None:
        size = self._sealed.sock.recv_into(room("ignored", _PIECE))
        self._ignored += size
        if not size or self._ignored > _IGNORED:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._stage is _Stage.CLOSED:
            return
        self._stage, self._error = _Stage.CLOSED, error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watch()
        if self._lent:  # the thread is to see an end; the rest when it has given it back
            with contextlib.suppress(OSError):
                self._sealed.sock.shutdown(socket.SHUT_RDWR)
            return
        self._loop.remove_writer(self._sealed.sock)
        self._loop.call_soon(self._gone)

    def _gone(self) -> None:
        self._sealed.close()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(self._error)
        else:
            self._missed()
        self._into = _NOWHERE
        self._missed = self._make = self._filled = (
            _nothing  # they know of this object: it is not to wait for the collector
        )


def _nothing(*_: Any) -> Any:
    """Nothing is to be done."""
