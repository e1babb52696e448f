"""The network between sites and servers: slow, forgetful, repetitive, and cut now and then.

A request takes its time, is lost, arrives twice or late; so does its reply, which may be lost after the
server has done what was asked. A site and the server may be cut from one another in either direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from storm import kernel as k

from atoll.core.errors import AtollError, Unreachable
from atoll.wire.messages import ProblemBody
from atoll.wire.status import http_status

if TYPE_CHECKING:
    from storm.servers import Server
    from storm.world import World

__all__ = ["Network", "Request"]


@dataclass(eq=False)
class Request:
    """One request of a site, and its answer once there is one."""

    site: str
    method: str
    path: str
    query: str
    body: bytes
    headers: dict[str, str]
    sent: float
    waiting: k.Event
    raw: bytes | None = None
    error: AtollError | None = None

    @property
    def what(self) -> str:
        """For the trace."""
        return f"{self.method} {self.path.removeprefix('/v1')[:60]}"

    @property
    def open(self) -> bool:
        """Whether the site still waits for the answer."""
        return self.raw is None and self.error is None

    def answer(self, raw: bytes | None, error: AtollError | None) -> None:
        """The first answer counts."""
        if self.open:
            self.raw, self.error = raw, error
            self.waiting.set()


@dataclass(eq=False)
class Network:
    """All lines of a world.

    Args:
        world: whose.

    Attributes:
        cut: until when a site's messages do not arrive, by (site, ``to`` or ``from``).
        pending: requests at each server that it has not answered.
    """

    world: World
    cut: dict[tuple[str, str], float] = field(default_factory=dict)
    pending: dict[str, list[Request]] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    def sever(self, site: str, way: str, seconds: float) -> None:
        """Cut a site from the server for so long: ``to`` it, ``from`` it or ``both``."""
        until = self.world.kernel.now + seconds
        for side in ("to", "from") if way == "both" else (way,):
            self.cut[site, side] = max(until, self.cut.get((site, side), 0.0))
        names = {"both": "both ways", "to": "to the server only", "from": "from the server only"}
        self.world.count(f"partition, {names[way]}")

    def _severed(self, site: str, side: str) -> bool:
        return self.world.kernel.now < self.cut.get((site, side), 0.0)

    def _way(self) -> float:
        """Seconds that a message is under way."""
        world, usual = self.world, self.world.weather.breath
        if world.chance("message delayed"):
            return world.random.uniform(0.0, 40.0 * max(usual, 0.5))
        return world.random.uniform(0.0, usual)

    # Asking -------------------------------------------------------------------------------------

    def ask(
        self,
        site: str,
        method: str,
        path: str,
        query: str,
        body: bytes,
        headers: dict[str, str],
        timeout: float,
    ) -> bytes:
        """A site's request, from a thread of its node; waits for the answer.

        Raises:
            Unreachable: none came in time.
            AtollError: what the server answered.
        """
        world = self.world
        request = Request(site, method, path, query, body, headers, world.kernel.now, k.Event())
        world.reach("network", "send")
        self.send(request)
        request.waiting.wait(timeout)
        world.reach("network", "receive")
        if request.open:
            request.error = Unreachable(f"the server sent nothing for {timeout:g} s")
        if request.error is not None:
            world.note(f"{request.what} -> {type(request.error).__name__}: {request.error.message}")
            raise request.error
        return request.raw or b""

    def send(self, request: Request) -> None:
        """Put a request on its way."""
        world = self.world
        copies = 1
        if world.chance("message duplicated"):
            copies = 2
        for _ in range(copies):
            if world.chance("message dropped"):
                world.note(f"{request.what} is lost")
                if world.random.random() < 0.5:  # the line breaks, and its end notices
                    self._fail(request, "the connection broke")
                continue
            world.kernel.at(self._way(), partial(self._arrive, request))

    def _fail(self, request: Request, why: str) -> None:
        self.world.kernel.at(self._way(), partial(request.answer, None, Unreachable(why)))

    def _arrive(self, request: Request) -> None:
        world = self.world
        if self._severed(request.site, "to"):
            return
        server = world.listening()
        if server is None:
            self._fail(request, "the connection was refused")
            return
        if request.sent < self._last.get(request.site, 0.0):
            world.count("messages reordered")
        self._last[request.site] = max(request.sent, self._last.get(request.site, 0.0))
        self.pending.setdefault(server.process.name, []).append(request)
        world.kernel.spawn(server.process, lambda: self._handle(server, request), request.what)

    def _handle(self, server: Server, request: Request) -> None:
        """A thread of the server: do what is asked, and send the answer."""
        world = self.world
        world.reach("network", "arrived")
        raw, error = server.handle(request)
        world.reach("network", "reply")
        pending = self.pending.get(server.process.name, [])
        if request in pending:
            pending.remove(request)
        if world.chance("reply lost after its effect"):
            world.note(f"the reply to {request.what} of {request.site} is lost")
            if world.random.random() < 0.5:
                self._fail(request, "the connection broke")
            return
        if error is not None:  # as it travels
            error = ProblemBody.of(error).error(http_status(error.code))
        world.kernel.at(self._way(), partial(self._return, request, raw, error))

    def _return(self, request: Request, raw: bytes | None, error: AtollError | None) -> None:
        if not self._severed(request.site, "from"):
            request.answer(raw, error)

    def hang_up(self, process: k.Process, *, quietly: bool) -> None:
        """A server has died: its lines break, or, when its machine has, are silent."""
        for request in self.pending.pop(process.name, []):
            if not quietly:
                self._fail(request, "the connection broke")
