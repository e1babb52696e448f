"""Asynchronous runs with real arrivals: steps, staleness, who is sent out, and starting again."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import runtime_clients as rc
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation.exact import Fold
from atoll.algorithms import FedAsync, FedAvg, FedBuff, Scaffold
from atoll.core.errors import JobError, QuorumError
from atoll.runtime import checkpoint
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import answer_task
from atoll.runtime.gathering import (
    Alarm,
    Closed,
    Complete,
    Delivered,
    Failed,
    Folded,
    FoldIt,
    Left,
    Seen,
    Tick,
)
from atoll.runtime.live import Live, step
from atoll.runtime.loop import Loop, Next, Stop, Train
from atoll.runtime.schedule import Asynchronous, Synchronous
from atoll.runtime.serial import SerialExecutor

CLIENTS = {"a": 20, "b": 9, "c": 14, "d": 6}
SPEEDS = {"a": 1.0, "b": 2.3, "c": 4.1, "d": 9.7}


class Killed(Exception):
    """The server is gone, in the middle of a step."""


@dataclass
class World:
    """Clients that take their time, and the durable side of a server.

    What was delivered stays in ``store`` in order of arrival; a second server finds it there.
    """

    parts: Any
    speeds: dict = field(default_factory=lambda: dict(SPEEDS))
    now: float = 0.0
    kill_at: int = -1
    due: dict = field(default_factory=dict)
    store: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    folded: list = field(default_factory=list)
    memories: dict = field(default_factory=dict)

    def run(self, loop, progress=None):
        steps, answer, live, fold = loop.play(progress), None, None, None
        while True:
            try:
                call = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(call, Next):
                live, fold = self.one_step(call)
                answer = live.planned()
            elif isinstance(call, Train):
                assert [o.client for o in live.outcomes()] == [t.client for t in call.tasks]
                answer = fold.aggregate(), live.outcomes(), {}
            else:
                answer = {}

    def one_step(self, call):
        live = Live.start(call, "r.train.", self.now, self.now + 500.0, 60.0)
        fold, known = Fold(live.buffer), {f.id: f for f in live.flights}
        self.asked.append(live.flights)
        for name in [n for n in self.store if n in known]:
            live = self.tell(live, fold, known, Delivered(name, name, self.now))
        for name, flight in known.items():
            if name not in self.store and name not in self.due:
                task = flight.task
                memory = self.memories.get(task.client, {})
                answer = answer_task(self.parts, task, call.broadcasts[task.version], memory)
                self.due[name] = self.now + self.speeds[task.client], answer
        while not live.complete:
            at, name = min((at, n) for n, (at, _) in self.due.items())
            self.now = max(self.now, at)
            self.store[name] = self.due.pop(name)[1]
            live = self.tell(live, fold, known, Delivered(name, name, self.now))
            if len(self.store) == self.kill_at:
                raise Killed
        return live, fold

    def tell(self, live, fold, known, event):
        live, effects = step(live, event)
        for effect in effects:
            if isinstance(effect, FoldIt):
                task, (update, memory) = known[effect.task].task, self.store[effect.task]
                fold.add(update, task.scale)
                self.memories[task.client] = memory
                self.folded.append((effect.task, task))
                live, _ = step(live, Folded(effect.task, update.examples, 0.1))
        return live


def looped(algorithm, rule, rounds, *, saved=None, rows=None):
    parts = replace(rc.parts(algorithm, rc.federation(CLIENTS)), apart=True)
    rows = [] if rows is None else rows
    save = (lambda p: None) if saved is None else saved.append
    return parts, Loop(parts, schedule=rule, stop=Stop(rounds), observers=[rows.append], save=save)


def test_with_a_buffer_for_everybody_it_is_synchronous_to_the_bit():
    for speeds in (dict.fromkeys(CLIENTS, 0.0), SPEEDS, {**SPEEDS, "a": 30.0}):
        rows, plain = [], []
        parts, loop = looped(FedAvg(), Asynchronous(buffer=4), 5, rows=rows)
        World(parts, speeds).run(loop)
        _, loop = looped(FedAvg(), Synchronous(), 5, rows=plain)
        replace(loop, executor=SerialExecutor(parts)).run()
        assert [r["model_hash"] for r in rows] == [r["model_hash"] for r in plain]
        assert [r["contributed"] for r in rows] == [r["contributed"] for r in plain]


def test_arrivals_make_steps_and_the_versions_between_make_staleness():
    rows = []
    parts, loop = looped(FedAsync(), Asynchronous(), 6, rows=rows)
    world = World(parts, {"a": 1.0, "b": 2.5, "c": 99.0, "d": 99.0})
    world.run(loop)
    # a arrives at 1, 2, 3, 4 and b at 2.5, 5: b's first started at version 0 and enters step 3.
    assert [(t.client, t.version) for _, t in world.folded] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("a", 2),
        ("a", 4),
        ("b", 3),
    ]
    assert [r["staleness"]["max"] for r in rows] == [0, 0, 2, 1, 0, 2]
    assert [round(t.scale, 3) for _, t in world.folded] == [1, 1, 0.577, 0.707, 1, 0.577]
    assert [r["clock"] for r in rows] == [1.0, 2.0, 2.5, 3.0, 4.0, 5.0]
    assert all(r["missing"] == {} for r in rows)  # at work is not missing
    assert all(sorted(r["invited"]) == ["a", "b", "c", "d"] for r in rows)


@pytest.mark.parametrize("kill_at", [1, 2, 3, 5, 8, 11])
def test_after_a_kill_the_same_tasks_are_open_and_the_same_model_comes_out(kill_at):
    rule = Asynchronous(buffer=2, concurrency=3)
    rows, saved = [], []
    parts, loop = looped(FedBuff(), rule, 6, rows=rows)
    whole = World(parts)
    whole.run(loop)
    parts, loop = looped(FedBuff(), rule, 6, saved=saved)
    world = World(parts, kill_at=kill_at)
    with pytest.raises(Killed):
        world.run(loop)
    before = world.asked[-1]
    progress = None
    if saved:
        raw = checkpoint.encode(saved[-1], "ab", {})
        progress, _ = checkpoint.decode(raw, "ab")
    world.kill_at = -1
    again = []
    parts, loop = looped(FedBuff(), rule, 6, rows=again)
    end = world.run(loop, progress)
    assert [(f.id, f.task) for f in world.asked[len(saved) + 1]] == [(f.id, f.task) for f in before]
    assert model_hash(end.progress.state.parameters) == rows[-1]["model_hash"]
    assert [r["model_hash"] for r in again] == [r["model_hash"] for r in rows[len(saved) :]]
    # The clock is a record of time that was worked; nothing is computed from it.
    assert world.folded[-1] == whole.folded[-1]


def asked(rule, *, algorithm=None, progress=None, rounds=9):
    _, loop = looped(algorithm or FedBuff(), rule, rounds)
    steps = loop.play(progress)
    return steps, steps.send(None)


def begun(rule, now=0.0, **options):
    _, call = asked(rule, **options)
    return Live.start(call, "r.train.", now, now + 500.0, 60.0)


def told(live, *events):
    effects = []
    for event in events:
        live, more = step(live, event)
        effects += more
    return live, effects


def test_answers_after_the_last_one_needed_wait_for_the_next_step():
    live = begun(Asynchronous(buffer=2))
    names = [f.id for f in live.flights]
    assert names == ["r.train.0.a", "r.train.1.b", "r.train.2.c", "r.train.3.d"]
    live, effects = told(live, *(Delivered(n, n, 1.0) for n in names[:3]))
    assert effects == [FoldIt(names[0]), FoldIt(names[1])]
    live, effects = told(live, Folded(names[0], 1, 0.1), Folded(names[1], 1, 0.1))
    assert effects == [Complete()]
    plan, pace = live.planned()
    assert [t.client for t in plan.tasks] == ["a", "b"]
    assert plan.missing == {}
    assert [e[2] for e in pace.events] == ["c", "d"]
    # c, and d which arrives between the steps, are still asked for or known; another answer alarms.
    assert live.open_tasks("d") == (names[3],)
    assert live.open_tasks("c") == ()
    assert live.accepts(names[3], 2.0)
    live, effects = told(live, Delivered(names[3], "d", 2.0), Delivered(names[2], "other", 2.0))
    assert [type(e) for e in effects] == [Alarm]
    assert live.planned()[1] == replace(pace, clock=2.0)


def test_between_two_steps_time_closes_nothing():
    live = begun(Asynchronous())
    a, b, c, d = (f.id for f in live.flights)
    live, _ = told(live, Delivered(a, a, 1.0), Folded(a, 1, 0.1))
    pace = live.planned()[1]
    live, effects = told(live, Seen("b", 400.0), Tick(900.0), Seen("d", 900.0))
    assert effects == []
    assert live.accepts(b, 900.0)
    assert [live.open_tasks(x) for x in "bcd"] == [(b,), (c,), (d,)]
    assert live.planned()[1].events == pace.events


def test_a_place_that_is_free_goes_to_one_who_is_not_at_work():
    rule = Asynchronous(buffer=1, concurrency=2)
    live = begun(rule)
    first = [f.task.client for f in live.flights]
    assert len(first) == len(set(first)) == 2
    live, _ = told(live, Delivered(live.flights[0].id, "x", 1.0))
    live, _ = told(live, Folded(live.flights[0].id, 1, 0.1))
    _, pace = live.planned()
    assert len(pace.events) == 1
    _, call = asked(rule)
    again = Live.start(replace(call, pace=pace, version=1), "r.train.", 1.0, None, 60.0)
    clients = [f.task.client for f in again.flights]
    assert len(set(clients)) == 2
    assert clients[0] == first[1]
    assert [f.number for f in again.flights] == [1, 2]
    assert [f.tau for f in again.flights] == [1, 0]


def test_everybody_is_drawn_as_often_in_the_long_run():
    rule, counts = Asynchronous(buffer=1, concurrency=1), dict.fromkeys(CLIENTS, 0)
    _, call = asked(rule)
    for order in range(400):
        live = Live.start(replace(call, pace=replace(call.pace, order=order)), "", 0.0, None, 60.0)
        counts[live.flights[0].task.client] += 1
    assert all(70 <= n <= 130 for n in counts.values())  # 100 each, standard deviation 8.7


def test_a_silent_client_loses_its_task_when_the_step_ends_and_is_named():
    live = begun(Asynchronous(buffer=2))
    a, b, c, _ = (f.id for f in live.flights)
    live, effects = told(
        live,
        Delivered(a, a, 1.0),
        Folded(a, 1, 0.1),
        Seen("b", 59.0),
        Seen("d", 59.0),
        Tick(60.0),
        Delivered(b, b, 61.0),
        Folded(b, 1, 0.1),
    )
    assert effects == [FoldIt(a), FoldIt(b), Closed(c), Complete()]
    plan, pace = live.planned()
    assert plan.missing == {"c": ("unavailable", "nothing heard for 60 s")}
    assert [e[2] for e in pace.events] == ["d"]


def test_when_nobody_can_be_waited_for_the_step_takes_what_there_is_or_aborts():
    live = begun(Asynchronous(buffer=3))
    a = live.flights[0].id
    some, _ = told(live, Delivered(a, a, 1.0), Folded(a, 1, 0.1), Tick(61.0))
    assert some.complete
    assert [t.client for t in some.planned()[0].tasks] == ["a"]
    none, effects = told(live, Tick(60.0))
    assert effects[-1] == Complete()
    plan, pace = none.planned()
    assert plan.abort == "no client answered"
    assert (plan.tasks, pace.events) == ((), ())
    late, _ = told(live, *(Seen(c, 499.0) for c in CLIENTS), Tick(500.0))
    assert {s for s, _ in late.planned()[0].missing.values()} == {"late"}


def test_steps_without_any_answer_end_the_run_by_name():
    rows = []
    _, loop = looped(FedBuff(), Asynchronous(), 50, rows=rows)
    loop = replace(loop, stop=Stop(50, max_aborts=3))
    names = set()

    def deserted():
        steps, answer = loop.play(), None
        while True:
            live = Live.start(steps.send(answer), "", 0.0, 100.0, 60.0)
            names.update((f.id, f.task) for f in live.flights)
            answer = told(live, Tick(60.0))[0].planned()

    with pytest.raises(QuorumError, match=r"no client answered \(a unavailable"):
        deserted()
    # A new try is another task with another random stream, though the model is the same.
    assert len(names) == 12
    assert {task.repeat for _, task in names} == {0, 1, 2}


def test_a_failure_counts_as_an_arrival_as_in_virtual_time():
    live = begun(Asynchronous())
    a = live.flights[0].id
    live, _ = told(live, Delivered(a, a, 1.0), Failed(a, "boom", 2.0))
    assert live.complete
    assert [t.client for t in live.planned()[0].tasks] == ["a"]
    assert [(o.status, o.reason) for o in live.outcomes()] == [("failed", "boom")]


def test_too_old_an_update_is_not_waited_for_and_its_client_starts_anew():
    rule = Asynchronous(max_staleness=1)
    rows = []
    parts, loop = looped(FedAsync(), rule, 4, rows=rows)
    world = World(parts, {"a": 1.0, "b": 99.0, "c": 99.0, "d": 99.0})
    world.run(loop)
    assert rows[1]["missing"] == {}
    assert rows[2]["missing"] == dict.fromkeys("bcd", "late: 2 versions old, at most 1")
    third = {f.task.client: f for f in world.asked[2]}
    assert {(f.task.version, f.tau) for f in third.values()} == {(2, 0)}
    assert sorted(rows[2]["invited"]) == ["a", "b", "c", "d"]


def test_who_leaves_is_replaced_in_the_next_step():
    live = begun(Asynchronous(buffer=1, concurrency=2))
    first, second = live.flights
    live, effects = told(live, Left(first.task.client, "revoked"))
    assert effects == [Closed(first.id)]
    live, _ = told(live, Delivered(second.id, "x", 1.0), Folded(second.id, 1, 0.1))
    plan, pace = live.planned()
    assert plan.missing == {first.task.client: ("dropped", "revoked")}
    assert pace.events == ()


def test_a_barrier_is_no_matter_of_this_rule():
    with pytest.raises(JobError, match="Synchronous is not an asynchronous schedule"):
        begun(Synchronous())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_arrives_when_each_task_counts_once_and_the_places_are_kept(data):
    buffer = data.draw(st.integers(1, 3))
    rule = Asynchronous(buffer=buffer, concurrency=data.draw(st.sampled_from([0, 3, 4])))
    speeds = {c: data.draw(st.floats(0.1, 20.0)) for c in CLIENTS}
    rows = []
    parts, loop = looped(Scaffold(), rule, 5, rows=rows)
    world = World(parts, speeds)
    world.run(loop)
    names = [name for name, _ in world.folded]
    assert len(set(names)) == len(names) == 5 * buffer
    for flights in world.asked:
        clients = [f.task.client for f in flights]
        assert len(set(clients)) == len(clients) == (rule.concurrency or 4)
    streams = {(t.client, t.version, t.repeat) for _, t in world.folded}
    assert len(streams) == len(names)
    assert all(sum(r["contributed"].values()) > 0 for r in rows)
