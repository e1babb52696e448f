"""The counter of one run: what requests of its sites may ask, from any thread.

A :class:`Counter` holds the run's open calls (:mod:`atoll.server.rounds.desk`) and notes what it is told.
What is to be done about it the one thread that works does (:mod:`atoll.server.rounds.engine`).

*Acknowledged means durable.* An answer is checked, its bytes are made durable, then its row is written.
Until it has its place in the call, whatever could close the call waits, but other answers do not: rows
that are written at the same time share one wait for the disk. A short answer may have its place at once and
its receipt later, when it is written (:mod:`atoll.server.rounds.early`).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from functools import lru_cache

from atoll.core.errors import (
    Equivocation,
    StateError,
    TooLarge,
    Unreachable,
    UpdateRefused,
    WireError,
)
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.runtime.gathering import Delivered, Event, Left, Refused, Seen
from atoll.server.office import Office
from atoll.server.rounds.answers import Expected, read_answer
from atoll.server.rounds.desk import Desk
from atoll.server.rounds.early import Early
from atoll.server.store.contract import Contribution, Heard
from atoll.wire.frames import Blob
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["Answer", "Counter", "refusal", "site_of"]

Answer = tuple[ResultBody, dict[str, Array]]
"""What a site has said, and the vectors that came with it."""

_PREPARATION = ("survey", "greet", "deal", "take", "sums", "ready")
_STEPS = ("commit", "share", "train", "pledge", "release", "open")
"""Of a round; one that is neither masked nor encrypted has the third alone."""
_FIRST = (0, 0, 0, -1)


def site_of(task: str) -> str:
    """The site in a task's id; empty where there is none.

    >>> site_of("heart-1.train.3.hospital-c")
    'hospital-c'
    """
    return task.split(".", 3)[3] if task.count(".") >= 3 else ""


_Place = tuple[int, int, int, int]


@lru_cache(1024)
def _place(task: str, flying: bool = False) -> _Place:
    """Where a task stands in the order of a run's calls.

    In an asynchronous run (``flying``) a task of training has the number of its dispatch, and stays open over
    several steps: like a ``fit`` it is for the first of them.

    >>> calls = ["r.survey.0.a", "r.ready.0.a", "r.train.0.a", "r.evaluate.1-ab.a", "r.train.1.a"]
    >>> fits = ["r.ready.0.a", "r.fit.7.a", "r.fit.8.a", "r.commit.0-0.a"]  # before any round they are for
    >>> sorted(fits, key=_place) == fits
    True
    >>> calls += ["r.commit.2-0.a", "r.pledge.2-0.a", "r.commit.2-1.a", "r.evaluate.3-ab.a"]
    >>> calls += ["r.train.3.a", "r.commit-evaluate.4-0-ab.a", "r.evaluate.4-0-ab.a"]
    >>> calls += ["r.pledge-evaluate.4-0-ab.a", "r.commit.4-0.a"]
    >>> sorted(calls, key=_place) == calls
    True
    >>> _place("r.ready.0.a") < _place("r.train.7.a", flying=True) < _place("r.evaluate.1-ab.a", flying=True)
    True
    """
    _, name, place, *_ = [*task.split(".", 3), "", "", ""]
    kind, _, about = name.partition("-")
    number, *more = place.split("-")
    subject = about or ("train" if kind in _STEPS else kind)
    before = _PREPARATION.index(subject) if subject in _PREPARATION else len(_PREPARATION)
    if kind == "fit" or (flying and kind == "train"):
        return before, 0, _whole(number), 0
    step = _STEPS.index(kind) if kind in _STEPS else _STEPS.index("train")
    tried = more[:1] if subject == "train" or len(more) > 1 else []
    return before, 2 * _whole(number) + (subject == "train"), _whole("".join(tried)), step


def _step(number: int) -> _Place:
    """Where a step of an asynchronous run stands: before whatever else is asked in it, if it is masked.

    >>> _place("r.evaluate.3-ab.a") < _step(3) < _place("r.commit.3-0.a") < _place("r.evaluate.4-ab.a")
    True
    """
    return len(_PREPARATION), 2 * number + 1, 0, -1


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def refusal(task: str, reason: str) -> str:
    """How the log says that the answer to ``task`` was refused."""
    return f"{task}: {reason}"


class Counter:
    """What sites may ask of one run.

    Args:
        office: of the server.
        run: its id.

    Attributes:
        lock: held while calls are changed.
        ended: whether the run has.
    """

    def __init__(self, office: Office, run: str) -> None:
        self.lock = threading.RLock()
        self.ended = False
        self._office = office
        self._run = run
        self._desk: Desk | None = None
        self._flying: Desk | None = None
        self._arriving = 0
        self._postponed: list[Event] = []
        self._unsettled: set[str] = set()
        self._used: frozenset[str] = frozenset()
        self._read: dict[str, tuple[str, Answer]] = {}
        self._early: dict[str, Early] = {}
        self._written: set[str] = set()
        self._flies = False  # until a step of an asynchronous run is open
        # As far as the run had come when this server started; for each of the two.
        known = [row.task for row in office.store.contributions(run)]
        self._behind = [max((_place(t, f) for t in known), default=()) for f in (False, True)]

    # Sites --------------------------------------------------------------------------------------

    @property
    def taken_up(self) -> bool:
        """Whether the run has come back to where it was before a start or a disk's trouble.

        Its calls are opened one after another from the first. While those are open that have been answered
        already, what later ones name is not there yet, and will be.
        """
        with self.lock:
            return self._desk is not None and self._reached > self._behind[self._flies]

    @property
    def _reached(self) -> _Place:
        """As far as the run has come in the order of its calls."""
        if self._desk is None:
            return _FIRST
        if (step := self._desk.live) is not None:
            return _step(step.number)
        return max((_place(task, self._flies) for task in self._desk.tasks), default=_FIRST)

    def tasks(self, site: ClientId, have: Collection[str]) -> list[TaskBody]:
        """What ``site`` is asked for and does not have; what was lost here is asked for in any case."""
        now = self._office.now()
        with self.lock:
            return [
                task
                for desk in self._desks()
                for task in desk.open(site, now)
                if task.id not in have or task.id in desk.lost
            ]

    def settled(self, task: str) -> bool:
        """Whether ``task`` is neither asked for nor waiting for the round to be committed."""
        with self.lock:
            if self._desk is None or task in self._unsettled or self._to_come(task):
                return False
            return not any(task in desk.names(site_of(task)) for desk in self._desks())

    def grants(self, site: ClientId, sha256: str) -> bool:
        """Whether a task of the present calls of ``site`` names that blob."""
        with self.lock:
            tasks = [task for desk in self._desks() for task in desk.tasks.values()]
        return any(t.client == site and sha256 in _named(t) for t in tasks)

    def _desks(self) -> list[Desk]:
        """The present call, and the asynchronous step whose tasks are still at work beside it."""
        return [desk for desk in (self._desk, self._flying) if desk is not None]

    def _accepting(self, task: str) -> Desk | None:
        now = self._office.now()
        return next((desk for desk in self._desks() if desk.accepts(task, now)), None)

    def _to_come(self, task: str) -> bool:
        """Whether the run has not come to that task again since the server's start.

        Its calls are opened one after another from the first, and a site has long known of a later one.
        """
        return _place(task, self._flies) > self._reached

    def hear(self, site: ClientId, now: float) -> None:
        """``site`` has been heard of."""
        self.tell(Seen(site, now))

    def leave(self, site: ClientId, reason: str) -> None:
        """``site`` is no member any more."""
        self.tell(Left(site, reason))

    def expected(self, task: str) -> Expected:
        """What an answer to ``task`` may hold.

        Raises:
            Unreachable: the run is just being taken up again.
            StateError: it is not asked for, or not any more.
        """
        with self.lock:
            if self._desk is None and not self.ended:
                raise Unreachable("this run is just being taken up again", remedy="try again")
            desk = self._accepting(task)
            if desk is None and self._to_come(task):
                raise Unreachable("this run is just being taken up again", remedy="try again")
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
        try:
            expected = self.expected(task)
        except (StateError, Unreachable):
            if self.heard(site, task, blob):
                return True
            raise
        try:
            if blob.size > expected.largest:
                raise TooLarge(f"an answer of {blob.size} bytes: at most {expected.largest}")
            view = office.blobs.view(blob.sha256) if frame is None else frame
            body, arrays = read_answer(view, task, expected)
        except (WireError, UpdateRefused) as error:
            self.refuse(site, task, blob, error.message)
            raise
        if frame is not None:
            office.blobs.put(frame, blob)
            with self.lock:  # it is in memory: whoever takes it in need not read it again
                self._read[task] = blob.sha256, (body, arrays)
        return self._contribute(site, task, blob, body)

    def offer(self, site: ClientId, task: str, blob: Blob, frame: bytes) -> Early | None:
        """Take in a short answer that need not be durable at once; None where it is to be delivered.

        Args:
            site: who sent it.
            task: to which task.
            blob: the frame's digest and size.
            frame: its bytes.
        """
        office = self._office
        with self.lock:
            early, desk = self._early.get(task), self._accepting(task)
            if early is not None or desk is None or not self._together(desk, task):
                return early if early is not None and early.row.sha256 == blob.sha256 else None
            expected = desk.expected(task)
        try:
            body, arrays = read_answer(frame, task, expected)
        except (WireError, UpdateRefused):
            return None
        if blob.size > expected.largest:
            return None
        office.blobs.put(frame, blob)
        with self.lock:
            if self._accepting(task) is not desk or not self._together(desk, task):
                return None  # another answer is being written
            now = office.now()
            row = self._row(site, task, blob, body, now)
            early = self._early[task] = Early(row, now + office.settings.together)
            self._read[task] = blob.sha256, (body, arrays)
            self._unsettled.add(task)
            for each in self._desks():
                each.tell(Delivered(task, blob.sha256, now))
        office.wake()
        return early

    def _together(self, desk: Desk, task: str) -> bool:
        wanted = desk.call.together and self._office.settings.together > 0
        return wanted and task not in desk.lost and not self._arriving

    def refuse(self, site: ClientId, task: str, blob: Blob, reason: str) -> None:
        """Close a task whose answer cannot be taken in; this too is durable."""
        self._office.event("refused", refusal(task, reason), self._run, site)
        self._contribute(site, task, blob, ResultBody(task=task, status="refused", reason=reason))

    def heard(self, site: ClientId, task: str, blob: Blob) -> bool:
        """Whether this answer is there; one that is there and was lost from disk is none.

        Raises:
            Equivocation: another one is.
            Unreachable: it is about to be written.
        """
        with self.lock:
            if any(task in desk.lost for desk in self._desks()):
                return False
            early = self._early.get(task)
        if early is not None and early.row.sha256 != blob.sha256:
            raise self._alarm(site, task, early.row.sha256, blob.sha256)
        if early is not None:
            raise Unreachable("this answer is just being written", remedy="try again")
        rows = self._office.store.contributions(self._run, task)
        row = next((row for row in rows if row.task == task), None)
        if row is not None and row.sha256 != blob.sha256:
            raise self._alarm(site, task, row.sha256, blob.sha256)
        return row is not None

    def _alarm(self, site: ClientId, task: str, first: str, second: str) -> Equivocation:
        text = f"{task}: answered with {first[:12]} first, then with {second[:12]}"
        self._office.event("equivocation", text, self._run, site)
        return Equivocation(
            f"there is another answer to task {task}: {first[:12]}, not {second[:12]}",
            site=site,
            remedy="two nodes with one key, or a node restored from a copy? The first answer stays",
        )

    def _contribute(self, site: ClientId, task: str, blob: Blob, body: ResultBody) -> bool:
        office = self._office
        with self.lock:
            self.expected(task)
            now = office.now()
            self._arriving += 1
        try:
            row = self._row(site, task, blob, body, now)
            found = office.store.contribute(office.epoch, row)
            if found == "different":
                first = office.store.contributions(self._run, task)[0].sha256
                raise self._alarm(site, task, first, blob.sha256)
            here = body.status != "refused" or office.blobs.has(blob.sha256)
            event = Delivered(task, blob.sha256, now) if here else Refused(task, body.reason)
            with self.lock:
                self._unsettled.add(task)
                for desk in self._desks():
                    desk.tell(event)
        finally:
            self._arrived()
        return found == "same"

    def _row(
        self, site: ClientId, task: str, blob: Blob, body: ResultBody, now: float
    ) -> Contribution:
        return Contribution(
            run=self._run,
            task=task,
            client=site,
            sha256=blob.sha256,
            size=blob.size,
            status=body.status,
            examples=body.examples,
            weight=body.weight,
            received=now,
        )

    def _arrived(self) -> None:
        """Answers that are being written hold up everything that could close their call."""
        with self.lock:
            self._arriving -= 1
            waiting: list[Event] = []
            if not self._arriving:
                waiting, self._postponed = self._postponed, []
            for event in waiting:
                self.tell(event)
        self._office.wake()

    def tell(self, event: Event) -> None:
        """Something has happened that is no new answer."""
        with self.lock:
            if self._arriving:
                self._postponed.append(event)
                return
            for desk in self._desks():
                desk.tell(event)
            done = self._desk is not None and self._desk.complete
        if done:
            self._office.wake()

    # The thread that works ----------------------------------------------------------------------

    @property
    def desk(self) -> Desk | None:
        """The present call."""
        return self._desk

    @property
    def busy(self) -> bool:
        """Whether an answer is being written; the thread that works is woken when it is."""
        with self.lock:
            return bool(self._arriving)

    def answer(self, task: str, digest: str) -> Answer | None:
        """The answer of that digest as it was read when it came, once; None where it has to be read."""
        with self.lock:
            sha256, found = self._read.pop(task, ("", None))
        return found if sha256 == digest else None

    def waiting(self) -> tuple[Contribution, ...]:
        """Answers that are not written yet, in the order in which they came."""
        with self.lock:
            return tuple(early.row for early in self._early.values())

    @property
    def write_by(self) -> float | None:
        """When the first of them is to be written by itself; None where there is none."""
        with self.lock:
            return min((early.until for early in self._early.values()), default=None)

    def write(self) -> None:
        """Write what waits for that.

        Raises:
            StorageError: it could not be; nobody was told that it is there.
            FenceError: another server has taken over.
        """
        if waiting := self.waiting():
            office = self._office
            self.wrote(waiting, office.store.contribute_all(office.epoch, waiting))

    def wrote(self, rows: Sequence[Contribution], found: Sequence[Heard]) -> None:
        """These are durable now; their sites may be told."""
        with self.lock:
            for row, heard in zip(rows, found, strict=True):
                self._early.pop(row.task).found = heard
                self._written.add(row.client)

    def told(self) -> set[ClientId]:
        """Sites whose answers were written, or given up, since the last time; they are told now."""
        with self.lock:
            told, self._written = self._written, set()
        return told

    def place(self, desk: Desk) -> None:
        """Open the next call; to be done under :attr:`lock`, together with what it takes over.

        The tasks of an asynchronous step stay open beside the calls after it, until the next step.
        """
        with self.lock:
            if desk.live is not None:
                self._flies, self._flying = True, None
            elif self._desk is not None and self._desk.live is not None:
                self._flying = self._desk
            self._desk = desk
            self._read.clear()
            self._unsettled |= {t for t in desk.tasks if desk.digest(t)}

    def settle(self, flying: Collection[str] = ()) -> None:
        """What was acknowledged has been used: nodes may forget it, but for the tasks still at work."""
        with self.lock:
            self._unsettled &= set(flying)

    def commit(self, flying: Collection[str]) -> None:
        """The same, once a round is committed, which only the server that has the store can do."""
        with self.lock:
            self._used = frozenset(self._unsettled - set(flying))
            self.settle(flying)

    def used(self, task: str) -> bool:
        """Whether the round that was committed last here was the answer's to ``task``: so it stays."""
        return task in self._used

    def close(self) -> None:
        """No call is open any more."""
        gone = Unreachable("this run is just being taken up again", remedy="send it again")
        with self.lock:
            self._desk = self._flying = None
            self._read.clear()
            for early in self._early.values():
                early.found = gone
                self._written.add(early.row.client)
            self._early.clear()


def _named(task: TaskBody) -> set[str]:
    """The blobs that a task names."""
    refs = [task.plan, *task.code.values(), task.broadcast, task.said]
    return {ref.sha256 for ref in refs if ref is not None}
