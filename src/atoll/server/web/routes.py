"""The shape of the HTTP API: what a route is, what it is asked, what it answers, and how one is found.

A route says who may use it; there is none that does not. The table itself stands in
:mod:`atoll.server.web.api`, beside the functions that answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import unquote_to_bytes

from atoll.core.errors import NotFound, WireError
from atoll.server.store.contract import Member
from atoll.server.web.bodies import Body, Coming
from atoll.wire.signatures import Claim

__all__ = ["Answer", "Asked", "Heading", "Presence", "Route", "Span", "Table", "Whose", "whole"]

Role = Literal["open", "bearer", "newcomer", "site", "researcher"]
"""Who asks: anybody; who knows the metrics' token; who has a join code; a member with this role."""

Whose = Literal["reader", "owner"]
"""What a researcher has to be to the run that is asked for: one who may read it, or the one whose it is."""


@dataclass(frozen=True)
class Heading:
    """A request before its body: all a gate may look at.

    Args:
        method: such as ``GET``.
        path: as it was sent, still percent-encoded.
        query: as it was sent, without the question mark.
        headers: by lower-case name; none of them came twice.
        address: of the other end.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    address: str = ""


class Presence(Protocol):
    """A connection, of which somebody wants to know whether it is still there."""

    gone: bool
    """Whether the other end has hung up."""
    waiting: set[asyncio.Event]
    """To be set when it does."""


@dataclass(frozen=True)
class Asked:
    """A request that was let through.

    Args:
        sender: whose key signed it; None where the route asks for no signature.
        values: what stands for the names in the route's path.
        query: single values by name.
        heading: as it came.
        body: complete, and what was signed; or still to come, where the route streams.
        claim: the signature; a newcomer's is still to be compared with its key.
        gone: ends when the sender does.
        presence: the sender's connection, where it is one of our own.
    """

    sender: Member | None
    values: Mapping[str, str]
    query: Mapping[str, str]
    heading: Heading
    body: Body | Coming
    claim: Claim | None
    gone: Callable[[], Coroutine[Any, Any, object]]
    presence: Presence | None = None

    @property
    def name(self) -> str:
        """The sender's name in the federation."""
        return self.sender.name if self.sender is not None else ""

    @property
    def raw(self) -> bytes:
        """The body's bytes, where it is complete."""
        if isinstance(self.body, Coming):
            raise ValueError("this body is still to come")
        return self.body.read()

    def number(self, name: str, default: int | None = None, most: int = 2**53) -> int:
        """A whole number of the query.

        Raises:
            WireError: missing, or no number from 0 to ``most``.
        """
        raw = self.query.get(name)
        if raw is None and default is not None:
            return default
        return whole(raw, name, most)


def whole(raw: str | None, name: str, most: int = 2**53) -> int:
    """Read digits, and nothing but digits.

    Raises:
        WireError: anything else, or more than ``most``.
    """
    if raw is None or not raw.isascii() or not raw.isdigit() or len(raw) > 16 or int(raw) > most:
        raise WireError(f"{name} must be a whole number up to {most}, not {raw!r:.40}")
    return int(raw)


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` to ``stop`` of something ``total`` long, read piece by piece while it is sent."""

    read: Callable[[int, int], bytes | memoryview]
    start: int
    stop: int
    total: int


@dataclass(frozen=True)
class Answer:
    """What goes back: bytes, which are signed, or a span of a blob, whose digest a signed task named."""

    body: bytes | Span = b""
    kind: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    digest: bytes | None = None
    """SHA-256 of the bytes, where it is known."""


Handler = Callable[[Any, Asked], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """One line of the table.

    Args:
        method: of HTTP.
        path: with names in braces, each for one segment.
        roles: who may use it.
        handler: what answers.
        most: most bytes of a body.
        streams: bytes; a longer body is left to the handler to read, while it comes. None: none is.
        whose: what the sender has to be to the run ``{id}``; None where the path names no run.
    """

    method: str
    path: str
    roles: Collection[Role]
    handler: Handler
    most: int = 0
    streams: int | None = None
    whose: Whose | None = None

    def __post_init__(self) -> None:
        if not self.roles:
            raise ValueError(f"{self.method} {self.path} does not say who may use it")
        if ("{id}" in self.path) != (self.whose is not None):
            raise ValueError(f"{self.method} {self.path} does not say whose run it may be")

    @property
    def name(self) -> str:
        """How it is called in metrics and messages."""
        return f"{self.method} {self.path}"


class Table:
    """Finds the route of a request. What is in no route does not exist.

    Args:
        routes: all of them.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._plain: dict[tuple[str, str], Route] = {}
        self._patterns: list[tuple[re.Pattern[str], Route]] = []
        for route in self.routes:
            if "{" not in route.path:
                self._plain[route.method, route.path] = route
                continue
            pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(route.path))
            self._patterns.append((re.compile(f"{route.method} {pattern}"), route))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route, and what stands for the names in its path, decoded.

        Raises:
            NotFound: there is none.
            WireError: a segment that is no text.
        """
        if (route := self._plain.get((method, path))) is not None:
            return route, {}
        for pattern, route in self._patterns:
            if found := pattern.fullmatch(f"{method} {path}"):
                return route, {n: _text(v) for n, v in found.groupdict().items()}
        raise NotFound("there is nothing here")


def _text(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError("the path is not UTF-8") from error
    if "\0" in text:
        raise WireError("the path holds a zero byte")
    return text
