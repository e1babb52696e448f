"""Where the time went: exclusive phases that add up, and what executors tell."""

from __future__ import annotations

import time

import pytest
import runtime_clients as rc

from atoll.algorithms import FedAvg
from atoll.core.contracts import Outcome
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.profile import PHASES, Stopwatch, timed
from atoll.runtime.serial import SerialExecutor


class Hands:
    """A clock that moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def watch(hands):
    return Stopwatch(hands)


def spent(watch, hands, name, seconds):
    with watch.phase(name):
        hands.now += seconds


def found(watch):
    return {p.name: p.seconds for p in watch.profile().phases}


def test_an_inner_phase_is_not_charged_to_the_outer(watch, hands):
    with watch.phase("finish"):
        hands.now += 1
        spent(watch, hands, "checkpoint", 5)
        hands.now += 2
    hands.now += 4
    assert found(watch) == {"checkpoint": 5, "finish": 3, "rest": 4}
    assert watch.profile().total == 12


def test_a_phase_ends_with_its_error(watch, hands):
    def fail():
        with watch.phase("data"):
            hands.now += 2
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    hands.now += 1
    assert found(watch) == {"data": 2, "rest": 1}


def test_the_first_round_stands_apart(watch, hands):
    spent(watch, hands, "server", 100)  # before any round
    for seconds in (7, 1, 3):
        with watch.round():
            spent(watch, hands, "server", seconds)
    spent(watch, hands, "server", 1000)
    (phase,) = watch.profile().phases
    assert (phase.seconds, phase.first, phase.later) == (1111, 7, 2)
    assert watch.profile().rounds == 3


def test_without_a_watch_nothing_is_timed():
    with timed(None, "data"):
        pass
    assert timed(None, "data") is timed(None, "server")


class Telling:
    """An executor that says where its time went."""

    def __init__(self, **timings):
        self.timings = timings


def executed(watch, hands, executor, wall, seconds):
    before = watch.seconds("training")
    with watch.phase("training"):
        hands.now += wall
    watch.executed(
        executor, [Outcome(f"c{i}", "contributed", 1, "", s) for i, s in enumerate(seconds)], before
    )


def test_what_a_silent_executor_did_not_train_is_handing_out(watch, hands):
    executed(watch, hands, object(), 10.0, [3.0, 4.0])
    assert found(watch) == {"training": 7, "dispatch": 3}
    profile = watch.profile()
    assert (profile.tasks, profile.working, profile.longest) == (2, 7.0, 4.0)
    assert (profile.workers, profile.path) == ((), "")


def test_training_never_exceeds_the_executors_time(watch, hands):
    executed(watch, hands, object(), 10.0, [9.0, 8.0])  # two workers that do not say so
    assert found(watch) == {"training": 10}


def test_an_executor_s_timings_split_its_call(watch, hands):
    told = {"broadcast": 1.0, "fold": 2.0, "worker/0": 6.0, "worker/1": 4.0}
    for _ in range(2):
        executed(watch, hands, Telling(**told), 10.0, [5.0, 4.0])
    assert found(watch) == {
        "broadcast": 2,
        "training": 9,  # (5 + 4) / 2 workers, twice
        "wait": 2,  # 6 - mean(6, 4), twice
        "fold": 4,
        "dispatch": 3,
    }
    profile = watch.profile()
    assert profile.workers == (0.6, 0.4)
    assert sum(p.seconds for p in profile.phases) == profile.total == 20


def test_a_wait_that_is_told_is_believed_and_excess_is_cut(watch, hands):
    executed(watch, hands, Telling(wait=0.5, fold=-1.0), 2.0, [1.0])
    assert found(watch) == {"training": 1, "wait": 0.5, "dispatch": 0.5}
    executed(watch, hands, Telling(broadcast=99.0), 2.0, [1.0])
    assert found(watch)["broadcast"] == 2
    assert watch.profile().total == sum(found(watch).values()) == 4


def test_workers_stand_in_their_order(watch, hands):
    told = {f"worker/{i}": float(i) for i in range(12)}
    executed(watch, hands, Telling(**dict(sorted(told.items()))), 100.0, [1.0])
    assert watch.profile().workers == tuple(i / 100 for i in range(12))


def test_a_watched_loop_gives_the_same_bits_and_accounts_for_its_time():
    parts = rc.parts(FedAvg())

    saves = []

    def slow(progress):
        began = time.perf_counter()
        time.sleep(0.02)
        saves.append(time.perf_counter() - began)

    def run(watch):
        loop = Loop(
            parts,
            SerialExecutor(parts),
            evaluation=Evaluation(federated=True),
            stop=Stop(rounds=3),
            observers=[lambda record: None],
            save=slow,
            watch=watch,
        )
        return loop.run().progress.state.parameters

    watch = Stopwatch()
    unwatched = run(None).tobytes()
    saves.clear()
    assert run(watch).tobytes() == unwatched
    profile = watch.profile()
    seconds = {p.name: p.seconds for p in profile.phases}
    assert seconds["checkpoint"] >= sum(saves) >= 0.06
    assert {"cohort", "broadcast", "training", "server", "evaluation", "record"} <= set(seconds)
    assert profile.tasks == 3 * len(rc.SIZES)
    assert sum(seconds.values()) == pytest.approx(profile.total)
    assert list(seconds) == [name for name in PHASES if name in seconds]
    plain = profile.to_plain()
    assert sum(p["share"] for p in plain["phases"]) == pytest.approx(1.0)
    later = {p["name"]: p["later"] for p in plain["phases"]}
    # The mean after the first round, and what a busy machine takes between two clocks.
    assert 0.02 <= sum(saves[1:]) / 2 <= later["checkpoint"] <= seconds["checkpoint"]
