"""What a site is told: open tasks with the small blobs that they name, as soon as there are any.

Who waits for news waits for the bell: nobody asks again and again. What to tell is found without leaving
the event loop where that takes neither a lock that somebody holds nor the store; a thread does it otherwise.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from atoll.core.errors import AtollError, Unreachable, WireError
from atoll.server.rounds.early import Early
from atoll.server.service import Poll, Service
from atoll.server.web.bell import Bell
from atoll.server.web.gate import Gate, Roster
from atoll.server.web.limits import MIB, Limits
from atoll.server.web.metrics_page import Meters
from atoll.server.web.routes import Answer, Asked, Presence
from atoll.wire.frames import encode
from atoll.wire.messages import BlobRef, NewsReply, PollReply, ReceiptBody, TaskBody
from atoll.wire.news import NEWS, First, joined

__all__ = ["INLINE", "News", "listed"]

INLINE = MIB
"""Most bytes of a blob that is sent along with the task that names it."""

_ALONG = 4 * MIB
_FRAME = "application/octet-stream"
_MOST_TOLD = 1000
_LATELY = 4
"""Blobs that are kept at hand: those that all sites of a round are about to be told."""


@dataclass(frozen=True)
class _Told:
    """Who is told.

    Args:
        site: its name.
        receipt: of an answer of its own; None for news alone.
        first: whether it knows the form in which the longest blob comes first.
    """

    site: str
    receipt: ReceiptBody | None
    first: bool


@dataclass(eq=False)
class News:
    """What sites are told, and who waits to be told.

    Args:
        service: knows the tasks.
        gate: knows the epoch.
        bell: rings when there is news.
        roster: members as the gate knows them.
        threads: where the service is asked that may have to wait.
        limits: see there.
        meters: counts.
        told: digests of what each site was sent along with a task; it keeps that, or asks for it.
    """

    service: Service
    gate: Gate
    bell: Bell
    roster: Roster
    threads: Executor
    limits: Limits = field(default_factory=Limits)
    meters: Meters = field(default_factory=Meters)
    told: dict[str, set[str]] = field(default_factory=dict)
    _lately: dict[str, First] = field(default_factory=dict)

    async def until(
        self,
        asked: Asked,
        place: str,
        look: Callable[[], Awaitable[Any]],
        enough: Callable[[Any], bool],
    ) -> Any:
        """Look, and look again when the bell rings for ``place``, until there is enough or the time is over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _seconds(asked.query.get("wait", "0"), self.limits.wait)
        self.meters.waiting += 1
        try:
            with self.bell.place(place) as event:
                while True:
                    event.clear()
                    found = await look()
                    left = until - loop.time()
                    if enough(found) or left <= 0 or self.bell.closed:
                        return found
                    if not await _rings(event, asked, left):
                        raise Unreachable(f"{asked.name} does not wait any longer")
                    await self._still(asked)
        finally:
            self.meters.waiting -= 1

    async def receipt(self, asked: Asked, early: Early) -> ReceiptBody:
        """Wait until an answer of the sender's is durable.

        Raises:
            Unreachable: the server stops, or the sender has gone.
            AtollError: why there will be no receipt.
        """
        with self.bell.place(asked.name) as event:
            while (found := early.receipt()) is None:
                if self.bell.closed:
                    raise Unreachable("the server stops", remedy="send it again")
                event.clear()
                if not await _rings(event, asked, self.limits.wait):
                    raise Unreachable(f"{asked.name} does not wait any longer")
        return found

    async def _still(self, asked: Asked) -> None:
        """Whoever has waited is told nothing if the key was revoked meanwhile."""
        if self.roster.stale:
            await asyncio.get_running_loop().run_in_executor(self.threads, self.roster.refresh)
        if asked.sender is not None:
            self.gate.still(asked.sender)

    async def answer(self, asked: Asked, receipt: ReceiptBody | None = None) -> Answer:
        """News for the sender, whose query says what it has and how long it waits; with a receipt or not."""
        site, have = asked.name, frozenset(listed(asked.heading.query, "have"))
        told = _Told(site, receipt, asked.query.get("first") == "1")

        async def look() -> Answer | None:
            found = self.service.glance(site, have)
            if found is None or not self._at_hand(site, found):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self.threads, self._asked, told, have)
            return self._news(told, found)

        answer: Answer | None = await self.until(asked, site, look, bool)
        return answer or self._answer(told, Poll([], []))

    def _asked(self, to: _Told, have: frozenset[str]) -> Answer | None:
        return self._news(to, self.service.poll(to.site, have))

    def _news(self, to: _Told, found: Poll) -> Answer | None:
        """None where there are no news."""
        return self._answer(to, found) if found.tasks or found.gone else None

    def _at_hand(self, site: str, found: Poll) -> bool:
        """Whether what would be sent along is in memory."""
        told = self.told.get(site, ())
        refs = [ref for ref in _named(found.tasks) if ref.size <= INLINE and ref.sha256 not in told]
        return all(ref.sha256 in self._lately or self.service.shown(ref.sha256) for ref in refs)

    def _answer(self, to: _Told, found: Poll) -> Answer:
        site, receipt = to.site, to.receipt
        reply = PollReply.model_construct(  # of parts that were checked when they were made
            tasks=list(found.tasks),
            gone=list(found.gone),
            epoch=self.gate.epoch,
            start=self.gate.start,
            ledger=self.service.ledger(site),
        )
        along: dict[str, First] = {}
        total = 0
        told = self.told.setdefault(site, set())
        for ref in _named(reply.tasks):
            known = ref.sha256 in along or ref.sha256 in told
            if known or ref.size > INLINE or total + ref.size > _ALONG:
                continue
            along[ref.sha256] = self._bytes(site, ref)
            total += ref.size
        if len(told) > _MOST_TOLD:
            told.clear()
        told.update(along)
        message = (
            reply if receipt is None else NewsReply.model_construct(receipt=receipt, news=reply)
        )
        first = max(along, key=lambda name: along[name].array.size, default="") if to.first else ""
        frame = encode(
            message.model_dump(), {name: b.array for name, b in along.items() if name != first}
        )
        if not to.first:
            return Answer(frame, _FRAME)
        raw, digest = joined(along.get(first), frame)
        return Answer(raw, NEWS, digest=digest)

    def _bytes(self, site: str, ref: BlobRef) -> First:
        """The bytes of a blob that a task of ``site`` names: read once for all sites that are told of it."""
        raw = self._lately.get(ref.sha256)
        if raw is None:
            readable = self.service.shown(ref.sha256) or self.service.blob(site, ref.sha256)
            raw = First(readable.read(0, readable.size), readable.sha)
            self._lately[ref.sha256] = raw
            for old in list(self._lately)[:-_LATELY]:
                self._lately.pop(old, None)
        return raw


async def _rings(event: asyncio.Event, asked: Asked, seconds: float) -> bool:
    """Wait for the event or so long; false when the other end has gone meanwhile."""
    if (line := asked.presence) is not None:
        return await _rings_or_ends(event, line, seconds)
    gone = asyncio.ensure_future(asked.gone())
    gone.add_done_callback(lambda _: event.set())
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
        return not gone.done()
    finally:
        gone.cancel()
        with suppress(asyncio.CancelledError, AtollError):
            await gone


async def _rings_or_ends(event: asyncio.Event, line: Presence, seconds: float) -> bool:
    """The same where a connection says of itself that it has ended: nobody need watch it."""
    late = asyncio.get_running_loop().call_later(seconds, event.set)
    line.waiting.add(event)
    try:
        if not line.gone:
            await event.wait()
    finally:
        line.waiting.discard(event)
        late.cancel()
    return not line.gone


def listed(query: str, name: str) -> list[str]:
    """A list in the query: each member percent-encoded, commas between them."""
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key == name and value:
            return [unquote(item) for item in value.split(",")]
    return []


def _seconds(raw: str, most: float) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise WireError(f"wait must be a number of seconds, not {raw!r:.40}")
    return min(value, most)


def _named(tasks: Collection[TaskBody]) -> list[BlobRef]:
    """The blobs that tasks name, plans and broadcasts first."""
    first = [ref for t in tasks for ref in (t.plan, t.said, t.broadcast) if ref]
    return first + [ref for t in tasks for ref in t.code.values()]
