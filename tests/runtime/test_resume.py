"""A run continued from any checkpoint ends in the bits of the run that was never interrupted."""

import pytest
import runtime_clients as rc

from atoll.algorithms import ALGORITHMS, FedAvg, FedBuff, Scaffold
from atoll.runtime import checkpoint
from atoll.runtime.clock import Availability, Clock, Delay
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.schedule import Asynchronous, Synchronous
from atoll.runtime.serial import SerialExecutor

JOB = "cd" * 32
HARSH = Clock(Delay("log_normal", 1.0, sigma=1.5), Availability(0.8), dropout=0.15, partial=0.4)
SCHEDULES = {
    "sync": Synchronous(Cohort("uniform", 4), over_selection=0.5, deadline=2.0, quorum=2),
    "async": Asynchronous(buffer=2, concurrency=7, max_staleness=6),
}


def bits(named):
    return {n: (v.dtype.str, v.tobytes()) for n, v in named.items()}


def final(finished):
    p = finished.progress
    return (
        finished.status,
        p.state.round,
        bits({"w": p.state.parameters, **p.state.slots}),
        {c: bits(m) for c, m in p.memories.items()},
        p.pace,
        (p.rounds, p.waiting, p.aborted),
        {v: bits(b.vectors) for v, b in p.broadcasts.items()},
        p.best and (p.best.round, p.best.value, p.best.parameters.tobytes()),
    )


def without_times(record):
    return {k: v for k, v in record.items() if k != "seconds"}


def loop(parts, schedule, stop, *, save=lambda p: None, rows=None, clock=HARSH):
    return Loop(
        parts,
        SerialExecutor(parts),
        schedule=schedule,
        clock=clock,
        evaluation=Evaluation(2, None, True),
        stop=stop,
        save=save,
        observers=[] if rows is None else [lambda r: rows.append(without_times(r))],
    )


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_resumes_at_any_round(name, kind, tmp_path):
    parts = rc.parts(ALGORITHMS[name]())
    stop = Stop(rounds=9, metric="federated.accuracy", patience=3)
    rows, files = [], []

    def save(progress):
        files.append(checkpoint.write(tmp_path / str(progress.rounds), progress, JOB, {}))

    expected = final(loop(parts, SCHEDULES[kind], stop, save=save, rows=rows).run())
    assert len(files) == len(rows) >= 6
    if kind == "async":
        assert any(checkpoint.read(f, JOB)[0].broadcasts for f in files)
    for at, file in enumerate(files, start=1):
        progress, _ = checkpoint.read(file, JOB)
        again = []
        assert final(loop(parts, SCHEDULES[kind], stop, rows=again).run(progress)) == expected
        assert again == rows[at:]


def test_early_stopping_and_the_best_model_do_not_forget(tmp_path):
    """The count of evaluations without improvement goes on across the interruption."""
    parts = rc.parts(FedAvg())
    stop = Stop(rounds=50, metric="federated.auc", patience=3)
    kept = []
    whole = loop(parts, Synchronous(), stop, save=kept.append, clock=Clock()).run()
    assert whole.status.startswith("stopped early: federated.auc has not improved for 3")
    middle = next(p for p in kept if p.waiting == 2)
    progress, _ = checkpoint.read(checkpoint.write(tmp_path, middle, JOB, {}), JOB)
    rest = loop(parts, Synchronous(), stop, clock=Clock()).run(progress)
    assert final(rest) == final(whole)
    assert rest.progress.rounds == middle.rounds + 2


def test_interrupting_after_every_round_changes_nothing(tmp_path):
    parts = rc.parts(Scaffold())
    expected = final(loop(parts, SCHEDULES["async"], Stop(rounds=6)).run())
    progress, statuses = None, []
    while not statuses or statuses[-1] == "interrupted":
        part = Loop(
            parts,
            SerialExecutor(parts),
            SCHEDULES["async"],
            HARSH,
            Evaluation(2, None, True),
            Stop(rounds=6),
            interrupted=lambda: True,
        ).run(progress)
        statuses.append(part.status)
        progress, _ = checkpoint.read(checkpoint.write(tmp_path, part.progress, JOB, {}), JOB)
    assert statuses == ["interrupted"] * 5 + ["completed"]
    assert final(part) == expected


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=["fedavg", "scaffold"])
def test_a_full_buffer_without_delay_is_the_synchronous_run(algorithm):
    """Identity 2: K = n and zero delay; equal bits over several rounds, memories included."""
    n = len(rc.SIZES)
    runs = {}
    for kind, schedule, method in (
        ("sync", Synchronous(), algorithm),
        ("async", Asynchronous(buffer=n), algorithm),
        ("fedbuff", Asynchronous(buffer=n), FedBuff()),
    ):
        parts = rc.parts(method)
        rows = []
        end = loop(parts, schedule, Stop(rounds=5), rows=rows, clock=Clock()).run().progress
        assert [r["staleness"]["max"] for r in rows] == [0] * 5
        assert all(len(r["contributed"]) == n for r in rows)
        runs[kind] = (
            bits({"w": end.state.parameters, **end.state.slots}),
            {c: bits(m) for c, m in end.memories.items()},
            [(r["model_hash"], r["train"], r["federated"], r["sites"]) for r in rows],
        )
    assert runs["async"] == runs["sync"]
    assert (runs["fedbuff"] == runs["sync"]) == isinstance(algorithm, FedAvg)


def test_a_run_may_change_its_executor_when_it_is_resumed(tmp_path):
    parts = rc.parts(Scaffold())
    saved = []
    expected = final(loop(parts, SCHEDULES["async"], Stop(rounds=6), save=saved.append).run())
    progress, _ = checkpoint.read(checkpoint.write(tmp_path, saved[2], JOB, {}), JOB)
    like = parts.algorithm.broadcast(saved[0].state)
    executor = ProcessExecutor(parts, like, workers=2)
    try:
        rest = Loop(
            parts,
            executor,
            SCHEDULES["async"],
            HARSH,
            Evaluation(2, None, True),
            Stop(rounds=6),
        ).run(progress)
    finally:
        executor.close()
    assert final(rest) == expected


def test_the_seed_alone_decides_who_takes_part():
    def who(seed, schedule):
        rows = []
        loop(rc.parts(FedAvg(), seed=seed), schedule, Stop(rounds=5), rows=rows).run()
        return [(r["invited"], r["contributed"], r["missing"], r["clock"]) for r in rows]

    for schedule in SCHEDULES.values():
        assert who(1, schedule) == who(1, schedule)
        assert who(1, schedule) != who(2, schedule)
