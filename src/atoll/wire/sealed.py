"""TLS over a socket in large pieces: hundreds of kilobytes a system call instead of a record of sixteen.

:class:`ssl.SSLSocket` asks the system twice for each record it reads and once for each it writes.
Here OpenSSL works on memory (:class:`ssl.MemoryBIO`), and what it makes or needs goes to and from the
socket in bulk. The socket never blocks, so the same connection can be driven by an event loop, and by a
thread that waits itself (:meth:`Sealed.receive`, :meth:`Sealed.send`), in turns.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import threading

from atoll.core.errors import StateError

__all__ = ["Sealed", "SealedSocket", "room"]

_ROOM = 1 << 18
"""Bytes asked of a socket at once; what they are opened into then still lies in the processor's cache."""

_SEALED = 1 << 18
"""Bytes sealed at once."""

_SHORT = 1 << 14
"""Fewer bytes than this may wait for those that follow."""

_own = threading.local()


def room(name: str, size: int) -> memoryview:
    """A buffer of this thread, the same each time.

    Args:
        name: what for: two uses at the same time have two names.
        size: bytes, the same each time.
    """
    found: memoryview | None = getattr(_own, name, None)
    if found is None:
        found = memoryview(bytearray(size))
        setattr(_own, name, found)
    return found


class Sealed:
    """One side of a TLS connection. One thread at a time may use it.

    Args:
        sock: connected; it belongs to this object from now on and does not block any more.
        context: of TLS.
        name: of the server, at its client; None at the server.

    Attributes:
        ended: whether the other side will send no more.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, name: str | None = None
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ended = False
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._left = memoryview(b"")
        self._tls = context.wrap_bio(
            self._in, self._out, server_side=name is None, server_hostname=name
        )

    @property
    def tls(self) -> ssl.SSLObject:
        """What TLS knows of the connection."""
        return self._tls

    @property
    def unsent(self) -> int:
        """Sealed bytes that the socket has not taken yet."""
        return len(self._left) + self._out.pending

    @property
    def unread(self) -> int:
        """Bytes, sealed or opened, that came and were not read."""
        return self._in.pending + self._tls.pending()

    # Steps that never wait ----------------------------------------------------------------------

    def shake(self) -> bool:
        """Go on with the handshake; True when it is done. What it wants to say is left to :meth:`flush`.

        Raises:
            ssl.SSLError: there will be none.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def fill(self) -> int:
        """Take what the socket has; 0 when it has come to its end.

        Raises:
            BlockingIOError: nothing at the moment.
            OSError: the connection broke.
        """
        space = room("sealed", _ROOM)
        size = self.sock.recv_into(space)
        if size:
            self._in.write(space[:size])
        else:
            self._in.write_eof()
        return size

    def read(self, into: memoryview) -> int:
        """Open what has come into ``into``; 0 where that is no byte, or the other side has ended.

        Raises:
            ssl.SSLError: what came is not what was sealed.
        """
        size, most = 0, len(into)
        while size < most and not self.ended:
            try:
                got = self._tls.read(most - size, into[size:])
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                self.ended = True
                break
            self.ended = not got
            size += int(got)
        return size

    def write(self, data: bytes | memoryview) -> None:
        """Seal ``data``; it goes out with :meth:`flush`.

        Raises:
            ssl.SSLError: the connection cannot be used any more.
        """
        if len(data):
            self._tls.write(data)

    def flush(self) -> bool:
        """Send what is sealed; False when the socket takes no more at the moment.

        Raises:
            OSError: the connection broke.
        """
        while True:
            if not self._left:
                if not self._out.pending:
                    return True
                self._left = memoryview(self._out.read())
            try:
                sent = self.sock.send(self._left)
            except BlockingIOError:
                return False
            self._left = self._left[sent:]

    def finish(self) -> None:
        """Say that no more will come; it goes out with :meth:`flush`."""
        try:
            self._tls.unwrap()
        except (
            ssl.SSLError,
            ValueError,
        ):  # it waits for the other side's word, or there is no TLS yet
            return

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    # Steps that wait ----------------------------------------------------------------------------

    def receive(self, into: memoryview, seconds: float) -> int:
        """Wait for bytes; 0 when the other side has ended.

        Raises:
            TimeoutError: there was none for so long.
            OSError: the connection broke.
        """
        while True:
            if (size := self.read(into)) or self.ended:
                return size
            self.flush()  # TLS itself may have something to say
            try:
                self.fill()
            except BlockingIOError:
                self._wait(select.POLLIN, seconds)

    def send(self, data: bytes | memoryview, seconds: float) -> None:
        """Seal and send all of ``data``.

        Raises:
            TimeoutError: the other side took nothing for so long; the rest is left to :meth:`flush`.
            OSError: the connection broke.
        """
        view = memoryview(data)
        for start in range(0, len(view), _SEALED):
            self.write(view[start : start + _SEALED])
            self.drain(seconds)

    def drain(self, seconds: float) -> None:
        """Send what is sealed.

        Raises:
            TimeoutError, OSError: as :meth:`send`.
        """
        while not self.flush():
            self._wait(select.POLLOUT, seconds)

    def greet(self, seconds: float) -> None:
        """Shake hands.

        Raises:
            TimeoutError: the other side did nothing for so long.
            ssl.SSLError: there is no handshake.
            OSError: the connection broke.
        """
        while not self.shake():
            self.drain(seconds)
            try:
                self.fill()
            except BlockingIOError:
                self._wait(select.POLLIN, seconds)
        self.drain(seconds)

    def _wait(self, event: int, seconds: float) -> None:
        if self.sock.fileno() < 0:
            raise StateError("this connection is closed")
        poll = select.poll()
        poll.register(self.sock, event)
        if not poll.poll(max(0, seconds) * 1000):
            raise TimeoutError("timed out")


class SealedSocket:
    """The client's end, with those methods of a socket that :mod:`http.client` needs; they wait.

    Args:
        sealed: after its handshake.
        seconds: without a byte, after which the other side counts as gone.
    """

    def __init__(self, sealed: Sealed, seconds: float) -> None:
        self._sealed, self._seconds = sealed, seconds
        self._files, self._over = 0, False

    def __enter__(self) -> SealedSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def quiet(self) -> bool:
        """Whether nothing has come that was not read, not even an end."""
        sealed = self._sealed
        return not sealed.unread and not select.select([sealed.sock], [], [], 0)[0]

    def version(self) -> str | None:
        """Of TLS."""
        return self._sealed.tls.version()

    def certificate(self) -> bytes:
        """The other side's, in DER form."""
        return self._sealed.tls.getpeercert(binary_form=True) or b""

    def settimeout(self, seconds: float) -> None:
        """Wait so long for a byte from now on."""
        self._seconds = seconds

    def sendall(self, data: bytes | memoryview) -> None:
        """Send; short words wait for the next, or for :meth:`push`, to go out with it."""
        if len(data) < _SHORT and self._sealed.unsent < _SHORT:
            self._sealed.write(data)
        else:
            self._sealed.send(data, self._seconds)

    def push(self) -> None:
        """Send what waits."""
        self._sealed.drain(self._seconds)

    def recv_into(self, into: memoryview) -> int:
        """Bytes as they come; 0 at the end."""
        self.push()
        return self._sealed.receive(into, self._seconds)

    def recv(self, size: int) -> bytes:
        """The same as bytes of their own."""
        into = bytearray(size)
        return bytes(into[: self.recv_into(memoryview(into))])

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """Something to read from, which outlives :meth:`close`, as it does at a socket."""
        self._files += 1
        return io.BufferedReader(_Reading(self))

    def close(self) -> None:
        """Say goodbye and close, once nothing reads from here any more."""
        self._over = True
        if self._files or self._sealed.sock.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._sealed.finish()
            self._sealed.flush()
        self._sealed.close()

    def let_go(self) -> None:
        """A file was closed."""
        self._files -= 1
        if self._over:
            self.close()


class _Reading(io.RawIOBase):
    """What comes, as a file."""

    def __init__(self, line: SealedSocket) -> None:
        self._line = line

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._line.let_go()

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]  # any buffer
        return self._line.recv_into(memoryview(into))
