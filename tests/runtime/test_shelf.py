"""Clients' memories on a shelf: same values, no copy in the parent, old ones untouched, places re-used."""

from __future__ import annotations

import gc
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_clients as rc

from atoll.algorithms import Scaffold
from atoll.core.contracts import Task
from atoll.core.values import Memory
from atoll.runtime import checkpoint
from atoll.runtime.clock import Clock, Delay
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.schedule import Asynchronous, Synchronous
from atoll.runtime.serial import SerialExecutor
from atoll.runtime.shelf import Shelf

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no anonymous files")

BIG = 6000
"""Values of a memory that goes on the shelf (48 kB)."""


def a_memory(fill: float, size: int = BIG) -> dict[str, np.ndarray]:
    return {"control": np.full((size // 3, 3), fill), "n": np.array(int(fill))}


def same(one: Memory, other: Memory) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and np.array_equal(one[n], other[n]) for n in one
    )


def test_what_is_laid_down_is_read_back_and_seen_by_the_parent() -> None:
    shelf = Shelf()
    first = shelf.adopt(a_memory(1.0))
    assert same(first, a_memory(1.0))
    assert not first["control"].flags.writeable
    assert same(shelf.fetch(shelf.places(first)), first)
    (place,) = shelf.reserve(1)
    laid = shelf.lay(place.room, a_memory(2.0))
    assert laid is not None
    second = place.memory(laid)
    assert same(second, a_memory(2.0))
    assert same(first, a_memory(1.0))


def test_a_place_is_free_when_its_last_array_is_gone_and_not_before() -> None:
    shelf = Shelf()
    held = [shelf.adopt(a_memory(float(i))) for i in range(8)]
    end = shelf._end
    corner = held[3]["control"][5:, 1]
    held[3] = {}
    held += [shelf.adopt(a_memory(99.0))]
    assert (corner == 3.0).all()
    del corner, held[3:]
    gc.collect()
    for i in range(100):
        assert same(shelf.adopt(a_memory(float(i))), a_memory(float(i)))
    assert shelf._end <= 2 * end
    assert all(same(m, a_memory(float(i))) for i, m in enumerate(held))


@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"control": np.zeros(10)},
        {"names": np.array(["a"] * BIG, dtype=object)},
        {"mask": np.ma.masked_array(np.zeros(BIG), mask=np.ones(BIG))},
    ],
    ids=["empty", "small", "objects", "masked"],
)
def test_what_is_small_or_no_plain_array_is_left_as_it_is(memory: Memory) -> None:
    shelf = Shelf()
    shelf.adopt(a_memory(1.0))
    assert shelf.adopt(memory) is memory
    assert shelf.places(memory) is None
    (place,) = shelf.reserve(1)
    assert shelf.lay(place.room, memory) is None


def test_memories_may_grow_and_old_ones_stay() -> None:
    shelf = Shelf()
    small = shelf.adopt(a_memory(1.0))
    (place,) = shelf.reserve(1)
    assert shelf.lay(place.room, a_memory(2.0, 10 * BIG)) is None
    large = shelf.adopt(a_memory(2.0, 10 * BIG))
    assert same(large, a_memory(2.0, 10 * BIG))
    assert same(small, a_memory(1.0))
    assert shelf.places(large) is not None
    del place, small
    gc.collect()
    rooms = [p.room for p in shelf.reserve(3)]
    assert all(size >= 10 * BIG * 8 for _, size in rooms)


def test_memories_of_two_shelves_and_changed_ones_have_no_place() -> None:
    one, other = Shelf(), Shelf()
    memory = one.adopt(a_memory(1.0))
    assert other.places(memory) is None
    assert one.places({**memory, "n": np.array(7)}) is None
    assert one.places({"control": memory["control"].T}) is None


def test_memories_outlive_their_shelf() -> None:
    shelf = Shelf()
    memory = shelf.adopt(a_memory(4.0))
    before = len(os.listdir("/proc/self/fd"))
    shelf.close()
    shelf.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert same(memory, a_memory(4.0))
    del memory
    assert same(shelf.adopt(a_memory(5.0)), a_memory(5.0))  # left as it is


def bits(memories: Any) -> dict[str, Any]:
    return {
        c: {n: (v.dtype.str, v.shape, v.tobytes()) for n, v in m.items()}
        for c, m in memories.items()
    }


def started(parts: Any, **options: Any) -> ProcessExecutor:
    like = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
    return ProcessExecutor(parts, like, workers=2, **options)


RACE = Clock(Delay("exponential", 1.0))
HOW = {"synchronous": (Synchronous(), Clock()), "asynchronous": (Asynchronous(buffer=3), RACE)}


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("how", HOW.values(), ids=list(HOW))
def test_runs_end_in_the_serial_bits_with_memories_on_the_shelf(how: Any, method: str) -> None:
    parts = rc.parts(rc.Notes())

    def run(executor: Any, progress: Any = None) -> Any:
        loop = Loop(parts, executor, *how, Evaluation(1, None, True), Stop(rounds=6))
        return loop.run(progress).progress

    expected = run(SerialExecutor(parts))
    with closing(started(parts, method=method)) as executor:
        found = run(executor)
        kept = found.memories["c4"]
        assert executor._shelf.places(kept) is not None
    assert bits(found.memories) == bits(expected.memories)
    assert found.state.parameters.tobytes() == expected.state.parameters.tobytes()


def test_a_round_that_is_not_committed_leaves_every_memory_as_it_was() -> None:
    parts = rc.parts(rc.Notes())
    model = {0: rc.Notes().broadcast(Loop(parts, SerialExecutor(parts)).start().state)}
    tasks = [Task(c, 0) for c in parts.clients]
    with closing(started(parts)) as executor:
        _, _, held = executor.run(tasks, model, {})
        before = bits(held)
        for _ in range(3):  # what it gives is dropped, as the loop does when a quorum is missed
            _, _, dropped = executor.run(tasks, model, held)
            assert all((m["told"] == 2).all() for m in dropped.values())
            assert bits(held) == before
        end = executor._shelf._end
        for turn in range(10):
            _, _, held = executor.run(tasks, model, held)
            assert all((m["told"] == turn + 2).all() for m in held.values())
        assert executor._shelf._end == end


def test_clients_that_fail_keep_their_memories_and_take_no_room() -> None:
    clients = rc.federation(rc.SIZES, {"c3": rc.RAISES, "c5": rc.WILD})
    parts = rc.parts(rc.Notes(), clients, from_round=1, scale=np.inf)
    first = rc.Notes().broadcast(Loop(parts, SerialExecutor(parts)).start().state)
    second = replace(first, version=1)
    tasks = [Task(c, 0) for c in clients]
    later = [Task(c, 1) for c in clients]
    with closing(started(parts)) as executor:
        _, _, held = executor.run(tasks, {0: first}, {})
        _, _, changed = executor.run(later, {1: second}, held)
        held = {**held, **changed}
        assert set(clients) - set(changed) == {"c3", "c5"}
        assert {c: float(m["told"][0]) for c, m in held.items()} == {
            c: 1.0 if c in ("c3", "c5") else 2.0 for c in clients
        }
        ends = []
        for _ in range(5):
            _, _, changed = executor.run(later, {1: second}, held)
            ends.append(executor._shelf._end)
        assert ends[2:] == ends[1:2] * 3


def test_a_checkpoint_holds_memories_from_the_shelf(tmp_path: Path) -> None:
    parts = rc.parts(rc.Notes())

    def run(executor: Any, rounds: int, progress: Any = None) -> Any:
        stop = Stop(rounds=rounds)
        return Loop(parts, executor, evaluation=Evaluation(0), stop=stop).run(progress).progress

    with closing(started(parts)) as executor:
        half = run(executor, 2)
        path = checkpoint.write(tmp_path, half, "job", {})
    read, _ = checkpoint.read(path, "job")
    assert bits(read.memories) == bits(half.memories)
    with closing(started(parts)) as executor:
        end = run(executor, 4, read)
        assert all(executor._shelf.places(m) is not None for m in end.memories.values())
    assert bits(end.memories) == bits(run(SerialExecutor(parts), 4).memories)


def test_scaffold_needs_no_other_path() -> None:
    """Small memories cross the pipe as before."""
    parts = rc.parts(Scaffold())
    model = {0: Scaffold().broadcast(Loop(parts, SerialExecutor(parts)).start().state)}
    tasks = [Task(c, 0) for c in parts.clients]
    with closing(started(parts)) as executor:
        _, _, kept = executor.run(tasks, model, {})
        assert executor._shelf._end == 0
    assert bits(kept) == bits(SerialExecutor(parts).run(tasks, model, {})[2])
