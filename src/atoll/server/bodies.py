"""Reading a request's body: never more than was declared, never longer than it may take.

A short body stays in memory, a longer one waits in a file of its own, so what many slow senders can
cost in memory does not depend on what they send. The digest is taken on the way and must be the one
that was signed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.core.errors import AuthError, StorageError, TooLarge, Unreachable, WireError
from atoll.server.limits import Limits

__all__ = ["Body", "declared_size", "discard", "read_body"]

Receive = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Body:
    """A body that has arrived in full and is what was signed.

    Args:
        size: bytes.
        raw: the bytes, where they are in memory.
        path: the file, where they are not.
    """

    size: int
    raw: bytes | None = None
    path: Path | None = None

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
        """Remove the file, where there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


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


async def read_body(
    receive: Receive, declared: int, digest: bytes | None, limits: Limits, folder: Path
) -> Body:
    """The body, in memory or in a file in ``folder``; call :meth:`Body.forget` at the end.

    Args:
        receive: of ASGI.
        declared: bytes that will come, already found acceptable.
        digest: SHA-256 that was signed; None where nothing was.
        limits: see there.
        folder: where long bodies wait.

    Raises:
        TooLarge: more than declared.
        WireError: less than declared.
        AuthError: other bytes than those that were signed.
        Unreachable: too slow, or gone.
        StorageError: the folder cannot be written.
    """
    seconds = limits.seconds_for(declared)
    body = Body(declared)
    try:
        async with asyncio.timeout(seconds):
            if declared <= limits.body:
                body, found = await _into_memory(receive, declared)
            else:
                body = Body(declared, path=_new_file(folder))
                found = await _into_file(receive, body)
        if digest is not None and not hmac.compare_digest(found, digest):
            raise AuthError("the body is not the one that was signed")
    except TimeoutError:
        body.forget()
        raise Unreachable(
            f"a body of {declared} bytes did not arrive in {seconds:.0f} seconds",
            remedy="check the line; uploads are resumed where they were cut",
        ) from None
    except OSError as error:
        body.forget()
        raise StorageError(
            f"a body of {declared} bytes cannot be kept: {error.strerror}",
            remedy="the operator frees space on the server's disk",
        ) from error
    except BaseException:
        body.forget()
        raise
    return body


async def _into_memory(receive: Receive, declared: int) -> tuple[Body, bytes]:
    raw = bytearray()
    async for piece in _parts(receive, declared):
        raw += piece
    return Body(declared, raw=bytes(raw)), hashlib.sha256(raw).digest()


async def _into_file(receive: Receive, body: Body) -> bytes:
    sha = hashlib.sha256()
    with body.file.open("wb", buffering=0) as file:
        async for piece in _parts(receive, body.size):
            sha.update(piece)
            file.write(piece)
    return sha.digest()


def _new_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=folder, suffix=".body")
    os.close(number)
    return Path(name)


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
