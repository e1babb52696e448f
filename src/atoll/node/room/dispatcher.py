"""The worker of one run: tasks wait for it, and it is started, given orders, watched and replaced.

A run has one worker at a time, which has one task at a time. It is started with the first task, and anew
with the next one after its end. A task whose worker ends, be it by itself or because it took too long, has
failed; one that cannot begin because the disk takes nothing, or fails, goes on waiting. When the site's
register of datasets was written anew, the next task has another worker, and only what stands there now.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from atoll.core.errors import AtollError, StorageError
from atoll.node.agenda import Agenda
from atoll.node.orders import DatasetBody, Order, Report, named
from atoll.node.policy.redaction import without_paths
from atoll.node.policy.steward import Asked, Verdict, verdict
from atoll.node.room.process import Ended, Log, Worker, fresh_folder
from atoll.node.room.rooms import new_worker
from atoll.node.room.sandbox import Untried
from atoll.node.settings import GIB
from atoll.node.site import Site
from atoll.runtime.fulfilling import backoff
from atoll.wire.messages import TaskBody
from atoll.wire.trouble import fails

__all__ = ["Dispatcher"]

log = logging.getLogger("atoll.node")

_COMPUTES = ("fit", "train", "evaluate")
_START = 60.0
"""Seconds that a new worker may take to load its libraries, beyond what its first task may."""
_LAST = 4.0
"""Seconds that workers are given to go when all is over; what they leave the node's next start removes."""
_MANY = 9
"""Tries that count as failed before a task that waits for the disk: it is not looked at too often."""


class Dispatcher:
    """Hands the tasks of a run to its worker, one after another. For the run's thread, but for :attr:`pid`.

    Args:
        run: its id.
        site: what all runs share.
        agenda: of the run's thread, which hears of the worker through it.
        failed: told a task that the worker does not answer, why, and what that means for others.
        reported: told an order and what the worker says of it; its files lie where job code does not come.
    """

    def __init__(
        self,
        run: str,
        site: Site,
        agenda: Agenda,
        failed: Callable[[str, str, Verdict], None],
        reported: Callable[[Order, Report], None],
    ) -> None:
        self._run, self._site, self._agenda = run, site, agenda
        self._failed, self._reported = failed, reported
        self._waiting: dict[str, TaskBody] = {}
        self._order: Order | None = None  # that the worker has
        self._worker: Worker | None = None
        self._ending: list[Worker] = []  # that work on nothing any more, and are not gone yet
        self._log: Log | None = None
        self._data: tuple[str, DatasetBody, Asked] | None = None
        self._register: object = None  # that the worker and the data are of
        self._places = itertools.count()

    @property
    def pid(self) -> int | None:
        """Of the worker process; None while there is none."""
        worker = self._worker
        return None if worker is None else worker.pid

    def take(self, body: TaskBody) -> None:
        """A task for the worker; nothing changes when it waits already, or is worked on."""
        if body.id != self._working:
            self._waiting[body.id] = body
        self._work()

    def skip(self, task: str) -> None:
        """A task is answered; it need not wait for the worker any more."""
        self._waiting.pop(task, None)

    def drop(self, task: str) -> None:
        """A task is not wanted any more; the worker that has it is ended."""
        self.skip(task)
        if task == self._working and self._worker is not None:
            self._dismiss(self._worker)
            self._work()

    def end(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.end()

    def close(self) -> None:
        """End the worker, for good; when this returns its folders are gone, if the disk lets them go soon."""
        self.end()
        until = time.monotonic() + _LAST
        for worker in (*self._ending, self._worker):
            if worker is not None and not worker.join(max(0.0, until - time.monotonic())):
                log.warning("run %s: the folder of a worker is left behind for now", self._run)
        if self._log is not None:
            self._log.close()

    @property
    def _working(self) -> str:
        return "" if self._order is None else self._order.task.id

    def _alone(self) -> None:
        """There is no worker now."""
        self._worker = self._order = None
        self._agenda.clear_alarm()

    def _dismiss(self, worker: Worker) -> None:
        worker.end()
        self._ending.append(worker)
        self._alone()

    def _first(self, body: TaskBody) -> None:
        self._waiting = {body.id: body, **self._waiting}

    def _work(self) -> None:
        """Hand the next waiting task to the worker, if that is free."""
        while self._waiting and self._order is None:
            self._keep_up()
            task, new = next(iter(self._waiting)), self._worker is None
            body = self._waiting.pop(task)
            try:
                if self._worker is None:
                    self._worker = self._new_worker(body)
                order = self._order_for(body, self._worker)
            except (AtollError, OSError) as error:
                disk = fails(error)
                if disk or isinstance(error, Untried):  # which is not the task's fault, and passes
                    self._first(body)
                    waits = "waits for the disk" if disk else "waits"
                    self._site.hindered(self._run, f"{task} {waits}: {error}")
                    self._agenda.later(backoff(_MANY, self._site.jitter()), self._work)
                    return
                log.warning("run %s: %s cannot begin: %s", self._run, task, error)
                self._failed(task, without_paths(str(error)), verdict(error))
                continue
            self._site.trouble.pop(self._run, None)
            self._order = order
            seconds = self._site.settings.limits.seconds
            self._agenda.set_alarm(seconds + new * _START, self._overdue)
            if not self._worker.order(order) and not new:
                # It died while it had nothing to do: that is no fault of this task.
                self._alone()
                self._first(body)

    def _keep_up(self) -> None:
        """See whether the steward has changed the register: a dataset, its rule, or that it is there at all."""
        if (now := self._site.register) != self._register:
            self._register, self._data = now, None
            if self._worker is not None:
                self._dismiss(self._worker)

    def _new_worker(self, body: TaskBody) -> Worker:
        home, name = self._site.home, quote(self._run, safe="")[:150]
        if self._log is None:
            self._log = Log(home.logs / f"{name}.log", round(self._site.settings.log * (1 << 20)))
        return new_worker(self._site, body, fresh_folder(home.work, name), self._log, self._hear)

    def _order_for(self, body: TaskBody, worker: Worker) -> Order:
        site = self._site
        if site.spool.full:
            raise StorageError(
                f"the spool of this site holds {site.spool.used / GIB:.3g} GiB, its limit",
                remedy="its operator raises spool in node.toml, or removes runs that are over",
            )
        path = {ref.sha256: str(site.cache.path(ref.blob)) for ref in named(body)}
        plan = path[body.plan.sha256]
        dataset, computes = self._dataset(body, plan), body.kind in _COMPUTES
        memory = site.spool.memory(self._run, body.kept) if computes else None
        place = worker.aside / str(next(self._places))
        result, keep = site.spool.prepare(self._run, place, body.kind == "train")
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
            digest=site.spool.digest(self._run),
        )

    def _dataset(self, body: TaskBody, plan: str) -> DatasetBody:
        """What the run's job reads, if the site's rules allow; looked up once for each plan."""
        if self._data is None or self._data[0] != plan:
            found, asked = self._site.asked(Path(plan))
            self._data = plan, DatasetBody.model_validate(found.to_plain()), asked
        self._site.admit(body, self._data[2])
        return self._data[1]

    def _overdue(self) -> None:
        if self._order is not None and self._worker is not None:
            seconds = self._site.settings.limits.seconds
            self._worker.end(f"took longer than the {seconds:g} s that a task may take here")

    def _hear(self, worker: Worker, what: Report | Ended) -> None:
        """From a thread of the worker's."""
        self._agenda.put(partial(self._heard, worker, what))

    def _heard(self, worker: Worker, what: Report | Ended) -> None:
        if isinstance(what, Ended) and worker in self._ending:
            self._ending.remove(worker)
        if worker is not self._worker or self._agenda.stopped:
            return
        order, task = self._order, self._working
        self._agenda.clear_alarm()
        if isinstance(what, Ended):
            self._alone()
            if task:
                log.warning("run %s: the worker of %s %s", self._run, task, what.reason)
                self._failed(task, f"the worker process {what.reason}", "failed")
        elif order is None or what.task != task:
            worker.end("answered a task that it was not given")
            return
        else:
            self._order = None
            self._reported(order, what)
        self._work()
