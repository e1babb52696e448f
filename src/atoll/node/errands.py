"""All tasks of one run at this site: one thread, one machine for each task.

:mod:`atoll.runtime.fulfilling` decides what is done; here it is done: what a task names is fetched, the worker
gets it (:mod:`atoll.node.room.dispatcher`), its answer is put into the spool and sent. The thread goes by
its agenda (:mod:`atoll.node.agenda`): news from the server, from the worker, and other tries whose time has
come. Whatever happens in it concerns this run only.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from atoll.core.errors import AtollError, Equivocation, StorageError
from atoll.node.agenda import Agenda, Call
from atoll.node.link import INLINE, passing
from atoll.node.orders import Order, Report, done_only, named
from atoll.node.policy.leaving import checked
from atoll.node.policy.redaction import MOST, without_paths
from atoll.node.policy.steward import Verdict, verdict
from atoll.node.room.dispatcher import Dispatcher
from atoll.node.run_folder import Held
from atoll.node.settings import GIB
from atoll.node.site import Site
from atoll.node.sums.summing import SUBJECTS, Summed
from atoll.runtime import fulfilling as f
from atoll.wire.frames import encode
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["Errands"]

log = logging.getLogger("atoll.node")

_BUSY = ("offered", "fetching", "working", "finished")
_IDLE = 600.0
"""Seconds without work after which a run's worker is ended; another task starts a new one."""


_OTHERS = ""
"""Under which name the site's trouble says so, as that of no run: until the node ends."""

_OTHER = (
    "Does a copy of this folder work elsewhere with this site's key, or was this one put back from a copy?"
    "\n  next: end the copy. Where there is none, the key was copied: have it revoked, and take another"
)


class Errands:
    """One run's tasks at this site.

    Args:
        run: its id.
        site: what all runs share.
        restored: finished results that the spool holds.
        again: whether they are sent again, as after a restart; else they wait to be settled.
    """

    def __init__(self, run: str, site: Site, restored: Iterable[Held] = (), *, again: bool) -> None:
        self._thread = threading.Thread(target=self._live, name=f"run {run}", daemon=True)
        self.run_id, self._site = run, site
        self._agenda = Agenda()
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._offers: set[str] = set()
        self._settling: set[str] = set()
        self._over = False
        self._tasks: dict[str, f.Fulfilling] = {}
        self._bodies: dict[str, TaskBody] = {}
        self._models: set[str] = set()  # that tasks start from
        self._masked = Summed(run, site)
        self._dispatcher = Dispatcher(run, site, self._agenda, self._fail, self._finish)
        for held in restored:
            self._tasks[held.task] = f.Fulfilling(held.task, "sent", held.blob.sha256)
            self._held.add(held.task)
            if again:
                self._agenda.put(partial(self._step, held.task, f.Restarted(True)))

    # From other threads -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the end of the thread and its workers, not longer than so many seconds; whether it came."""
        self._thread.join(seconds)
        return not self.alive

    @property
    def alive(self) -> bool:
        """Whether the thread or a worker of it is still there."""
        return self._thread.is_alive()

    def offer(self, body: TaskBody) -> bool:
        """Take on a task; False when this thread has ended and a new one is needed."""
        with self._lock:
            if self._over:
                return False
            self._held.add(body.id)
            self._settling.discard(body.id)  # what is asked for again is kept, if it is there yet
            if body.id not in self._offers:  # the one that waits in the queue says the same
                self._offers.add(body.id)
                self._agenda.put(partial(self._offered, body))
            return True

    def settled(self, task: str) -> None:
        """The server neither asks for ``task`` nor needs its answer again."""
        with self._lock:
            if task not in self._held:
                return
            # At once, or the next question would be answered by this again.
            self._held.discard(task)
            if not self._over:
                self._settling.add(task)
                self._agenda.put(partial(self._settled, task))
                return
        self._site.settle(self.run_id, task)

    def over(self) -> None:
        """The run has ended: nothing of it is kept."""
        with self._lock:
            if not self._over:
                self._agenda.put(self._end_run)
                return
        self._site.end(self.run_id)

    def stop(self) -> None:
        """End the thread and its worker soon; work in progress is done again after a restart."""
        self._agenda.stop()

    @property
    def held(self) -> frozenset[str]:
        """Tasks that are worked on, or whose answer is kept."""
        with self._lock:
            return frozenset(self._held)

    def state(self) -> Mapping[str, Any]:
        """What is being done, for people."""
        tasks = {name: t.state for name, t in list(self._tasks.items())}
        return {"tasks": tasks, "worker": self._dispatcher.pid}

    # The thread ---------------------------------------------------------------------------------

    def _live(self) -> None:
        """Do what comes, until told to stop or nothing has come for long."""
        try:
            while not self._agenda.stopped:
                todo = self._agenda.next(_IDLE)
                if todo is not None:
                    self._call(todo)
                elif self._done():
                    break
        finally:
            self._agenda.stop()
            self._site.pins.pop(self.run_id, None)
            self._site.trouble.pop(self.run_id, None)
            with self._lock:
                self._over = True
            self._dispatcher.close()

    def _call(self, todo: Call) -> None:
        try:
            todo()
        except Exception:  # a fault of ours must not end the other tasks of this run
            log.exception("run %s: something unexpected", self.run_id)

    def _done(self) -> bool:
        with self._lock:
            self._over = not self._busy() and self._agenda.empty
            return self._over

    def _busy(self) -> bool:
        return any(task.state in _BUSY for task in self._tasks.values())

    def _end_run(self) -> None:
        self._agenda.stop()
        self._dispatcher.end()
        self._site.end(self.run_id)

    def _step(self, task: str, event: f.Event) -> None:
        """Move a task's machine on and do what it says."""
        self._tasks[task], effects = f.step(self._tasks[task], event)
        state = self._tasks[task].state
        if state in ("settled", "dropped"):
            with self._lock:
                self._held.discard(task)
        for effect in effects:
            self._do(task, effect)
        if state in ("settled", "dropped"):
            self._tasks.pop(task, None)
            self._bodies.pop(task, None)

    def _do(self, task: str, effect: f.Effect) -> None:
        """Do what a machine says; a fault of ours becomes the task's failure, so that nobody waits for it."""
        try:
            self._act(task, effect)
        except Exception as error:
            log.exception("run %s, task %s: something unexpected", self.run_id, task)
            self._fail(task, f"the node itself failed: {type(error).__name__}")

    def _act(self, task: str, effect: f.Effect) -> None:
        if isinstance(effect, f.Fetch):
            self._fetch(task)
        elif isinstance(effect, f.Work):
            if self._masked.concerns(self._bodies[task], self._site.cache.path):
                self._say(task)
            else:
                self._dispatcher.take(self._bodies[task])
        elif isinstance(effect, f.Send):
            self._send(task)
        elif isinstance(effect, f.Retry):
            now, what = self._tasks[task], effect.what
            self._agenda.later(effect.after, lambda: self._again(task, now, what))
        else:
            self._forget(task)

    def _again(self, task: str, then: f.Fulfilling, what: f.Fetch | f.Send) -> None:
        if self._tasks.get(task) == then:
            self._do(task, what)

    # Offered ------------------------------------------------------------------------------------

    def _offered(self, body: TaskBody) -> None:
        with self._lock:
            self._offers.discard(body.id)
        if body.kind in ("fit", "train"):
            self._site.spool.keep_memory(self.run_id, body.kept, {body.id, *self._tasks})
        self._bodies[body.id] = body
        self._tasks.setdefault(body.id, f.Fulfilling(body.id))
        self._step(body.id, f.Offered())

    def _settled(self, task: str) -> None:
        with self._lock:
            meant = task in self._settling
            self._settling.discard(task)
        if meant and task in self._tasks:
            self._step(task, f.Settled())

    def _forget(self, task: str) -> None:
        self._site.settle(self.run_id, task)
        self._dispatcher.drop(task)

    # Fetching -----------------------------------------------------------------------------------

    def _fetch(self, task: str) -> None:
        body, most = self._bodies[task], self._site.settings.cache
        need = sum(ref.size for ref in named(body))
        if need > most * GIB:
            why = f"it needs {need / GIB:.3g} GiB of downloads; cache is {most:g} GiB here"
            self._fail(task, why)
            return
        self._pin()  # before: the last model's file serves this one
        try:
            for ref in named(body):
                self._site.cache.fetch(ref.blob, self._site.link.download)
        except AtollError as error:
            if passing(error):
                self._site.hindered(self.run_id, f"{task} is fetched again later: {error}")
                self._step(task, f.FetchFailed(self._site.jitter()))
                return
            self._fail(task, f"what the task names cannot be fetched: {without_paths(str(error))}")
        else:
            self._site.cache.trim(frozenset().union(*list(self._site.pins.values())))
            self._step(task, f.Fetched())

    def _pin(self) -> None:
        own = {ref.sha256 for body in self._bodies.values() for ref in named(body)}
        models = {body.broadcast.sha256 for body in self._bodies.values() if body.broadcast}
        for old in self._models - models:
            self._site.cache.drop(old)
        self._models = models
        self._site.pins[self.run_id] = frozenset(own)

    # Working ------------------------------------------------------------------------------------

    def _say(self, task: str, tries: int = 1) -> None:
        """A step of a masked round; the one with integers waits until the worker has made them."""
        try:
            held = self._masked.held(body := self._bodies[task], self._site.cache.path)
        except StorageError:
            self._agenda.later(
                f.backoff(tries, self._site.jitter()), lambda: self._say(task, tries + 1)
            )
        except AtollError as error:
            self._fail(task, without_paths(str(error)), verdict(error))
        else:
            if held is not None:
                self._dispatcher.skip(task)
                self._finished(held, ResultBody(task=task, status="done"))
            if (training := self._masked.first(body, self._site.cache.path)) is not None:
                self._bodies[training.id] = training
                self._dispatcher.take(training)

    # Finished -----------------------------------------------------------------------------------

    def _finish(self, order: Order, report: Report, tries: int = 1) -> None:
        """Put a result into the spool; while the disk takes nothing, try again."""
        task = order.task.id
        result, memory = Path(order.result), Path(order.keep) if report.kept else None
        if self._masked.keep(order, report):
            for name, now in list(self._tasks.items()):  # of whatever attempt
                if now.state == "working" and self._bodies[name].kind in SUBJECTS:
                    self._say(name)
            return
        try:
            seen = self._site.spool.near.look(result, INLINE)
            if seen is None:
                self._fail(task, "the worker's result was lost with the worker")
            elif task in self._tasks and self._tasks[task].state == "working":
                body, fit = checked(order, seen), order.task.kind == "fit"
                self._site.note(order.task, body, report)
                if report.digest:
                    self._site.spool.begin(self.run_id, report.digest)
                held = self._site.spool.finish(
                    self.run_id,
                    task,
                    done_only(body) if fit else seen,
                    memory=memory,
                    before="" if fit else order.task.kept,
                    trained=order.task.kind == "train" and body.status == "done",
                    wait=seen.raw is not None,
                    named=self._site.naming(order.task, body),
                )
                self._finished(held, body)
        except StorageError as error:
            self._unkept(task, error, tries, partial(self._finish, order, report, tries + 1))
            return
        except AtollError as error:
            self._fail(task, f"the worker's result is not valid: {without_paths(str(error))}")
        for left in (order.result, order.keep):
            with suppress(FileNotFoundError):
                os.unlink(left)

    def _fail(self, task: str, reason: str, status: Verdict = "failed", tries: int = 1) -> None:
        """End a task with a result that says why; it is kept and sent like any other."""
        if task not in self._tasks or self._tasks[task].state not in ("fetching", "working"):
            return
        body = ResultBody(task=task, status=status, reason=reason[:MOST])
        try:
            named = self._site.naming(self._bodies[task], body)
            raw = encode(body.model_dump())
            held = self._site.spool.finish(self.run_id, task, raw, named=named)
        except StorageError as error:
            self._unkept(task, error, tries, partial(self._fail, task, reason, status, tries + 1))
            return
        self._finished(held, body)

    def _unkept(self, task: str, error: object, tries: int, again: Call) -> None:
        self._site.hindered(self.run_id, f"{task} cannot be kept: {error}")
        self._agenda.later(f.backoff(tries, self._site.jitter()), again)

    def _finished(self, held: Held, body: ResultBody) -> None:
        digest = held.blob.sha256
        self._site.trouble.pop(self.run_id, None)
        if body.status == "done":
            self._step(held.task, f.Worked(digest))
        else:
            self._step(held.task, f.WorkFailed(body.reason, digest))

    # Sending ------------------------------------------------------------------------------------

    def _send(self, task: str) -> None:
        spool, held = self._site.spool, self._site.spool.result(self.run_id, task)
        if held is None:
            self._step(task, f.Gone())
            return
        try:
            self._site.leaving(held)
            if held.blob.size <= INLINE:
                (self._site.hand_in or self._site.link.deliver)(held, spool.read(held))
            else:
                self._site.link.deliver_long(held, partial(spool.write_through, held))
        except AtollError as error:
            if passing(error):
                self._site.hindered(self.run_id, f"{task} is sent again later: {error}")
                self._step(task, f.SendFailed(self._site.jitter()))
                return
            level = logging.ERROR if isinstance(error, Equivocation) else logging.WARNING
            log.log(level, "run %s: the server does not take %s: %s", self.run_id, task, error)
            if isinstance(error, Equivocation):
                self._site.trouble[_OTHERS] = f"{task} had another answer before. {_OTHER}"
            self._step(task, f.Gone())
        else:
            self._site.trouble.pop(self.run_id, None)
            self._step(task, f.Acknowledged())
