"""One run on the server, from its first call to its end.

What a run wants of its sites is a generator of calls (:mod:`atoll.server.rounds.preparing`, then
:mod:`atoll.server.rounds.playing`). The engine opens each call at the run's counter, takes in the answers that
were accepted there, and sends the outcomes back into the generator. One thread works for all runs.

*An engine has no memory of its own.* Dropped at any moment and made anew from store and blobs, it opens
the same calls with the same task ids, finds the answers that were acknowledged, and goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import traceback
from collections.abc import Generator, Sequence
from pathlib import Path

from atoll.core.contracts import Outcome
from atoll.core.errors import (
    AtollError,
    FenceError,
    NotFound,
    StateError,
    StorageError,
    UpdateRefused,
    WireError,
)
from atoll.runtime.gathering import Delivered, Failed, Folded, Left, Refused, Tick
from atoll.server.office import Office
from atoll.server.rounds.answers import read_answer
from atoll.server.rounds.counter import Counter, refusal
from atoll.server.rounds.desk import Call, Desk
from atoll.server.rounds.playing import Playing
from atoll.server.rounds.preparing import Preparing
from atoll.server.rounds.results import CANCELLING, ENDED, leave_failed, sweep
from atoll.server.store.contract import Contribution, RunRow
from atoll.wire.messages import TaskBody

__all__ = ["ENDED", "Engine"]

log = logging.getLogger("atoll.server")

_LONGEST = 15_000


class Engine:
    """One run that has not ended. Not for several threads at once, but for its counter.

    Args:
        office: of the server.
        row: the run, as the store has it.

    Attributes:
        id: of the run.
        sites: of the run.
        counter: what its sites may ask.
        ended: whether there is nothing more to do.
    """

    def __init__(self, office: Office, row: RunRow) -> None:
        self.id = row.id
        self.sites = frozenset(row.sites)
        self.counter = Counter(office, row.id)
        self.ended = False
        self._office = office
        self._row = row
        self._life: Generator[Call, Sequence[Outcome], str] | None = None
        self._playing: Playing | None = None
        self._cancel = row.reason if row.status == CANCELLING else ""
        self._later = -math.inf
        self._trouble = ""

    def cancel(self, reason: str) -> None:
        """End at the next opportunity; durable when this returns. From any thread.

        Raises:
            StateError: the run has ended meanwhile.
        """
        office = self._office
        with self.counter.lock:  # no end falls between the look and the row
            if self.ended:
                raise StateError(f"run {self.id} has ended")
            office.store.set_run(office.epoch, self.id, status=CANCELLING, reason=reason)
            self._cancel = reason

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
            if self._cancel and self._playing is None:
                return self._end_badly("cancelled", StateError(self._cancel))
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
            desk = self.counter.desk
            # A run that is just being taken up comes to its rounds first: its folder is to tell of them.
            moving = self._playing is None and desk is not None and bool(desk.due or desk.complete)
            if self._cancel and not moving:
                return self._end_badly("cancelled", StateError(self._cancel))
            if desk is None:
                return None
            if desk.due:
                self._take(desk)
                continue
            if self.counter.busy:
                return None  # whoever is writing wakes this thread
            now, tick = self._office.now(), desk.next_tick
            if not desk.complete and tick is not None and tick <= now:
                self.counter.tell(Tick(now))
                continue
            if not desk.complete:
                return self._until(now, tick)
            if self._playing is not None:
                self._playing.close(desk)
            self._open(desk.outcomes)
        return None

    def _until(self, now: float, tick: float | None) -> float | None:
        """When there is more to do; answers that have waited long enough for the others are written."""
        due = self.counter.write_by
        if due is not None and due <= now:
            self.counter.write()
            self._office.tell(self.counter.told())
            due = None
        return min((t for t in (tick, due) if t is not None), default=None)

    def _lives(self) -> Generator[Call, Sequence[Outcome], str]:
        preparing = Preparing(self._office, self._row)
        prepared = yield from preparing.calls()
        self.counter.settle()
        self._playing = Playing(self._office, self._row, prepared, self.counter)
        return (yield from self._playing.calls())

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
        self.counter.write()  # nobody sees what came of answers that may still be lost
        with self.counter.lock:  # no answer may fall between the old desk and the new one
            desk = Desk(call, office.now(), office.heard)
            if self._playing is None or not self._playing.unheard:
                self._recover(desk)
            for site, reason in office.away.items():
                desk.tell(Left(site, reason))
            self.counter.place(desk)
        office.tell({task.client for task in call.tasks} | self.counter.told())

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
        start = refusal(row.task, "")
        texts = [e.text for e in self._office.store.events(self.id) if e.kind == "refused"]
        return next((t[len(start) :] for t in texts if t.startswith(start)), "it was not valid")

    def _take(self, desk: Desk) -> None:
        """Take in one answer; it is read from disk, outside the lock."""
        name = desk.due[0]
        event = self._taken(desk, desk.tasks[name])
        if isinstance(event, Refused):
            site = desk.tasks[name].client
            self._office.event("refused", refusal(name, event.reason), self.id, site)
        with self.counter.lock:
            desk.due.popleft()
            self.counter.tell(event)

    def _taken(self, desk: Desk, task: TaskBody) -> Folded | Refused | Failed:
        try:
            found = self.counter.answer(task.id, digest := desk.digest(task.id))
            if found is None:
                frame = self._office.blobs.view(digest)
                found = read_answer(frame, task.id, desk.expected(task.id))
            body, arrays = found
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
            log.warning("run %s is paused: %s", self.id, trouble)
            with contextlib.suppress(StorageError, OSError):
                self._office.event("paused", trouble, self.id)
        return self._later

    def _drop(self) -> None:
        """Forget everything that is not durable."""
        life, self._life, self._playing = self._life, None, None
        self.counter.close()
        self._office.tell(self.counter.told())
        self._office.hide(self.id)
        if life is not None:
            life.close()

    def _end_badly(self, status: str, error: AtollError) -> float | None:
        try:
            told = error.message if status == "cancelled" else f"{status}: {error.message}"
            self._leave(told)
            self._end(status, str(error))
        except FenceError:
            raise
        except (StorageError, OSError) as trouble:
            return self._pause(str(trouble))
        return None

    def _leave(self, told: str) -> None:
        """An honest folder; where that cannot be written for a fault of ours, the run ends all the same."""
        try:
            if self._playing is None:
                leave_failed(self._office, self._row, told)
            else:
                self._playing.failed(told)
        except (FenceError, StorageError, OSError):
            raise
        except Exception as fault:  # one run's fault must not become the others'
            log.exception("the folder of %s could not be finished", self.id)
            self._office.event("folder", _internal(fault).message, self.id)

    def _end(self, status: str, reason: str) -> None:
        office = self._office
        self.counter.write()
        with self.counter.lock:
            office.store.set_run(office.epoch, self.id, status=status, reason=reason[:_LONGEST])
            self.ended = self.counter.ended = True
        office.event(status, reason[:_LONGEST], self.id)
        self._drop()
        sweep(office, self._row)
        office.tell({*self.sites, f"run {self.id}"})


def _internal(error: Exception) -> AtollError:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({Path(f.filename).name}:{f.lineno} in {f.name})" for f in last)
    return AtollError(
        f"an error in the server: {type(error).__name__}: {error}{place}",
        remedy="report it with the server's log; no other run is affected",
    )
