"""Answers of several sites at the same moment, and a deadline in the middle of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import played_sites as played
import pytest

from atoll.core.errors import AtollError, Unreachable
from atoll.server.rounds.counter import site_of
from atoll.wire.messages import ReceiptBody

World = played.World


def answers(world: World) -> dict[str, Callable[[], ReceiptBody]]:
    """What each site would send now, to be called from a thread of its own."""
    found: dict[str, Callable[[], ReceiptBody]] = {}
    for name, site in world.sites.items():
        (task,) = world.service.poll(name, ()).tasks
        frame = site.answer(world.service, task)
        found[name] = lambda n=name, t=task.id, f=frame: world.service.deliver(n, t, f)  # type: ignore[misc]
    return found


def test_answers_that_come_together_are_written_together(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.reach("train")
    together = threading.Barrier(4)

    def wait(operation: str) -> None:
        if operation == "contribute":
            together.wait(10)  # nobody passes before all four are here

    lock = world.database.lock
    world.database.lock = _Free()  # the twin's own lock would keep them apart
    world.store.before = wait
    threads = [threading.Thread(target=send) for send in answers(world).values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    world.store.before = lambda operation: None
    world.database.lock = lock
    assert not together.broken
    world.run()
    assert world.service.job(run).reason == "completed"


class _Free:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("others", [False, True])
def test_an_answer_that_is_being_written_at_the_deadline_counts(world: World, others: bool) -> None:
    """What is acknowledged counts: the call does not close between the row and its place in it."""
    run = world.submit(played.heart_spec("rounds.count=1", "rounds.deadline=100"))
    world.reach("train")
    send = answers(world)
    for name in ("cleveland", "switzerland"):
        send[name]()
    called: list[str] = []

    def late(operation: str) -> None:
        if operation == "contribute" and not called:
            called.append(operation)
            world.time += 200  # the disk takes its time
            world.service.touch("cleveland")
            assert world.service.step() is None or world.store.last_round(run) is None
            if others:
                with pytest.raises(Exception, match="not open"):
                    send["va-long-beach"]()

    world.store.before = late
    send["hungary"]()
    world.run()
    record = world.service.rounds(run).rounds[0]
    assert sorted(record["contributed"]) == ["cleveland", "hungary", "switzerland"]
    assert record["missing"]["va-long-beach"].startswith(("late: ", "unavailable: ", "dropped: "))


_BUFFERED = ("algorithm.name='fedbuff'", "rounds.mode='async'", "rounds.buffer=2")


@pytest.mark.parametrize(
    ("kind", "more"),
    [("train", ()), ("evaluate", ()), ("train", _BUFFERED), ("evaluate", _BUFFERED)],
)
def test_an_answer_that_comes_while_a_run_is_taken_up_again_is_neither_refused_nor_forgotten(
    world: World, kind: str, more: tuple[str, ...]
) -> None:
    """A restarted server goes through the calls from the first; sites know of the last one already.

    In an asynchronous run a step's tasks have numbers of their own, far ahead of its evaluation's.
    """
    run = world.submit(played.heart_spec("rounds.count=3", *more))
    world.reach(kind, 2)
    polled = {name: world.service.poll(name, ()).tasks for name in world.sites}
    asked = {name: t for name, tasks in polled.items() for t in tasks if t.kind == kind}
    frames = {name: world.sites[name].answer(world.service, task) for name, task in asked.items()}
    world.kill()
    said: list[str] = []

    def meanwhile(operation: str) -> None:
        world.store.before = lambda operation: None
        for name, task in asked.items():
            assert task.id not in world.service.poll(name, {task.id}).gone
            try:
                world.service.deliver(name, task.id, frames[name])
                said.append("taken")
            except Unreachable:
                said.append("later")
        world.store.before = meanwhile

    world.store.before = meanwhile
    world.service.step()
    world.store.before = lambda operation: None
    assert said.count("later") > 3 * len(asked) > 0
    for name, task in asked.items():
        world.service.deliver(name, task.id, frames[name])
    world.run()
    assert world.service.job(run).reason == "completed"
    for site in world.sites.values():
        assert len(site.worked) == len(set(site.worked))


@pytest.mark.parametrize("kind", ["sums", "ready", "train"])
def test_what_a_later_task_names_is_on_its_way_while_a_run_is_taken_up_again(
    world: World, kind: str
) -> None:
    """A site that fetches it meanwhile is told to try again, not that there is no such thing."""
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.reach(kind)
    named = {name: world.service.poll(name, ()).tasks[0].plan.sha256 for name in world.sites}
    world.kill()
    said: list[str] = []

    def meanwhile(operation: str) -> None:
        world.store.before = lambda operation: None
        for name, sha256 in named.items():
            try:
                world.service.blob(name, sha256)
                said.append("there")
            except AtollError as error:
                said.append(type(error).__name__)
        world.store.before = meanwhile

    world.store.before = meanwhile
    world.service.step()
    world.store.before = lambda operation: None
    assert "Unreachable" in said
    assert set(said) <= {"Unreachable", "there"}
    for name, sha256 in named.items():
        assert world.service.blob(name, sha256).size
    world.run()
    assert world.service.job(run).reason == "completed"


@pytest.mark.parametrize(
    ("task", "site"),
    [
        ("heart-1.train.3.hospital-c", "hospital-c"),
        ("heart-1.train.3.St. Mary's", "St. Mary's"),
        ("heart-1.train", ""),
        ("", ""),
    ],
)
def test_a_tasks_id_ends_with_its_site(task: str, site: str) -> None:
    assert site_of(task) == site


def test_a_short_answer_is_read_once_and_under_its_own_digest(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.reach("train")
    counter, sends = world.service._engines[run].counter, answers(world)
    sent = {name: send() for name, send in sends.items()}
    first, second = list(sent.values())[:2]
    assert counter.answer(first.task, second.sha256) is None
    found = counter.answer(second.task, second.sha256)
    assert found is not None
    assert found[0].task == second.task
    assert counter.answer(second.task, second.sha256) is None
    world.run()  # what was taken away here is read from the store
    assert world.service.job(run).reason == "completed"
