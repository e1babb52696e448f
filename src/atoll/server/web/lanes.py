"""Long bodies on threads: received, opened, checked and written, or read, sealed and sent, beside the loop.

A thread has a connection only while bytes flow. When nothing moves for a moment, or too little, it gives the
connection back, and the event loop waits for the sender or the reader as it does for everybody. So slow members
cannot hold the threads; where none is free, or one member has its share, the loop does the work itself.

Whatever a request has to pass (gate, limits, times, digest) it passes as before: only who moves
the bytes is another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from atoll.core.errors import Unreachable
from atoll.wire.sealed import Sealed, room

__all__ = ["LONG", "PIECE", "Lane", "Lanes", "Lender", "Take", "pour", "send"]

LONG = 1 << 20
"""A shorter rest is not worth a thread."""

PIECE = 1 << 20
"""Bytes taken at once; every thread keeps memory for so many. Each piece costs calls of the system, and
threads that wait for each other's turn with the interpreter."""

_REST = 1 << 18
"""A connection is given back with fewer bytes that were not handed over."""

_SENT = 1 << 18
"""Bytes sent at once."""

_PATIENCE = 0.25
"""Seconds without a byte after which a thread gives a connection back."""

_SPAN, _LEAST = 1.0, 1 << 20
"""It gives it back, too, when in so many seconds fewer bytes moved."""

_T = TypeVar("_T")

Take = Callable[[memoryview], object]
"""Takes the next bytes, which do not outlive the call."""

Read = Callable[[int, int], bytes | memoryview]
"""Gives the bytes from one place to another."""


class Lender(Protocol):
    """A connection of the loop; all of this is called in the loop."""

    def lend(self, rest: int) -> Sealed | None:
        """Leave it to a thread; ``rest`` bytes of a body have not been handed over yet. None: not now."""
        ...

    def collect(self, size: int) -> asyncio.Future[bytes] | None:
        """The whole body of ``size`` bytes, in memory made for it. None: not this one."""
        ...

    def give_back(self, received: int, sent: int) -> None:
        """Take it back after so many bytes of a body."""
        ...

    def cut(self) -> None:
        """Make the thread see an end."""
        ...


class Lanes:
    """The threads.

    Args:
        most: at a time; 0 for none.
        each: of one member.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._taken: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(max(1, most), "atoll-lane")

    @property
    def busy(self) -> int:
        """How many are at work."""
        return self._taken.total()

    def close(self) -> None:
        """End the threads; to be called when no request is under way."""
        self._threads.shutdown()

    def enter(self, member: str) -> bool:
        """Take a thread, if there is one for ``member``."""
        if self.busy >= self._most or self._taken[member] >= self._each:
            return False
        self._taken[member] += 1
        return True

    def leave(self, member: str) -> None:
        """It is free again."""
        self._taken[member] -= 1
        if not self._taken[member]:
            del self._taken[member]

    def start(self, work: Callable[[Sealed], _T], sealed: Sealed) -> asyncio.Future[_T]:
        """Have a thread do ``work``."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work, sealed)


class Lane:
    """One exchange's way to the threads.

    Args:
        lanes: of the server.
        lender: its connection.
        member: whose request it is.
    """

    def __init__(self, lanes: Lanes, lender: Lender, member: str) -> None:
        self._lanes, self._lender, self._member = lanes, lender, member

    async def whole(self, size: int) -> bytes | None:
        """A body of ``size`` bytes in one piece; None where its parts are to be received.

        Raises:
            Unreachable: the sender has gone.
        """
        coming = self._lender.collect(size)
        return None if coming is None else await coming

    async def pour(
        self, first: bytes, rest: int, take: Take, until: float
    ) -> tuple[int, bytes] | None:
        """Receive up to ``rest`` bytes of a body; see :func:`pour`. None where no thread is to be had."""

        def work(sealed: Sealed) -> tuple[int, bytes]:
            return pour(sealed, first, rest, take, until)

        return await self._run(work, rest, lambda found: (found[0], 0))

    async def send(self, read: Read, start: int, stop: int) -> int | None:
        """Send from ``start`` on; returns where it stopped. None where no thread is to be had."""

        def work(sealed: Sealed) -> int:
            return send(sealed, read, start, stop)

        return await self._run(work, 0, lambda at: (0, at - start))

    async def _run(
        self, work: Callable[[Sealed], _T], rest: int, moved: Callable[[_T], tuple[int, int]]
    ) -> _T | None:
        if not self._lanes.enter(self._member):
            return None
        received = sent = 0
        try:
            sealed = self._lender.lend(rest)
            if sealed is None:
                return None
            try:
                found = await self._finished(self._lanes.start(work, sealed))
                received, sent = moved(found)
                return found
            finally:
                self._lender.give_back(received, sent)
        finally:
            self._lanes.leave(self._member)

    async def _finished(self, future: asyncio.Future[_T]) -> _T:
        """Wait for the thread: the connection is its own until it ends."""
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._lender.cut()
            while not future.done():  # whoever cancels again has to wait for it, too
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            with contextlib.suppress(Exception):
                future.result()  # it is of no interest any more, and is not to be logged
            raise


class _Pace:
    """Whether enough has moved lately."""

    def __init__(self) -> None:
        self._since, self._moved = time.monotonic(), 0

    def slow(self, size: int) -> bool:
        """Count ``size`` bytes; true at the end of a span in which there were too few."""
        self._moved += size
        if (now := time.monotonic()) - self._since < _SPAN:
            return False
        slow = self._moved < _LEAST
        self._since, self._moved = now, 0
        return slow


def pour(sealed: Sealed, first: bytes, rest: int, take: Take, until: float) -> tuple[int, bytes]:
    """Receive bytes of a body as long as they flow, and hand them over in larger pieces.

    Args:
        sealed: the connection.
        first: bytes of the same body that came before.
        rest: how many are still to come; no byte beyond is read.
        take: is given them in their order.
        until: by :func:`time.monotonic`, when to stop.

    Returns:
        how many came, and those of them, or of ``first``, that were not handed over.

    Raises:
        Unreachable: the sender has gone.
        OSError: the connection broke.
        AtollError: what ``take`` raises.
    """
    space = room("poured", PIECE)
    if len(first) >= len(space):
        take(memoryview(first))
        first = b""
    space[: len(first)] = first
    filled, got, pace = len(first), 0, _Pace()
    taken = now = time.monotonic()
    while got < rest and now < until:
        most = min(len(space), filled + rest - got)
        try:
            size = sealed.receive(space[filled:most], _PATIENCE)
        except TimeoutError:
            break
        if not size:
            raise Unreachable("the sender has gone before its body was complete")
        filled, got, now = filled + size, got + size, time.monotonic()
        if filled == len(space) or got == rest or now - taken > _SPAN:
            take(space[:filled])
            filled, taken = 0, now
        if pace.slow(size):
            break
    if filled >= _REST:
        take(space[:filled])
        filled = 0
    return got, bytes(space[:filled])


def send(sealed: Sealed, read: Read, start: int, stop: int) -> int:
    """Send bytes as long as the other side takes them.

    Args:
        sealed: the connection; what it could not send is left to its next :meth:`~Sealed.flush`.
        read: gives them.
        start: where to begin.
        stop: where to end.

    Returns:
        where the bytes end that were handed to the connection.

    Raises:
        OSError: the connection broke.
        AtollError: what ``read`` raises.
    """
    at, pace = start, _Pace()
    while at < stop:
        piece = read(at, min(at + _SENT, stop))
        sealed.write(piece)
        at += len(piece)
        try:
            sealed.drain(_PATIENCE)
        except TimeoutError:
            break
        if not len(piece) or pace.slow(len(piece)):
            break
    return at
