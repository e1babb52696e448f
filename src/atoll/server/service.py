"""What the server does, without HTTP: for its web face, and for a simulator that plays sites and time.

Everything is synchronous. Methods that answer members may be called from any thread and only note
what they are told. :meth:`Service.step` does the work (folding, server steps, commits) and is called by
one thread, or by the simulator whenever it likes; it returns when it wants to be called next.

The service remembers nothing that matters: made anew on the same store, blobs and home at any moment, it
continues every run by itself, to the same bits.

::

    service = Service(store, blobs, home, now=time.time)
    service.start()                  # acquires the store; FenceError when another server has it
    due = service.step()             # again and again, at that time or when on_work is called
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

from atoll.core.errors import (
    Forbidden,
    NotFound,
    StateError,
    TooLarge,
    Unreachable,
    UpdateRefused,
    WireError,
)
from atoll.core.values import ClientId
from atoll.server.blobs.contract import Blobs
from atoll.server.epochs import Epochs
from atoll.server.garbage import collect
from atoll.server.office import LEDGERS, Office
from atoll.server.rounds.board import Board, Poll
from atoll.server.rounds.counter import site_of
from atoll.server.rounds.early import Early
from atoll.server.rounds.engine import ENDED, Engine
from atoll.server.rounds.results import Files, Readable, reply_of, rounds_of
from atoll.server.rounds.starts import check_start
from atoll.server.settings import Settings
from atoll.server.stopping import Stopping
from atoll.server.store.contract import Member, Role, Store
from atoll.server.submission import accepted, submitted
from atoll.server.uploads import Uploads
from atoll.wire.disk import Piece
from atoll.wire.frames import Blob
from atoll.wire.messages import BlobRef, JobReply, ReceiptBody, RoundsReply, SubmitBody

__all__ = ["Poll", "Readable", "Service", "Settings"]

_LEFT = {"revoked": "its key was revoked", "left": "it has left the federation"}


class Service:
    """The server of one federation.

    Args:
        store: rows.
        blobs: bytes.
        home: folder; results lie in ``home/runs``.
        now: seconds since 1970, real or played.
        settings: times and sizes.
        seal: the federation's id, and the signature of its server; masked rounds need both.
        date: as other machines have it, where ``now`` may have fallen behind; None for ``now``.

    Attributes:
        on_change: called, from any thread, with the names of sites that have news, and with ``run <id>``
            for runs that have.
        on_work: called, from any thread, when :meth:`step` has something to do.
        on_forgotten: called with a member and the digest of an upload of its that is forgotten.
        epochs: the server's starts, and what sites say of them.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        home: Path,
        *,
        now: Callable[[], float],
        settings: Settings | None = None,
        seal: tuple[str, Callable[[bytes], bytes]] | None = None,
        date: Callable[[], float] | None = None,
    ) -> None:
        self.on_change: Callable[[Collection[str]], None] = lambda names: None
        self.on_work: Callable[[], None] = lambda: None
        self.on_forgotten: Callable[[str, str], None] = lambda name, sha256: None
        self._office = Office(store, blobs, home, now, settings or Settings(), date=date or now)
        if seal is not None:
            self._office.federation, self._office.sign = seal
        self._office.tell = lambda names: self.on_change(names)
        self._office.wake = lambda: self.on_work()
        self._board = Board()
        self._engines, self._lock = self._board.engines, self._board.lock
        self._members: dict[str, Member] = {}
        self._unused = Uploads(self._office)
        self._unused.on_forgotten = lambda name, sha256: self.on_forgotten(name, sha256)
        self._files = Files(self._office)
        self.epochs = Epochs(self._office)
        self._stopping = Stopping(self._office)
        self._stepping, self._looked = threading.Lock(), float("-inf")

    def start(self, drawn: str = "") -> int:
        """Become the one server on the store and take up every run that has not ended; the epoch.

        ``drawn`` tells this start from others of its epoch: 16 hexadecimal digits.

        Raises:
            FenceError: another server holds the store.
        """
        office = self._office
        office.epoch = office.store.acquire(office.settings.holder, office.now(), start=drawn)
        self.epochs.begin()
        self._look()
        office.blobs.sweep()
        self._unused.resume()
        collect(office.store, office.blobs, ENDED)
        for row in office.store.runs():
            last = office.store.last_round(row.id)
            office.remember({} if last is None else last.record.get(LEDGERS, {}))
            if row.status not in ENDED:
                self._engines[row.id] = Engine(office, row)
        return office.epoch

    @property
    def epoch(self) -> int:
        """Of this server; 0 before :meth:`start`."""
        return self._office.epoch

    def now(self) -> float:
        """The present moment, on the clock that :meth:`step` goes by."""
        return self._office.now()

    # Sites --------------------------------------------------------------------------------------

    def touch(self, site: ClientId) -> None:
        """``site`` has been heard of; noted with a hundredth of the time after which silence counts."""
        office = self._office
        now, before = office.now(), office.heard.get(site)
        if before is not None and 0 <= now - before < office.settings.progress / 100:
            return
        office.heard[site] = now
        for engine in self._board.of(site):
            engine.counter.hear(site, now)

    def poll(self, site: ClientId, have: Collection[str]) -> Poll:
        """What ``site`` is asked for, in any run.

        Args:
            site: who asks.
            have: ids of tasks that it is working on, or has an answer to, and of runs of which it
                keeps anything; of these, those that have ended are gone.
        """
        self.touch(site)
        found = self._board.told(site, have)
        if not self._board.certain(found):
            self._office.be_sure()
        return found

    def glance(self, site: ClientId, have: Collection[str]) -> Poll | None:
        """What :meth:`poll` says, where that takes neither the store nor a lock that is held; else None."""
        with self._board.unless_held(site) as free:
            if not free:
                return None
            self.touch(site)
            found = self._board.told(site, have)
        return found if self._board.certain(found) else None

    def ledger(self, site: ClientId, head: str = "") -> str:
        """The newest head of a site's privacy ledger, after being told of ``head``."""
        if head:
            self._office.remember({site: head})
        return self._office.ledgers.get(site, "")

    def deliver(
        self, site: ClientId, task: str, frame: bytes, blob: Blob | None = None
    ) -> ReceiptBody:
        """Take in a site's answer; what is acknowledged is durable.

        Args:
            site: who sent it.
            task: id of the task.
            frame: the result's frame.
            blob: its digest and size, where they are known.

        Raises:
            Equivocation: the site has sent another answer before; that one stays.
            NotFound: there is no such task for this site, or no such upload.
            StateError: the task is closed.
            WireError: the frame is not valid; the task is closed as refused.
            UpdateRefused: the same.
        """
        return self._deliver(site, task, blob or Blob.of(frame), frame)

    def offer(self, site: ClientId, task: str, frame: bytes, blob: Blob) -> Early | ReceiptBody:
        """As :meth:`deliver`; the receipt may come with what is made of it, and ``on_change`` says when."""
        with self._office.for_good():
            engine = self._asking(site, task)
        self.touch(site)
        early = engine.counter.offer(site, task, blob, frame)
        return early or self._deliver(site, task, blob, frame)

    def offer_at_once(
        self, site: ClientId, task: str, frame: bytes, blob: Blob, ledger: str = ""
    ) -> Early | None:
        """What :meth:`offer` gives, where that takes neither the store nor a lock that is held; else None."""
        office = self._office
        with self._board.unless_held(site) as free:
            engine = self._board.asking(site, task) if free else None
            if engine is None or site in office.away or not office.knows(site, ledger):
                return None
            self.touch(site)
            office.remember({site: ledger})
            return engine.counter.offer(site, task, blob, frame)

    def deliver_uploaded(self, site: ClientId, task: str, blob: Blob) -> ReceiptBody:
        """The same for an answer that has been uploaded as a blob.

        Raises:
            Unreachable: not all of it is here; the site uploads the rest and says so again.
        """
        if self._office.blobs.size(blob.sha256) != blob.size:
            with self._office.for_good():
                counter = self._asking(site, task).counter
                if counter.heard(site, task, blob):
                    return ReceiptBody(task=task, sha256=blob.sha256, again=True)
                counter.expected(task)
            self._complete(site, blob)
        return self._deliver(site, task, blob, None)

    def _complete(self, member: str, blob: Blob) -> None:
        """Name an upload whose bytes are all here; the disk, or a kill, may have kept that from happening."""
        try:
            self._office.blobs.append(blob, blob.size, b"", member)
        except (StateError, TooLarge) as error:
            raise Unreachable(
                f"blob {blob.sha256[:12]} has not been uploaded in full", remedy="upload the rest"
            ) from error

    def _deliver(self, site: ClientId, task: str, blob: Blob, frame: bytes | None) -> ReceiptBody:
        with self._office.for_good():
            engine = self._asking(site, task)
        self.touch(site)
        try:
            again = engine.counter.deliver(site, task, blob, frame)
        except Unreachable:
            raise
        except (WireError, UpdateRefused, StateError):
            self._office.be_sure()
            with self._lock:
                self._unused.refused(site, blob)
            raise
        self._unused.taken(site, blob)
        return ReceiptBody(task=task, sha256=blob.sha256, again=again)

    def _asking(self, site: ClientId, task: str) -> Engine:
        engine = self._board.asking(site, task)
        if engine is None:
            self._no_task(site, task)
        if site in self._office.away:
            raise Forbidden(f"{site} is no member: {self._office.away[site]}", site=site)
        return engine

    def _no_task(self, site: ClientId, task: str) -> NoReturn:
        run = task.partition(".")[0]
        ended = any(r.id == run and site in r.sites for r in self._office.store.runs())
        if ended and site_of(task) == site:
            raise StateError(f"run {run} has ended", remedy="drop this answer")
        raise NotFound(f"{site} has no task {task!r:.120}", remedy="ask for tasks")

    # Members ------------------------------------------------------------------------------------

    def join(self, secret: bytes, name: str, key: bytes, role: Role | None = None) -> Member:
        """Admit a key by its invitation; see :meth:`~atoll.server.store.contract.Store.join`."""
        office, digest = self._office, hashlib.sha256(secret).hexdigest()
        member = office.store.join(digest, name, key, office.date(), role)
        office.event("joined", f"{member.role} {member.name}", site=member.name)
        self._look()
        return member

    def leave(self, name: str) -> None:
        """A member leaves; what it has contributed stays."""
        self._office.store.set_member(name, "left")
        self._office.event("left", name, site=name)
        self._look()
        self._office.wake()

    def _look(self) -> None:
        """Who is a member now, whoever changed it; and whether this server still has the store."""
        office = self._office
        self._office.be_sure()
        members = office.store.members()
        active = {m.name: m for m in members if m.status == "active"}
        away = {m.name: _LEFT[m.status] for m in members if m.name not in active}
        with self._lock:
            new = {name: why for name, why in away.items() if name not in office.away}
            office.away = away
            self._members = active
            self._looked = office.now()
        for name, why in new.items():
            for engine in self._board.of(name):
                engine.counter.leave(name, why)

    def _member(self, name: str) -> Member:
        if name not in self._members:
            self._look()
        if name not in self._members:
            raise Forbidden(f"{name!r:.120} is no member", remedy="join with a code")
        return self._members[name]

    # Blobs --------------------------------------------------------------------------------------

    def blob(self, name: str, sha256: str) -> Readable:
        """Bytes that one of the member's open tasks names; nothing else is shown to anybody.

        Raises:
            Unreachable: a run of the member is just being taken up again.
            NotFound: no task of its names that blob.
        """
        engines = self._board.of(name)
        if not any(engine.counter.grants(name, sha256) for engine in engines):
            if not all(engine.counter.taken_up for engine in engines):
                raise Unreachable("a run is just being taken up again", remedy="try again")
            self._office.be_sure()
            raise NotFound(f"no open task of {name} names blob {sha256[:12]}")
        if (shown := self._office.seen(sha256)) is not None:
            return Readable(shown.blob.size, shown.read)
        blobs = self._office.blobs
        size = blobs.size(sha256)
        if size is None:
            raise NotFound(f"blob {sha256[:12]} is not here")
        return Readable(size, lambda start, stop: blobs.read(sha256, start, stop))

    def shown(self, sha256: str) -> Readable | None:
        """Bytes in memory that a run shows to its sites; whoever asks sees to it that a task names them."""
        found = self._office.seen(sha256)
        return None if found is None else Readable(found.blob.size, found.read, found.sha)

    def upload_received(self, name: str, sha256: str) -> int:
        """How many bytes of a member's own upload are here."""
        return self._office.blobs.received(sha256, name)

    def upload_chunk(
        self, name: str, sha256: str, size: int, offset: int, data: Piece, task: str
    ) -> int:
        """Take the next part of an upload; returns how many bytes are here.

        Args:
            name: of the member.
            sha256: of the whole.
            size: of the whole.
            offset: where ``data`` belongs; what is here already is not written again.
            data: the part.
            task: whose answer it is going to be; empty for a file of a job to be submitted.

        Raises:
            TooLarge: more than may be expected; the task is then closed as refused.
            StateError: the task is closed.
            Unreachable: bytes before ``offset`` are missing.
            Unreachable: the whole is here and is not what its name says; it is to be sent again.
        """
        member, office = self._member(name), self._office
        if (member.role == "site") != bool(task):
            raise Forbidden(f"{name} may not upload this", remedy="name the task it answers")
        most = office.settings.largest_vector
        if task:
            with self._office.for_good():
                engine = self._asking(name, task)
                most = engine.counter.expected(task).largest
            self.touch(name)
            if size > most:
                reason = f"an answer of {size} bytes: at most {most} are expected"
                engine.counter.refuse(name, task, Blob(sha256, size), reason)
                raise TooLarge(reason)
        if size > most or offset + len(data) > size:
            raise TooLarge(f"{max(size, offset + len(data))} bytes: at most {min(size, most)}")
        return self._unused.add(name, Blob(sha256, size), offset, data, task)

    def upload_more(self, name: str, blob: Blob, offset: int, data: Piece) -> int:
        """Take bytes of the middle of an upload, whose chunk :meth:`upload_chunk` has let begin.

        Raises:
            Unreachable: bytes before ``offset`` are missing.
        """
        return self._unused.more(name, blob, offset, data)

    def upload_anew(self, name: str, sha256: str) -> None:
        """A member begins an upload of its own again: what it has sent of it before is not gone on with."""
        self._office.blobs.abandon(sha256, name)

    # Researchers --------------------------------------------------------------------------------

    def submit(self, by: str, body: SubmitBody) -> str:
        """Keep a job and begin its run; returns the run's id. The same submission again changes nothing.

        Raises:
            JobError: with every fault that can be found without data.
        """
        member, office = self._member(by), self._office
        sites = [m.name for m in self._members.values() if m.role == "site"]
        for ref in body.brought.values():
            if office.blobs.size(ref.sha256) != ref.size:
                with contextlib.suppress(Unreachable):  # what is not here, is a fault of the job
                    self._complete(by, ref.blob)
        check_start(office, body)
        with self._lock:
            if known := submitted(office, by, body):
                return known
            row = accepted(office, member, body, sites)
            engine = Engine(office, row)  # first: a run in the store has somebody to work on it
            office.store.add_run(office.epoch, row)
            self._engines[row.id] = engine
            self._unused.used(by, [ref["sha256"] for ref in row.files.values()])
        office.event("submitted", f"{row.name} by {by}", row.id)
        office.wake()
        return row.id

    def jobs(self) -> list[JobReply]:
        """All runs, in the order in which they came."""
        return [reply_of(self._office.store, row) for row in self._office.store.runs()]

    def job(self, run: str) -> JobReply:
        """One run.

        Raises:
            NotFound: there is none with this id.
        """
        return reply_of(self._office.store, self._office.store.run(run), whole=True)

    def rounds(self, run: str, after: int = 0) -> RoundsReply:
        """Records of the rounds after number ``after``, at most so many that one answer holds them."""
        return rounds_of(self._office.store, run, after)

    def cancel(self, run: str, by: str) -> None:
        """End a run of one's own; durable when this returns.

        Raises:
            Forbidden: another's run.
            StateError: it has ended already.
        """
        row = self._office.store.run(run)
        # The web has asked for the same right before; what cannot be taken back does not rest on a route alone.
        if row.by != by:
            raise Forbidden(f"run {run} is {row.by}'s", remedy=f"ask {row.by} to cancel it")
        engine = self._engines.get(run)
        if engine is None or row.status in ENDED:
            raise StateError(f"run {run} has ended: {row.status}")
        engine.cancel(f"cancelled by {by}")
        self._office.wake()

    def files(self, run: str) -> dict[str, BlobRef]:
        """The files of a run's folder, by path; none before it has ended."""
        if self._office.store.run(run).status not in ENDED:
            return {}
        return {name: BlobRef.of(blob) for name, blob in self._files.listed(run).items()}

    def file(self, run: str, name: str) -> Readable:
        """One of them.

        Raises:
            NotFound: the run has not ended, or has no such file.
        """
        if self._office.store.run(run).status not in ENDED:
            raise NotFound(f"run {run} has not ended", remedy="wait for its end")
        return self._files.readable(run, name)

    # Work ---------------------------------------------------------------------------------------

    def step(self) -> float | None:
        """Do all that is due; returns when to be called next, None for when there is something new.

        Raises:
            FenceError: another server has taken over; this one must stop.
            StorageError: who is a member cannot be read.
        """
        office = self._office
        with self._stepping:
            with self._lock:
                engines = list(self._engines.values())
            # Also without any run: who has lost the store must not go on answering.
            if office.now() >= self._looked + office.settings.members_every:
                office.store.keep_lock()
                self._look()
                self._stopping.look(engines)
                self._unused.clear(self._board, self._members)
            due = [self._looked + office.settings.members_every] if engines else []
            for engine in engines:
                when = engine.work()
                if engine.ended:
                    with self._lock:
                        self._engines.pop(engine.id, None)
                elif when is not None:
                    due.append(when)
            return min(due, default=None)
