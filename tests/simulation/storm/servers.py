"""A server process: what ``serving.serve`` does, without sockets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from storm import kernel as k
from storm.front import Front
from storm.network import Request

from atoll.core.errors import AtollError, FenceError, StorageError
from atoll.job.package import spec_digest, spec_to_plain
from atoll.server.blobs.contract import Blobs
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.blobs.near import NearBlobs
from atoll.server.service import Service
from atoll.server.steps import Steps, steady
from atoll.server.store.memory import MemoryStore
from atoll.server.web.gate import Roster
from atoll.wire.identity import Identity
from atoll.wire.messages import SubmitBody
from atoll.wire.submissions import Submission

if TYPE_CHECKING:
    from storm.world import World

__all__ = ["BLOBS", "KEY", "RESEARCHER", "Server"]

BLOBS = Path("/blobs")
RESEARCHER = "ruth"
KEY = Identity(Ed25519PrivateKey.from_private_bytes(b"ruth" * 8))


class Server:
    """A server process."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = world.process(self, "server", "server")
        self.process.skew = world.base
        self.store = MemoryStore(
            world.database,
            before=self._about_to,
            after=self._written,
        )
        self.up = False
        self.service: Any = None
        self.front: Any = None
        self.steps: Any = None

    def _about_to(self, name: str) -> None:
        world = self.world
        world.reach("store before", name)
        if world.kernel.process is not None and world.chance("database error"):
            world.injected += 1
            raise StorageError("the database cannot be used")

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
            # Drawn from nothing that the faults are drawn from.
            drawn = hashlib.sha256(self.process.name.encode()).hexdigest()[:16]
            epoch = self.service.start(drawn)
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
        roster = Roster(self.store, 1.0, clock)
        self.front = Front(self.service, roster, world.weather.inline + 1500, drawn)
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
        nonce = hashlib.sha256(name.encode()).hexdigest()[:32]
        told = "", RESEARCHER, spec_digest(spec), {}, tuple(self.world.names)
        signed = Submission(*told, nonce).signed(KEY)
        body = SubmitBody(spec=spec_to_plain(spec), job_hash=spec.hash(), signed=signed)
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
