"""A federation in one process: server, sites, network, disks and clocks, all played, all seeded.

What is the real code and what is played:

===================  ==================================================================================
the real code        ``Service`` with engines, desks and folds; ``Steps`` and its clock; blobs; the node's
                     ``Agent``, ``Errands``, ``Link``, ``Spool``, ``Cache`` and transfers; all machines
                     of ``runtime``; all frames and messages
played               threads, locks, queues and clocks (:mod:`storm.kernel`); the network in place of HTTPS
                     (:mod:`storm.network`, :mod:`storm.front`), so no signatures and no gate: a message
                     that comes twice is heard twice; worker processes (:mod:`storm.played`), which
                     compute with the real functions
twins                ``MemoryStore`` in place of a database, ``LossyDisk`` in place of disks
not looked at        run folders at the server and caches at nodes lie on the machine's own disk
===================  ==================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from storm import kernel as k
from storm import work
from storm.checks import Checks
from storm.network import Network
from storm.nodes import Node
from storm.servers import BLOBS, KEY, RESEARCHER, Server
from storm.weather import Plan, Weather

from atoll.server.service import Settings
from atoll.server.store.contract import Invite
from atoll.server.store.memory import MemoryDatabase, MemoryStore
from atoll.wire.lossy_disk import LossyDisk

__all__ = ["World"]

_WRITES = ("write", "append", "torn", "fsync", "fsync_folder")


class World:
    """One seed's federation.

    Args:
        random: decides everything.
        weather: the faults.
        folder: on this machine, for what lies on its own disk.
    """

    def __init__(self, random: Random, weather: Weather, folder: Path) -> None:
        self.random, self.weather, self.folder = random, weather, folder
        self.kernel = k.Kernel(Random(random.random()), self._after)
        self.trace: list[tuple[float, str, str]] = []
        self.frames: dict[str, bytes] = {}
        self.database = self.backup = MemoryDatabase()
        self.disk = LossyDisk(lambda operation, path: self._disk("blobs", operation))
        self.servers: list[Server] = []
        self.numbers = 0
        self.injected = 0
        self.slowness = 0.0
        self.base = 0.0  # of the server machine's wall clock
        self._quiet = 0
        self._armed: dict[str, list[Any]] = {}
        self._full: dict[str, float] = {}
        self.cancelled: set[str] = set()
        self._dying: list[tuple[k.Process, bool]] = []
        self.network = Network(self)
        self.names = work.SITES[: weather.sites]
        self.nodes = {name: Node(self, name) for name in self.names}
        self.specs = {
            name: work.job(name, weather.rounds, weather.deadline, weather.quorum)
            for name, _ in weather.jobs
        }
        self.checks = Checks(self)
        self.settings = Settings(
            progress=100_000.0 if weather.gentle else 15.0,
            round=max(120.0, weather.deadline),
            members_every=3.0,
            retry=1.0,
            together=self.random.choice((0.0, 0.05, 1.0)),
        )

    # Noting -------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line of the trace."""
        process = self.kernel.process
        self.trace.append((self.kernel.now, "" if process is None else process.name, text))

    def count(self, kind: str) -> None:
        """A fault has happened."""
        self.weather.counts[kind] += 1
        self.note(f"FAULT {kind}")

    @property
    def stormy(self) -> bool:
        """Whether things may still go wrong."""
        return self.kernel.now < self.weather.calm

    def chance(self, kind: str) -> bool:
        """Whether a fault of this kind happens now."""
        rate = self.weather.rates.get(kind, 0.0)
        if rate and self.stormy and self.random.random() < rate:
            self.count(kind)
            return True
        return False

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing goes wrong inside, and nobody else gets a turn."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    # Points at which a process may die ------------------------------------------------------------

    def reach(self, kind: str, name: str) -> None:
        """The running process has come to a point at which it may be killed or held up."""
        process = self.kernel.process
        if process is None or self._quiet:
            return
        if process.dead:
            raise k.Killed
        point = f"{process.role} {kind} {name}"
        self.weather.points[point] += 1
        for plan in self._armed.get(process.owner, ()) if self.stormy else ():
            if plan.point not in ("", point):
                continue
            plan.countdown -= 1
            if plan.countdown < 0:
                self._armed[process.owner].remove(plan)
                self.weather.crashes[point] += 1
                if name == "torn":
                    self.count("torn write")
                self.note(f"dies at {point}")
                self.die(process, plan.power)
                raise k.Killed
        if self.random.random() < 0.03:
            self.kernel.wait(0.0)  # somebody else gets a turn

    def _disk(self, where: str, operation: str) -> None:
        process = self.kernel.process
        if process is None or self._quiet:
            return
        self.reach(f"disk {where}", operation)
        if self.chance("slow disk"):
            seconds = self.random.uniform(0.1, 5.0)
            self.slowness += seconds
            self.kernel.wait(seconds)
        if operation not in ("names", "make_folder") and self.chance("disk error"):
            self.injected += 1
            raise OSError(5, "Input/output error")
        if operation in _WRITES and self.kernel.now < self._full.get(process.owner, 0.0):
            self.injected += 1
            raise OSError(28, "No space left on device")

    def die(self, process: k.Process, power: bool) -> None:
        """Kill a process; from itself, or from the simulator."""
        if not process.dead:
            process.dead = True
            self._dying.append((process, power))
            what = "power failure" if power else "process killed"
            self.count(f"{process.role} {what}")

    def _after(self) -> None:
        while self._dying:
            process, power = self._dying.pop()
            self.kernel.kill(process)
            process.owned.died(power)
        for thread, error in self.kernel.failures:
            self.checks.violated(
                "crash",
                f"{thread.process.name}, {thread.name}: {type(error).__name__}: {error}",
                error,
            )
        self.kernel.failures.clear()
        self.checks.step()

    def process(self, owned: Any, role: str, owner: str) -> k.Process:
        """A new process."""
        self.numbers += 1
        return k.Process(f"{owner}-{self.numbers}", role, self.numbers, owner, owned)

    # Servers ------------------------------------------------------------------------------------

    def listening(self) -> Server | None:
        """The server that a message comes to."""
        up = [server for server in self.servers if server.up]
        return self.random.choice(up) if up else None

    def boot_server(self) -> Server:
        """Start one more server."""
        server = Server(self)
        self.servers.append(server)
        self.kernel.spawn(server.process, server.live, "main")
        return server

    def boot_again(self) -> None:
        """Whoever looks after the server starts it when it does not run."""
        if not any(not server.process.dead for server in self.servers):
            self.boot_server()

    # The course of things -----------------------------------------------------------------------

    def begin(self) -> None:
        """Members, processes, and what is going to happen."""
        store = MemoryStore(self.database)
        for number, name in enumerate(self.names):
            self.admit(store, name, "site", bytes([number + 1]) * 32)
        self.admit(store, RESEARCHER, "researcher", KEY.public_bytes)
        store.close()
        self.disk.make_folder(BLOBS)
        self.boot_server()
        for node in self.nodes.values():
            self.kernel.at(self.random.uniform(0.0, 1.0), node.boot)
        for name, moment in self.weather.jobs:
            self.kernel.at(moment, lambda name=name: self._submit(name))
        for plan in self.weather.plans:
            self.kernel.at(plan.at, lambda plan=plan: self._happen(plan))

    def admit(self, store: MemoryStore, name: str, role: Any, key: bytes) -> None:
        """One invitation, used at once."""
        secret = hashlib.sha256(key).hexdigest()
        now = k.EPOCH + self.kernel.now
        store.add_invite(Invite(secret, name, role, now + 1))
        store.join(secret, name, key, now)

    def _submit(self, name: str) -> None:
        """The researcher tries until the job is there."""
        if any(row.name == name for row in self.database.runs.values()):
            return
        server = next((s for s in self.servers if s.up), None)
        if server is not None:
            self.kernel.spawn(server.process, lambda: server.submit(name), "submit")
        self.kernel.at(10.0, lambda: self._submit(name))

    def _happen(self, plan: Plan) -> None:
        if not self.stormy:
            return
        if plan.kind == "crash":
            armed = SimpleNamespace(countdown=plan.value, power=plan.power, point=plan.point)
            self._armed.setdefault(plan.who, []).append(armed)
        elif plan.kind.startswith("cut "):
            self.network.sever(plan.who, plan.kind.split()[1], plan.value)
        elif plan.kind == "clock":
            self.base += plan.value
            for server in self.servers:
                server.process.skew = self.base
            self.count("clock jumped")
        elif plan.kind == "second server":
            self.boot_server()
        elif plan.kind == "lost lock":
            for server in self.servers:
                if server.up:
                    server.store.lose_lock()
                    self.note(f"{server.process.name} has lost its lock")
                    self.boot_server()
                    break
        elif plan.kind == "leave":
            self.nodes[plan.who].leave(plan.value)
        elif plan.kind == "full":
            self._full[plan.who] = min(self.kernel.now + plan.value, self.weather.calm)
            self.count("disk full")
        elif plan.kind == "stop":
            self.nodes[plan.who].stop()
        elif plan.kind == "cancel":
            server = next((s for s in self.servers if s.up), None)
            if server is not None:
                self.kernel.spawn(server.process, server.cancel, "cancel")
