"""A run's worker has one task at a time, and one that dies, dawdles or is not heard keeps no other from it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.core.errors import StorageError
from atoll.node.agenda import Agenda
from atoll.node.orders import DatasetBody, Order, Report
from atoll.node.room import dispatcher
from atoll.node.room.dispatcher import Dispatcher
from atoll.node.room.process import Ended
from atoll.node.room.sandbox import Untried
from atoll.wire.messages import BlobRef, TaskBody

PLAN = BlobRef(sha256="a" * 64, size=1)


class Played:
    """A worker that does nothing; ``heard`` is what it would tell."""

    def __init__(self, folder: Path, heard: Any) -> None:
        self.folder, self.aside, self.heard = folder, folder / "out", heard
        self.orders: list[str] = []
        self.ended: list[str] = []
        self.pid, self.gone, self.joined = id(self), False, False

    def order(self, order: Order) -> bool:
        self.orders.append(order.task.id)
        return not self.gone

    def show(self, files: Iterable[str]) -> None:
        """Nothing is hidden."""

    def end(self, why: str = "") -> None:
        self.ended.append(why)

    def join(self, seconds: float) -> bool:
        self.joined = seconds > 0.0
        return True


class Run:
    """A dispatcher, and what it tells."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workers: list[Played] = []
        self.failed: list[tuple[str, str]] = []
        self.reported: list[str] = []
        data = DatasetBody(name="d", path="d.csv", missing=[], columns={})
        spool = SimpleNamespace(
            full=False,
            memory=lambda run, kept: None,
            prepare=lambda run, place, trains: (place, place),
            digest=lambda run: "",
        )
        self.limits = SimpleNamespace(seconds=60.0)
        site: Any = SimpleNamespace(
            home=SimpleNamespace(work=folder, logs=folder),
            settings=SimpleNamespace(limits=self.limits, log=1.0),
            spool=spool,
            cache=SimpleNamespace(path=lambda blob: folder / blob.sha256),
            asked=lambda plan: (SimpleNamespace(to_plain=data.model_dump), None),
            admit=lambda body, asked: None,
            register=1,
            trouble={},
        )
        self.site = site
        monkeypatch.setattr(dispatcher, "_START", 0.0)
        monkeypatch.setattr(dispatcher, "new_worker", self._new)
        self.agenda = Agenda()
        self.dispatcher = Dispatcher(
            "r",
            site,
            self.agenda,
            lambda task, why, verdict: self.failed.append((task, why)),
            lambda order, report: self.reported.append(order.task.id),
        )

    def _new(self, site: Any, body: TaskBody, folder: Path, log: Any, heard: Any) -> Any:
        self.workers.append(Played(folder, heard))
        return self.workers[-1]

    def take(self, *names: str) -> None:
        for name in names:
            body = TaskBody(id=name, run="r", kind="train", number=0, client="a", plan=PLAN)
            self.dispatcher.take(body)

    def hear(self, worker: Played, what: Report | Ended) -> None:
        worker.heard(worker, what)
        self.next()

    def next(self) -> None:
        call = self.agenda.next(5.0)
        assert call is not None
        call()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    made = Run(tmp_path, monkeypatch)
    yield made
    made.dispatcher.close()


def test_tasks_go_to_one_worker_one_after_another(run: Run) -> None:
    run.take("one", "two", "one", "two", "three")
    (worker,) = run.workers
    for name in ("one", "two", "three"):
        assert worker.orders[-1] == name
        run.hear(worker, Report(task=name, kept=False))
    assert worker.orders == run.reported == ["one", "two", "three"]
    assert run.failed == []


def test_a_worker_that_dies_at_work_fails_its_task_and_the_next_has_another(run: Run) -> None:
    run.take("one", "two")
    run.hear(run.workers[0], Ended("crashed"))
    assert run.failed == [("one", "the worker process crashed")]
    assert [worker.orders for worker in run.workers] == [["one"], ["two"]]
    assert run.dispatcher.pid == run.workers[1].pid


def test_a_worker_that_died_while_it_had_nothing_to_do_fails_no_task(run: Run) -> None:
    run.take("one")
    run.hear(run.workers[0], Report(task="one", kept=False))
    run.workers[0].gone = True
    run.take("two")
    assert run.failed == []
    assert [worker.orders for worker in run.workers] == [["one", "two"], ["two"]]
    run.hear(run.workers[0], Ended("crashed"))  # of one that is not its worker any more
    assert run.failed == []


def test_what_is_not_wanted_any_more_ends_the_worker_that_has_it(run: Run) -> None:
    run.take("one", "two", "three")
    run.dispatcher.drop("two")
    assert run.workers[0].ended == []
    run.dispatcher.drop("one")
    assert run.workers[0].ended == [""]
    assert [worker.orders for worker in run.workers] == [["one"], ["three"]]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_task_waits_for_a_disk_that_takes_nothing_or_fails_and_has_not_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(dispatcher, "backoff", lambda tries, jitter: 0.0)
    asked, faults, hindered = run.site.asked, [number, number], list[str]()

    def fails(plan: Path) -> Any:
        if faults:
            raise StorageError("the log") from OSError(faults.pop(), "no")
        return asked(plan)

    run.site.asked, run.site.jitter = fails, lambda: 0.0
    run.site.hindered = lambda run, what: hindered.append(what)
    run.take("one")
    run.next()
    assert ([w.orders for w in run.workers], run.failed) == ([[]], [])
    run.next()
    assert ([w.orders for w in run.workers], run.failed) == ([["one"]], [])
    assert hindered == ["one waits for the disk: the log"] * 2


def test_a_task_waits_until_it_is_known_whether_its_worker_can_be_shut_in(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "backoff", lambda tries, jitter: 0.0)
    begin, hindered, trouble = run._new, list[str](), [Untried("it took long")]

    def fails(*arguments: Any) -> Any:
        if trouble:
            raise trouble.pop()
        return begin(*arguments)

    monkeypatch.setattr(dispatcher, "new_worker", fails)
    run.site.jitter, run.site.hindered = lambda: 0.0, lambda run, what: hindered.append(what)
    run.take("one")
    assert (run.workers, run.failed) == ([], [])
    run.next()
    assert ([w.orders for w in run.workers], run.failed) == ([["one"]], [])
    assert hindered == ["one waits: it took long"]


def test_when_the_register_was_written_anew_the_next_task_has_another_worker(run: Run) -> None:
    run.take("one", "two")
    run.site.register = 2
    assert run.workers[0].ended == []  # it may end what it has begun
    run.hear(run.workers[0], Report(task="one", kept=False))
    assert run.workers[0].ended == [""]
    assert [worker.orders for worker in run.workers] == [["one"], ["two"]]
    run.hear(run.workers[0], Ended("was ended by the node"))
    assert (run.reported, run.failed) == (["one"], [])


def test_at_the_end_all_workers_are_waited_for_but_those_that_were_heard_to_be_gone(
    run: Run,
) -> None:
    run.take("one", "two", "three")
    run.dispatcher.drop("one")
    run.dispatcher.drop("two")
    run.hear(run.workers[0], Ended("was ended by the node"))
    run.dispatcher.close()
    assert [worker.joined for worker in run.workers] == [False, True, True]


def test_a_worker_that_answers_another_task_is_ended(run: Run) -> None:
    run.take("one", "two")
    (worker,) = run.workers
    run.hear(worker, Report(task="two", kept=False))
    assert worker.ended == ["answered a task that it was not given"]
    assert run.reported == []
    run.hear(worker, Ended("was ended by the node"))
    assert [task for task, _ in run.failed] == ["one"]
    assert run.workers[1].orders == ["two"]


def test_a_task_that_takes_too_long_ends_the_worker_and_one_that_was_in_time_does_not(
    run: Run,
) -> None:
    run.limits.seconds = 0.05
    run.take("one")
    (worker,) = run.workers
    run.hear(worker, Report(task="one", kept=False))
    assert run.agenda.next(0.2) is None
    run.take("two")
    run.next()
    assert worker.ended == ["took longer than the 0.05 s that a task may take here"]
