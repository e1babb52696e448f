"""One run on the server, from its first call to its end.

What a run wants of its sites is a generator of calls (:mod:`atoll.server.preparing`, then
:mod:`atoll.server.playing`); the engine opens each at a :class:`~atoll.server.desk.Desk`, takes in what
sites deliver, and sends the outcomes back. Two kinds of callers meet here: requests of sites, which may
come from any thread and do no more than note something, and the one thread that works.

*Acknowledged means durable.* An answer is checked, its bytes are made durable, then its row is written
while the desk is held still, so that no call closes between the row and its place in the call.

*An engine has no memory of its own.* Dropped at any moment and made anew from store and blobs, it opens
the same calls with the same task ids, finds the answers that were acknowledged, and goes on.
"""

from __future__ import annotations

import contextlib
import math
import threading
import traceback
from collections.abc import Collection, Generator, Sequence
from pathlib import Path

from atoll.core.contracts import Outcome
from atoll.core.errors import (
    AtollError,
    Equivocation,
    FenceError,
    NotFound,
    StateError,
    StorageError,
    TooLarge,
    Unreachable,
    UpdateRefused,
    WireError,
)
from atoll.core.values import ClientId
from atoll.runtime.gathering import (
    Delivered,
    Event,
    Failed,
    Folded,
    Left,
    Refused,
    Seen,
    Tick,
)
from atoll.server.answers import Expected, read_answer
from atoll.server.desk import Call, Desk
from atoll.server.office import Office
from atoll.server.playing import Playing
from atoll.server.preparing import Preparing
from atoll.server.results import leave_failed, sweep
from atoll.server.store.contract import Contribution, RunRow
from atoll.wire.frames import Blob
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["CANCELLING", "ENDED", "OPEN", "Engine", "site_of"]

OPEN = "open"
"""Status of a run that goes on."""
CANCELLING = "cancelling"
"""Status of a run that is to be cancelled."""
ENDED = ("completed", "failed", "cancelled")
"""Statuses of a run that has ended."""

_LONGEST = 15_000


def site_of(task: str) -> str:
    """The site in a task's id; empty where there is none.

    >>> site_of("heart-1.train.3.hospital-c")
    'hospital-c'
    """
    return task.split(".", 3)[3] if task.count(".") >= 3 else ""


class Engine:
    """One run that has not ended.

    Args:
        office: of the server.
        row: the run, as the store has it.

    Attributes:
        id: of the run.
        ended: whether there is nothing more to do.
    """

    def __init__(self, office: Office, row: RunRow) -> None:
        self.id = row.id
        self.sites = frozenset(row.sites)
        self.ended = False
        self._office = office
        self._row = row
        self._lock = threading.RLock()
        self._desk: Desk | None = None
        self._flying: Desk | None = None
        self._life: Generator[Call, Sequence[Outcome], str] | None = None
        self._playing: Playing | None = None
        self._unsettled: set[str] = set()
        self._cancel = row.reason if row.status == CANCELLING else ""
        self._later = -math.inf
        self._trouble = ""

    # For any thread -----------------------------------------------------------------------------

    @property
    def taken_up(self) -> bool:
        """Whether calls are open; not before the first step after a start, nor after a disk's trouble."""
        with self._lock:
            return self._desk is not None

    def tasks(self, site: ClientId, have: Collection[str]) -> list[TaskBody]:
        """What ``site`` is asked for and does not have; what was lost here is asked for in any case."""
        now = self._office.now()
        with self._lock:
            return [
                task
                for desk in self._desks()
                for task in desk.open(site, now)
                if task.id not in have or task.id in desk.lost
            ]

    def settled(self, task: str) -> bool:
        """Whether ``task`` is neither asked for nor waiting for the round to be committed."""
        with self._lock:
            if self._desk is None or task in self._unsettled:
                return False
            return not any(task in desk.names(site_of(task)) for desk in self._desks())

    def grants(self, site: ClientId, sha256: str) -> bool:
        """Whether a task of the present calls of ``site`` names that blob."""
        with self._lock:
            tasks = [task for desk in self._desks() for task in desk.tasks.values()]
        return any(t.client == site and sha256 in _named(t) for t in tasks)

    def _desks(self) -> list[Desk]:
        """The present call, and the asynchronous step whose tasks are still at work beside it."""
        return [desk for desk in (self._desk, self._flying) if desk is not None]

    def _accepting(self, task: str) -> Desk | None:
        now = self._office.now()
        return next((desk for desk in self._desks() if desk.accepts(task, now)), None)

    def hear(self, site: ClientId, now: float) -> None:
        """``site`` has been heard of."""
        self._tell(Seen(site, now))

    def leave(self, site: ClientId, reason: str) -> None:
        """``site`` is no member any more."""
        self._tell(Left(site, reason))

    def cancel(self, reason: str) -> None:
        """End at the next opportunity; durable when this returns."""
        with self._lock:
            self._office.store.set_run(
                self._office.epoch, self.id, status=CANCELLING, reason=reason
            )
            self._cancel = reason

    def expected(self, task: str) -> Expected:
        """What an answer to ``task`` may hold.

        Raises:
            Unreachable: the run is just being taken up again.
            StateError: it is not asked for, or not any more.
        """
        with self._lock:
            if self._desk is None and not self.ended:
                raise Unreachable("this run is just being taken up again", remedy="try again")
            desk = self._accepting(task)
            if desk is None:
                raise StateError(
                    f"task {task} is not open", remedy="ask for tasks; this answer is not needed"
                )
            return desk.expected(task)

    def deliver(self, site: ClientId, task: str, blob: Blob, frame: bytes | None) -> bool:
        """Take in an answer; when this returns it is durable.

        Args:
            site: who sent it.
            task: to which task.
            blob: the frame's digest and size.
            frame: its bytes; None where they are an uploaded blob already.

        Returns:
            whether it had been there before, in the same bytes.

        Raises:
            Equivocation: another answer is there; the first stays.
            StateError: it is not asked for, or not any more.
            WireError: it is not valid; the task is then closed as refused.
            UpdateRefused: the same.
        """
        office = self._office
        if self.heard(site, task, blob):
            return True
        expected = self.expected(task)
        try:
            if blob.size > expected.largest:
                raise TooLarge(f"an answer of {blob.size} bytes: at most {expected.largest}")
            view = office.blobs.view(blob.sha256) if frame is None else frame
            body, _ = read_answer(view, task, expected)
        except (WireError, UpdateRefused) as error:
            self.refuse(site, task, blob, error.message)
            raise
        if frame is not None:
            office.blobs.put(frame)
        return self._contribute(site, task, blob, body)

    def refuse(self, site: ClientId, task: str, blob: Blob, reason: str) -> None:
        """Close a task whose answer cannot be taken in; this too is durable."""
        self._office.event("refused", _refusal(task, reason), self.id, site)
        self._contribute(site, task, blob, ResultBody(task=task, status="refused", reason=reason))

    def heard(self, site: ClientId, task: str, blob: Blob) -> bool:
        """Whether this answer is there; one that is there and was lost from disk is none.

        Raises:
            Equivocation: another one is.
        """
        with self._lock:
            if any(task in desk.lost for desk in self._desks()):
                return False
        rows = self._office.store.contributions(self.id, task)
        row = next((row for row in rows if row.task == task), None)
        if row is not None and row.sha256 != blob.sha256:
            raise self._alarm(site, task, row.sha256, blob.sha256)
        return row is not None

    def _alarm(self, site: ClientId, task: str, first: str, second: str) -> Equivocation:
        text = f"{task}: answered with {first[:12]} first, then with {second[:12]}"
        self._office.event("equivocation", text, self.id, site)
        return Equivocation(
            f"there is another answer to task {task}: {first[:12]}, not {second[:12]}",
            site=site,
            remedy="two nodes with one key, or a node restored from a copy? The first answer stays",
        )

    def _contribute(self, site: ClientId, task: str, blob: Blob, body: ResultBody) -> bool:
        office = self._office
        with self._lock:  # no call closes between the row and its place in the call
            self.expected(task)
            now = office.now()
            row = Contribution(
                run=self.id,
                task=task,
                client=site,
                sha256=blob.sha256,
                size=blob.size,
                status=body.status,
                examples=body.examples,
                weight=body.weight,
                received=now,
            )
            found = office.store.contribute(office.epoch, row)
            if found == "different":
                first = office.store.contributions(self.id, task)[0].sha256
                raise self._alarm(site, task, first, blob.sha256)
            self._unsettled.add(task)
            here = body.status != "refused" or office.blobs.has(blob.sha256)
            self._tell(Delivered(task, blob.sha256, now) if here else Refused(task, body.reason))
        office.wake()
        return found == "same"

    def _tell(self, event: Event) -> None:
        with self._lock:
            for desk in self._desks():
                desk.tell(event)
            done = self._desk is not None and self._desk.complete
        if done:
            self._office.wake()

    # For the one thread that works --------------------------------------------------------------

    def work(self) -> float | None:
        """Do all that is due; returns when time alone will make more, None for never.

        Raises:
            FenceError: another server has taken over.
        """
        if self.ended:
            return None
        if self._office.now() < self._later:
            return self._later
        try:
            return self._work()
        except FenceError:
            raise
        except (StorageError, OSError, NotFound) as error:
            # The disk's trouble is not the run's end: it is taken up again from what is durable.
            return self._pause(str(error))
        except AtollError as error:
            return self._end_badly("failed", error)
        except Exception as error:  # one run's fault must not become the others'
            return self._end_badly("failed", _internal(error))

    def _work(self) -> float | None:
        if self._life is None:
            self._life = self._lives()
            self._open(None)
        while not self.ended:
            if self._cancel:
                return self._end_badly("cancelled", StateError(self._cancel))
            desk = self._desk
            if desk is None:
                return None
            if desk.due:
                self._take(desk)
                continue
            now, tick = self._office.now(), desk.next_tick
            if not desk.complete and tick is not None and tick <= now:
                self._tell(Tick(now))
                continue
            if not desk.complete:
                return tick
            if self._playing is not None:
                self._playing.live = desk.live
            self._open(desk.outcomes)
        return None

    def _lives(self) -> Generator[Call, Sequence[Outcome], str]:
        preparing = Preparing(self._office, self._row)
        prepared = yield from preparing.calls()
        self._settle()
        self._playing = Playing(self._office, self._row, prepared, self._settle)
        return (yield from self._playing.calls())

    def _settle(self, flying: Collection[str] = ()) -> None:
        """What was acknowledged has been used: nodes may forget it, but for the tasks still at work."""
        with self._lock:
            self._unsettled &= set(flying)

    def _open(self, outcomes: Sequence[Outcome] | None) -> None:
        """Go on with the outcomes of the last call, and open the next one."""
        if self._life is None:
            return
        try:
            call = next(self._life) if outcomes is None else self._life.send(outcomes)
        except StopIteration as end:
            self._end("completed", end.value)
            return
        office = self._office
        with self._lock:  # no answer may fall between the old desk and the new one
            desk = Desk(call, office.now(), office.heard)
            self._recover(desk)
            for site, reason in office.away.items():
                desk.tell(Left(site, reason))
            if desk.live is not None:
                self._flying = None
            elif self._desk is not None and self._desk.live is not None:
                self._flying = self._desk
            self._desk = desk
            self._unsettled |= {t for t in desk.tasks if desk.digest(t)}
        office.tell({task.client for task in call.tasks})

    def _recover(self, desk: Desk) -> None:
        """Answers that were acknowledged before the call was opened, in the order in which they came."""
        office, place = self._office, {name: number for number, name in enumerate(desk.tasks)}
        starts = dict.fromkeys(task.id[: -len(task.client)] for task in desk.tasks.values())
        found = [row for start in starts for row in office.store.contributions(self.id, start)]
        known = [row for row in found if row.task in place]
        for row in sorted(known, key=lambda row: (row.received, place[row.task])):
            if office.blobs.has(row.sha256):
                desk.tell(Delivered(row.task, row.sha256, office.now()))
            elif row.status == "refused":
                desk.tell(Refused(row.task, self._why(row)))
            else:
                desk.lost.add(row.task)
                office.event("lost", f"{row.task}: no bytes on disk", self.id, row.client)

    def _why(self, row: Contribution) -> str:
        """Why an answer was refused, from the log."""
        start = _refusal(row.task, "")
        texts = [e.text for e in self._office.store.events(self.id) if e.kind == "refused"]
        return next((t[len(start) :] for t in texts if t.startswith(start)), "it was not valid")

    def _take(self, desk: Desk) -> None:
        """Take in one answer; it is read from disk, outside the lock."""
        name = desk.due[0]
        event = self._taken(desk, desk.tasks[name])
        if isinstance(event, Refused):
            site = desk.tasks[name].client
            self._office.event("refused", _refusal(name, event.reason), self.id, site)
        with self._lock:
            desk.due.popleft()
            desk.tell(event)

    def _taken(self, desk: Desk, task: TaskBody) -> Folded | Refused | Failed:
        try:
            frame = self._office.blobs.view(desk.digest(task.id))
            body, arrays = read_answer(frame, task.id, desk.expected(task.id))
            if body.status == "done":
                desk.call.take(task, body, arrays)
                return Folded(task.id, body.examples, body.seconds)
        except (WireError, UpdateRefused) as error:
            return Refused(task.id, error.message)
        except (StorageError, OSError, MemoryError, NotFound):
            raise
        except Exception as error:  # an answer that breaks its reader is its site's fault
            return Refused(task.id, _internal(error).message)
        if body.status == "refused":
            return Refused(task.id, body.reason)
        return Failed(task.id, body.reason, body.seconds)

    # Ends ---------------------------------------------------------------------------------------

    def _pause(self, trouble: str) -> float:
        self._drop()
        self._later = self._office.now() + self._office.settings.retry
        if trouble != self._trouble:
            self._trouble = trouble
            with contextlib.suppress(StorageError, OSError):
                self._office.event("paused", trouble, self.id)
        return self._later

    def _drop(self) -> None:
        """Forget everything that is not durable."""
        life, self._life, self._playing = self._life, None, None
        with self._lock:
            self._desk = self._flying = None
        if life is not None:
            life.close()

    def _end_badly(self, status: str, error: AtollError) -> float | None:
        try:
            if self._playing is None:
                leave_failed(self._office, self._row, f"{status}: {error.message}")
            else:
                self._playing.failed(error)
            self._end(status, str(error))
        except FenceError:
            raise
        except (StorageError, OSError) as trouble:
            return self._pause(str(trouble))
        return None

    def _end(self, status: str, reason: str) -> None:
        office = self._office
        office.store.set_run(office.epoch, self.id, status=status, reason=reason[:_LONGEST])
        office.event(status, reason[:_LONGEST], self.id)
        self.ended = True
        self._drop()
        sweep(office, self._row)
        office.tell({*self.sites, f"run {self.id}"})


def _named(task: TaskBody) -> set[str]:
    """The blobs that a task names."""
    refs = [task.plan, *task.code.values(), *([task.broadcast] if task.broadcast else [])]
    return {ref.sha256 for ref in refs}


def _refusal(task: str, reason: str) -> str:
    return f"{task}: {reason}"


def _internal(error: Exception) -> AtollError:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({Path(f.filename).name}:{f.lineno} in {f.name})" for f in last)
    return AtollError(
        f"an error in the server: {type(error).__name__}: {error}{place}",
        remedy="report it with the server's log; no other run is affected",
    )
