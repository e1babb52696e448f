"""The round loop: the only one (decision D6).

It asks the schedule for the next server step, has its tasks run, hands the aggregate to the
algorithm, and tells its observers. What it knows between rounds is one
:class:`~atoll.runtime.checkpoint.Progress`.

The loop is a generator, :meth:`Loop.play`: what it cannot do itself it yields as a :data:`Call` and goes
on with the answer. :meth:`Loop.run` answers with an executor, at once; a coordinating server answers
when its sites have. Both go through the same lines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from atoll.core.chain import Account
from atoll.core.contracts import Executor, Finishing, Observer, Outcome, Task
from atoll.core.errors import ClientError, JobError, QuorumError
from atoll.core.layout import Array
from atoll.core.metrics import Confusion, Metrics, higher_is_better, merge_all, values
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory, Merged, renewed
from atoll.data.population import ids_of, rows_of
from atoll.runtime.aborts import ended, parted, told_of, way_out
from atoll.runtime.checkpoint import Best, Progress, model_hash
from atoll.runtime.client import Parts, evaluate_central
from atoll.runtime.clock import Clock
from atoll.runtime.pace import Pace, Population
from atoll.runtime.profile import Stopwatch, timed
from atoll.runtime.schedule import (
    Plan,
    Schedule,
    Synchronous,
    check_schedule,
)
from atoll.runtime.threads import Threads

__all__ = ["Call", "Evaluate", "Evaluation", "Finished", "Loop", "Next", "Stop", "Train"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is evaluated and how often.

    Args:
        every: evaluate after each ``every``-th round and after the last; 0 for never.
        central: a test set the coordinator holds; None for none.
        federated: whether clients evaluate on their held-out rows.
    """

    every: int = 1
    central: Any = None
    federated: bool = False


@dataclass(frozen=True)
class Stop:
    """When to stop, and which model to keep.

    Args:
        rounds: number of rounds.
        metric: watched metric, such as ``central.accuracy`` or ``federated.loss``; empty for none.
        patience: evaluations without improvement before stopping; 0 never stops early.
        min_delta: least change that counts as an improvement.
        target: stop once the metric is at least this good; None for none.
        seconds: stop after this much virtual time; infinity for no limit.
        max_aborts: aborted rounds in a row that end the run.
    """

    rounds: int = 10
    metric: str = ""
    patience: int = 0
    min_delta: float = 0.0
    target: float | None = None
    seconds: float = math.inf
    max_aborts: int = 10

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "stop",
            optional=("target",),
            rounds="whole [1, inf)",
            metric="text",
            patience="whole [0, inf)",
            min_delta="[0, inf)",
            target="(-inf, inf)",
            seconds="(0, inf]",
            max_aborts="whole [1, inf)",
        )

    def better(self, value: float, than: float) -> bool:
        """Whether ``value`` improves on ``than`` by more than ``min_delta``."""
        if math.isnan(value):
            return False
        if math.isnan(than):
            return True
        gain = than - value if self._lower else value - than
        return gain > self.min_delta

    def reached(self, value: float) -> bool:
        """Whether ``value`` is at least as good as the target."""
        if self.target is None:
            return False
        return value <= self.target if self._lower else value >= self.target

    @property
    def _lower(self) -> bool:
        return not higher_is_better(self.metric.rpartition(".")[2])


@dataclass(frozen=True, eq=False)
class Finished:
    """How a run ended.

    Args:
        progress: the final record.
        status: ``completed``, ``stopped early: …`` or ``interrupted``.
    """

    progress: Progress
    status: str


@dataclass(frozen=True, eq=False)
class Next:
    """Which tasks make up the next server step? Answered by ``(Plan, Pace)``.

    Args:
        number: rounds ended so far.
        pace: where the schedule stands.
        version: of the model.
        broadcasts: what tasks start from: of this version, and of those that tasks under way have.
        people: the federation.
        schedule: the job's own.
        staleness: s(tau) of the algorithm.
    """

    number: int
    pace: Pace
    version: int
    broadcasts: Mapping[int, Broadcast]
    people: Population
    schedule: Schedule
    staleness: Callable[[int], float]

    def planned(self) -> tuple[Plan, Pace]:
        """The schedule's own answer, on its virtual clock."""
        return self.schedule.plan(self.pace, self.version, self.people, self.staleness)


@dataclass(frozen=True, eq=False)
class Train:
    """Run these tasks and fold their updates. Answered by what :meth:`Executor.run` returns.

    Args:
        number: rounds ended so far.
        tasks: who does what.
        broadcasts: by version, what each task starts from.
        memories: clients' own, where the coordinator holds them.
        quorum: least number of updates for a commit.
    """

    number: int
    tasks: Sequence[Task]
    broadcasts: Mapping[int, Broadcast]
    memories: Mapping[ClientId, Memory]
    quorum: int


@dataclass(frozen=True, eq=False)
class Evaluate:
    """Evaluate this model on clients' held-out rows. Answered by metrics by client.

    A client that does not answer is left out of the answer, and of the round's figures. Where only the sum
    of all is known, the answer is that (:class:`~atoll.core.values.Merged`).

    Args:
        number: rounds ended so far, the present one among them.
        broadcast: the model.
        clients: who is asked.
        memories: clients' own, where the coordinator holds them.
    """

    number: int
    broadcast: Broadcast
    clients: Sequence[ClientId]
    memories: Mapping[ClientId, Memory]


Call = Next | Train | Evaluate
"""What the loop asks of whoever drives it."""

Answered = tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]


@dataclass(frozen=True, eq=False)
class Loop:
    """One run.

    Args:
        parts: what is fixed wherever tasks run.
        executor: where they run; None where another than :meth:`run` drives :meth:`play`.
        schedule: when the server has enough.
        clock: the model of clients in virtual time.
        evaluation: what is evaluated.
        stop: when to stop.
        observers: told each round's record, in order, before ``save``.
        save: called with the progress after every round; decides itself whether to write.
        interrupted: asked after every round; True ends the run there.
        watch: told where the time goes; None costs nothing.
    """

    parts: Parts
    executor: Executor | None = None
    schedule: Schedule = field(default_factory=Synchronous)
    clock: Clock = field(default_factory=Clock)
    evaluation: Evaluation = field(default_factory=Evaluation)
    stop: Stop = field(default_factory=Stop)
    observers: Sequence[Observer] = ()
    save: Callable[[Progress], None] = lambda progress: None
    interrupted: Callable[[], bool] = lambda: False
    watch: Stopwatch | None = None

    def start(self) -> Progress:
        """The record before the first round."""
        return Progress(self.parts.start())

    def run(self, progress: Progress | None = None) -> Finished:
        """Run from ``progress`` (or from the start) to the end, on the executor.

        Raises:
            QuorumError: ``stop.max_aborts`` rounds in a row could not commit, or none at all could.
            ClientError: every client of a round failed with an error of its own (a single one among
                many ends an asynchronous step, not the run).
        """
        if self.executor is None:
            raise JobError("this run has no executor", remedy="give it one, or drive play()")
        steps, answer = self.play(progress), None
        while True:
            try:
                call = steps.send(answer)
            except StopIteration as end:
                finished: Finished = end.value
                return finished
            answer = self._answer(call, self.executor)

    def _answer(self, call: Call, executor: Executor) -> Any:
        if isinstance(call, Next):
            return call.planned()
        if isinstance(call, Evaluate):
            return executor.evaluate(call.broadcast, call.clients, call.memories)
        watch = self.watch
        if watch is None:
            return executor.run(call.tasks, call.broadcasts, call.memories)
        before = watch.seconds("training")
        with watch.phase("training"):
            found = executor.run(call.tasks, call.broadcasts, call.memories)
        watch.executed(executor, found[1], before)
        return found

    def play(self, progress: Progress | None = None) -> Generator[Call, Any, Finished]:
        """The run as a generator: yields calls, is sent their answers, returns how it ended.

        It may be closed at any call; a run that goes on from the last progress that was saved makes
        the same calls again.

        Raises:
            AtollError: see :meth:`run`.
        """
        check_schedule(self.schedule, len(self.parts.clients))
        progress = progress or self.start()
        people = Population(
            clients=ids_of(self.parts.clients),
            examples=lambda client: rows_of(self.parts.clients, client),
            seed=self.parts.seed,
            clock=self.clock,
        )
        record: Mapping[str, Any] = {}
        while not (reason := self._ended(progress, record)):
            with nullcontext() if self.watch is None else self.watch.round():
                progress, record = yield from self._round(progress, people)
                with timed(self.watch, "observers"):
                    for observer in self.observers:
                        observer(record)
                with timed(self.watch, "checkpoint"):
                    self.save(progress)
            if self.interrupted() and not self._ended(progress, record):
                return Finished(progress, "interrupted")
        return Finished(progress, reason)

    @cached_property
    def _finishing(self) -> Finishing | None:
        """The algorithm, where it knows an end; a check against a protocol is dear."""
        algorithm = self.parts.algorithm
        return algorithm if isinstance(algorithm, Finishing) else None

    def _ended(self, progress: Progress, last: Mapping[str, Any]) -> str:
        stop, best = self.stop, progress.best
        if progress.aborted >= stop.max_aborts:
            everybody = self._finishing is not None
            raise QuorumError(
                ended(progress.aborted, last, everybody=everybody),
                remedy=way_out(last, everybody=everybody),
            )
        if self._finishing is not None and self._finishing.finished(progress.state):
            return "completed"
        if progress.rounds >= stop.rounds:
            if progress.state.round == 0:
                raise QuorumError(
                    f"none of the {progress.rounds} rounds could commit{told_of(last)}",
                    remedy=way_out(last),
                )
            return "completed"
        if progress.pace.clock >= stop.seconds:
            return f"stopped early: {stop.seconds:g} virtual seconds are over"
        if stop.patience and progress.waiting >= stop.patience:
            return f"stopped early: {stop.metric} has not improved for {stop.patience} evaluations"
        if best is not None and stop.reached(best.value):
            return f"stopped early: {stop.metric} reached {stop.target:g}"
        if over := self._overspent(progress):
            return f"stopped early: {over}"
        return ""

    def _overspent(self, progress: Progress) -> str:
        """Why no further round can be paid for; empty while one can."""
        account = self.parts.chain.account
        return "" if account is None else account.over(_counted(account, progress))

    def _round(
        self, progress: Progress, people: Population
    ) -> Generator[Call, Any, tuple[Progress, Mapping[str, Any]]]:
        began = time.perf_counter()
        state, algorithm = progress.state, self.parts.algorithm
        with timed(self.watch, "broadcast"):
            broadcasts = {**progress.broadcasts, state.round: self.parts.broadcast(state)}
        with timed(self.watch, "cohort"):
            plan, pace = yield Next(
                number=progress.rounds,
                pace=progress.pace,
                version=state.round,
                broadcasts=broadcasts,
                people=people,
                schedule=self.schedule,
                staleness=algorithm.staleness,
            )
        memories, outcomes = progress.memories, list[Outcome]()
        reason, train, rows = plan.abort, _NONE, 0
        if not reason:
            answer: Answered = yield Train(
                progress.rounds, plan.tasks, broadcasts, memories, plan.quorum
            )
            aggregate, outcomes, changed = answer[0], list(answer[1]), answer[2]
            reason = self._why_not(plan, aggregate, outcomes)
            if not reason:
                with timed(self.watch, "server"):
                    aggregate, state = self.parts.chain.server(aggregate, state, progress.rounds)
                    state = self.parts.stepped(state, aggregate)
                memories = {**memories, **changed} if changed else memories
                pace = renewed(pace, repeat=0)
                train, rows = aggregate.metrics, aggregate.examples
        flying = pace.versions()
        progress = renewed(
            progress,
            state=state,
            pace=pace,
            rounds=progress.rounds + 1,
            memories=memories,
            broadcasts={v: b for v, b in broadcasts.items() if v in flying},
            aborted=progress.aborted + 1 if reason else 0,
        )
        with timed(self.watch, "evaluation"):
            shown = yield from self._evaluate(progress)
        if not reason:  # an aborted round left the model as it was: no news for the watched metric
            progress = self._watch(progress, shown)
        seconds = time.perf_counter() - began
        progress = renewed(progress, seconds=progress.seconds + seconds)
        with timed(self.watch, "record"):
            record = _record(progress, plan, outcomes, reason, seconds)
            record["train"] = _shown(train)
            record.update(shown)
            if chain := self.parts.chain:
                account = chain.account
                spent = account.spent(_counted(account, progress)) if account else {}
                record["privacy"] = {"rows": rows, **spent}
        return progress, record

    def _why_not(self, plan: Plan, aggregate: Aggregate, outcomes: Sequence[Outcome]) -> str:
        """Why the round cannot commit; empty when it can."""
        failed = [o for o in outcomes if o.status == "failed"]
        everybody = bool(failed) and len(failed) == len(outcomes)
        if everybody and len(failed) < min(2, len(self.parts.clients)):
            return f"{failed[0].client} failed: {failed[0].reason}"
        if everybody:
            why, step = parted(failed[0].reason)
            raise ClientError(
                f"all {len(failed)} clients of the round failed; the first: {why}",
                site=failed[0].client,
                remedy=step or "mend the job's model, data or fit function",
            )
        if short := self.parts.chain.short(aggregate.count, len(plan.tasks)):
            return short
        if aggregate.count < plan.quorum:
            return f"{aggregate.count} of {len(plan.invited)} updates were usable; quorum {plan.quorum}"
        return "" if aggregate.weight > 0 else "all weights are zero"

    def _evaluate(self, progress: Progress) -> Generator[Call, Any, dict[str, Any]]:
        every, number = self.evaluation.every, progress.rounds
        shown: dict[str, Any] = {"central": None, "federated": None, "sites": None}
        state, stop = progress.state, self.stop
        last = number >= stop.rounds or progress.pace.clock >= stop.seconds
        if not every or (number % every and not (last or self._overspent(progress))):
            return shown
        if self.evaluation.central is not None:
            with Threads().one():
                whole = self._whole(state.parameters)
                found = evaluate_central(self.parts.trainer, whole, self.evaluation.central)
            shown["central"] = _shown(found)
        names = list(self.parts.held_out)
        if self.evaluation.federated and names:
            # The next cohort's broadcast, to the byte: sites fetch it once.
            model = self.parts.broadcast(state)
            sites = yield Evaluate(number, model, names, progress.memories)
            if isinstance(sites, Merged):
                shown["federated"] = self._figures(sites.metrics, len(sites.clients)) or None
                return shown
            heard = [sites[c] for c in names if c in sites]
            shown["federated"] = self._figures(merge_all(heard), len(heard)) or None
            shown["sites"] = {c: self._figures(sites.get(c, _NONE), 1) for c in names}
        return shown

    def _figures(self, metrics: Metrics, clients: int) -> dict[str, float]:
        """Numbers for the record; beside those with noise how far off they may be."""
        told = self.parts.figures
        return _shown(metrics) | dict({} if told is None else told.errors(metrics, clients))

    def _whole(self, shared: Array) -> Array:
        """The coordinator has no personal part of its own: its initial values."""
        trainer = self.parts.trainer
        if trainer.layout.shared.stop == trainer.layout.size:
            return shared
        return np.concatenate([shared, self.parts.beginning()[trainer.layout.personal]])

    def _watch(self, progress: Progress, shown: Mapping[str, Any]) -> Progress:
        where, _, name = self.stop.metric.partition(".")
        found = shown.get(where) or {}
        if name not in found:  # or held back: simulate refuses what nobody computes
            return progress
        value = float(found[name])
        best = progress.best
        if best is None or self.stop.better(value, best.value) or self.stop.reached(value):
            kept = Best(progress.rounds, value, progress.state.parameters)
            return renewed(progress, best=kept, waiting=0)
        return renewed(progress, waiting=progress.waiting + 1)


_NONE: Metrics = {}


def _counted(account: Account, progress: Progress) -> int:
    return progress.rounds if account.attempts else progress.state.round


def _shown(metrics: Metrics) -> dict[str, float]:
    """Numbers for the record: training metrics by their plain names, no number for a whole table."""
    numbers = values({n: m for n, m in metrics.items() if not isinstance(m, Confusion)})
    return {name.removeprefix("train_"): value for name, value in numbers.items()}


def _record(
    progress: Progress, plan: Plan, outcomes: Sequence[Outcome], reason: str, seconds: float
) -> dict[str, Any]:
    missing = {c: f"{status}: {why}" for c, (status, why) in plan.missing.items()}
    missing |= {o.client: f"{o.status}: {o.reason}" for o in outcomes if o.status != "contributed"}
    taus = [plan.staleness.get(o.client, 0) for o in outcomes] or [0]
    contributed: dict[ClientId, int] = {}
    if not reason:
        contributed = {o.client: o.examples for o in outcomes if o.status == "contributed"}
    return {
        "round": progress.rounds,
        "version": progress.state.round,
        "clock": progress.pace.clock,
        "seconds": seconds,
        "committed": not reason,
        "reason": reason,
        "invited": list(plan.invited),
        "contributed": contributed,
        "missing": missing,
        "staleness": {"mean": sum(taus) / len(taus), "max": max(taus)},
        "model_hash": model_hash(progress.state.parameters),
    }
