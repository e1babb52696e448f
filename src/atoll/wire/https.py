"""The client of nodes and researchers: signed requests, checked answers, resumable transfers.

::

    call -> number and sign -> send on an idle connection, or dial -> check the answer's signature
         <- wire.epoch: the server tells its epoch and our highest number; sign anew and repeat

Whatever goes wrong on the way is :class:`~atoll.core.errors.Unreachable`, and trying again may help;
whatever the server refuses is the error that it raised. Retries are the caller's: it alone knows how
long a thing is worth waiting for.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel

from atoll.core.errors import AtollError, AuthError, TooLarge, Unreachable, WireError
from atoll.wire.certificates import client_context
from atoll.wire.codes import split_address
from atoll.wire.dialing import Line, Pin, dial, find_proxy
from atoll.wire.frames import Blob
from atoll.wire.identity import Identity
from atoll.wire.messages import ProblemBody, UploadReply, read_json
from atoll.wire.news import NEWS, digests
from atoll.wire.sealed import room
from atoll.wire.signatures import digest_of, sign_request, signature_in, verify_response
from atoll.wire.status import EPOCH
from atoll.wire.transfers import Write, download, upload

__all__ = ["Channel", "Pin", "Reply"]

_PIECE = 1 << 20
_POURED = 1 << 20
_IDLE = 8
_TRIES = 6
_LEAP = 100
_MOST_REPLY = 128 << 20
_PASSING = {408, 429, 431, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.ASCII)

_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reply:
    """An answer whose signature was checked.

    Args:
        status: of HTTP, below 400.
        headers: names in lower case.
        body: all of it.
        first: of news (:mod:`atoll.wire.news`) the SHA-256 of the blob that comes first.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    first: bytes | None = None


class _Stale(Exception):
    """The server wants another epoch or number."""

    def __init__(self, epoch: int, sequence: int) -> None:
        super().__init__()
        self.epoch, self.sequence = epoch, sequence


@dataclass(frozen=True)
class _Answer:
    """The head of an answer, and the request it has to be an answer to."""

    response: http.client.HTTPResponse
    sequence: int
    signature: bytes

    @property
    def status(self) -> int:
        return self.response.status

    @cached_property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.response.getheaders()}

    def pieces(self, most: int) -> Iterator[bytes]:
        """The body as it comes; at most ``most`` bytes, and all that were declared."""
        declared, size = self.response.length, 0
        if declared is not None and declared > most:
            raise TooLarge(f"an answer of {declared} bytes where {most} are expected")
        while piece := self.response.read(_PIECE):
            size += len(piece)
            if size > most:
                raise TooLarge(f"an answer of more than {most} bytes")
            yield piece
        if declared is not None and size != declared:
            raise ConnectionResetError(f"the answer broke off after {size} of {declared} bytes")

    def pour(self, size: int, write: Write) -> None:
        """Hand over the body, of ``size`` bytes as was declared, as it comes."""
        space, got = room("answer", _POURED), 0
        while got < size:
            more = self.response.readinto(space[: min(len(space), size - got)])
            if not more:
                raise ConnectionResetError(f"the answer broke off after {got} of {size} bytes")
            write(space[:more])
            got += more


class Channel:
    """One member's way to the server; may be used from several threads.

    Args:
        address: of the server, ``host:port``.
        pin: how the server is known.
        identity: who asks.
        federation: whom the requests are for.
        proxy: ``http://[user:password@]host:port``; empty for none; None: as the environment says.
        connect_timeout: seconds until a connection must stand.

    Raises:
        WireError: a malformed address.
    """

    def __init__(
        self,
        address: str,
        pin: Pin,
        identity: Identity,
        federation: str,
        *,
        proxy: str | None = None,
        connect_timeout: float = 10.0,
    ) -> None:
        self.address = address
        self._pin, self._identity, self._federation = pin, identity, federation
        self._proxy = find_proxy(split_address(address)[0], proxy)
        self._connect_timeout = connect_timeout
        self._context = client_context()
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._epoch = self._sequence = 0

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def epoch(self) -> int:
        """Of the server, as it last said; 0 before it did."""
        return self._epoch

    def close(self) -> None:
        """Close the idle connections; a later call dials anew."""
        with self._lock:
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        body: bytes = b"",
        kind: str = "application/json",
        timeout: float = 60.0,
        digest: bytes | None = None,
    ) -> Reply:
        """One request and its answer.

        Args:
            method: in capitals.
            path: percent-encoded.
            query: percent-encoded, without the question mark.
            body: all of it.
            kind: its media type.
            timeout: seconds without a byte, after which the server counts as gone.
            digest: SHA-256 of the body, where it is known; other bytes are refused by the server.

        Raises:
            Unreachable: no answer; trying again may help.
            AuthError: the answer is not the server's, or the server does not know the sender.
            AtollError: what the server answered, as the class it was there.
        """
        return self._call(method, path, query, body, kind, timeout, digest)

    def _call(
        self,
        method: str,
        path: str,
        query: str,
        body: bytes | memoryview,
        kind: str,
        timeout: float,
        digest: bytes | None = None,
    ) -> Reply:
        """The same for any bytes, whose digest may be known."""

        def once() -> Reply:
            headers = {"content-type": kind} if body else {}
            with self._exchange(method, path, query, body, headers, timeout, digest) as answer:
                return self._checked(answer)

        return self._numbered(once)

    def json(
        self,
        method: str,
        path: str,
        message: BaseModel | None,
        reply: type[_M],
        *,
        query: str = "",
        timeout: float = 60.0,
    ) -> _M:
        """One request with a message for a body (None: without), answered by one of type ``reply``.

        Raises:
            WireError: the answer is no such message; and as :meth:`call`.
        """
        body = b"" if message is None else message.model_dump_json().encode()
        answer = self.call(method, path, query=query, body=body, timeout=timeout)
        return read_json(reply, answer.body)

    def download(self, blob: Blob, path: Path, *, source: str = "", timeout: float = 60.0) -> None:
        """Bring a blob into a file; what an earlier try has left beside it is used.

        Args:
            blob: its digest and size.
            path: the file; it is there in full, with the right digest, or not at all.
            source: where it is, percent-encoded, for a file that is to be kept: it is durable then. Empty
                for ``/v1/blobs/<sha256>``, which can be had again.
            timeout: as in :meth:`call`.

        Raises:
            Unreachable: the connection broke; the next try goes on from there.
            WireError: the bytes do not have that digest; the next try begins anew.
            StorageError: the file cannot be written.
        """
        target = source or f"/v1/blobs/{blob.sha256}"

        def fetch(at: int, write: Write) -> int:
            return self._fetch(target, at, blob.size, write, timeout)

        download(blob, path, fetch, durable=bool(source))

    def upload(self, blob: Blob, path: Path, task: str, *, timeout: float = 60.0) -> None:
        """Bring a file to the server: at once, or in chunks of 4 MiB from where an earlier try was cut.

        Args:
            blob: its digest and size.
            path: the file.
            task: that it is a result of; empty for a file of a job that is about to be submitted.
            timeout: as in :meth:`call`.

        Raises:
            Unreachable: the connection broke; the next try goes on from there.
            StorageError: the file cannot be read, or is not the blob.
        """
        target = f"/v1/uploads/{blob.sha256}"
        owner = {"task": task} if task else {"job": "new"}

        def put(at: int, chunk: bytes | memoryview, digest: bytes | None = None) -> int:
            query = urlencode({**owner, "size": blob.size, "offset": at})
            kind = "application/octet-stream"
            raw = self._call("PUT", target, query, chunk, kind, timeout, digest)
            return read_json(UploadReply, raw.body).received

        def whole(raw: memoryview) -> int:
            return put(0, raw, bytes.fromhex(blob.sha256))  # not to be taken a second time

        received = self.json("GET", target, None, UploadReply, timeout=timeout).received
        upload(blob, path, received, put, whole)

    def _fetch(self, source: str, at: int, size: int, write: Write, timeout: float) -> int:
        """Fetch from ``at`` on; returns how many bytes came."""

        def once() -> int:
            headers = {"range": f"bytes={at}-{size - 1}"}
            with self._exchange("GET", source, "", b"", headers, timeout) as answer:
                if answer.status not in (200, 206):
                    self._checked(answer)
                    raise WireError(f"{self.address} answered {answer.status} to a range")
                coming = _span(answer, at, size)
                answer.pour(coming, write)
                return coming

        return self._numbered(once)

    def _numbered(self, act: Callable[[], _T]) -> _T:
        """Do ``act``; once more, with another epoch or number, when the server says so."""
        for _ in range(_TRIES):
            try:
                return act()
            except _Stale as stale:
                with self._lock:
                    if stale.epoch != self._epoch:
                        self._epoch, self._sequence = stale.epoch, stale.sequence
                    else:
                        # Another program may use the same key: go where it will not be soon.
                        leap = secrets.randbelow(_LEAP)
                        self._sequence = max(self._sequence, stale.sequence) + leap
        raise Unreachable(
            f"{self.address} refused {_TRIES} numbers of ours in a row",
            remedy="end other programs that use the same key",
        )

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        query: str,
        body: bytes | memoryview,
        headers: Mapping[str, str],
        timeout: float,
        digest: bytes | None = None,
    ) -> Iterator[_Answer]:
        """Send a signed request; the connection is kept when its answer was read to the end."""
        with self._lock:
            self._sequence += 1
            epoch, sequence = self._epoch, self._sequence
        signed = sign_request(
            self._identity,
            method=method,
            path=path,
            query=query,
            body_digest=digest_of(body) if digest is None else digest,
            federation=self._federation,
            epoch=epoch,
            sequence=sequence,
            created=int(time.time()),
        )
        signature = signature_in(signed)
        target = f"{path}?{query}" if query else path
        line = self._line()
        kept = False
        try:
            response = line.ask(method, target, {**headers, **signed}, body, timeout)
            try:
                yield _Answer(response, sequence, signature)
                kept = True
            except (AtollError, _Stale):
                kept = True
                raise
            finally:
                kept = kept and response.isclosed() and not response.will_close
        except (http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
            raise Unreachable(f"{self.address} hung up in the middle") from error
        except TimeoutError as error:
            raise Unreachable(f"{self.address} sent nothing for {timeout:g} s") from error
        except OSError as error:
            raise Unreachable(f"the connection to {self.address} broke: {error}") from error
        except http.client.HTTPException as error:
            raise WireError(
                f"{self.address} does not answer as an HTTP server does: {type(error).__name__}",
                remedy="check the port",
            ) from error
        finally:
            self._give_back(line, kept=kept)

    def _line(self) -> Line:
        while True:
            with self._lock:
                line = self._idle.pop() if self._idle else None
            if line is None:
                return dial(
                    self.address, self._pin, self._proxy, self._context, self._connect_timeout
                )
            if line.quiet:
                return line
            line.close()

    def _give_back(self, line: Line, *, kept: bool) -> None:
        with self._lock:
            if kept and len(self._idle) < _IDLE:
                self._idle.append(line)
                return
        line.close()

    def _checked(self, answer: _Answer) -> Reply:
        """The whole answer, after its signature was checked; a problem is raised as its error."""
        status, headers = answer.status, answer.headers
        body, first = b"".join(answer.pieces(_MOST_REPLY)), None
        if self._pin.server_key is not None:
            if "signature" not in headers:
                raise self._unsigned(status, body)
            digest = verify_response(
                self._pin.server_key,
                status,
                answer.response.getheaders(),
                sequence=answer.sequence,
                answers=answer.signature,
            )
            if headers.get("content-type") == NEWS:
                found, first = digests(body)
            else:
                found = digest_of(body)
            if digest != found:
                raise AuthError(f"the body of {self.address}'s answer is not the one it signed")
        if status >= 400:
            problem = _problem(status, body)
            if problem.code == EPOCH and problem.epoch is not None:
                raise _Stale(problem.epoch, problem.sequence or 0)
            raise problem.error(status)
        if status >= 300:
            raise WireError(f"{self.address} answered {status}, which is not followed")
        return Reply(status, headers, body, first)

    def _unsigned(self, status: int, body: bytes) -> AuthError | Unreachable:
        """What to make of an answer that nobody vouches for."""
        said = f": {_problem(status, body).message[:300]}" if status >= 400 else ""
        if status in _PASSING:
            return Unreachable(f"{self.address} answered {status}{said}")
        return AuthError(
            f"{self.address} answered {status} without the server's signature{said}",
            remedy="check that nothing opens the connection on the way",
        )


def _problem(status: int, body: bytes) -> ProblemBody:
    try:
        return read_json(ProblemBody, body)
    except WireError:
        return ProblemBody(code="", message=f"the server answered {status}")


def _span(answer: _Answer, at: int, size: int) -> int:
    """Bytes that will come, when they are those from ``at`` on.

    Raises:
        WireError: they are others.
    """
    told, declared = answer.headers.get("content-range", ""), answer.response.length
    if answer.status == 200:
        if at == 0 and declared == size:
            return size
        raise WireError(f"{size} bytes were asked for from {at} on; the server sends {declared}")
    match = _RANGE.fullmatch(told)
    start, stop, total = map(int, match.groups()) if match else (-1, -1, -1)
    if start != at or total != size or not at <= stop < size or declared != stop - start + 1:
        raise WireError(
            f"bytes {at} to {size - 1} were asked for; the server sends {declared} as {told!r:.60}"
        )
    return stop - start + 1
