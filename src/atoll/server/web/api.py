"""What each route answers, and the table of all routes: who may use which, with how long a body.

Handlers turn requests into calls of the service and its answers into messages; they hold no state of
their own. Calls run in threads, since they may wait for a disk. Who waits for news waits for the bell:
nobody asks again and again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from atoll.core.errors import AuthError, NotFound, StorageError, WireError
from atoll.server.rounds.early import Early
from atoll.server.service import Readable, Service
from atoll.server.store.contract import Member
from atoll.server.web.access import Access, Proofs
from atoll.server.web.bell import Bell
from atoll.server.web.bodies import Coming
from atoll.server.web.gate import Gate, Roster
from atoll.server.web.limits import KIB, MIB, Limits
from atoll.server.web.metrics_page import Gauge, Meters, page
from atoll.server.web.news import INLINE, News
from atoll.server.web.routes import Answer, Asked, Route, Span
from atoll.wire.disk import Piece
from atoll.wire.frames import Blob, header_size
from atoll.wire.identity import fingerprint_of
from atoll.wire.messages import (
    LEDGER_HEAD,
    BlobRef,
    FilesReply,
    JobReply,
    JobsReply,
    JoinBody,
    JoinReply,
    MemberBody,
    MembersReply,
    ReceiptBody,
    ReferenceBody,
    RoundsReply,
    ShareBody,
    SubmitBody,
    UploadReply,
    read_json,
)
from atoll.wire.signatures import verify

__all__ = ["CHUNK", "FRAME", "INLINE", "ROUTES", "UPLOAD", "Api", "Federation"]

CHUNK = 4 * MIB
"""Most bytes of a part of an upload that is taken in one piece."""

UPLOAD = 1 << 40
"""Most bytes of an upload at once; how many there may be, the task it answers says."""

FRAME = MIB + 64 * KIB
"""Most bytes of a result that is sent as it is; a longer one is uploaded first."""

_LIGHT = 16 * KIB
"""Most bytes of a header that is read in the event loop: reading takes longer than bytes do to come."""

_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
_HASH = re.compile(r"[0-9a-f]{64}")
_HEAD = re.compile(LEDGER_HEAD)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Federation:
    """Whose server this is.

    Args:
        id: of the federation.
        key: the server's public key, 32 bytes.
    """

    id: str
    key: bytes


class _Part:
    """Where bytes of an upload belong."""

    def __init__(
        self, service: Service, name: str, blob: Blob, offset: int, task: str, proofs: Proofs | None
    ) -> None:
        self._service, self._name, self._task, self._proofs = service, name, task, proofs
        self.blob, self.offset = blob, offset
        self._next = offset
        self.received = 0

    def take(self, data: Piece) -> int:
        """Hand over the next bytes; returns how many of the whole are here.

        Whether they are wanted is asked with the first bytes of each :data:`CHUNK`, and with the last of all.
        """
        service, blob, stop = self._service, self.blob, self.offset + len(data)
        if stop > blob.size or self._proofs is None:
            return self._taken(service, blob, stop, data)

        def keep(anew: bool) -> None:
            if anew:
                service.upload_anew(self._name, blob.sha256)
            self._taken(service, blob, stop, data)

        # Whether the bytes were here before is not said.
        self.received = self._proofs.take(self._name, blob, self.offset, data, keep)
        return self.received

    def _taken(self, service: Service, blob: Blob, stop: int, data: Piece) -> int:
        if self.offset < self._next and stop < blob.size:
            self.received = service.upload_more(self._name, blob, self.offset, data)
        else:
            self.received = service.upload_chunk(
                self._name, blob.sha256, blob.size, self.offset, data, self._task
            )
            self._next = self.offset + CHUNK
        self.offset = stop
        return self.received


@dataclass(eq=False)
class Api:
    """The handlers.

    Args:
        service: does the work.
        gate: knows the epoch.
        bell: rings when there is news.
        threads: where short calls of the service run.
        disk: where those run that wait for a disk.
        roster: members as the gate knows them.
        limits: see there.
        federation: whose server this is.
        meters: counts.
        gauges: further values for the page of metrics.
        ready: why the server is not ready; empty when it is.
        access: which researcher may read which run.

    Attributes:
        news: what sites are told.
    """

    service: Service
    gate: Gate
    bell: Bell
    threads: Executor
    disk: Executor
    roster: Roster
    limits: Limits
    federation: Federation
    meters: Meters
    access: Access
    gauges: Callable[[], tuple[Gauge, ...]] = tuple
    ready: Callable[[], str] = str
    news: News = field(init=False)

    def __post_init__(self) -> None:
        self.news = News(
            self.service,
            self.gate,
            self.bell,
            self.roster,
            self.threads,
            self.limits,
            self.meters,
        )

    async def _call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, function, *arguments)

    async def _long(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.disk, function, *arguments)

    # Open ---------------------------------------------------------------------------------------

    async def health(self, asked: Asked) -> Answer:
        """The process answers."""
        return Answer(b'{"status":"ok"}')

    async def readiness(self, asked: Asked) -> Answer:
        """It can do its work; why not is in its log, not here."""
        fine = not self.ready()
        if fine and self.roster.stale:  # nothing may have asked the store for long
            try:
                await self._call(self.roster.refresh)
            except StorageError:
                fine = False
        body = b'{"status":"ready"}' if fine else b'{"status":"not ready"}'
        return Answer(body, status=200 if fine else 503)

    async def metrics(self, asked: Asked) -> Answer:
        """Counters and gauges for Prometheus."""
        gauges = await self._call(self.gauges)
        text = page(self.meters, gauges)
        return Answer(text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def join(self, asked: Asked) -> Answer:
        """Admit a key: it signed this very request, and its sender knows a one-time secret."""
        wanted = read_json(JoinBody, asked.raw)
        key = bytes.fromhex(wanted.key)
        if asked.claim is None:
            raise AuthError("this request is not signed")
        verify(asked.claim, key)
        member = await self._call(self._admit, wanted, key)
        return _json(
            JoinReply(
                federation=self.federation.id,
                name=member.name,
                role=member.role,
                server_key=self.federation.key.hex(),
                epoch=self.gate.epoch,
            )
        )

    def _admit(self, wanted: JoinBody, key: bytes) -> Member:
        secret, name = bytes.fromhex(wanted.secret), wanted.name or ""
        member = self.service.join(secret, name, key, wanted.role)
        self.roster.refresh()
        return member

    # Members ------------------------------------------------------------------------------------

    async def members(self, asked: Asked) -> Answer:
        """Names and fingerprints, for checking by telephone."""
        members = [
            MemberBody(name=m.name, role=m.role, fingerprint=m.fingerprint, status=m.status)
            for m in self.roster.all()
        ]
        return _json(
            MembersReply(
                federation=self.federation.id,
                server=fingerprint_of(self.federation.key),
                members=members,
            )
        )

    async def uploaded(self, asked: Asked) -> Answer:
        """How far an upload has come."""
        sha256, proofs = _digest(asked), self._proofs(asked)
        here = await self._call(self.service.upload_received, asked.name, sha256)
        if proofs is not None:
            here = min(here, proofs.seen(asked.name, sha256))
        return _json(UploadReply(received=here))

    def _proofs(self, asked: Asked) -> Proofs | None:
        """Where a digest is not enough: what its sender has sent."""
        researcher = asked.sender is not None and asked.sender.role == "researcher"
        return self.access.proofs if researcher and not self.access.open else None

    async def upload(self, asked: Asked) -> Answer:
        """Bytes of an upload from an offset on: for a task, or for a job that is to be submitted.

        A part up to :data:`CHUNK` is taken when it is here in full and is what was signed. A longer one
        is taken while it comes, so what has come before a cut need not be sent again; its bytes are
        checked with the whole, whose digest is its name.
        """
        blob = Blob(_digest(asked), asked.number("size"))
        offset, task = asked.number("offset"), asked.query.get("task", "")
        part = _Part(self.service, asked.name, blob, offset, task, self._proofs(asked))
        coming = asked.body
        if not isinstance(coming, Coming):
            return _json(UploadReply(received=await self._long(lambda: part.take(asked.raw))))
        if part.offset == 0 and coming.size == blob.size:
            coming.check(bytes.fromhex(blob.sha256))  # known before a byte was read
        await coming.poured(part.take, self.disk)
        return _json(UploadReply(received=part.received))

    # Sites --------------------------------------------------------------------------------------

    async def poll(self, asked: Asked) -> Answer:
        """Open tasks, as soon as there are any, with the small blobs that they name."""
        await self._saw(asked, asked.query.get("seen", ""))
        return await self.news.answer(asked)

    async def _saw(self, asked: Asked, seen: str) -> None:
        if self.service.epochs.doubts(asked.name, seen):
            await self._call(self.service.epochs.hear, asked.name, seen)

    async def deliver(self, asked: Asked) -> Answer:
        """A result: the frame itself, or the name of the blob that it was uploaded as.

        With it, in the query, how far the site's privacy ledger has come, and which start of the server it saw
        last: it may be delivered before the site asks this one for anything. Who says how long it would
        ``wait`` asks for news at once (:meth:`poll`), and is told them with the receipt.
        """
        if seen := asked.query.get("seen", ""):
            await self._saw(asked, seen)
        else:  # a site of an older version, or one whose file was removed
            self.service.epochs.check(asked.name)
        if not _HEAD.fullmatch(asked.query.get("ledger", "")):
            raise WireError("ledger: this is no head of a ledger")
        found: Early | ReceiptBody | None = self._offered(asked)
        if found is None:
            found = await self._long(self._delivered, asked)
        receipt = found if isinstance(found, ReceiptBody) else await self.news.receipt(asked, found)
        if "wait" not in asked.query:
            return _json(receipt)
        return await self.news.answer(asked, receipt)

    def _offered(self, asked: Asked) -> Early | None:
        """A short answer that is taken in without leaving the event loop; None where that is not possible."""
        claim, body, query = asked.claim, asked.body, asked.query
        if claim is None or isinstance(body, Coming) or body.raw is None or "wait" not in query:
            return None
        raw = body.raw
        if len(raw) > INLINE or _is_json(asked):
            return None
        try:
            if header_size(raw) > _LIGHT:
                return None
        except WireError:
            return None
        named, ledger = Blob(claim.digest.hex(), len(raw)), query.get("ledger", "")
        return self.service.offer_at_once(asked.name, asked.values["task"], raw, named, ledger)

    def _delivered(self, asked: Asked) -> ReceiptBody | Early:
        task, service = asked.values["task"], self.service
        service.ledger(asked.name, asked.query.get("ledger", ""))
        if _is_json(asked):
            blob = read_json(ReferenceBody, asked.raw).blob.blob
            return service.deliver_uploaded(asked.name, task, blob)
        raw = asked.raw
        # The body's digest is known: it is what was signed.
        named = None if asked.claim is None else Blob(asked.claim.digest.hex(), len(raw))
        if (
            named is not None and "wait" in asked.query
        ):  # who waits for news need not be told at once
            return service.offer(asked.name, task, raw, named)
        return service.deliver(asked.name, task, raw, named)

    async def blob(self, asked: Asked) -> Answer:
        """A blob that one of the site's tasks names, or a part of it."""
        readable = await self._call(self.service.blob, asked.name, _digest(asked))
        return _span(asked, readable)

    async def leave(self, asked: Asked) -> Answer:
        """The sender is no member any more."""
        await self._call(self.service.leave, asked.name)
        await self._call(self.roster.refresh)
        return Answer(b"{}")

    # Researchers --------------------------------------------------------------------------------

    async def submit(self, asked: Asked) -> Answer:
        """A new run."""
        body = read_json(SubmitBody, asked.raw)
        self.access.check_bytes(asked.name, body)
        run = await self._long(self.service.submit, asked.name, body)
        return await self._one(run)

    async def jobs(self, asked: Asked) -> Answer:
        """All runs that the sender may read."""
        return _json(JobsReply(jobs=await self._call(self._readable, asked.name)))

    def _readable(self, name: str) -> list[JobReply]:
        may = self.access.readable(name)
        return [job for job in self.service.jobs() if may(job.id, job.by)]

    async def job(self, asked: Asked) -> Answer:
        """One run."""
        return await self._one(asked.values["id"])

    async def _one(self, run: str) -> Answer:
        found = await self._call(self.service.job, run)
        return _json(found.model_copy(update={"open": self.access.open}))

    async def share(self, asked: Asked) -> Answer:
        """Let another researcher read a run of the sender's."""
        run, name = asked.values["id"], read_json(ShareBody, asked.raw).name
        await self._call(self.access.share, asked.name, run, name)
        return await self._one(run)

    async def unshare(self, asked: Asked) -> Answer:
        """Take that back; who waits for news of the run is told at once."""
        run, name = asked.values["id"], read_json(ShareBody, asked.raw).name
        await self._call(self.access.unshare, run, name)
        self.bell.ring([f"run {run}"])
        return await self._one(run)

    async def rounds(self, asked: Asked) -> Answer:
        """Records of rounds, as soon as there are new ones or the run has ended."""
        run, after = asked.values["id"], asked.number("after", 0)
        reply = await self.news.until(
            asked,
            f"run {run}",
            lambda: self._call(self._rounds, asked.name, run, after),
            lambda found: bool(found.rounds or found.ended),
        )
        return _json(reply)

    def _rounds(self, name: str, run: str, after: int) -> RoundsReply:
        if self.access.asks("reader"):  # it may have been taken back while the sender waited
            self.access.check(name, run, "reader", "its rounds")
        return self.service.rounds(run, after)

    async def cancel(self, asked: Asked) -> Answer:
        """End a run."""
        run = asked.values["id"]
        await self._call(self.service.cancel, run, asked.name)
        return await self._one(run)

    async def files(self, asked: Asked) -> Answer:
        """The files of a run's folder."""
        found: Mapping[str, BlobRef] = await self._long(self.service.files, asked.values["id"])
        return _json(FilesReply(files=dict(found)))

    async def file(self, asked: Asked) -> Answer:
        """One of them, or a part of it."""
        values = asked.values
        readable = await self._call(self.service.file, values["id"], values["name"])
        return _span(asked, readable)


def _is_json(asked: Asked) -> bool:
    return asked.heading.headers.get("content-type", "").startswith("application/json")


def _json(message: BaseModel) -> Answer:
    return Answer(message.model_dump_json().encode())


def _digest(asked: Asked) -> str:
    if not _HASH.fullmatch(asked.values["sha256"]):
        raise NotFound("a blob's name is the SHA-256 of its bytes, in hex")
    return asked.values["sha256"]


def _span(asked: Asked, readable: Readable) -> Answer:
    """All of something, or the part that the Range header asks for."""
    kind, total = "application/octet-stream", readable.size
    wanted = asked.heading.headers.get("range")
    headers = {"accept-ranges": "bytes"}
    if wanted is None:
        return Answer(Span(readable.read, 0, total, total), kind, 200, headers)
    found = _RANGE.fullmatch(wanted)
    start = int(found[1]) if found else total
    stop = min(int(found[2]) + 1, total) if found and found[2] else total
    if start >= stop:
        raise WireError(
            f"bytes {wanted!r:.60} of something {total} bytes long",
            remedy="ask for one range that lies within it",
        )
    headers["content-range"] = f"bytes {start}-{stop - 1}/{total}"
    return Answer(Span(readable.read, start, stop, total), kind, 206, headers)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/health", {"open"}, Api.health),
    Route("GET", "/v1/ready", {"open"}, Api.readiness),
    Route("GET", "/v1/metrics", {"bearer"}, Api.metrics),
    Route("POST", "/v1/join", {"newcomer"}, Api.join, 4 * KIB),
    Route("GET", "/v1/federation", {"site", "researcher"}, Api.members),
    Route("GET", "/v1/uploads/{sha256}", {"site", "researcher"}, Api.uploaded),
    Route("PUT", "/v1/uploads/{sha256}", {"site", "researcher"}, Api.upload, UPLOAD, CHUNK),
    Route("GET", "/v1/poll", {"site"}, Api.poll),
    Route("POST", "/v1/results/{task}", {"site"}, Api.deliver, FRAME),
    Route("GET", "/v1/blobs/{sha256}", {"site"}, Api.blob),
    Route("POST", "/v1/leave", {"site"}, Api.leave, KIB),
    Route("POST", "/v1/jobs", {"researcher"}, Api.submit, MIB),
    Route("GET", "/v1/jobs", {"researcher"}, Api.jobs),
    Route("GET", "/v1/jobs/{id}", {"researcher"}, Api.job, whose="reader"),
    Route("GET", "/v1/jobs/{id}/rounds", {"researcher"}, Api.rounds, whose="reader"),
    Route("POST", "/v1/jobs/{id}/cancel", {"researcher"}, Api.cancel, KIB, whose="owner"),
    Route("POST", "/v1/jobs/{id}/share", {"researcher"}, Api.share, 4 * KIB, whose="owner"),
    Route("POST", "/v1/jobs/{id}/unshare", {"researcher"}, Api.unshare, 4 * KIB, whose="owner"),
    Route("GET", "/v1/jobs/{id}/files", {"researcher"}, Api.files, whose="reader"),
    Route("GET", "/v1/jobs/{id}/files/{name}", {"researcher"}, Api.file, whose="reader"),
)
