"""The node: one question to the server is always open, each run has its thread, nothing listens.

What the node was doing when it was killed it takes up again at the next start: results in the spool
are sent again in the same bytes, everything else is offered again by the server.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from atoll.core.errors import AtollError, Forbidden, StorageError
from atoll.core.layout import Array
from atoll.node.asking import LINGER, Turns
from atoll.node.audit.answers import Answers
from atoll.node.audit.log import AuditLog
from atoll.node.cache import Cache
from atoll.node.errands import Errands
from atoll.node.fence import Fence
from atoll.node.home import Home
from atoll.node.link import INLINE, Channel, Link
from atoll.node.peers import Trust
from atoll.node.policy.steward import Steward, charged
from atoll.node.room.scratch import clear
from atoll.node.run_folder import Held
from atoll.node.settings import GIB, Settings
from atoll.node.site import Site
from atoll.node.spool import Spool
from atoll.runtime.fulfilling import backoff
from atoll.wire.disk import Disk, RealDisk
from atoll.wire.frames import Blob
from atoll.wire.messages import PollReply, TaskBody

__all__ = ["Agent", "stop_on_signal"]

log = logging.getLogger("atoll.node")

_WAIT = 25
"""Seconds the server may keep a question open."""
_TELL = 1.0
"""Seconds between looks at what is worth telling."""
_ANCHOR = 5.0
"""Seconds between moves of the audit log's signed head."""
_LAST = 5.0
"""Seconds that threads are given to end; one that waits for the network is left to end with the process."""
_BREATH = 0.5
"""Seconds before the next question to a server that says nothing at once."""


class Agent:
    """A node at work.

    Args:
        home: its folder; it must be locked by the caller.
        name: of the site in its federation.
        channel: to the server.
        settings: limits of this site.
        disk: where the spool and the server's epoch lie.
        jitter: numbers in [0, 1).
        trust: keys and peers, for masked rounds.
        steward: the site's rules and its ledger.
        here: whether the folder is still where it was.
        audit: where is written what leaves.

    Raises:
        StorageError: the spool or the record of the server's epoch is damaged, or cannot be read.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        channel: Channel,
        settings: Settings,
        *,
        disk: Disk | None = None,
        jitter: Callable[[], float] = random.random,
        trust: Trust | None = None,
        steward: Steward | None = None,
        here: Callable[[], bool] = lambda: True,
        audit: AuditLog | None = None,
    ) -> None:
        clear(home.work)
        disk = disk or RealDisk()
        spool = Spool(home.spool, disk, round(settings.spool * GIB))
        self._fence = Fence(home.epoch, disk)
        cache = Cache(home.cache, round(settings.cache * GIB))
        if steward is not None:
            steward.begin({held.task for held in spool.results})
        head = None if steward is None else steward.tell
        self._answers = None
        if audit is not None:
            self._answers = Answers(audit, cache.path, self._charge, spool.header)
        link = Link(channel, head, lambda: self._fence.seen)
        self._site = Site(
            home,
            name,
            settings,
            link,
            spool,
            cache,
            jitter,
            trust,
            steward,
            self._hand_in,
            self._answers,
        )
        self._runs: dict[str, Errands] = {}
        self._ending: list[Errands] = []  # of runs that are over, or were idle
        self._turns = Turns()
        self._taking, self._takes = threading.Lock(), 0
        self._strangers: set[str] = set()
        self._over: set[str] = set()
        self._stop = threading.Event()
        self._ended: AtollError | None = None
        self._told: Mapping[str, Any] = {}
        self._state, self._here = "starting", here
        self._settings = home.settings_state
        self._trouble = self._code = ""  # what the last question came to, where it was not answered

    def run(self) -> None:
        """Work until :meth:`stop`.

        Raises:
            Forbidden: the federation does not know this node any more.
            StorageError: its folder was moved away.
        """
        for run in sorted({held.run for held in self._site.spool.results}):
            self._start(run, again=True)
        asking = threading.Thread(target=self._ask_forever, name="poll", daemon=True)
        asking.start()
        self._tell()
        anchored = time.monotonic()
        while not self._stop.wait(_TELL):
            if self._answers is not None and time.monotonic() - anchored > _ANCHOR:
                self._answers.anchor()
                anchored = time.monotonic()
            if not self._here():
                # What is made anew under the old name would be without keys, ledger and queries.
                self._ended = self._ended or StorageError(
                    f"{self._site.home.path} was moved or removed while the node ran",
                    remedy="put it back, or start the node with --home where it is now",
                )
                self._stop.set()
                continue
            self._tell()
        self._state = "stopped"
        with self._taking:  # an answer that comes from now on begins nothing
            runs = list(self._runs.values())
        for errands in runs:
            errands.stop()
        until = time.monotonic() + _LAST
        for errands in (*runs, *self._ending):
            if not errands.join(max(0.0, until - time.monotonic())):
                log.warning("run %s: what it does ends with the process", errands.run_id)
        self._tell()
        if self._answers is not None:
            self._answers.anchor()
        if self._ended is not None:
            raise self._ended

    def stop(self) -> None:
        """End soon; from any thread or signal handler."""
        self._stop.set()

    def _charge(self, task: TaskBody) -> str:
        """Under which name the privacy ledger counts an answer to a task."""
        name, steward = charged(task), self._site.steward
        costs = task.kind in ("train", "evaluate") and steward is not None and steward.charges(name)
        return name if costs else ""

    def _start(self, run: str, *, again: bool) -> Errands:
        held = [h for h in self._site.spool.results if h.run == run]
        made = Errands(run, self._site, held, again=again)
        if run in self._runs:
            self._leave(run)
        self._runs[run] = made
        made.start()
        return made

    def _leave(self, run: str) -> Errands:
        """A run's thread, which ends by itself, and for whose end is only waited from now on."""
        found = self._runs.pop(run)
        self._ending = [*(e for e in self._ending if e.alive), found]
        return found

    # The one open question ----------------------------------------------------------------------

    def _ask_forever(self) -> None:
        tries = 0
        while not self._stop.is_set():
            self._turns.wait()
            began, asked, work = time.monotonic(), self._takes, False
            have = self._have()
            try:
                # Asked at first without waiting, so that it is known at once whether all is well.
                wait = _WAIT if self._state == "connected" else 0
                reply, blobs = self._site.link.poll(have, wait)
                work = any(body.id not in have for body in reply.tasks)
                self._take(asked, reply, blobs)
            except Forbidden as error:
                self._ended = error
                self._stop.set()
            except AtollError as error:
                tries += 1
                self._trouble, self._code = str(error), error.code
                self._state = "not connected"
                if tries == 1:
                    log.warning("the server cannot be asked: %s", error)
                self._stop.wait(backoff(tries, self._site.jitter()))
            except Exception:  # nothing may end the node but its operator
                tries += 1
                log.exception("something unexpected")
                self._stop.wait(backoff(tries, self._site.jitter()))
            else:
                if tries:
                    log.warning("the server answers again")
                tries, self._trouble, self._code = 0, "", ""
                if wait and not (reply.gone or work) and time.monotonic() - began < _BREATH:
                    self._stop.wait(_BREATH)
                self._state = "connected"
            finally:
                self._turns.polled(work)

    def _hand_in(self, held: Held, raw: bytes) -> None:
        """Hand in a short result; if no question is open, this one goes with it."""
        if not self._turns.bring():
            self._site.link.deliver(held, raw)
            return
        asked, work = self._takes, False
        have = self._have()
        try:
            found = self._site.link.deliver_and_ask(held, raw, have, LINGER)
            if found is not None:
                work = any(body.id not in have for body in found[0].tasks)
                self._take_from_result(asked, *found)
        finally:
            self._turns.brought(work)

    def _take_from_result(self, asked: int, reply: PollReply, blobs: Mapping[str, Array]) -> None:
        """The result was taken, whatever becomes of the news that came with its receipt."""
        if not self._fence.told(reply.epoch, reply.start):
            return  # a new start: with the next question it is told which one was seen before
        try:
            self._take(asked, reply, blobs)
        except Exception:  # they are told again
            log.exception("news could not be taken in")

    def _have(self) -> set[str]:
        runs = dict(self._runs)
        tasks = [errands.held for errands in runs.values()]
        return self._strangers.union(runs, self._site.spool.runs, *tasks) - self._over

    def _take(self, asked: int, reply: PollReply, blobs: Mapping[str, Array]) -> None:
        """Take news in, unless others were since the question: they are older then, or told again.

        A question that is overdue stays open beside the next one. Its answer may ask for what the other has
        told to be over. Of a node that ends no news is taken in: nobody would end what they begin.
        """
        for sha256, raw in blobs.items():
            try:
                self._site.cache.put(Blob(sha256, raw.size), raw.data)
            except StorageError as error:  # it can still be downloaded, when there is room again
                log.warning("%s", error)
        with self._taking:
            if asked == self._takes and not self._stop.is_set():
                self._takes += 1
                self._take_in(reply)

    def _take_in(self, reply: PollReply) -> None:
        self._fence.follow(reply.epoch, reply.start)
        if self._site.steward is not None:
            self._site.steward.see(reply.ledger)
        for name in reply.gone:
            self._strangers.discard(name)
            if name in self._runs:
                self._over.add(name)
                self._leave(name).over()
            elif name in self._site.spool.runs:
                self._over.add(name)
                self._site.end(name)
        # A long result's file serves the next one. A short one is removed, and new work need not wait for that.
        short = [name for name in reply.gone if self._short(name)]
        self._settle(name for name in reply.gone if name not in short)
        for body in reply.tasks:
            if body.client != self._site.name:
                log.error("a task for %r was sent to %r", body.client, self._site.name)
                self._strangers.add(body.id)
                continue
            errands = self._runs.get(body.run) or self._start(body.run, again=False)
            if not errands.offer(body):
                self._start(body.run, again=False).offer(body)
        self._settle(short)

    def _short(self, task: str) -> bool:
        held = self._site.spool.result(task.partition(".")[0], task)
        return held is not None and held.blob.size <= INLINE

    def _settle(self, names: Iterable[str]) -> None:
        for name in names:
            for errands in list(self._runs.values()):
                errands.settled(name)

    def _tell(self) -> None:
        runs = {run: errands.state() for run, errands in list(self._runs.items())}
        epoch = self._fence.epoch
        steward, runs_trouble = self._site.steward, list(self._site.trouble.values())
        ledger = "" if steward is None else steward.trouble
        trouble = self._trouble or ledger or next(iter(runs_trouble), "")
        told = {
            "state": self._state,
            "trouble": trouble,
            "code": self._code,  # of the error behind it; empty where none is known
            "epoch": epoch,
            "runs": runs,
            "settings": self._settings,  # by which it goes
        }
        if told != self._told:
            self._told = told
            when = datetime.now(UTC).isoformat(timespec="seconds")
            self._site.home.tell({"since": when, **told})


@contextmanager
def stop_on_signal(agent: Agent) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the node, cleanly."""

    def end(number: int, frame: Any) -> None:
        agent.stop()

    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        wanted.append(signal.SIGHUP)  # the terminal was closed
    before = {number: signal.signal(number, end) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
