"""Every executor is held against the serial one, bit for bit (decision D7).

A new executor adds a line to ``EXECUTORS``; a new algorithm is covered as soon as it has a name.
"""

from __future__ import annotations

import random
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atoll.algorithms import ALGORITHMS, FedAsync, FedAvg, FedBuff, Scaffold
from atoll.core.contracts import Task
from atoll.core.errors import ClientError
from atoll.core.metrics import values
from atoll.core.values import Broadcast
from atoll.runtime.client import Parts
from atoll.runtime.clock import Availability, Clock, Delay
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.schedule import Asynchronous, Synchronous
from atoll.runtime.serial import SerialExecutor

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))  # workers inherit it

import runtime_clients as rc

CLOCK = Clock(Delay("half_normal", 1.0), Availability(0.9), dropout=0.1, partial=0.3)
SCHEDULES = {
    "everybody": (Synchronous(), Clock()),
    "cohort": (Synchronous(Cohort("uniform", 5), over_selection=0.4), CLOCK),
    "fedbuff": (Asynchronous(buffer=3), CLOCK),
    "fedasync": (Asynchronous(concurrency=6), Clock(Delay("exponential", 1.0))),
}


def first(parts: Parts) -> Broadcast:
    return parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)


EXECUTORS = {
    f"processes-{n}": lambda parts, n=n: ProcessExecutor(parts, first(parts), workers=n)
    for n in (1, 2, 4)
}

executors = pytest.mark.parametrize("make", EXECUTORS.values(), ids=list(EXECUTORS))


def bits(array) -> tuple:
    return array.dtype.str, array.shape, array.tobytes()


def vectors(named) -> dict:
    return {name: bits(v) for name, v in named.items()}


def records_of(parts, executor, schedule, clock, rounds=4):
    """A run as plain values: its final record, and each round's without measured times."""
    rows = []
    loop = Loop(
        parts,
        executor,
        schedule=schedule,
        clock=clock,
        evaluation=Evaluation(2, None, True),
        stop=Stop(rounds=rounds),
        observers=[lambda r: rows.append({k: v for k, v in r.items() if k != "seconds"})],
    )
    end = loop.run().progress
    final = {
        "parameters": bits(end.state.parameters),
        "slots": vectors(end.state.slots),
        "memories": {c: vectors(m) for c, m in end.memories.items()},
        "pace": end.pace,
        "flying": {v: vectors(b.vectors) for v, b in end.broadcasts.items()},
    }
    return final, rows


def outcome_of(parts, executor, tasks, broadcasts, memories):
    """One call of ``run`` as plain values, in the order of client names."""
    total, outcomes, changed = executor.run(tasks, broadcasts, memories)
    assert [o.client for o in outcomes] == [t.client for t in tasks]
    return {
        "sums": vectors(total.sums),
        "numbers": (total.weight, total.scaled_weight, total.count, total.examples),
        "metrics": total.metrics,
        "outcomes": sorted((o.client, o.status, o.examples, o.reason) for o in outcomes),
        "memories": {c: vectors(changed[c]) for c in sorted(changed)},
    }


def tasks_for(clients, versions=1):
    return [
        Task(c, i % versions, scale=(1 + i % versions) ** -0.5, fraction=1.0 if i % 2 else 0.6)
        for i, c in enumerate(clients)
    ]


def broadcasts_of(parts, versions):
    state, made = Loop(parts, SerialExecutor(parts)).start().state, {}
    for v in range(versions):
        moved = state.parameters + np.float32(0.01 * v)
        made[v] = parts.algorithm.broadcast(replace(state, round=v, parameters=moved))
    return made


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_ends_in_the_same_bits_on_every_executor(name):
    moods = {"c1": rc.WILD, "c2": rc.RAISES}
    parts = rc.parts(ALGORITHMS[name](), rc.federation(rc.SIZES, moods), from_round=1, scale=np.nan)
    serial = SerialExecutor(parts)
    expected = {k: records_of(parts, serial, *how) for k, how in SCHEDULES.items()}
    missing = [why for _, rows in expected.values() for r in rows for why in r["missing"].values()]
    assert {why.split(":")[0] for why in missing} >= {"refused", "failed", "dropped"}
    for label in EXECUTORS:
        with closing(EXECUTORS[label](parts)) as executor:
            for kind, how in SCHEDULES.items():
                assert records_of(parts, executor, *how) == expected[kind], (label, kind)


@executors
def test_neither_the_order_of_tasks_nor_of_arrivals_shows(make):
    clients = rc.federation({**rc.SIZES, "slow": 3}, {"slow": rc.SLOW, "c4": rc.RAISES})
    parts = rc.parts(Scaffold(), clients)
    broadcasts, tasks = broadcasts_of(parts, 3), tasks_for(clients, 3)
    memories = {
        c: {"control": np.full(3, 0.1, np.float32), "personal": np.full(1, 0.2, np.float32)}
        for c in list(clients)[::2]
    }
    expected = outcome_of(parts, SerialExecutor(parts), tasks, broadcasts, memories)
    assert expected["numbers"][2] == len(clients) - 1
    with closing(make(parts)) as executor:
        for seed in range(4):
            random.Random(seed).shuffle(tasks)
            for where in (executor, SerialExecutor(parts)):
                assert outcome_of(parts, where, tasks, broadcasts, memories) == expected


@executors
def test_more_model_versions_than_slots_are_worked_through(make):
    parts = rc.parts(FedBuff())
    broadcasts, tasks = broadcasts_of(parts, 9), tasks_for(parts.clients, 9)
    expected = outcome_of(parts, SerialExecutor(parts), tasks, broadcasts, {})
    with closing(make(parts)) as executor:
        assert outcome_of(parts, executor, tasks, broadcasts, {}) == expected


@pytest.mark.parametrize(
    ("mood", "status", "says"),
    [
        (rc.WILD, "refused", "not finite"),
        (rc.RAISES, "failed", "ValueError: this client is out of luck"),
    ],
)
def test_a_bad_client_is_named_and_leaves_no_trace(mood, status, says):
    clients = rc.federation(rc.SIZES, {"c4": mood})
    parts = rc.parts(Scaffold(), clients, scale=np.inf)
    broadcasts, tasks = broadcasts_of(parts, 1), tasks_for(clients)
    others = [t for t in tasks if t.client != "c4"]
    for make in (SerialExecutor, EXECUTORS["processes-2"]):
        with closing(make(parts)) as executor:
            mixed = outcome_of(parts, executor, tasks, broadcasts, {})
            clean = outcome_of(parts, executor, others, broadcasts, {})
        (bad,) = [o for o in mixed["outcomes"] if o[1] != "contributed"]
        assert bad[:3] == ("c4", status, 0)
        assert says in bad[3]
        mixed["outcomes"].remove(bad)
        assert mixed == clean
        assert "c4" not in mixed["memories"]


@pytest.mark.parametrize(("value", "status"), [(2e11, "contributed"), (3e11, "refused")])
def test_updates_too_large_to_add_exactly_are_refused_in_any_order(value, status):
    """The range of a float32 sum is 2^41 = 2.2e12: a tenth of it for each of ten clients."""
    clients = rc.federation(rc.SIZES, dict.fromkeys(rc.SIZES, rc.WILD))
    parts = rc.parts(FedAvg(), clients, scale=value, weights="uniform", held_out=False)
    broadcasts, tasks = broadcasts_of(parts, 1), tasks_for(clients)
    expected = outcome_of(parts, SerialExecutor(parts), tasks, broadcasts, {})
    assert {o[1] for o in expected["outcomes"]} == {status}
    with closing(EXECUTORS["processes-4"](parts)) as executor:
        random.Random(0).shuffle(tasks)
        assert outcome_of(parts, executor, tasks, broadcasts, {}) == expected


@executors
def test_evaluation_uses_personal_parts_and_names_the_first_client_that_fails(make):
    parts = rc.parts(FedAvg())
    bad = {**parts.held_out}
    bad["c7"], bad["c3"] = (
        rc.rows(50, 1, rc.EVALUATION_RAISES),
        rc.rows(3, 2, rc.EVALUATION_RAISES),
    )
    parts = replace(parts, held_out=bad)
    model = broadcasts_of(parts, 1)[0]
    names = [c for c in parts.held_out if c not in ("c3", "c7")]
    memories = {c: {"personal": np.full(1, i, np.float32)} for i, c in enumerate(names[:4])}
    serial = SerialExecutor(parts)
    expected = serial.evaluate(model, names, memories)
    plain = serial.evaluate(model, names, {})
    differ = [c for c in names if values(plain[c]) != values(expected[c])]
    assert differ
    assert set(differ) <= set(names[:4])
    with closing(make(parts)) as executor:
        for where in (serial, executor):
            with pytest.raises(ClientError, match="at c3: evaluation failed: ValueError: cannot"):
                where.evaluate(model, list(parts.held_out), memories)
        # The executor is as good as new: nothing of the failed call is left in its pipes.
        assert executor.evaluate(model, names, memories) == expected
        assert list(executor.evaluate(model, names, memories)) == names


def test_a_spawned_worker_computes_the_same():
    parts = rc.parts(FedAsync())
    broadcasts, tasks = broadcasts_of(parts, 2), tasks_for(parts.clients, 2)
    expected = outcome_of(parts, SerialExecutor(parts), tasks, broadcasts, {})
    with closing(ProcessExecutor(parts, first(parts), workers=1, method="spawn")) as executor:
        assert outcome_of(parts, executor, tasks, broadcasts, {}) == expected


def test_torch_models_train_to_the_same_bits_in_processes():
    pytest.importorskip("torch")
    from atoll.models.networks import mlp
    from atoll.models.torch.adapter import TorchTrainer

    trainer = TorchTrainer(mlp, {"inputs": 3, "classes": 2}, classes=2)
    clients = {
        c: type(e)(e.features.astype(np.float32), e.targets)
        for c, e in rc.federation(rc.SIZES).items()
    }
    parts = replace(rc.parts(Scaffold(), clients), trainer=trainer, held_out=clients)
    how = SCHEDULES["cohort"]
    expected = records_of(parts, SerialExecutor(parts), *how, rounds=2)
    with closing(EXECUTORS["processes-2"](parts)) as executor:
        assert records_of(parts, executor, *how, rounds=2) == expected
