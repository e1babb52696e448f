"""G1 to G9, held against everything that happens, after every step; and the history at the end.

What a node was told it has delivered (its *acknowledgements*), what the store holds, and what is durable
on disks are compared with one another and with the federation as it should have gone
(:class:`storm.oracle.Oracle`).

G4 speaks of a privacy budget, and there is no ledger yet. What it will rest on is checked: a model leaves the
server once for each version and start of the server, and the last that left is the one that is committed,
so no more than the release in flight can be missing from the records.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from storm.front import receipt_in
from storm.oracle import Oracle
from storm.servers import BLOBS
from storm.work import ENDED, site_of

from atoll.core.errors import (
    Equivocation,
    FenceError,
    StorageError,
    Unreachable,
    UpdateRefused,
    WireError,
)
from atoll.runtime import checkpoint
from atoll.runtime.checkpoint import model_hash
from atoll.server.epochs import PUT_BACK
from atoll.wire.frames import Allowed, decode
from atoll.wire.messages import ReceiptBody, TaskBody

if TYPE_CHECKING:
    from storm.network import Request
    from storm.nodes import Node
    from storm.servers import Server
    from storm.world import World

__all__ = ["Checks", "Violation"]

FENCED = ("add_run", "set_run", "contribute", "commit_round", "commit_round with answers")
ANY = Allowed(most_arrays=100, most_bytes=1 << 30)


@dataclass(frozen=True)
class Violation:
    """A guarantee that did not hold.

    Args:
        guarantee: such as ``G1``; ``crash`` for an error that nobody meant to raise.
        text: what happened.
        at: when.
        stack: of the error, where there was one.
    """

    guarantee: str
    text: str
    at: float
    stack: str = ""


class Checks:
    """Everything that is known of a world from outside.

    Attributes:
        violations: what was found; a world stops at the first.
        acknowledgements: the log of all nodes: (site, task, digest), in order.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[Violation] = []
        self.acknowledgements: list[tuple[str, str, str]] = []
        self.tasks: dict[str, TaskBody] = {}
        self.alarms = 0
        self._promised: dict[str, str] = {}
        self._used: set[str] = set()
        self._epochs: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._rounds: dict[str, list[Any]] = {}
        self._oracles: dict[str, Oracle] = {}
        self._counted: dict[str, int] = {}
        self._released: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
        self._hashes: dict[str, str] = {}
        self._dirty = False
        self._marks: dict[str, tuple[float, float]] = {}
        self._phases: dict[str, tuple[str, ...]] = {}
        self._events = 0

    def violated(self, guarantee: str, text: str, error: BaseException | None = None) -> None:
        """Note that a guarantee did not hold."""
        stack = "" if error is None else "".join(traceback.format_exception(error))
        self.violations.append(Violation(guarantee, text, self.world.kernel.now, stack))
        self.world.note(f"VIOLATION of {guarantee}: {text}")

    def ensure(self, holds: bool, guarantee: str, text: str) -> None:
        """Note it where ``holds`` is false."""
        if not holds:
            self.violated(guarantee, text)

    # What is told from elsewhere ------------------------------------------------------------------

    def written(self, server: Server, name: str) -> None:
        """An operation of a server's store is done."""
        if name not in FENCED:
            return
        self._dirty = True
        newest = self.world.database.lease.epoch
        mine = self._epochs.get(server.process.name, 0)
        self.ensure(mine == newest, "G5", f"epoch {mine} did {name} where {newest} is the newest")
        database = self.world.database
        if name == "contribute":
            for rows in database.contributions.values():
                row = next(reversed(rows.values()), None)
                if row is not None and row.status != "refused":
                    self._need(row.sha256, f"the answer to {row.task}, as its row is written")
        if name.startswith("commit_round"):
            for run in database.rounds.values():
                if run:
                    self._need(run[-1].checkpoint, f"the checkpoint of round {run[-1].number}")

    def _need(self, sha256: str, what: str) -> None:
        if not self._durable(sha256) and not self._may_be_gone(sha256):
            self.violated("G2", f"{what} is not durable: {sha256[:12]}")

    def _may_be_gone(self, sha256: str) -> bool:
        """Whether it belongs to an answer that was used, and may be deleted."""
        database = self.world.database
        return any(
            row.sha256 == sha256 and self._settled(row.task, run)
            for run, rows in database.contributions.items()
            for row in rows.values()
        )

    def _durable(self, sha256: str) -> bool:
        """Whether a blob survives a power failure now, whatever that does."""
        world = self.world
        if sha256 in world.database.blobs:
            return True
        file = world.disk._folders[BLOBS].synced.get(sha256)
        return file is not None and file.synced == file.data

    def _settled(self, task: str, run: str) -> bool:
        """Whether an answer has been used for good."""
        database = self.world.database
        kind, number = task.split(".")[1], int(task.split(".")[2].partition("-")[0])
        if database.runs[run].status in ENDED:
            return True
        if kind == "train" and self._live(run):
            failed = database.contributions[run][task].status != "done"
            # A malicious site's may be refused when it is folded.
            honest = self.world.nodes[site_of(task)].honest
            return failed or not honest or task in database.taken[run]
        done = max((row.number for row in database.rounds[run]), default=0)
        return (kind == "train" and done > number) or (kind == "evaluate" and done >= number)

    def _live(self, run: str) -> bool:
        """Whether a run is asynchronous."""
        spec = self.world.specs[self.world.database.runs[run].name]
        return spec.rounds.mode == "async"

    def started(self, server: Server, epoch: int) -> None:
        """A server has the store."""
        self.ensure(epoch > max(self._epochs.values(), default=0), "G5", f"epoch {epoch} again")
        self._epochs[server.process.name] = epoch
        self._moved()

    def refused(self, server: Server) -> None:
        """A second server was refused."""
        holder = self.world.database.holder
        self.ensure(holder is not None, "G3", "a server was refused where none holds the store")

    def fell(self, server: Server) -> None:
        """A server is no more."""
        self._moved()

    def left(self, site: str) -> None:
        """A site has left the federation."""

    def watch(self, server: Server) -> None:
        """See what a server offers, and what goes wrong in its steps."""
        service, poll, step = server.service, server.service.poll, server.service.step

        def polled(site: str, have: Any) -> Any:
            found = poll(site, have)
            for task in found.tasks:
                self._offered(server, task)
            if found.tasks or found.gone:
                asked = [task.id for task in found.tasks]
                self.world.note(f"{site} is asked for {asked}; gone: {found.gone}")
            return found

        def stepped() -> float | None:
            try:
                return step()
            except (FenceError, StorageError):
                raise
            except Exception as error:
                self.violated("crash", f"a step: {type(error).__name__}: {error}", error)
                raise

        service.poll, service.step = polled, stepped

    def _offered(self, server: Server, task: TaskBody) -> None:
        self.tasks[task.id] = task
        rows = self.world.database.rounds.get(task.run, [])
        last = max((row.number for row in rows), default=0)
        if task.kind == "train" and not self._live(task.run):
            self.ensure(task.number <= last, "G3", f"{task.id} before round {last} is committed")
        if task.broadcast is not None and task.kind == "evaluate":
            # A run is taken up anew by a new server, and after trouble with the disk.
            life = self._epochs[server.process.name], self.world.injected
            released = self._released.setdefault((task.run, task.version), {})
            released[task.broadcast.sha256] = life
            again = [sha for sha, when in released.items() if when == life]
            text = f"version {task.version} left twice in epoch {life[0]}"
            self.ensure(len(again) == 1, "G4", text)

    def worked(self, node: Node, task: str) -> None:
        """A worker has computed an answer."""
        self.world.note(f"has computed {task}")
        if node.honest and task in self._promised:
            self.violated("G3", f"{node.name} computes {task}, which was acknowledged, again")

    # Answers --------------------------------------------------------------------------------------

    def about_to(self, server: Server, request: Request) -> str:
        """What the store holds for the task of a delivery, before it is heard."""
        if not request.path.startswith("/v1/results/"):
            return ""
        task = unquote(request.path.removeprefix("/v1/results/"))
        rows = self.world.database.contributions.get(task.partition(".")[0], {})
        return rows[task].sha256 if task in rows else ""

    def handled(
        self, server: Server, request: Request, raw: bytes | None, error: Any, before: str
    ) -> None:
        """A request was answered."""
        if not request.path.startswith("/v1/results/"):
            return
        told = "acknowledged" if error is None else f"{type(error).__name__}: {error.message}"
        self.world.note(f"{request.what} of {request.site}: {told}")
        if isinstance(error, Equivocation):
            self.alarms += 1
            named = [e for e in self.world.database.events if e.kind == "equivocation"]
            self.ensure(
                any(e.site == request.site for e in named), "G8", f"{request.site} is not named"
            )
            self.ensure(
                all(e.site == self.world.weather.liar for e in named),
                "G8",
                f"an honest site is accused: {named[-1:]}",
            )
        if raw is None:
            return
        receipt, _ = receipt_in(raw)
        self.ensure(
            before in ("", receipt.sha256), "G8", f"another answer to {receipt.task} is accepted"
        )
        node = self.world.nodes[request.site]
        told = not node.honest or node.tells_of(receipt.sha256)
        self.ensure(told, "G9", f"{receipt.task} has left, and no log tells of it")
        row = self.world.database.contributions[receipt.task.partition(".")[0]].get(receipt.task)
        if row is not None and row.status == "refused":
            return  # it is known that these bytes are none; they are not kept
        known = self._promised.setdefault(receipt.task, receipt.sha256)
        self.ensure(known == receipt.sha256, "G1", f"two answers to {receipt.task} acknowledged")
        self._dirty = True

    def acknowledged(self, node: Node, receipt: ReceiptBody) -> None:
        """A node has got a receipt, and logs it."""
        if not node.honest:
            return
        self.acknowledgements.append((node.name, receipt.task, receipt.sha256))

    def told(self, node: Node, path: str, error: BaseException) -> None:
        """A node's delivery ended with an error."""
        wrong = isinstance(error, Equivocation | UpdateRefused | WireError)
        if node.honest and wrong and not isinstance(error, Unreachable):
            self.violated("G8", f"{node.name}, which is honest, is told: {error}")

    # After every step -----------------------------------------------------------------------------

    def _moved(self, *runs: str) -> None:
        """A call of these runs, or of all, has ended or begun anew."""
        for run in runs or self.world.database.runs:
            self._marks[run] = (self.world.kernel.now, self.world.slowness)

    def step(self) -> None:
        """Something has happened."""
        if self._dirty:
            self._dirty = False
            self._database()
        self._deadlines()
        for node in self.world.nodes.values():
            if node.agent is not None:
                seen, before = node.agent._fence.epoch, self._seen.get(node.name, 0)
                self.ensure(seen >= before, "G5", f"{node.name} has forgotten epoch {before}")
                self._seen[node.name] = seen

    def _database(self) -> None:
        database = self.world.database
        for task, sha256 in self._promised.items():
            if task in self._used:
                continue
            run = task.partition(".")[0]
            row = database.contributions.get(run, {}).get(task)
            if row is None or row.sha256 != sha256:
                self.violated("G2", f"the acknowledged answer to {task} is not in the store")
            elif self._settled(task, run):
                self._used.add(task)
            else:
                self._need(sha256, f"the acknowledged answer to {task}")
        for run, row in database.runs.items():
            self._run(run, row)

    def _run(self, run: str, row: Any) -> None:
        phase = row.phase, row.status, row.plan
        if phase != self._phases.get(run):
            self._phases[run] = phase
            self._moved(run)
        rows, known = self.world.database.rounds[run], self._rounds.setdefault(run, [])
        same = len(rows) >= len(known) and all(a is b for a, b in zip(rows, known, strict=False))
        self.ensure(same, "G2", "a committed round is gone, or another")
        for new in rows[len(known) :]:
            known.append(new)
            self._moved(run)
            self._committed(run, new)
        if rows and row.status not in ENDED:
            self._need(rows[-1].checkpoint, f"the checkpoint of round {rows[-1].number}")

    def _committed(self, run: str, row: Any) -> None:
        record, database = row.record, self.world.database
        heard = database.contributions[run]
        names = [site_of(task) for task in row.tasks]
        where = f"round {row.number}"
        outcome = (
            f"committed with {names}" if record["committed"] else f"aborted: {record['reason']}"
        )
        self.world.note(f"{where} of {run} {outcome}")
        self.ensure(len(set(names)) == len(names), "G1", f"{where}: a site counts twice: {names}")
        for task in row.tasks:
            self._counted[task] = self._counted.get(task, 0) + 1
            self.ensure(self._counted[task] == 1, "G1", f"{task} counts in two rounds")
        if record["committed"]:
            self.ensure(
                sorted(record["contributed"]) == sorted(names),
                "G1",
                f"{where}: the record names {sorted(record['contributed'])}, its tasks {names}",
            )
            start = f"{run}.train.{row.number - 1}."
            mine = [] if self._live(run) else [t for t in heard if t.startswith(start)]
            for task in mine:
                if heard[task].status == "done" and self.world.nodes[site_of(task)].honest:
                    self.ensure(
                        task in row.tasks, "G1", f"{where}: {task} is there, and not counted"
                    )
        else:
            self.ensure(bool(record["reason"]), "G7", f"{where} was aborted without a reason")
            self.ensure(not row.tasks, "G1", f"{where} was aborted and has tasks")
        missing = set(record["invited"]) - set(names)
        if record["committed"] and not self._live(run):
            unnamed = missing - set(record["missing"])
            self.ensure(not unnamed, "G8", f"{where}: nothing is said of {sorted(unnamed)}")
        oracle = self._oracles.get(run)
        if oracle is None:
            oracle = self._oracles[run] = Oracle(self.world, run)
        found = oracle.follow(row)
        self.ensure(found == row.model_hash, "G6", f"{where}: another model than {names} make")
        for site, said in (record["sites"] or {}).items():
            if said and self.world.nodes[site].honest:
                same = dict(said) == oracle.judged(site)
                self.ensure(
                    same, "G6", f"{where}: the record shows {site}'s metrics of another model"
                )
        self._release(run, row)

    def _release(self, run: str, row: Any) -> None:
        """What was released of this version is what is committed."""
        released = self._released.get((run, row.record["version"]), {})
        if row.record["committed"] and released:
            newest = max(released, key=lambda sha: released[sha])
            found = self._model(newest)
            self.ensure(
                found in ("", row.model_hash),
                "G4",
                f"round {row.number}: another model was released",
            )

    def _model(self, sha256: str) -> str:
        """The hash of a released model; empty where it is deleted already."""
        world = self.world
        if sha256 not in self._hashes:
            raw = world.database.blobs.get(sha256)
            if raw is None:
                file = world.disk._files.get(BLOBS / sha256)
                if file is None:
                    return ""
                raw = file.data
            self._hashes[sha256] = model_hash(decode(raw, ANY)[1]["parameters"])
        return self._hashes[sha256]

    def _deadlines(self) -> None:
        """A round that takes longer than its calls may."""
        world = self.world
        events = len(world.database.events)
        if events != self._events:
            for event in world.database.events[self._events :]:
                text = f"a server that was only started again is taken for a copy: {event.text}"
                self.ensure(event.kind != PUT_BACK, "G5", text)
            if any(e.kind == "paused" for e in world.database.events[self._events :]):
                self._moved()
            self._events = events
        if not any(server.up for server in world.servers):
            self._moved()
        for run, row in world.database.runs.items():
            mark, slowness = self._marks.get(run, (world.kernel.now, world.slowness))
            call = world.settings.round
            if row.phase == "running" and not self._live(run):
                call = world.weather.deadline
            longest = 2.0 * call + 20.0 + world.slowness - slowness  # training, then evaluation
            if row.status not in ENDED and world.kernel.now - mark > longest:
                lasted = world.kernel.now - mark
                self.violated("G7", f"no call of {run} has ended for {lasted:.0f} s")
                self._moved(run)

    # At the end -----------------------------------------------------------------------------------

    def history(self) -> None:
        """The acknowledgements of all nodes against the records of all rounds."""
        world, database = self.world, self.world.database
        for run, row in database.runs.items():
            rounds = {r.number: r for r in database.rounds[run]}
            flying = self._flying(run, row)
            for site, task, sha256 in self.acknowledgements:
                if task.partition(".")[0] != run:
                    continue
                heard = database.contributions[run].get(task)
                if heard is None or heard.sha256 != sha256:
                    self.violated("G2", f"{site} was told that {task} is there; it is not")
                    continue
                if heard.status != "done" or ".train." not in task or not world.nodes[site].honest:
                    continue
                times = sum(task in r.tasks for r in rounds.values())
                committed = rounds.get(int(task.split(".")[2]) + 1)
                if self._live(run):
                    due = row.status == "completed" and task not in flying
                else:
                    due = committed is not None and committed.record["committed"]
                text = f"{task}, acknowledged, counts {times} times"
                self.ensure(times <= 1 and (times == 1 or not due), "G1", text)
            self._ending(run, row)
        for node in world.nodes.values():
            node.check_log()

    def _flying(self, run: str, row: Any) -> set[str]:
        """Tasks of an asynchronous run that were at work when it ended."""
        rounds, world = self.world.database.rounds[run], self.world
        if not rounds or not self._live(run):
            return set()
        sha256 = rounds[-1].checkpoint
        held = world.database.blobs.get(sha256)
        raw = world.disk._files[BLOBS / sha256].data if held is None else held
        progress, _ = checkpoint.decode(raw, row.job_hash)
        return {f"{run}.train.{event[1]}.{event[2]}" for event in progress.pace.events}

    def _ending(self, run: str, row: Any) -> None:
        """How a run may end, and what is left of it at its sites."""
        world, weather = self.world, self.world.weather
        allowed = (
            "could not commit",
            "rounds could commit",
            "cannot take part",
            "clients of the round failed",
        )
        if row.status == "failed":
            known = any(text in row.reason for text in allowed)
            self.ensure(known, "G7", f"{run} failed, and not by its rules: {row.reason}")
        elif row.status == "cancelled":
            self.ensure(run in world.cancelled, "G3", f"nobody has cancelled {run}")
        else:
            self.ensure(row.status == "completed", "G3", f"{run} is {row.status!r}")
        if weather.gentle:
            self.ensure(row.status == "completed", "G3", f"{run} {row.status}: {row.reason}")
            for r in world.database.rounds[run]:
                names, asked = sorted(r.record["contributed"]), sorted(r.record["invited"])
                if not self._live(run):
                    self.ensure(names == asked, "G3", f"round {r.number} of {run}: only {names}")
        for node in world.nodes.values():
            if node.honest and not node.away and node.agent is not None:
                left = [held.task for held in node.agent._site.spool.results]
                self.ensure(not left, "G3", f"{node.name} still keeps {left}")
