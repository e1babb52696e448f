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
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from storm import kernel as k
from storm import work
from storm.checks import Checks
from storm.front import Front
from storm.network import Network, Request
from storm.played import Channel, forged
from storm.weather import Plan, Weather

from atoll.core.errors import AtollError, FenceError, Forbidden, StorageError
from atoll.job.package import spec_to_plain
from atoll.node import agent as agents
from atoll.node.home import Home
from atoll.node.settings import Limits as NodeLimits
from atoll.node.settings import Settings as NodeSettings
from atoll.server.blobs import Blobs, FolderBlobs
from atoll.server.blobs_near import NearBlobs
from atoll.server.gate import Roster
from atoll.server.service import Service, Settings
from atoll.server.steps import Steps, steady
from atoll.server.store.contract import Invite
from atoll.server.store.memory import MemoryDatabase, MemoryStore
from atoll.wire.lossy_disk import LossyDisk
from atoll.wire.messages import SubmitBody

__all__ = ["Node", "Server", "World"]

BLOBS = Path("/blobs")
RESEARCHER = "ruth"
LIMITS = NodeLimits(memory=1.0, seconds=100_000.0)


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
        self.database = MemoryDatabase()
        self.disk = LossyDisk(lambda operation, path: self._disk("blobs", operation))
        self.servers: list[Server] = []
        self.numbers = 0
        self.injected = 0
        self.slowness = 0.0
        self.base = 0.0  # of the server machine's wall clock
        self._quiet = 0
        self._armed: dict[str, list[Any]] = {}
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
        if self.kernel.process is None or self._quiet:
            return
        self.reach(f"disk {where}", operation)
        if self.chance("slow disk"):
            seconds = self.random.uniform(0.1, 5.0)
            self.slowness += seconds
            self.kernel.wait(seconds)
        if operation not in ("names", "make_folder") and self.chance("disk error"):
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
        for number, (name, role) in enumerate(
            [*((site, "site") for site in self.names), (RESEARCHER, "researcher")]
        ):
            self.admit(store, name, role, bytes([number + 1]) * 32)
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
        elif plan.kind == "stop":
            self.nodes[plan.who].stop()
        elif plan.kind == "cancel":
            server = next((s for s in self.servers if s.up), None)
            if server is not None:
                self.kernel.spawn(server.process, server.cancel, "cancel")


class Server:
    """A server process."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = world.process(self, "server", "server")
        self.process.skew = world.base
        self.store = MemoryStore(
            world.database,
            before=lambda name: world.reach("store before", name),
            after=self._written,
        )
        self.up = False
        self.service: Any = None
        self.front: Any = None
        self.steps: Any = None

    def _written(self, name: str) -> None:
        self.world.checks.written(self, name)
        self.world.reach("store after", name)

    def live(self) -> None:
        """The process's main thread: what ``serving.serve`` does."""
        world = self.world
        clock = steady()
        try:
            blobs: Blobs = FolderBlobs(BLOBS, world.disk)
            if world.weather.near:
                blobs = NearBlobs(self.store, blobs, small=world.random.choice((200, 1 << 20)))
            home = world.folder / "server"
            self.service = Service(self.store, blobs, home, now=clock, settings=world.settings)
            epoch = self.service.start()
        except FenceError:
            world.count("second server refused")
            world.checks.refused(self)
            self.exit()
            return
        except StorageError as error:
            world.note(f"does not start: {error.message}")
            self.exit()
            return
        world.note(f"is server of epoch {epoch}")
        world.checks.started(self, epoch)
        self.front = Front(
            self.service, Roster(self.store, 1.0, clock), world.weather.inline + 1500
        )
        world.checks.watch(self)
        self.steps = Steps(self.service, clock, lambda error: self.fenced())
        self.service.on_work = self.steps.wake
        self.steps.start()
        self.up = True

    def fenced(self) -> None:
        """Another server has taken over: this one ends."""
        self.world.count("second server took over")
        self.up = False
        self.exit()

    def exit(self) -> None:
        """The process ends by itself."""
        self.process.dead = True
        self.world._dying.append((self.process, False))
        raise k.Killed

    def died(self, power: bool) -> None:
        """The process is no more: what it held is free, what was not synced may be lost."""
        world = self.world
        self.up = False
        self.store.crash()
        world.network.hang_up(self.process, quietly=power)
        if power:
            for other in world.servers:  # they are on one machine
                if not other.process.dead:
                    world.die(other.process, False)
            world.disk.crash(world.random)
        world.note(f"{self.process.name} is dead")
        world.checks.fell(self)
        world.kernel.at(world.random.uniform(0.1, 8.0), world.boot_again)

    def submit(self, name: str) -> None:
        """The researcher's request."""
        spec = self.world.specs[name]
        body = SubmitBody(
            spec=spec_to_plain(spec), job_hash=spec.hash(), sites=list(self.world.names)
        )
        try:
            self.service.submit(RESEARCHER, body)
        except AtollError as error:  # tried again
            self.world.note(f"the job is not taken: {error.message}")

    def cancel(self) -> None:
        """The researcher ends a run."""
        for run in list(self.world.database.runs)[:1]:
            self.world.cancelled.add(run)
            try:
                self.service.cancel(run, RESEARCHER)
            except AtollError as error:
                self.world.note(f"the run is not cancelled: {error.message}")

    def handle(self, request: Request) -> tuple[bytes | None, AtollError | None]:
        """One request: its answer, or the error that is sent in its place."""
        world, raw, error = self.world, None, None
        before = world.checks.about_to(self, request)
        try:
            raw = self.front.answer(request)
        except AtollError as problem:
            error = problem
        except Exception as problem:
            world.checks.violated(
                "crash", f"{request.what}: {type(problem).__name__}: {problem}", problem
            )
            error = AtollError(str(problem))
        world.checks.handled(self, request, raw, error, before)
        return raw, error


class NodeDisk(LossyDisk):
    """A node's disk. What a worker writes lies on the machine's own disk too, where its header is read."""

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        old.unlink(missing_ok=True)


class Node:
    """A site: its disk, and the node process that runs there now."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.disk = NodeDisk(lambda operation, path: world._disk("spool", operation))
        self.home = Home(world.folder / name)
        self.home.make()
        data = f'[sites]\npath = "{name}.csv"\n[sites.columns]\na = "number"\nb = "number"\nsick = "number"\n'
        self.home.datasets.write_text(data)
        self.process: k.Process | None = None
        self.agent: Any = None
        self.away = False
        self.old: list[tuple[str, bytes]] = []

    @property
    def honest(self) -> bool:
        """Whether it does what nodes do."""
        return self.name != self.world.weather.liar

    def boot(self) -> None:
        """Start a node process, if none runs."""
        if self.away or (self.process is not None and not self.process.dead):
            return
        self.process = self.world.process(self, "node", self.name)
        self.world.kernel.spawn(self.process, self._live, "main")

    def _live(self) -> None:
        world, before = self.world, self.world.injected
        settings = NodeSettings(limits=LIMITS)
        self.agent = None
        try:
            self.agent = agents.Agent(
                self.home,
                self.name,
                Channel(self),
                settings,
                disk=self.disk,
                jitter=world.random.random,
            )
        except StorageError as error:
            if world.injected == before:
                world.checks.violated("G2", f"{self.name} cannot start again: {error}", error)
            self._exit()
        try:
            self.agent.run()
        except Forbidden as error:
            world.note(f"ends: {error.message}")
        self._exit()

    def stop(self) -> None:
        """The operator stops the node, and starts it again."""
        if self.agent is not None and self.process is not None and not self.process.dead:
            self.world.count("node stopped by its operator")
            self.world.kernel.spawn(self.process, self.agent.stop, "signal")

    def _exit(self) -> None:
        if self.process is not None:
            self.process.dead = True
            self.world._dying.append((self.process, False))
        raise k.Killed

    def died(self, power: bool) -> None:
        """The process is no more."""
        world = self.world
        if power:
            self.disk.crash(world.random)
            self._spoil_cache()
        world.kernel.at(world.random.uniform(0.1, 8.0), self.boot)

    def _spoil_cache(self) -> None:
        """A cache is not synced: anything may be left of it."""
        if not self.home.cache.is_dir():
            return
        for path in sorted(self.home.cache.iterdir()):
            size = path.stat().st_size
            what = self.world.random.random()
            if what < 0.3:
                path.unlink()
            elif what < 0.6:
                path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))

    def leave(self, seconds: float) -> None:
        """Leave the federation, and join it again with another key."""
        world = self.world
        server = next((s for s in world.servers if s.up), None)
        if server is None or self.away:
            return
        self.away = True
        world.count("site left")
        world.checks.left(self.name)
        store = MemoryStore(world.database)
        store.set_member(self.name, "left")
        store.close()
        if self.process is not None and not self.process.dead:
            self.process.dead = True
            world._dying.append((self.process, False))

        def back() -> None:
            world.count("site rejoined")
            store = MemoryStore(world.database)
            world.admit(store, self.name, "site", world.random.randbytes(32))
            store.close()
            self.away = False
            self.boot()

        world.kernel.at(seconds, back)

    def misbehave(self, path: str, frame: bytes) -> None:
        """What a malicious site sends before its own answer."""
        world = self.world
        task = unquote(path.removeprefix("/v1/results/"))
        if self.honest or ".train." not in task:
            return
        self.old.append((task, frame))
        how = world.random.choice(
            ("equivocate", "replay", "nan", "other task", "weight", "noise", "")
        )
        if not how:
            return
        if how == "replay":
            _, sent = world.random.choice(self.old)
            world.count("site replayed")
        else:
            sent = forged(frame, task, how)
            kind = "site equivocated" if how == "equivocate" else "site sent what is no update"
            world.count(kind)
        world.frames[hashlib.sha256(sent).hexdigest()] = sent
        headers = {"content-type": "application/octet-stream"}
        now = world.kernel.now
        world.network.send(Request(self.name, "POST", path, "", sent, headers, now, k.Event()))


def clean(folder: Path) -> None:
    """Forget a world's files."""
    shutil.rmtree(folder, ignore_errors=True)


def readable(value: Any) -> str:
    """For the trace."""
    return json.dumps(value)[:200]
