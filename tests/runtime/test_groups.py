"""Clients trained in one go: who may be, and that it makes no difference to any of them."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import runtime_clients as rc

from atoll.aggregation.exact import Fold
from atoll.algorithms import ALGORITHMS, FedAvg, FedProx, Scaffold
from atoll.core.contracts import Controlled, Task, Together
from atoll.core.local import LocalWork, Optimizer
from atoll.models.linear import LinearTrainer
from atoll.runtime.client import answer_task
from atoll.runtime.groups import groups, way
from atoll.runtime.loop import Loop, Stop
from atoll.runtime.serial import SerialExecutor


@dataclass(frozen=True, eq=False)
class Keeping(LinearTrainer):
    """A trainer that says it keeps control variates in terms of rows."""

    def fit_controlled(self, parameters: Any, lanes: Any, plus: Any, *, round: int) -> Controlled:
        zero = np.zeros_like(parameters)
        nothing = Together(zero, [1] * len(lanes), [0.0] * len(lanes))
        return Controlled(nothing, zero, [{"rows": np.ones(1)}] * len(lanes))

    def dense(self, own: Any, data: Any) -> Any:
        return np.zeros(self.layout.size, self.dtype)


@dataclass(frozen=True, eq=False)
class Beside(rc.Moody):
    """Takes five clients at once, and notes whom it trained in which way."""

    notes: list[str] = field(default_factory=list)
    lanes: int = 5
    breaks: bool = False

    def fit(self, parameters: Any, data: Any, **how: Any) -> Any:
        self.notes.append("alone")
        return super().fit(parameters, data, **how)

    def fit_lanes(self, parameters: Any, lanes: Any, *, round: int) -> Any:
        if self.breaks:
            raise ValueError("these do not go together")
        self.notes.append(f"{len(lanes)} together")
        return [
            super(Beside, self).fit(
                start, lane.data, work=lane.work, rule=lane.rule, seed=lane.seed, round=round
            )
            for start, lane in zip(parameters, lanes, strict=True)
        ]


class Own(FedAvg):
    """Another client half, and the group's as it was."""

    def client(self, broadcast: Any, memory: Any, work: Any) -> Any:
        return super().client(broadcast, memory, work)


class Twice(FedAvg):
    """Trains on from where its first training ended."""

    def client(self, broadcast: Any, memory: Any, work: Any) -> Any:
        first = work.fit(work.full(broadcast.parameters, memory))
        shared = first.parameters[work.layout.shared]
        update, kept = super().client(replace_parameters(broadcast, shared), memory, work)
        delta = update.vectors["delta"] + (shared - broadcast.parameters)
        return replace(update, vectors={"delta": delta}), kept


def replace_parameters(broadcast: Any, parameters: Any) -> Any:
    return replace(broadcast, vectors={**broadcast.vectors, "parameters": parameters})


PLAIN = LinearTrainer("logistic", rc.FEATURES)
CLIENTS = rc.federation(rc.SIZES)


def parts_of(algorithm: Any, trainer: Any, **changes: Any) -> Any:
    return replace(rc.parts(algorithm, CLIENTS), trainer=trainer, **changes)


@pytest.mark.parametrize(
    ("algorithm", "trainer", "optimizer", "grouped"),
    [
        (FedAvg(), PLAIN, Optimizer(), True),
        (FedProx(), PLAIN, Optimizer(weight_decay=0.1), True),
        (Own(), PLAIN, Optimizer(), False),
        (FedAvg(), LinearTrainer("logistic", rc.FEATURES, personal=["weight"]), Optimizer(), False),
        (FedAvg(), rc.Moody(PLAIN), Optimizer(), False),
        (Scaffold(), PLAIN, Optimizer(), False),
        (Scaffold(), Keeping("logistic", rc.FEATURES), Optimizer(), True),
        (Scaffold(option=1), Keeping("logistic", rc.FEATURES), Optimizer(), False),
        (Scaffold(), Keeping("logistic", rc.FEATURES), Optimizer(weight_decay=0.1), False),
    ],
)
def test_clients_train_in_groups_where_algorithm_and_trainer_both_can(
    algorithm, trainer, optimizer, grouped
):
    parts = parts_of(algorithm, trainer, local=LocalWork(batch_size=8, optimizer=optimizer))
    assert (parts.cohort is not None) is grouped
    told = "single clients' models are wanted"
    if isinstance(trainer, LinearTrainer):
        assert (told not in way(parts)) is grouped
        assert way(parts).startswith("stacked, ") is grouped
    else:
        assert way(parts) == ""


def test_the_way_of_clients_that_nobody_can_train_on_is_not_told():
    parts = parts_of(FedAvg(), PLAIN, clients={})
    assert way(parts) == ""
    assert way(replace(parts, clients={"a": None})) == ""


def end_of(parts):
    records = []
    keep = lambda r: records.append({k: v for k, v in r.items() if k != "seconds"})  # noqa: E731
    loop = Loop(parts, SerialExecutor(parts), stop=Stop(rounds=3), observers=[keep])
    return loop.run().progress.state.parameters.tobytes(), records


PERSONAL = LinearTrainer("logistic", rc.FEATURES, personal=("intercept",), dtype="float32")


@pytest.mark.parametrize("algorithm", [*(a() for a in ALGORITHMS.values()), Scaffold(option=1)])
def test_side_by_side_every_algorithm_ends_in_the_bits_of_one_by_one(algorithm):
    beside = Beside(PERSONAL)
    parts = rc.parts(algorithm, CLIENTS)
    assert end_of(replace(parts, trainer=beside)) == end_of(parts)
    assert "alone" not in beside.notes
    if type(algorithm).__name__ != "FedSGD":  # takes gradients only
        assert beside.notes == ["5 together"] * (3 * len(CLIENTS) // 5)


def test_what_a_client_trains_beyond_its_first_fit_it_trains_by_itself():
    beside = Beside(PERSONAL)
    parts = rc.parts(Twice(), CLIENTS)
    assert end_of(replace(parts, trainer=beside)) == end_of(parts)
    assert beside.notes == (["5 together"] + ["alone"] * 5) * (3 * len(CLIENTS) // 5)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_client_that_fails_costs_its_neighbours_nothing(breaks):
    clients = rc.federation(rc.SIZES, {"c4": rc.RAISES, "c7": rc.WILD})
    parts = rc.parts(FedAvg(), clients, scale=np.nan)
    beside = Beside(PERSONAL, 0, np.nan, breaks=breaks)
    found, records = end_of(replace(parts, trainer=beside))
    wanted, told = end_of(parts)
    assert found == wanted
    assert [r["missing"].keys() for r in records] == [{"c4", "c7"}] * 3
    assert records == told


@dataclass(frozen=True, eq=False)
class Remembering(Beside):
    """Knows whether what it was asked still exists."""

    seen: list[Any] = field(default_factory=list)

    def fit_lanes(self, parameters: Any, lanes: Any, *, round: int) -> Any:
        self.seen.extend(weakref.ref(lane) for lane in lanes)
        return super().fit_lanes(parameters, lanes, round=round)


def test_what_was_asked_is_let_go_of_at_once():
    parts = replace(rc.parts(FedAvg(), CLIENTS), trainer=Remembering(PERSONAL))
    executor = SerialExecutor(parts)
    broadcast = parts.algorithm.broadcast(Loop(parts, executor).start().state)
    gc.collect()
    gc.disable()  # what hangs in a circle would stay until the collector comes by
    try:
        executor.run([Task(c, 0) for c in list(CLIENTS)[:5]], {0: broadcast}, {})
        assert [ref() for ref in parts.trainer.seen] == [None] * 5
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["stacked", "lanes"])
def test_clients_that_are_to_be_apart_are_trained_one_by_one_to_the_bits_of_sites(kind):
    parts = rc.parts(FedAvg(), personal=())
    parts = replace(parts, trainer=parts.trainer.inner, local=LocalWork(batch_size=4))
    if kind == "lanes":
        parts = replace(parts, trainer=Beside(parts.trainer))
    apart = replace(parts, apart=True)
    assert (parts.cohort or parts.side_by_side) is not None
    assert apart.cohort is apart.side_by_side is None
    assert all(len(g) == 1 for g in groups(apart, [Task(c, 0) for c in rc.SIZES]))
    steps = Loop(apart).play()
    plan, pace = steps.send(None).planned()
    call = steps.send((plan, pace))
    fold = Fold(len(plan.tasks))
    for task in plan.tasks:
        fold.add(answer_task(parts, task, call.broadcasts[0], {})[0], task.scale)
    there, _, _ = SerialExecutor(apart).run(call.tasks, call.broadcasts, {})
    assert there.sums["delta"].tobytes() == fold.aggregate().sums["delta"].tobytes()


def test_a_round_of_everybody_has_the_groups_that_it_has_at_first():
    parts = parts_of(FedAvg(), PLAIN, local=LocalWork(batch_size=8))
    assert parts.cohort is not None
    rounds = [
        [Task(client, version, 1.0, part) for client, part in zip(CLIENTS, shares, strict=True)]
        for version, shares in enumerate(
            ([1.0] * len(CLIENTS), [1.0] * len(CLIENTS), [0.1, *[1.0] * (len(CLIENTS) - 1)])
        )
    ]
    for tasks in (*rounds, rounds[0][::-1], rounds[0][1:], rounds[0]):
        fresh = parts_of(FedAvg(), PLAIN, local=LocalWork(batch_size=8))
        assert groups(parts, tasks) == groups(fresh, tasks)
        assert {task for group in groups(parts, tasks) for task in group} == set(tasks)
