"""A node in a process of its own, for tests that kill it: ``node_process.py SOCKET FOLDER [POINT]``.

It talks to the test's :class:`~fake_federation.FakeServer` through a socket, and kills itself with
SIGKILL when it first comes to ``POINT`` with a training task.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import fake_federation as ff
import worker_copies

from atoll.node.agent import Agent, stop_on_signal
from atoll.node.audit.log import AuditLog
from atoll.node.home import Home
from atoll.node.settings import Settings
from atoll.wire.disk import RealDisk
from atoll.wire.identity import Identity

POINTS = (
    "offered",
    "memory written",
    "memory there",
    "line begun",
    "line written",
    "result written",
    "result there",
    "sending",
    "delivered",
    "settling",
)
"""Every place where dying could hurt, in the order in which a task comes to them."""


class Door(BaseManager):
    """The way to the server of the test."""


Door.register("server")
Here = Callable[[str, object], None]


class Disk(RealDisk):
    """A disk that says where it is."""

    def __init__(self, here: Here) -> None:
        super().__init__()
        self.here = here

    def rename(self, old: Path, new: Path) -> None:
        self.here(f"{new.suffix[1:]} written", new)
        super().rename(old, new)
        self.here(f"{new.suffix[1:]} there", new)

    def append(self, path: Path, offset: int, data: Any) -> None:
        raw = bytes(data)
        super().append(path, offset, raw[: len(raw) // 2])
        self.here("line begun", path)
        super().append(path, offset, raw)
        self.here("line written", path)

    def remove(self, path: Path) -> None:
        if path.suffix == ".result":
            self.here("settling", path)
        super().remove(path)


class Channel:
    """A channel that says where it is."""

    def __init__(self, server: Any, here: Here) -> None:
        self.server, self.here = server, here

    def call(self, method: str, path: str, **more: Any) -> Any:
        if method == "POST":
            self.here("sending", path)
        reply = self.server.call(method, path, **more)
        if method == "POST":
            self.here("delivered", path)
        if b'"kind":"train"' in reply.body:
            self.here("offered", path)
        return reply

    def download(self, *what: Any) -> None:
        self.server.download(*what)

    def upload(self, *what: Any) -> None:
        self.server.upload(*what)


def main(socket: str, folder: str, point: str = "") -> None:
    door = Door(address=socket, authkey=b"test")
    door.connect()
    training = False

    def here(name: str, what: object) -> None:
        nonlocal training
        training = training or name == "offered"
        if training and name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    home = Home(Path(folder))
    with home.locked():
        disk = Disk(here)
        agent = Agent(
            home,
            home.path.name,
            Channel(door.server(), here),  # type: ignore[attr-defined]  # registered above
            Settings(limits=ff.LIMITS),
            disk=disk,
            jitter=lambda: 0.0,
            audit=AuditLog(home.audit, Identity.load(home.identity), disk),
        )
        with stop_on_signal(agent):
            agent.run()


def alone() -> None:
    """What a process of its own does."""
    worker_copies.give_copies()
    main(*sys.argv[1:])


if __name__ == "__main__":
    alone()
