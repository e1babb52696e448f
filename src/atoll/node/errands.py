"""All tasks of one run at this site: one thread, one worker process, one machine for each task.

:mod:`atoll.runtime.fulfilling` decides what is done; here it is done. The thread waits on one queue:
for news from the server, for the worker, and for the time of another try. Whatever happens in it
concerns this run only.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from atoll.core.errors import AtollError, Equivocation, StorageError
from atoll.node.link import INLINE, passing
from atoll.node.orders import DatasetBody, Order, Report, done_only, named
from atoll.node.policy.leaving import checked
from atoll.node.policy.redaction import MOST, without_paths
from atoll.node.policy.steward import Asked, Verdict, verdict
from atoll.node.room.process import Ended, Log, Worker, fresh_folder
from atoll.node.room.rooms import new_worker
from atoll.node.settings import GIB
from atoll.node.site import Site
from atoll.node.spool import Held
from atoll.node.sums.summing import SUBJECTS, Summed
from atoll.runtime import fulfilling as f
from atoll.wire.frames import encode
from atoll.wire.messages import ResultBody, TaskBody
from atoll.wire.trouble import takes_nothing

__all__ = ["Errands"]

log = logging.getLogger("atoll.node")

_COMPUTES = ("fit", "train", "evaluate")
_BUSY = ("offered", "fetching", "working", "finished")
_START = 60.0
"""Seconds that a new worker may take to load its libraries, beyond what its first task may."""
_IDLE = 600.0
"""Seconds without work after which a run's worker is ended; another task starts a new one."""


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
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._offers: set[str] = set()
        self._over = self._stopped = False
        self._tasks: dict[str, f.Fulfilling] = {}
        self._bodies: dict[str, TaskBody] = {}
        self._orders: dict[str, Order] = {}
        self._data: tuple[str, Worker, DatasetBody, Asked] | None = None
        self._models: set[str] = set()  # that tasks start from
        self._masked = Summed(run, site)
        self._waiting: deque[str] = deque()
        self._working, self._due = "", math.inf
        self._worker: Worker | None = None
        self._log: Log | None = None
        for held in restored:
            self._tasks[held.task] = f.Fulfilling(held.task, "sent", held.blob.sha256)
            self._held.add(held.task)
            if again:
                self._queue.put(partial(self._step, held.task, f.Restarted(True)))

    # From other threads -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end, not longer than so many seconds."""
        self._thread.join(seconds)

    def offer(self, body: TaskBody) -> bool:
        """Take on a task; False when this thread has ended and a new one is needed."""
        with self._lock:
            if self._over:
                return False
            self._held.add(body.id)
            if body.id not in self._offers:  # the one that waits in the queue says the same
                self._offers.add(body.id)
                self._queue.put(partial(self._offered, body))
            return True

    def settled(self, task: str) -> None:
        """The server neither asks for ``task`` nor needs its answer again."""
        with self._lock:
            if task not in self._held:
                return
            # At once, or the next question would be answered by this again.
            self._held.discard(task)
            if not self._over:
                self._queue.put(partial(self._settled, task))
                return
        self._site.settle(self.run_id, task)

    def over(self) -> None:
        """The run has ended: nothing of it is kept."""
        with self._lock:
            if not self._over:
                self._queue.put(self._end_run)
                return
        self._site.end(self.run_id)

    def stop(self) -> None:
        """End the thread and its worker soon; work in progress is done again after a restart."""
        self._stopped = True
        self._queue.put(lambda: None)

    @property
    def held(self) -> frozenset[str]:
        """Tasks that are worked on, or whose answer is kept."""
        with self._lock:
            return frozenset(self._held)

    def state(self) -> Mapping[str, Any]:
        """What is being done, for people."""
        worker, tasks = self._worker, {name: t.state for name, t in list(self._tasks.items())}
        return {"tasks": tasks, "worker": None if worker is None else worker.pid}

    # The thread ---------------------------------------------------------------------------------

    def _live(self) -> None:
        """Do what comes, until told to stop or nothing has come for long."""
        try:
            while not self._stopped and self._turn():
                pass
        finally:
            self._stopped = True
            with self._lock:
                self._over = True
            if self._worker is not None:
                self._worker.end()
            if self._log is not None:
                self._log.close()
            self._site.pins.pop(self.run_id, None)
            self._site.trouble.pop(self.run_id, None)

    def _turn(self) -> bool:
        """Do the next thing; False when this thread is not needed any more."""
        now, next_try = time.monotonic(), self._timers[0][0] if self._timers else math.inf
        try:
            todo = self._queue.get(timeout=max(0.0, min(_IDLE, next_try - now, self._due - now)))
        except queue.Empty:
            now = time.monotonic()
            if self._due <= now:
                todo = self._overdue
            elif next_try <= now:
                todo = heapq.heappop(self._timers)[2]
            else:
                return not self._done()
        try:
            todo()
        except Exception:  # a fault of ours must not end the other tasks of this run
            log.exception("run %s: something unexpected", self.run_id)
        return True

    def _done(self) -> bool:
        with self._lock:
            self._over = not self._busy() and not self._timers and self._queue.empty()
            return self._over

    def _busy(self) -> bool:
        return any(task.state in _BUSY for task in self._tasks.values())

    def _end_run(self) -> None:
        self._stopped = True
        if self._worker is not None:
            self._worker.end()
        self._site.end(self.run_id)

    def _later(self, after: float, todo: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + after, next(self._numbers), todo))

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
                self._train(task)
        elif isinstance(effect, f.Send):
            self._send(task)
        elif isinstance(effect, f.Retry):
            now, what = self._tasks[task], effect.what
            self._later(effect.after, lambda: self._again(task, now, what))
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
        if task in self._tasks:
            self._step(task, f.Settled())

    def _forget(self, task: str) -> None:
        self._site.settle(self.run_id, task)
        if task in self._waiting:
            self._waiting.remove(task)
        if task == self._working and self._worker is not None:
            self._orders.pop(task, None)
            self._worker.end()
            self._worker, self._working, self._due = None, "", math.inf
            self._work()

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

    def _work(self) -> None:
        """Hand the next waiting task to the worker, if that is free."""
        while self._waiting and not self._working:
            task, new = self._waiting.popleft(), self._worker is None
            try:
                if self._worker is None:
                    self._worker = self._new_worker(self._bodies[task])
                order = self._order(self._bodies[task], self._worker)
            except (AtollError, OSError) as error:
                if takes_nothing(error):  # which is not the task's fault, and passes
                    self._waiting.appendleft(task)
                    self._site.hindered(self.run_id, f"{task} waits for the disk: {error}")
                    self._later(f.backoff(9, self._site.jitter()), self._work)
                    return
                log.warning("run %s: %s cannot begin: %s", self.run_id, task, error)
                self._fail(task, without_paths(str(error)), verdict(error))
                continue
            self._site.trouble.pop(self.run_id, None)
            self._working, self._orders[task] = task, order
            self._due = time.monotonic() + self._site.settings.limits.seconds + new * _START
            if not self._worker.order(order) and not new:
                # It died while it had nothing to do: that is no fault of this task.
                self._worker, self._working, self._due = None, "", math.inf
                self._waiting.appendleft(task)

    def _train(self, task: str) -> None:
        self._waiting.extend({task} - {self._working, *self._waiting})
        self._work()

    def _say(self, task: str, tries: int = 1) -> None:
        """A step of a masked round; the one with integers waits until the worker has made them."""
        try:
            held = self._masked.held(body := self._bodies[task], self._site.cache.path)
        except StorageError:
            self._later(f.backoff(tries, self._site.jitter()), lambda: self._say(task, tries + 1))
        except AtollError as error:
            self._fail(task, without_paths(str(error)), verdict(error))
        else:
            if held is not None:
                self._waiting = deque(name for name in self._waiting if name != task)
                self._finished(held, ResultBody(task=task, status="done"))
            if (training := self._masked.first(body, self._site.cache.path)) is not None:
                self._bodies[training.id] = training
                self._train(training.id)

    def _new_worker(self, body: TaskBody) -> Worker:
        home, name = self._site.home, quote(self.run_id, safe="")[:150]
        if self._log is None:
            self._log = Log(home.logs / f"{name}.log", round(self._site.settings.log * (1 << 20)))
        return new_worker(self._site, body, fresh_folder(home.work, name), self._log, self._hear)

    def _order(self, body: TaskBody, worker: Worker) -> Order:
        site = self._site
        if site.spool.full:
            raise StorageError(
                f"the spool of this site holds {site.spool.used / GIB:.3g} GiB, its limit",
                remedy="its operator raises spool in node.toml, or removes runs that are over",
            )
        path = {ref.sha256: str(site.cache.path(ref.blob)) for ref in named(body)}
        plan = path[body.plan.sha256]
        dataset, computes = self._dataset(body, plan, worker), body.kind in _COMPUTES
        memory = site.spool.memory(self.run_id, body.kept) if computes else None
        place = worker.folder / str(next(self._numbers))
        result, keep = site.spool.prepare(self.run_id, place, body.kind == "train")
        worker.show(path.values())
        return Order(
            task=body,
            plan=plan,
            code={name: path[ref.sha256] for name, ref in body.code.items()},
            broadcast=path[body.broadcast.sha256] if body.broadcast else "",
            memory=str(memory) if memory else "",
            result=str(result),
            keep=str(keep),
            dataset=dataset,
            digest=site.spool.digest(self.run_id),
        )

    def _dataset(self, body: TaskBody, plan: str, worker: Worker) -> DatasetBody:
        """What the run's job reads, if the site's rules allow; looked up once for each plan and worker."""
        if self._data is None or self._data[:2] != (plan, worker):
            found, asked = self._site.asked(Path(plan))
            self._data = plan, worker, DatasetBody.model_validate(found.to_plain()), asked
        self._site.admit(body, self._data[3])
        return self._data[2]

    def _overdue(self) -> None:
        self._due = math.inf
        if self._working and self._worker is not None:
            seconds = self._site.settings.limits.seconds
            self._worker.end(f"took longer than the {seconds:g} s that a task may take here")

    def _hear(self, worker: Worker, what: Report | Ended) -> None:
        """From a thread of the worker's."""
        self._queue.put(partial(self._heard, worker, what))

    def _heard(self, worker: Worker, what: Report | Ended) -> None:
        if worker is not self._worker or self._stopped:
            return
        task, self._due = self._working, math.inf
        if isinstance(what, Ended):
            self._worker, self._working = None, ""
            if task:
                log.warning("run %s: the worker of %s %s", self.run_id, task, what.reason)
                self._fail(task, f"the worker process {what.reason}")
        elif what.task != task:
            worker.end("answered a task that it was not given")
            return
        else:
            self._working = ""
            self._finish(worker.taken(self._orders.pop(task)), what)
        self._work()

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
                    wait=seen.whole,
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
        self._orders.pop(task, None)
        if task not in self._tasks or self._tasks[task].state not in ("fetching", "working"):
            return
        body = ResultBody(task=task, status=status, reason=reason[:MOST])
        try:
            held = self._site.spool.finish(self.run_id, task, encode(body.model_dump()))
        except StorageError as error:
            self._unkept(task, error, tries, partial(self._fail, task, reason, status, tries + 1))
            return
        self._finished(held, body)

    def _unkept(self, task: str, error: object, tries: int, again: Callable[[], None]) -> None:
        self._site.hindered(self.run_id, f"{task} cannot be kept: {error}")
        self._later(f.backoff(tries, self._site.jitter()), again)

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
            self._step(task, f.Gone())
        else:
            self._site.trouble.pop(self.run_id, None)
            self._step(task, f.Acknowledged())
