"""A node with a ledger in a process of its own: ``ledger_process.py SOCKET FOLDER [POINT]``.

It kills itself with SIGKILL when it first comes to ``POINT`` with a round that costs privacy.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import fake_federation as ff
import worker_copies
from node_process import Channel, Door
from private_jobs import TRUSTING

from atoll.node.agent import Agent, stop_on_signal
from atoll.node.home import Home
from atoll.node.policy.ledger_file import Ledger
from atoll.node.policy.steward import Steward
from atoll.node.settings import Settings
from atoll.wire.disk import RealDisk
from atoll.wire.identity import Identity

STATES = ("reserved", "released", "settled")
POINTS = (
    *(f"{state} {when}" for state in STATES[:2] for when in ("before", "half", "line", "head")),
    "sending",
    "delivered",
    "settled before",
    "settled line",
)
"""Before a line, with half of it written, when it is durable, and when its head is."""


class Disk(RealDisk):
    """A disk that says where it is, and can be left with half a line."""

    def __init__(self, point: str) -> None:
        super().__init__()
        self.point, self.state = point, ""

    def here(self, when: str) -> None:
        if f"{self.state} {when}" == self.point:
            os.kill(os.getpid(), signal.SIGKILL)

    def append(self, path: Path, offset: int, data: Any) -> None:
        raw = bytes(data)
        self.state = next((s for s in STATES if f'"state":"{s}"'.encode() in raw), "")
        self.here("before")
        if f"{self.state} half" == self.point:
            super().append(path, offset, raw[: len(raw) // 2])
            self.here("half")
        super().append(path, offset, raw)

    def fsync(self, path: Path) -> None:
        super().fsync(path)
        if path.suffix == ".jsonl":
            self.here("line")

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        if new.suffix == ".head":
            self.here("head")


def main(socket: str, folder: str, point: str = "") -> None:
    door = Door(address=socket, authkey=b"test")
    door.connect()

    def here(name: str, what: object) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    home, settings = Home(Path(folder)), Settings(limits=ff.LIMITS, policy=TRUSTING)
    with home.locked():
        ledger = Ledger(home.ledger, Identity.load(home.identity), Disk(point))
        agent = Agent(
            home,
            home.path.name,
            Channel(door.server(), here),  # type: ignore[attr-defined]  # registered above
            settings,
            jitter=lambda: 0.0,
            steward=Steward(home, settings.policy, ledger),
        )
        with stop_on_signal(agent):
            agent.run()


def alone() -> None:
    """What a process of its own does."""
    worker_copies.give_copies()
    main(*sys.argv[1:])


if __name__ == "__main__":
    alone()
