"""Reading a request's body: never more than was declared, never longer than it may take.

A short body stays in memory; a longer one too, while there is room that all share, else it waits in a
file of its own. So what many slow senders can cost in memory does not depend on what they send. The
digest is taken on the way and must be the one that was signed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from atoll.core.errors import AuthError, StorageError, TooLarge, Unreachable, WireError
from atoll.server.web.lanes import LONG, Lane, Take
from atoll.server.web.limits import Limits

__all__ = ["Body", "Coming", "Room", "declared_size", "discard"]

Receive = Callable[[], Coroutine[Any, Any, Any]]
_T = TypeVar("_T")

_FLOWS = 1 << 18
"""Bytes that the loop receives of a body that had stopped before a thread is asked again."""


_SHORT = 1 << 15
"""A shorter body has come, for the most part, when somebody begins to read it."""


class Room:
    """Memory that all bodies under way share.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        """Take so many bytes, if they are there."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give(self, size: int) -> None:
        """Give them back."""
        self.left += size


@dataclass(frozen=True)
class Body:
    """A body that has arrived in full and is what was signed.

    Args:
        size: bytes.
        raw: the bytes, where they are in memory.
        path: the file, where they are not.
        room: what its memory was taken from; None where it is too short to count.
    """

    size: int
    raw: bytes | None = None
    path: Path | None = None
    room: Room | None = None

    @property
    def file(self) -> Path:
        """The file of a long body."""
        if self.path is None:
            raise ValueError("this body is in memory")
        return self.path

    def read(self) -> bytes:
        """All bytes; from the file where they are there."""
        if self.raw is not None:
            return self.raw
        return self.path.read_bytes() if self.path is not None else b""

    def forget(self) -> None:
        """Remove the file, give back the memory."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        if self.room is not None:
            self.room.give(self.size)


def declared_size(length: str | None, encoded: str | None) -> int:
    """Size that the headers declare.

    Args:
        length: ``content-length``.
        encoded: ``transfer-encoding``, of which there may be none.

    Raises:
        WireError: no number, or a body of unknown length.
    """
    if encoded is not None:
        raise WireError("a body of undeclared length", remedy="send a Content-Length")
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()) or len(length) > 15:
        raise WireError("Content-Length is no number")
    return int(length)


async def _parts(receive: Receive, declared: int) -> AsyncIterator[bytes]:
    """The pieces of a body as they come."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Unreachable("the sender has gone before its body was complete")
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > declared:
            raise TooLarge(f"a body of more than the {declared} bytes that were declared")
        if piece:
            yield piece
    if size != declared:
        raise WireError(f"a body of {size} bytes where {declared} were declared")


@dataclass(frozen=True, eq=False)
class Coming:
    """A body that is still to come.

    Args:
        receive: of ASGI.
        size: bytes that will come, already found acceptable.
        digest: SHA-256 that was signed; None where nothing was.
        limits: see there.
        folder: where long bodies wait.
        room: memory for those that are neither short nor long.
        lane: a way to the threads for long bodies; None where there is none.
    """

    receive: Receive
    size: int
    digest: bytes | None
    limits: Limits
    folder: Path
    room: Room
    lane: Lane | None = None

    async def poured(self, take: Take, threads: Executor) -> None:
        """Hand over the body while it comes; nothing is checked but its size.

        Args:
            take: is given it piece by piece, in threads, one after the other.
            threads: for what no lane takes.

        Raises:
            TooLarge: more than declared.
            WireError: less than declared.
            Unreachable: too slow, or gone.
            AtollError: what ``take`` raises.
        """
        until = time.monotonic() + self.limits.seconds_for(self.size)
        coming = _parts(self.receive, self.size)
        left, held, size, waited = self.size, list[bytes](), 0, _FLOWS
        while True:
            # No part is empty: that is the end.
            part = await self._in_time(until, anext(coming, b""))
            held.append(part)
            left, size, waited = left - len(part), size + len(part), waited + len(part)
            if self.lane is not None and left >= LONG and waited >= _FLOWS:
                found = await self.lane.pour(b"".join(held), left, take, until)
                if found is not None:
                    left, held, size, waited = left - found[0], [found[1]], len(found[1]), 0
                    coming = _parts(self.receive, left)
                    continue
            if size >= LONG or (size and not part):
                await _finished(threads, take, memoryview(b"".join(held)))
                held, size = [], 0
            if not part:
                return

    async def whole(self) -> Body:
        """All of it, in memory or in a file; call :meth:`Body.forget` at the end.

        Raises:
            AuthError: other bytes than those that were signed.
            StorageError: the folder cannot be written.
        """
        body = Body(self.size)
        try:
            if self.size > self.limits.body:
                held = self.room.take(self.size)
                body = replace(body, room=self.room) if held else self._in_file()
            until = time.monotonic() + self.limits.seconds_for(self.size)
            fill = self._into_memory if body.path is None else self._into_file
            body, found = await self._in_time(until, fill(body))
            self.check(found)
        except OSError as error:
            body.forget()
            raise StorageError(
                f"a body of {self.size} bytes cannot be kept: {error.strerror}",
                remedy="the operator frees space on the server's disk",
            ) from error
        except BaseException:
            body.forget()
            raise
        return body

    def check(self, found: bytes) -> None:
        """Compare the digest of what came with the one that was signed.

        Raises:
            AuthError: they differ.
        """
        if self.digest is not None and not hmac.compare_digest(found, self.digest):
            raise AuthError("the body is not the one that was signed")

    async def _in_time(self, until: float, coming: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await coming
        except TimeoutError:
            seconds = self.limits.seconds_for(self.size)
            raise Unreachable(
                f"a body of {self.size} bytes did not arrive in {seconds:.0f} seconds",
                remedy="check the line; uploads are resumed where they were cut",
            ) from None

    def _in_file(self) -> Body:
        self.folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self.folder, suffix=".body")
        os.close(number)
        return Body(self.size, path=Path(name))

    async def _into_memory(self, body: Body) -> tuple[Body, bytes]:
        raw = None
        if self.lane is not None and self.size > _SHORT:
            raw = await self.lane.whole(self.size)
        if raw is None:
            raw = b"".join([piece async for piece in _parts(self.receive, self.size)])
        return replace(body, raw=raw), hashlib.sha256(raw).digest()

    async def _into_file(self, body: Body) -> tuple[Body, bytes]:
        sha = hashlib.sha256()
        with body.file.open("wb", buffering=0) as file:
            async for piece in _parts(self.receive, body.size):
                sha.update(piece)
                file.write(piece)
        return body, sha.digest()


async def _finished(threads: Executor, take: Take, piece: memoryview) -> None:
    """Hand over a piece; its end is waited for even when the request is given up."""
    writing = asyncio.get_running_loop().run_in_executor(threads, take, piece)
    try:
        await asyncio.shield(writing)
    finally:
        if not writing.done():
            await asyncio.wait([writing])


async def discard(receive: Receive, declared: int, most: int, seconds: float) -> bool:
    """Read a body that nobody wants, so that its sender gets to read the answer.

    Returns:
        whether all of it came; if not, the connection is of no further use.
    """
    if declared > most:
        return False
    try:
        async with asyncio.timeout(seconds):
            async for _ in _parts(receive, declared):
                pass
    except (TimeoutError, WireError):
        return False
    return True
