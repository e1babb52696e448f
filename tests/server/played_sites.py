"""A federation in one process: a service on twins of database and disk, and sites that answer at once.

A site does what a node does, with the same functions of :mod:`atoll.job.deployed` and
:mod:`atoll.runtime.client`: it keeps what it has answered and re-sends the same bytes, and its memory
follows ``kept``. Everything it says passes through frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.core.contracts import Task
from atoll.core.errors import JobError, NotFound, StateError
from atoll.core.values import Broadcast, Memory
from atoll.data.readers import read_table, sites_from_column
from atoll.job import deployed, study_deployed
from atoll.job.load import read_spec
from atoll.job.package import spec_digest, spec_from_plain, spec_to_plain
from atoll.job.schema import JobSpec
from atoll.job.start import Start, begun
from atoll.job.study import Agreed
from atoll.runtime.client import answer_task, evaluate_client
from atoll.runtime.threads import Threads
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.service import Service, Settings
from atoll.server.store.contract import Invite
from atoll.server.store.memory import MemoryDatabase, MemoryStore
from atoll.wire.frames import Allowed, decode, encode, pieces
from atoll.wire.identity import Identity
from atoll.wire.lossy_disk import LossyDisk
from atoll.wire.messages import INITIAL, BlobRef, SubmitBody, TaskBody
from atoll.wire.metrics import metrics_to_plain
from atoll.wire.submissions import Submission

EVERYTHING = Allowed(most_arrays=100, most_bytes=1 << 30)
ROOT = Path(__file__).resolve().parents[2]
HEART = ROOT / "examples" / "heart" / "job.toml"
RESEARCHER = "ruth"
KEY = Identity.fresh()
"""The researcher's."""


class Site:
    """One site: its rows, and what it keeps."""

    def __init__(self, name: str, table: Any) -> None:
        self.name = name
        self.table = table
        self.spool: dict[str, bytes] = {}
        self.memories: dict[str, Memory] = {}
        self.worked: list[str] = []
        self.asked: list[TaskBody] = []
        self.change: Callable[[TaskBody, dict[str, Any], dict[str, Any]], None] | None = None
        self.refusals: list[Exception] = []
        self._runs: dict[str, tuple[str, Any, Any]] = {}

    def turn(self, service: Service) -> int:
        """Poll once and answer everything; returns the number of answers."""
        found = service.poll(self.name, ())
        for task in found.tasks:
            self.asked.append(task)
            frame = self.answer(service, task)
            try:
                service.deliver(self.name, task.id, frame)
            except (StateError, NotFound):
                raise
            except Exception as error:
                self.refusals.append(error)
        return len(found.tasks)

    def answer(self, service: Service, task: TaskBody) -> bytes:
        if task.id not in self.spool:
            self.spool[task.id] = self._work(service, task)
            self.worked.append(task.id)
        return self.spool[task.id]

    def _work(self, service: Service, task: TaskBody) -> bytes:
        body: dict[str, Any] = {"task": task.id, "status": "done", "seconds": 0.0}
        try:
            with Threads().one():
                arrays = self._do(service, task, body)
        except JobError as error:
            return encode({**body, "status": "failed", "reason": str(error)})
        if self.change is not None:
            self.change(task, body, arrays)
        return encode(body, arrays)

    def _do(self, service: Service, task: TaskBody, body: dict[str, Any]) -> dict[str, Any]:
        spec, schema, sums = self._plan(service, task)
        if spec.statistics is not None:
            return self._study(service, task, body, spec, schema)
        if task.kind == "survey":
            body["answer"] = deployed.survey(spec, self.name, self.table)
            return {}
        if task.kind == "sums":
            update = deployed.column_sums_at(spec, schema, self.name, self.table)
            body["examples"] = update.examples
            return dict(update.vectors)
        parts, islands = self._parts(service, task, spec, schema, sums)
        if task.kind == "ready":
            body["answer"] = deployed.ready(parts, islands)
            return {"initial": deployed.initial_vector(parts)} if task.initial else {}
        model = Broadcast(task.version, self._fetch(service, task.broadcast)[1])
        memory = self.memories.get(task.kept, {})
        if task.kind == "evaluate":
            found = evaluate_client(parts, model.parameters, self.name, memory)
            body["metrics"] = metrics_to_plain(found)
            return {}
        work = Task(self.name, task.version, task.scale, task.fraction, task.repeat)
        update, kept = answer_task(parts, work, model, memory)
        self.memories[task.id] = kept or memory
        body |= {
            "examples": update.examples,
            "weight": update.weight,
            "metrics": metrics_to_plain(update.metrics),
        }
        return dict(update.vectors)

    def _study(
        self, service: Service, task: TaskBody, body: dict[str, Any], spec: JobSpec, agreed: Any
    ) -> dict[str, Any]:
        """A site's half of statistics, without rules of its own."""
        if task.kind == "survey":
            sites = self._fetch(service, task.plan)[0]["sites"]
            body["answer"] = study_deployed.told_at(spec, self.name, self.table, len(sites))
            return {}
        parts = self._study_parts(spec, agreed)
        if task.kind == "ready":
            body["answer"] = study_deployed.ready_at(parts)
            return {}
        question = Broadcast(task.version, self._fetch(service, task.broadcast)[1])
        work = Task(self.name, task.version, task.scale, task.fraction, task.repeat)
        update, _ = answer_task(parts, work, question, {})
        body |= {"examples": update.examples, "weight": update.weight}
        return dict(update.vectors)

    def _study_parts(self, spec: JobSpec, agreed: Any) -> Any:
        holding = study_deployed.held_at(spec, agreed, self.name, self.table)
        return study_deployed.parts_at(spec, agreed, holding, self.name)

    def _fetch(self, service: Service, ref: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        found = service.blob(self.name, ref.sha256)
        raw = found.read(0, found.size)
        assert hashlib.sha256(raw).hexdigest() == ref.sha256
        return decode(raw, EVERYTHING)

    def _plan(self, service: Service, task: TaskBody) -> tuple[JobSpec, Any, Mapping[str, Any]]:
        body, sums = self._fetch(service, task.plan)
        schema = body["schema"]
        if body["spec"].get("statistics") is not None:
            return spec_from_plain(body["spec"]), schema and Agreed.from_plain(schema), sums
        self.count = len(body["sites"])
        made = None if schema is None else deployed.schema_from_plain(schema)
        return spec_from_plain(body["spec"]), made, sums

    def _parts(
        self, service: Service, task: TaskBody, spec: JobSpec, schema: Any, sums: Any
    ) -> tuple[Any, Any]:
        known = self._runs.get(task.run)
        if known is None or known[0] != task.plan.sha256:
            islands = deployed.islands_at(spec, schema, sums, self.name, self.table)
            start = None
            if (ref := task.code.get(INITIAL)) is not None:
                start = Start.received(self._fetch(service, ref)[1], spec.model.start)
            parts = deployed.parts_at(spec, islands, HEART.parent, self.name, self.count, start)
            known = self._runs[task.run] = (task.plan.sha256, parts, islands)
        return known[1], known[2]


class World:
    """Server and sites, with a clock that stands still unless it is moved."""

    seal: Any = None
    submitted = 0

    def __init__(self, home: Path, sites: Mapping[str, Any], **settings: Any) -> None:
        self.home = home
        self.time = 1_000_000.0
        self.settings = Settings(**settings)
        self.database = MemoryDatabase()
        self.disk = LossyDisk()
        self.disk.make_folder(Path("/blobs"))
        self.sites = {name: self.site(name, table) for name, table in sites.items()}
        self.changed: list[str] = []
        self.start()
        for number, (name, role) in enumerate(
            [*((s, "site") for s in sites), (RESEARCHER, "researcher")]
        ):
            secret = hashlib.sha256(name.encode()).hexdigest()
            self.store.add_invite(Invite(secret, name, role, self.time + 1))  # type: ignore[arg-type]
            self.store.join(secret, name, self.key(name, number), self.time)

    def site(self, name: str, table: Any) -> Site:
        """A site with its rows."""
        return Site(name, table)

    def key(self, name: str, number: int) -> bytes:
        """A member's public key; the researcher alone signs here."""
        return KEY.public_bytes if name == RESEARCHER else bytes([number]) * 32

    def start(self) -> None:
        self.store = MemoryStore(self.database)
        self.blobs = FolderBlobs(Path("/blobs"), self.disk)
        self.service = Service(
            self.store,
            self.blobs,
            self.home,
            now=lambda: self.time,
            settings=self.settings,
            seal=self.seal,
        )
        self.service.on_change = self.changed.extend
        self.service.start()

    def kill(self) -> None:
        """The server's process dies, and another is started."""
        self.store.crash()
        self.start()

    def submit(self, spec: JobSpec, **more: Any) -> str:
        return self.service.submit(RESEARCHER, self.submission(spec, **more))

    def submission(self, spec: JobSpec, sites: Sequence[str] = (), **more: Any) -> SubmitBody:
        """A job as the researcher signs it."""
        self.submitted += 1
        brought = dict(more.get("files", {}))
        if "initial" in more:
            brought[INITIAL] = more["initial"]
        files = {name: ref.sha256 for name, ref in brought.items()}
        federation = self.seal[0] if self.seal else ""
        told = federation, RESEARCHER, spec_digest(spec), files, tuple(sorted(sites))
        signed = Submission(*told, f"{self.submitted:032x}").signed(KEY)
        return SubmitBody(spec=spec_to_plain(spec), job_hash=spec.hash(), signed=signed, **more)

    def submit_from(self, spec: JobSpec, start: Start) -> str:
        """A job that begins at a model, as a researcher's own machine submits it."""
        blob = self.blobs.put_pieces(pieces({}, start.tensors))
        return self.submit(begun(spec, start), initial=BlobRef.of(blob))

    def run(self, *, rounds: int = 100_000, absent: tuple[str, ...] = ()) -> int:
        """Let server and sites take turns until nothing happens; returns the number of turns."""
        for turn in range(rounds):
            self.service.step()
            answers = [site.turn(self.service) for n, site in self.sites.items() if n not in absent]
            if not any(answers):
                self.service.step()
                if not any(s.turn(self.service) for n, s in self.sites.items() if n not in absent):
                    return turn
        return rounds

    def reach(self, kind: str, number: int = 0, about: str = "") -> None:
        """Take turns until sites are asked for that, and nobody has answered.

        Args:
            kind: of the task.
            number: of the round, or a later one.
            about: what is added up, in a round of several steps; empty for any.
        """
        for _ in range(1000):
            self.service.step()
            tasks = [t for n in self.sites for t in self.service.poll(n, ()).tasks]
            wanted = [t for t in tasks if t.kind == kind and t.number >= number]
            if any(about in ("", t.about) for t in wanted):
                return
            for site in self.sites.values():
                site.turn(self.service)
        raise AssertionError(f"{kind} {number} was never asked for")

    def wait(self, seconds: float, *, absent: tuple[str, ...] = (), every: float = 10.0) -> None:
        """Time passes; sites that are not absent answer and are heard of."""
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + every)
            self.run(absent=absent)

    def killed_after_every_answer(self, run: str, most: int = 400) -> None:
        """Let the run end, while the server is killed and started anew after each single answer."""
        for _ in range(most):
            for site in self.sites.values():
                self.service.step()
                if site.turn(self.service):
                    self.kill()
            if self.store.run(run).status != "open":
                return

    def ended(self, run: str, absent: tuple[str, ...] = (), most: float = 4000.0) -> str:
        """Let time pass until the run has ended, with all but ``absent``; its status."""
        self.run(absent=absent)
        until = self.time + most
        while self.store.run(run).status == "open" and self.time < until:
            self.wait(20, absent=absent)
        return str(self.store.run(run).status)

    def hash(self, run: str) -> str:
        row = self.store.last_round(run)
        return "" if row is None else row.model_hash


def model_hash(
    home: Path, tables: Mapping[str, Any], spec: JobSpec, absent: tuple[str, ...] = ()
) -> str:
    """Of the model after a job whose sites hide nothing; ``absent`` go before the first round."""
    world = World(home, tables)
    run = world.submit(spec)
    world.reach("train")
    assert world.ended(run, absent) == "completed"
    return world.hash(run)


def heart_spec(*overrides: str) -> JobSpec:
    return read_spec(HEART, ["evaluation.compare=false", *overrides])


def heart_tables() -> dict[str, Any]:
    table = read_table(HEART.parent / "heart.csv")
    found = sites_from_column(table, "hospital")
    return {site: found[site] for site in sorted(found)}
