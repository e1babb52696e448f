"""What stands between the network and the service: in a real server TLS, gate and HTTP, here none of it.

It answers as the routes of :mod:`atoll.server.web.api` do, with the same messages. Since there is no gate, a
message that was recorded, repeated or delayed does reach the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

import numpy as np
from storm import kernel as k
from storm.network import Request

from atoll.core.errors import Forbidden, NotFound
from atoll.core.layout import Array
from atoll.server.rounds.early import Early
from atoll.server.service import Poll, Service
from atoll.server.web.gate import Roster
from atoll.wire.frames import Blob, encode
from atoll.wire.messages import (
    NewsReply,
    PollReply,
    ReceiptBody,
    ReferenceBody,
    UploadReply,
    read_body,
    read_json,
)
from atoll.wire.news import First, joined, opened

__all__ = ["Front", "receipt_in"]


class Front:
    """A server's face.

    Args:
        service: started.
        roster: who is a member.
        inline: bytes of the longest blob that is sent along with the task that names it.
        drawn: what tells this start of the server from others.
    """

    def __init__(self, service: Service, roster: Roster, inline: int, drawn: str) -> None:
        self._drawn = drawn
        self._service, self._roster, self._inline = service, roster, inline
        self._waiting: dict[str, list[k.Event]] = {}
        service.on_change = self._ring

    def _ring(self, names: Any) -> None:
        for name in names:
            for event in self._waiting.get(name, ()):
                event.set()

    def answer(self, request: Request) -> bytes:
        """What a site is answered.

        Raises:
            AtollError: whatever the service raises; it is sent in place of an answer.
        """
        site = request.site
        self._check(site)
        name = unquote(request.path.rpartition("/")[2])
        query = {k: v[0] for k, v in parse_qs(request.query, keep_blank_values=True).items()}
        where = request.method, request.path.removeprefix("/v1/").partition("/")[0]
        if "seen" in query:  # a node of today says so with each question and each result
            self._service.epochs.hear(site, query["seen"])
        if where == ("GET", "poll"):
            return _news(*self._poll(site, query))
        if where == ("POST", "results"):
            return self._deliver(site, name, request)
        if where == ("GET", "blobs"):
            blob = self._service.blob(site, name)
            start = int(request.headers.get("range", "bytes=0-")[6:-1])
            return blob.read(start, blob.size)
        if where == ("GET", "uploads"):
            received = self._service.upload_received(site, name)
            return UploadReply(received=received).model_dump_json().encode()
        if where == ("PUT", "uploads"):
            size, offset = int(query["size"]), int(query["offset"])
            task = query["task"]
            received = self._service.upload_chunk(site, name, size, offset, request.body, task)
            return UploadReply(received=received).model_dump_json().encode()
        raise NotFound(f"{request.method} {request.path}")

    def _check(self, site: str) -> None:
        """Whether the sender is a member, as the gate finds it."""
        if self._roster.stale:
            self._roster.refresh()
        members = self._roster.all()
        if not any(m.name == site and m.status == "active" for m in members):
            raise Forbidden(f"{site} is no member")

    def _poll(self, site: str, query: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
        have = frozenset(unquote(name) for name in query["have"].split(",") if name)
        found = self._news(site, lambda: self._service.poll(site, have), float(query["wait"]))
        epoch = self._service.epoch
        reply = PollReply(
            tasks=list(found.tasks), gone=list(found.gone), epoch=epoch, start=self._drawn
        )
        small: dict[str, np.ndarray] = {}
        for task in reply.tasks:
            for ref in (task.plan, task.broadcast, *task.code.values()):
                if ref is not None and ref.size <= self._inline and ref.sha256 not in small:
                    blob = self._service.blob(site, ref.sha256)
                    small[ref.sha256] = np.frombuffer(blob.read(0, blob.size), np.uint8)
        return reply.model_dump(), small

    def _news(self, site: str, look: Callable[[], Poll], wait: float) -> Poll:
        """Look, and look again when the bell rings, until there is something or the time is over."""
        mover = k.kernel()
        until, event = mover.now + wait, k.Event()
        self._waiting.setdefault(site, []).append(event)
        try:
            while True:
                event.clear()
                found = look()
                left = until - mover.now
                if found.tasks or found.gone or left <= 0:
                    return found
                event.wait(left)
                self._check(site)
        finally:
            self._waiting[site].remove(event)

    def _written(self, site: str, found: Early | ReceiptBody) -> ReceiptBody:
        """The receipt, once there is one."""
        if isinstance(found, ReceiptBody):
            return found
        event = k.Event()
        self._waiting.setdefault(site, []).append(event)
        try:
            while (receipt := found.receipt()) is None:
                event.clear()
                event.wait(60.0)
            return receipt
        finally:
            self._waiting[site].remove(event)

    def _offered(self, site: str, task: str, raw: bytes) -> Early | ReceiptBody:
        """As the event loop does it, and as a thread does where that is not possible."""
        service, blob = self._service, Blob.of(raw)
        return service.offer_at_once(site, task, raw, blob) or service.offer(site, task, raw, blob)

    def _deliver(self, site: str, task: str, request: Request) -> bytes:
        query = {k: v[0] for k, v in parse_qs(request.query, keep_blank_values=True).items()}
        if request.headers["content-type"] == "application/json":
            blob = read_json(ReferenceBody, request.body).blob.blob
            receipt = self._service.deliver_uploaded(site, task, blob)
        elif "wait" in query:
            receipt = self._written(site, self._offered(site, task, request.body))
        else:
            receipt = self._service.deliver(site, task, request.body)
        if "wait" not in query:
            return receipt.model_dump_json().encode()
        news, small = self._poll(site, query)
        return _news({"receipt": receipt.model_dump(), "news": news}, small)


def receipt_in(raw: bytes) -> tuple[ReceiptBody, bool]:
    """The receipt in an answer to a result, and whether it came alone."""
    if raw.startswith(b"{"):
        return read_json(ReceiptBody, raw), True
    return read_body(NewsReply, opened(raw)[0]).receipt, False


def _news(body: Mapping[str, Any], blobs: Mapping[str, Array]) -> bytes:
    """An answer, to which the longest blob comes first."""
    longest = max(blobs, key=lambda name: blobs[name].size, default="")
    rest = {name: raw for name, raw in blobs.items() if name != longest}
    first = First(blobs[longest].data) if longest else None
    return joined(first, encode(body, rest))[0]
