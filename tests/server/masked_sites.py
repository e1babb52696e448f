"""A federation in one process whose sites mask: what a node does with keys and masks is the node's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import played_sites as played
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.core.contracts import Task
from atoll.core.errors import AtollError
from atoll.core.values import Broadcast
from atoll.job import deployed
from atoll.job.summed import column_integers, column_lanes, lanes_told
from atoll.node.home import Home
from atoll.node.peers import Peers, Trust
from atoll.node.pledges import Pledges
from atoll.node.settings import Settings
from atoll.node.site import Site as NodeSite
from atoll.node.spool import Spool
from atoll.node.sums.masking import SUBJECTS, Masked
from atoll.runtime.client import answer_task, evaluate_client
from atoll.runtime.figures import integers_of, kinds_of, lanes_of
from atoll.runtime.pattern import lanes_at
from atoll.runtime.threads import Threads
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Blob, encode, open_frame, pieces
from atoll.wire.messages import ResultBody, TaskBody

STEPS = ("commit", "share", "train", "pledge", "release")
FEDERATION = "lagoon"


class Key:
    """A signing key made of a name."""

    def __init__(self, name: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        self.public_bytes = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


SERVER = Key("the server")


class QuickDisk(RealDisk):
    """A disk that is waited for by nobody: no power fails in these tests."""

    def fsync(self, path: Path) -> None:
        """Nothing."""

    def fsync_folder(self, path: Path) -> None:
        """Nothing."""


class MaskedSite(played.Site):
    """A site whose masked rounds are played by the node's own code.

    Attributes:
        dies_at: the step at whose task it falls silent for good; empty for never.
        dies_about: what is added up then.
        said: bodies and sizes of its answers in masked rounds.
    """

    def __init__(self, name: str, table: Any, home: Path, now: Callable[[], float]) -> None:
        super().__init__(name, table)
        self.home, self.now = Home(home), now
        self.home.make()
        self.key = Key(name)
        self.dies_at, self.dies_about = "", "train"
        self.dead = False
        self.said: list[tuple[str, dict[str, Any], int]] = []
        self.begin()

    def begin(self) -> None:
        """The node's process is started anew: what was not written down is gone."""
        self.book = Pledges(self.home.pledges, self.key, QuickDisk())
        trust = Trust(FEDERATION, SERVER.public_bytes, self.key, self.book, Peers(self.home.peers))
        self.node = NodeSite(
            self.home,
            self.name,
            Settings(),
            SimpleNamespace(),
            Spool(self.home.spool, QuickDisk()),
            SimpleNamespace(),
            lambda: 0.0,
            trust,
        )
        self.masked: dict[str, Masked] = {}

    def turn(self, service: Any) -> int:
        if self.dead:
            return 0
        asked = service.poll(self.name, ()).tasks if self.dies_at else ()
        if any((t.kind, t.about) == (self.dies_at, self.dies_about) for t in asked):
            self.dead = True
            return 0
        return super().turn(service)

    def _work(self, service: Any, task: TaskBody) -> bytes:
        if task.kind == "fit":  # the work itself is done again when its answer is wanted
            return encode(ResultBody(task=task.id, status="done").model_dump())
        if task.said is None:
            return super()._work(service, task)
        if task.run not in self.masked:
            self.masked[task.run] = Masked(task.run, self.node, self.now)
        masked = self.masked[task.run]

        def find(blob: Blob) -> Path:
            return self._file(service, blob)

        try:
            if task.kind in SUBJECTS and masked.trained(task) is None:
                self._begin_work(service, task, masked)
            held = masked.held(task, find)
            frame = self.node.spool.read(held)
        except AtollError as error:
            body = ResultBody(task=task.id, status="failed", reason=str(error)[:1000])
            return encode(body.model_dump())
        body, _ = played.decode(frame, played.EVERYTHING)
        self.said.append((task.kind, body, len(frame)))
        return frame

    def _file(self, service: Any, blob: Blob) -> Path:
        path = self.home.path / blob.sha256
        if not path.exists():
            found = service.blob(self.name, blob.sha256)
            path.write_bytes(found.read(0, found.size))
        return path

    def _begin_work(self, service: Any, task: TaskBody, masked: Masked) -> None:
        """What the worker process does."""
        with Threads().one():
            vectors, memory, lanes = self._made(service, task)
        path = self.home.path / f"{hashlib.sha256(task.id.encode()).hexdigest()}.result"
        told = {"lanes": lanes_told(lanes)}
        done = ResultBody(task=task.id, status="done", answer=told).model_dump()
        path.write_bytes(b"".join(pieces(done, vectors)))
        keep = path.with_suffix(".memory")
        if memory:
            keep.write_bytes(b"".join(pieces({"task": task.id}, memory)))
        order = SimpleNamespace(
            task=task,
            plan=str(self._file(service, task.plan.blob)),
            result=str(path),
            keep=str(keep),
        )
        masked.keep(order, SimpleNamespace(kept=bool(memory), digest=""))

    def _made(self, service: Any, task: TaskBody) -> tuple[Any, Any, Any]:
        """Whole numbers, the client's new memory, and the lanes that the job has."""
        plan = self._plan(service, task)
        if task.kind == "sums":
            sums = deployed.column_sums_at(*plan[:2], self.name, self.table).vectors
            return column_integers(sums), {}, column_lanes(*plan[:2])
        study = plan[0].statistics is not None
        parts = self._study_parts(*plan[:2]) if study else self._parts(service, task, *plan)[0]
        model = Broadcast(task.version, self._fetch(service, task.broadcast)[1])
        if task.kind == "evaluate":
            found = evaluate_client(parts, model.parameters, self.name, self._memory(task))
            kinds = kinds_of(found)
            return integers_of(found, kinds), {}, lanes_of(kinds)
        work = Task(self.name, task.version, task.scale, task.fraction, task.repeat)
        update, memory = answer_task(parts, work, model, self._memory(task))
        return update.vectors, memory, lanes_at(parts, work, model)

    def _memory(self, task: TaskBody) -> Any:
        """The client's own, as the node kept it with the last committed task."""
        path = self.node.spool.memory(task.run, task.kept)
        return {} if path is None else open_frame(path, played.EVERYTHING)[1]


class MaskedWorld(played.World):
    """Such sites and their server; everybody has pinned everybody's key."""

    seal = (FEDERATION, SERVER.sign)

    def __init__(self, home: Path, sites: Any, **settings: Any) -> None:
        super().__init__(home, sites, **settings)
        shown = {name: hashlib.sha256(Key(name).public_bytes).hexdigest() for name in sites}
        for site in self.sites.values():
            Peers(site.home.peers).pin(shown)

    def site(self, name: str, table: Any) -> MaskedSite:
        return MaskedSite(name, table, self.home / "nodes" / name, lambda: self.time)

    def key(self, name: str, number: int) -> bytes:
        return super().key(name, number) if name == played.RESEARCHER else Key(name).public_bytes

    def record(self, run: str) -> dict[str, Any]:
        """Of the last round."""
        return dict(self.store.last_round(run).record)


def six_tables() -> dict[str, Any]:
    """The heart data at six sites: the two largest hospitals are two sites each."""
    tables = played.heart_tables()
    halved = sorted(tables, key=lambda name: len(tables[name]))[-2:]
    found = {}
    for name, table in tables.items():
        if name not in halved:
            found[name] = table
            continue
        for letter, first in (("A", 0), ("B", 1)):
            found[f"{name} {letter}"] = table.take(np.arange(first, len(table), 2))
    return dict(sorted(found.items()))
