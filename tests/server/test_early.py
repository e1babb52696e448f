"""Answers that are written together with the round that they complete, and told of then."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

import played_sites as played
import pytest

from atoll.core.errors import Equivocation, StorageError, Unreachable
from atoll.server.rounds.early import Early
from atoll.wire.frames import Allowed, Blob, decode, encode

World = played.World


def offered(world: World, *names: str) -> dict[str, Early]:
    """What these sites (all, if none is named) are given for their answers to the present call."""
    found: dict[str, Early] = {}
    for name in names or world.sites:
        (task,) = world.service.poll(name, ()).tasks
        frame = world.sites[name].answer(world.service, task)
        early = world.service.offer(name, task.id, frame, Blob.of(frame))
        assert isinstance(early, Early)
        found[name] = early
    return found


def operations(world: World) -> list[str]:
    """The store's operations from now on."""
    found: list[str] = []
    world.store.before = found.append
    return found


def asked(world: World, kind: str = "evaluate") -> str:
    """A run whose sites are asked for the last call of its only round, or for the one before that."""
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.reach(kind)
    return run


def test_a_round_and_the_answers_that_complete_it_are_one_write(world: World) -> None:
    run = asked(world)
    seen = operations(world)
    found = offered(world)
    assert [early.receipt() for early in found.values()] == [None] * 4
    assert not world.store.contributions(run, f"{run}.evaluate")
    world.service.step()
    assert "contribute" not in seen
    assert seen.count("commit_round with answers") == 1
    rows = {row.client: row.sha256 for row in world.store.contributions(run, f"{run}.evaluate")}
    assert {n: e.receipt().sha256 for n, e in found.items()} == rows  # type: ignore[union-attr]
    held = set(world.store.holdings())
    assert not held & set(rows.values()), "nobody reads them again"


def test_answers_are_written_before_another_call_is_opened(world: World) -> None:
    run = asked(world, "train")
    seen = operations(world)
    found = offered(world)
    world.service.step()
    assert seen.count("contribute") == 1
    assert not world.store.rounds(run)
    assert all(early.receipt() is not None for early in found.values())
    assert world.service.poll("hungary", ()).tasks[0].kind == "evaluate"


def test_an_answer_that_completes_nothing_is_written_by_itself_in_time(world: World) -> None:
    run = asked(world)
    found = offered(world, "hungary", "cleveland")
    due = world.service.step()
    assert due is not None
    assert due <= world.time + 0.05
    assert found["hungary"].receipt() is None
    world.time = due
    world.service.step()
    assert all(early.receipt() is not None for early in found.values())
    assert len(world.store.contributions(run, f"{run}.evaluate")) == 2


def test_the_same_answer_again_waits_too_and_another_is_an_alarm(world: World) -> None:
    asked(world)
    (task,) = world.service.poll("hungary", ()).tasks
    frame = world.sites["hungary"].answer(world.service, task)
    early = world.service.offer("hungary", task.id, frame, Blob.of(frame))
    assert world.service.offer("hungary", task.id, frame, Blob.of(frame)) is early
    with pytest.raises(Unreachable, match="just being written"):
        world.service.deliver("hungary", task.id, frame)
    with pytest.raises(Equivocation):
        world.service.offer("hungary", task.id, b"other", Blob.of(b"other"))
    assert task.id not in world.service.poll("hungary", {task.id}).gone


def test_what_cannot_be_written_was_never_there(world: World) -> None:
    run = asked(world)
    found = offered(world)

    def full(operation: str) -> None:
        if operation.startswith("commit_round"):
            raise StorageError("the disk is full")

    world.store.before = full
    world.service.step()
    for early in found.values():
        with pytest.raises(Unreachable):
            early.receipt()
    assert not world.store.contributions(run, f"{run}.evaluate")
    world.store.before = lambda operation: None
    world.time += 10.0
    world.run()
    assert world.service.job(run).reason == "completed"


def test_an_answer_is_taken_in_at_once_where_nobody_holds_a_lock_it_needs(world: World) -> None:
    run = asked(world)
    (task,) = world.service.poll("hungary", ()).tasks
    frame = world.sites["hungary"].answer(world.service, task)
    given = "hungary", task.id, frame, Blob.of(frame)
    engine, found = world.service._engines[run], list[object]()

    def offer() -> None:
        found.append(world.service.offer_at_once(*given))

    with engine.counter.lock:
        other = Thread(target=offer)  # to another thread the lock is held
        other.start()
        other.join(10)
    assert found == [None], "whoever answers everybody must not wait"
    seen = operations(world)
    early = world.service.offer_at_once(*given)
    assert isinstance(early, Early)
    assert world.service.offer(*given) is early
    assert not seen, "the store was asked"


@pytest.mark.parametrize("task", ["x.train.0.hungary", "{run}.train.0.cleveland"])
def test_what_cannot_be_taken_in_at_once_is_left_to_those_who_may_wait(
    world: World, task: str
) -> None:
    run = asked(world)
    blob, seen = Blob.of(b"any"), operations(world)
    name = task.format(run=run)
    assert world.service.offer_at_once("hungary", name, b"any", blob) is None
    assert not seen


def test_a_head_that_is_a_line_in_the_log_is_left_to_those_who_may_wait(world: World) -> None:
    asked(world)
    (task,) = world.service.poll("hungary", ()).tasks
    frame = world.sites["hungary"].answer(world.service, task)
    newer, older = (f"{lines}.{'a' * 64}.{'b' * 128}" for lines in (7, 3))
    world.service.ledger("hungary", newer)
    blob, seen = Blob.of(frame), operations(world)
    assert world.service.offer_at_once("hungary", task.id, frame, blob, older) is None
    assert not seen
    longer = f"8.{'a' * 64}.{'b' * 128}"
    assert isinstance(world.service.offer_at_once("hungary", task.id, frame, blob, longer), Early)
    assert world.service.ledger("hungary") == longer
    assert not seen


def test_of_two_answers_at_the_same_moment_one_is_an_alarm_and_the_other_the_one_that_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = asked(world)
    (task,) = world.service.poll("hungary", ()).tasks
    frames = [world.sites["hungary"].answer(world.service, task)]
    body, arrays = decode(frames[0], Allowed(most_arrays=100, most_bytes=1 << 20))
    frames.append(encode({**body, "seconds": 1e6}, arrays))
    office, ended, begun, go = world.service._office, list[object](), Event(), Event()
    put, contribute_of_store = office.blobs.put, world.store.contribute

    def deliver() -> None:
        try:
            ended.append(world.service.deliver("hungary", task.id, frames[1]))
        except Equivocation as error:
            ended.append(error)

    def write(operation: str) -> None:
        if operation == "contribute" and not begun.is_set():
            begun.set()
            go.wait(10)

    def contribute(*row: Any) -> Any:
        if begun.is_set():  # the one who came first writes, and the second is here too
            go.set()
        return contribute_of_store(*row)

    def put_slowly(raw: Any, named: Any = None) -> Blob:
        monkeypatch.setattr(office.blobs, "put", put)
        other.start()
        assert begun.wait(10)
        return put(raw, named)

    other = Thread(target=deliver)
    world.store.before = write
    monkeypatch.setattr(world.store, "contribute", contribute)
    monkeypatch.setattr(office.blobs, "put", put_slowly)
    try:
        ended.append(world.service.offer("hungary", task.id, frames[0], Blob.of(frames[0])))
    except Equivocation as error:
        ended.append(error)
    go.set()
    other.join(10)
    assert sum(isinstance(found, Equivocation) for found in ended) == 1, ended
    assert not any(isinstance(found, Early) for found in ended)
    (row,) = world.store.contributions(run, task.id)
    desk = world.service._engines[run].counter.desk
    assert desk is not None
    assert desk.digest(task.id) == row.sha256
