"""A site: its disk, the node process that runs there, and, if it is malicious, what it sends besides."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from storm import kernel as k
from storm.network import Request
from storm.played import Channel, forged

from atoll.core.errors import Forbidden, StorageError
from atoll.node import agent as agents
from atoll.node.audit.log import AuditLog
from atoll.node.audit.reading import check, entries
from atoll.node.home import Home
from atoll.node.settings import Limits, Settings
from atoll.server.store.memory import MemoryStore
from atoll.wire.identity import Identity
from atoll.wire.lossy_disk import LossyDisk

if TYPE_CHECKING:
    from storm.world import World

__all__ = ["Node"]

LIMITS = Limits(memory=1.0, seconds=100_000.0)


class NodeDisk(LossyDisk):
    """A node's disk. What a worker writes lies on the machine's own disk too, where its header is read."""

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        old.unlink(missing_ok=True)

    def forget(self, folder: Path) -> None:
        """Remove everything below a folder, as a node does with its workers' when it starts."""
        for path in [path for path in self._files if folder in path.parents]:
            self.remove(path)


class Node:
    """A site: its disk, and the node process that runs there now."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.disk = NodeDisk(lambda operation, path: world._disk("spool", operation))
        self.home = Home(world.folder / name)
        self.home.make()
        columns = 'a = "number"\nb = "number"\ndose = "number"\n'
        rule = "minimum = 1\n"  # its rows are few
        data = f'[sites]\npath = "{name}.csv"\n[sites.columns]\n{columns}[sites.statistics]\n{rule}'
        self.home.datasets.write_text(data)
        self.key = Identity.fresh()
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
        settings = Settings(limits=LIMITS)
        self.agent = None
        with world.quiet():
            self.disk.forget(self.home.work)
        try:
            log = AuditLog(self.home.audit, self.key, self.disk, most=20)
            self.agent = agents.Agent(
                self.home,
                self.name,
                Channel(self),
                settings,
                disk=self.disk,
                jitter=world.random.random,
                audit=log,
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

    def tells_of(self, sha256: str) -> bool:
        """Whether an answer stands in the audit log, whatever a power failure does now."""
        files = self.disk._folders[self.home.audit].synced.values()
        return any(sha256.encode() in file.synced for file in files)

    def check_log(self) -> None:
        """The audit log is whole, and tells of each answer once."""
        world, key = self.world, self.key.public_bytes
        try:
            with world.quiet():
                check(self.home.audit, key, disk=self.disk)
                found = list(entries(self.home.audit, key, disk=self.disk))
        except StorageError as error:
            world.checks.violated("G9", f"{self.name}: {error}", error)
            return
        told = Counter((e["task"], e["answer"]) for e in found if e["what"] == "answer")
        twice = [task for (task, _), times in told.items() if times > 1]
        world.checks.ensure(not twice, "G9", f"the log of {self.name} tells twice of {twice}")

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
        if self.honest or task.split(".")[1] not in ("train", "evaluate"):
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
