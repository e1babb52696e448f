"""The HTTP API as one ASGI application: every request takes the same way, and there is no other.

::

    find the route -> pass the gate -> declare no more than allowed -> read the body -> answer -> sign

An error anywhere on the way becomes one form of answer (:class:`~atoll.wire.messages.ProblemBody`),
with its status from the one table (:mod:`atoll.wire.status`). It is a plain function of ASGI and no
framework's application, so that nothing answers beside the table of routes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from atoll.core.errors import AtollError, Busy, Forbidden, StorageError, TooLarge, WireError
from atoll.server.store.contract import Member
from atoll.server.web.access import Access
from atoll.server.web.bodies import Coming, Room, declared_size, discard
from atoll.server.web.gate import Gate, Pass, Roster, StaleRequest
from atoll.server.web.lanes import LONG, Lane, Lanes
from atoll.server.web.limits import Limits
from atoll.server.web.metrics_page import Meters
from atoll.server.web.routes import Answer, Asked, Heading, Route, Span, Table
from atoll.wire.identity import Identity
from atoll.wire.messages import ProblemBody
from atoll.wire.signatures import Claim, read_request, sign_response
from atoll.wire.status import http_status

__all__ = ["App", "House", "heading_of", "problem_of"]

log = logging.getLogger("atoll.server")

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Coroutine[Any, Any, Any]]

_PIECE = 512 << 10
_STRANGERS = frozenset({"open", "bearer", "newcomer"})
"""Who uses a route without being a member."""
_ONCE = ("content-length", "transfer-encoding", "authorization", "range")


@dataclass(frozen=True, eq=False)
class House:
    """What every request needs.

    Args:
        identity: the key that signs answers.
        gate: who may pass.
        roster: the members.
        limits: see there.
        folder: where long bodies wait.
        threads: for what would hold up the others.
        now: seconds since 1970.
        meters: counts.
        lanes: threads for long bodies; None where the loop does all.
        access: which researcher may read which run; None where no route names a run.
    """

    identity: Identity
    gate: Gate
    roster: Roster
    limits: Limits
    folder: Path
    threads: Executor
    now: Callable[[], float]
    meters: Meters
    lanes: Lanes | None = None
    access: Access | None = None


def heading_of(scope: Mapping[str, Any]) -> tuple[Heading, list[tuple[str, str]]]:
    """The request's line and headers, and the headers as the list they came in.

    Raises:
        WireError: a header that may come once comes twice.
    """
    listed = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
    headers: dict[str, str] = {}
    for name, value in listed:
        if name in headers and name in _ONCE:
            raise WireError(f"the header {name} comes twice")
        headers.setdefault(name, value)
    client = scope.get("client")
    heading = Heading(
        method=scope["method"],
        path=scope["raw_path"].decode("latin-1"),
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        address=client[0] if client else "",
    )
    return heading, listed


def problem_of(error: AtollError) -> Answer:
    """The answer that an error becomes."""
    body = ProblemBody.of(error)
    if isinstance(error, StaleRequest):
        body = body.model_copy(update={"epoch": error.epoch, "sequence": error.highest})
    return Answer(
        body.model_dump_json(exclude_none=True).encode(),
        "application/problem+json",
        http_status(error.code),
    )


def _shown(error: AtollError) -> AtollError:
    """What a stranger may know of an error: not where the server's files and database are."""
    if not isinstance(error, StorageError):
        return error
    return type(error)(
        "the server cannot use its store at the moment",
        remedy="try again later; atoll doctor --server tells its operator why",
    )


class _Exchange:
    """One request and its answer.

    Args:
        scope: of ASGI.
        receive: of ASGI.
        send: of ASGI.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        extensions = scope.get("extensions") or {}
        self.guest = extensions.get("atoll.guest", {}).get("guest")
        self.heading: Heading | None = None
        self.route: Route | None = None
        self.entry = Pass()
        self.claim: Claim | None = None
        self.declared = 0
        self.begun = False
        self.complete = False
        self.verified = False


class App:
    """The application.

    Args:
        house: what every request needs.
        table: all routes.
        api: what the routes' handlers are methods of.
    """

    def __init__(self, house: House, table: Table, api: object) -> None:
        self._house, self._table, self._api = house, table, api
        self._room = Room(house.limits.room)
        self._busy: Counter[str] = Counter()
        self._refreshing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise ValueError(f"this server speaks HTTP only, not {scope['type']}")
        began = time.perf_counter()
        exchange = _Exchange(scope, receive, send)
        answer = await self._answer(exchange)
        try:
            await self._reply(exchange, answer)
        except (OSError, TimeoutError, AtollError) as error:
            log.info("an answer could not be sent: %s", error)
            if exchange.guest is not None:
                exchange.guest.drop()
        finally:
            name = exchange.route.name if exchange.route is not None else "none"
            self._house.meters.answered(name, answer.status, time.perf_counter() - began)

    async def _answer(self, exchange: _Exchange) -> Answer:
        try:
            return await self._let_in(exchange)
        except AtollError as error:
            return self._refusal(exchange, error)
        except Exception:
            log.exception("an error of the server itself")
            return self._refusal(
                exchange,
                AtollError("an error of the server itself", remedy="its log says more; report it"),
            )

    async def _let_in(self, exchange: _Exchange) -> Answer:
        house = self._house
        heading, listed = heading_of(exchange.scope)
        exchange.heading = heading
        exchange.declared = declared_size(
            heading.headers.get("content-length"), heading.headers.get("transfer-encoding")
        )
        if "signature" in heading.headers:
            exchange.claim = read_request(heading.method, heading.path, heading.query, listed)
        route, values = self._table.find(heading.method, heading.path)
        exchange.route = route
        if _STRANGERS.isdisjoint(route.roles):
            await self.fresh()
        exchange.entry = entry = house.gate.admit(route, heading, exchange.claim)
        member = entry.member
        exchange.verified = member is not None
        if member is not None and exchange.guest is not None:
            exchange.guest.prove(member.fingerprint)
        if exchange.declared > route.most:
            raise TooLarge(
                f"a body of {exchange.declared} bytes: {route.name} takes {route.most} at most"
            )
        self._enter(member)
        try:
            await self._allow(route, member, values)
            return await self._work(exchange, route, values)
        finally:
            self._leave(member)

    async def _work(self, exchange: _Exchange, route: Route, values: Mapping[str, str]) -> Answer:
        house, entry = self._house, exchange.entry
        heading = exchange.heading
        if heading is None:
            raise ValueError("a request without a heading")
        digest = entry.claim.digest if entry.claim is not None else None
        query = _single(heading.query)
        coming = Coming(
            exchange.receive,
            exchange.declared,
            digest,
            house.limits,
            house.folder,
            self._room,
            self._lane(exchange),
        )
        asked = Asked(
            entry.member,
            values,
            query,
            heading,
            coming,
            entry.claim,
            exchange.receive,
            exchange.guest,
        )
        exchange.begun = True
        if route.streams is not None and exchange.declared > route.streams:
            answer = await route.handler(self._api, asked)
            exchange.complete = True
            house.meters.received += exchange.declared
            return answer
        body = await coming.whole()
        exchange.complete = True
        house.meters.received += body.size
        try:
            return await route.handler(self._api, replace(asked, body=body))
        finally:
            body.forget()

    async def _allow(self, route: Route, member: Member | None, values: Mapping[str, str]) -> None:
        """Refuse who may not do this with the run that the path names, before any of the body is read."""
        access, whose = self._house.access, route.whose
        if whose is None or (access is not None and not access.asks(whose)):
            return
        if access is None or member is None:
            raise Forbidden(f"nobody may use {route.name} here")
        loop = asyncio.get_running_loop()
        arguments = member.name, values["id"], whose, route.name
        await loop.run_in_executor(self._house.threads, access.check, *arguments)

    def _lane(self, exchange: _Exchange) -> Lane | None:
        """Threads are for members, on connections of our own."""
        member, guest, lanes = exchange.entry.member, exchange.guest, self._house.lanes
        if member is None or guest is None or lanes is None or guest.speaker is None:
            return None
        return Lane(lanes, guest.speaker, member.fingerprint)

    async def fresh(self) -> None:
        """Know of revocations by other processes, at most so old as the limits say."""
        if not self._house.roster.stale:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._house.threads, self._house.roster.refresh)

    def _enter(self, member: Member | None) -> None:
        if member is None:
            return
        if self._busy[member.fingerprint] >= self._house.limits.requests:
            raise Busy(
                f"{member.name} has {self._busy[member.fingerprint]} requests under way already",
                remedy="wait for some of them to end",
            )
        self._busy[member.fingerprint] += 1

    def _leave(self, member: Member | None) -> None:
        if member is not None:
            self._busy[member.fingerprint] -= 1
            if not self._busy[member.fingerprint]:
                del self._busy[member.fingerprint]

    def _refusal(self, exchange: _Exchange, error: AtollError) -> Answer:
        """A problem's answer; strangers who are refused too often are only told to slow down."""
        exchange.verified |= isinstance(error, StaleRequest | Forbidden)
        if not exchange.verified and exchange.heading is not None:
            error = self._house.gate.refused(exchange.heading, _shown(error))
        self._house.meters.refused[error.code] += 1
        if exchange.heading is not None:
            asked = f"{exchange.heading.method} {exchange.heading.path[:200]!r}"
            log.info("%s from %s refused: %s", asked, exchange.heading.address, error.message)
        return problem_of(error)

    async def _reply(self, exchange: _Exchange, answer: Answer) -> None:
        headers = {"content-type": answer.kind, "cache-control": "no-store", **answer.headers}
        if not await self._reusable(exchange, answer):
            headers["connection"] = "close"
        if isinstance(answer.body, Span):
            await self._send_span(exchange, answer, answer.body, headers)
            return
        body = answer.body
        headers["content-length"] = str(len(body))
        if exchange.claim is not None:
            headers |= sign_response(
                self._house.identity,
                status=answer.status,
                body_digest=answer.digest or hashlib.sha256(body).digest(),
                sequence=exchange.claim.sequence,
                answers=exchange.claim.signature,
                created=int(self._house.now()),
            )
        async with asyncio.timeout(self._house.limits.stall_seconds):
            await _start(exchange.send, answer.status, headers)
            await exchange.send({"type": "http.response.body", "body": body})
        self._house.meters.sent += len(body)

    async def _reusable(self, exchange: _Exchange, answer: Answer) -> bool:
        """Whether the connection can serve another request after this one.

        Who sends a body reads the answer only afterwards, so a body that is refused is read on where
        its sender is known, or it is short.
        """
        limits, known = self._house.limits, exchange.verified
        welcome = known or answer.status < 400
        if exchange.complete or not exchange.declared:
            return welcome
        if exchange.begun:
            return False
        most = exchange.route.most if known and exchange.route is not None else limits.drain
        seconds = limits.seconds_for(most) if known else limits.header_seconds
        with suppress(AtollError):
            drained = await discard(exchange.receive, exchange.declared, most, seconds)
            return drained and welcome
        return False

    async def _send_span(
        self, exchange: _Exchange, answer: Answer, span: Span, headers: dict[str, str]
    ) -> None:
        loop, house = asyncio.get_running_loop(), self._house
        headers["content-length"] = str(span.stop - span.start)
        await _start(exchange.send, answer.status, headers)
        at, lane, waited = span.start, self._lane(exchange), LONG
        while at < span.stop:
            if lane is not None and span.stop - at >= LONG and waited >= LONG:
                # All but the last bytes, which tell the protocol that the answer is complete.
                reached = await lane.send(span.read, at, span.stop - 1)
                if reached is not None:
                    house.meters.sent += reached - at
                    at, waited = reached, 0
                    continue
            end = min(at + _PIECE, span.stop)
            piece = await loop.run_in_executor(house.threads, span.read, at, end)
            if len(piece) != end - at:
                raise WireError(f"a blob ended at {at + len(piece)}, not at {span.total}")
            async with asyncio.timeout(house.limits.stall_seconds):
                more = end < span.stop
                await exchange.send(
                    {"type": "http.response.body", "body": piece, "more_body": more}
                )
            house.meters.sent += len(piece)
            at, waited = end, waited + len(piece)


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    pairs = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


def _single(query: str) -> dict[str, str]:
    """The query's values.

    Raises:
        WireError: malformed, or a name that comes twice.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=20
        )
    except ValueError as error:
        raise WireError(f"the query is malformed: {error}") from error
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("the query names something twice")
    return found
