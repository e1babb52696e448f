"""One task at one client, the same lines in every executor."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from atoll.aggregation.exact import Fold
from atoll.aggregation.gate import Gate
from atoll.core.chain import Chain
from atoll.core.contracts import (
    Algorithm,
    CohortAlgorithm,
    CohortTrainer,
    LaneTrainer,
    Outcome,
    Task,
    Trainer,
    Weighting,
    Work,
    halves_agree,
)
from atoll.core.errors import AtollError, ClientError, JobError, UpdateRefused
from atoll.core.layout import Array
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean, Metrics
from atoll.core.seeds import Seed
from atoll.core.values import (
    Aggregate,
    Broadcast,
    ClientId,
    Memory,
    State,
    Update,
    freeze,
    renewed,
)
from atoll.data.population import known_rows, rows_of

__all__ = [
    "Done",
    "Figures",
    "Parts",
    "RowWise",
    "Takes",
    "added_up",
    "answer_task",
    "evaluate_central",
    "evaluate_client",
    "fold_task",
    "work_on",
]

Done = tuple[Outcome, Memory | None]
"""What became of a task, and the client's new memory (None when there is nothing to keep)."""


class Takes(Protocol):
    """Where updates go: a :class:`~atoll.aggregation.exact.Fold`, or what stands for one."""

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Take an update whose vectors count ``scale * update.weight`` times."""
        ...

    def add_sum(self, group: Aggregate) -> None:
        """Take what a group of updates adds up to."""
        ...


class Figures(Protocol):
    """How figures of held-out rows are told where they may not be told as they are."""

    def of(self, rows: Mapping[str, Array]) -> Metrics:
        """One client's figures, from one number a row for each of them."""
        ...

    def errors(self, metrics: Metrics, clients: int) -> Mapping[str, float]:
        """The standard errors of figures of so many clients together, under names of their own."""
        ...


@runtime_checkable
class RowWise(Protocol):
    """A trainer that can tell what it gives for each row."""

    def per_row(self, parameters: Array, data: Any) -> Mapping[str, Array]:
        """For each figure one number a row, ``(n,)``."""
        ...


@dataclass(frozen=True, eq=False)
class Parts:
    """What is fixed for a whole run and known wherever its tasks run.

    Args:
        algorithm: what is computed.
        trainer: how one client fits.
        clients: training rows by client.
        seed: root of the run's random streams.
        local: the planned local work.
        weighting: the rule for w_i.
        held_out: test rows by client, for federated evaluation.
        apart: whether every client is trained by itself though a group would be faster: as it is at
            the sites of a deployment, and so to the same bits.
        chain: what an update passes on its way out.
        gate: what an update is held against before it may enter a sum.
        figures: how figures of held-out rows are told; None for as they are.
        first: the whole vector that the run begins at, ``(layout.size,)``; None for the trainer's own.
    """

    algorithm: Algorithm
    trainer: Trainer
    clients: Mapping[ClientId, Any]
    seed: Seed
    local: LocalWork = field(default_factory=LocalWork)
    weighting: Weighting = field(default_factory=Weighting)
    held_out: Mapping[ClientId, Any] = field(default_factory=dict)
    apart: bool = False
    chain: Chain = field(default_factory=Chain)
    gate: Gate = field(default_factory=Gate)
    figures: Figures | None = None
    first: Array | None = None

    def beginning(self) -> Array:
        """Where the run starts: the whole vector, personal region included, ``(layout.size,)``."""
        return self.trainer.initial(self.seed / "initial") if self.first is None else self.first

    def start(self) -> State:
        """The state before the first round: the algorithm's, with the slots of the chain.

        Raises:
            JobError: the algorithm gives none, or a slot that holds no numbers.
        """
        layout, clients = self.trainer.layout, len(self.clients)
        made: Any = self.algorithm.init(self.beginning(), layout, clients)
        if not isinstance(made, State):
            raise self._odd("init", made, "return State.start(parameters, layout, population)")
        slots = self._arrays("init", made.slots)
        return self.chain.begun(renewed(made, slots=slots), layout)

    def broadcast(self, state: State) -> Broadcast:
        """What a cohort gets: the algorithm's broadcast, with the public vectors of the chain.

        Raises:
            JobError: the algorithm gives none, one without the model, or what is no numbers.
        """
        own: Any = self.algorithm.broadcast(state)
        if not isinstance(own, Broadcast) or "parameters" not in own.vectors:
            remedy = 'return Broadcast(state.round, {"parameters": state.parameters})'
            raise self._odd("broadcast", own, remedy)
        vectors = self._arrays("broadcast", own.vectors)
        return self.chain.told(renewed(own, vectors=vectors), state.slots)

    def _arrays(self, method: str, given: Mapping[str, Any]) -> Mapping[str, Array]:
        """Vectors by name, plain numbers and lists as arrays."""
        made = {name: np.asarray(value) for name, value in given.items()}
        for name, array in made.items():
            if array.dtype.kind not in "fiub":
                remedy = "keep numbers and arrays of them there"
                raise self._odd(method, given[name], remedy, f" as {name!r}")
        return made

    def _odd(self, method: str, given: Any, remedy: str, more: str = "") -> JobError:
        what = f"a {type(given).__name__}{more}"
        if isinstance(given, Broadcast):
            what = f"no 'parameters' but {sorted(given.vectors)}"
        return JobError(f"{method}() of {type(self.algorithm).__name__} gave {what}", remedy=remedy)

    def stepped(self, state: State, aggregate: Aggregate) -> State:
        """The algorithm's next state.

        Raises:
            JobError: it is none: rounds would draw the same again, or go on in another precision.
        """
        made: Any = self.algorithm.server(state, aggregate)
        old, new = state.parameters, getattr(made, "parameters", None)
        if not isinstance(made, State) or new is None or made.round != state.round + 1:
            what = f"version {made.round}" if isinstance(made, State) else type(made).__name__
            wrong = f"{what} after version {state.round}"
        elif new.shape == old.shape and new.dtype == old.dtype:
            self._arrays("server", made.slots)
            return made
        else:
            wrong = (
                f"parameters {new.shape} {new.dtype}, and the model's are {old.shape} {old.dtype}"
            )
        raise JobError(
            f"server() of {type(self.algorithm).__name__} gave {wrong}",
            remedy="end it with: return state.next(moved(state.parameters, step))",
        )

    def work(self, task: Task) -> Work:
        """What the algorithm's client half gets for ``task``."""
        client, data = task.client, self.clients[task.client]
        weight = self.weighting.of(client, len(data))
        local = _share(self.local, task.fraction)
        stream, first = self.stream(task), self.first
        return Work(client, weight, self.trainer, data, local, stream, task.version, first)

    def stream(self, task: Task) -> Seed:
        """Root of the random streams of one task."""
        return self.seed.at("task", task.client, task.version, task.repeat)

    def rows(self, client: ClientId) -> int:
        """Rows of a client, at least 1, for deciding who trains with whom.

        Data that must be made to be counted are made only where clients train in groups. One whose
        data cannot be made counts as any: its own task says why.
        """
        if self.cohort is None and self.side_by_side is None:
            return known_rows(self.clients, client) or 1
        try:
            return max(1, rows_of(self.clients, client))
        except Exception:
            return 1

    # Asked once: a check against a protocol costs as much as a step of a small model.
    @cached_property
    def cohort(self) -> tuple[CohortTrainer, CohortAlgorithm] | None:
        """Trainer and algorithm, where nothing but the sum of the clients' changes is wanted."""
        trainer, algorithm = self.trainer, self.algorithm
        # A chain and a gate are passed by single updates: their sum alone would come too late.
        single = self.chain or self.gate.max_norm
        if self.apart or single or not isinstance(trainer, CohortTrainer):
            return None
        if not isinstance(algorithm, CohortAlgorithm):
            return None
        whole = trainer.layout.shared.stop == trainer.layout.size
        possible = whole and halves_agree(algorithm) and algorithm.groups(trainer, self.local)
        return (trainer, algorithm) if possible else None

    @cached_property
    def sizes(self) -> dict[tuple[int, int], int]:
        """How many clients go together, by the most rows of one and the clients of the round, once asked."""
        return {}

    @cached_property
    def turns(self) -> dict[tuple[tuple[ClientId, float], ...], list[list[int]]]:
        """Which tasks of a round go together, by their clients and shares, once asked."""
        return {}

    @cached_property
    def side_by_side(self) -> LaneTrainer | None:
        """The trainer, where it takes several clients at once."""
        trainer = self.trainer
        if self.apart or not isinstance(trainer, LaneTrainer):
            return None
        return trainer if trainer.lanes > 1 else None


def _share(local: LocalWork, fraction: float) -> LocalWork:
    if fraction == 1.0:
        return local
    steps = None if local.steps is None else max(1, round(local.steps * fraction))
    # A share of what was checked needs no check: that would take longer than a step of a small model.
    return renewed(local, epochs=local.epochs * fraction, steps=steps)


def answer_task(
    parts: Parts, task: Task, broadcast: Broadcast, memory: Memory, *, fit: Fit | None = None
) -> tuple[Update, Memory]:
    """What the client of ``task`` sends (its update, behind the chain), and what it keeps.

    A node's worker calls this where an executor calls :func:`fold_task`; linear algebra must be held
    at one thread there too (:class:`~atoll.runtime.threads.Threads`).

    Args:
        parts: what is fixed for the run.
        task: who does what.
        broadcast: what it starts from.
        memory: the client's own.
        fit: what the client's first training gives, where that has been done already.

    Raises:
        UpdateRefused: what it would keep is not finite, or a link of the chain lets it not pass.
        Exception: whatever the client's code raises.
    """
    update, kept = work_on(parts, task, broadcast, memory, fit=fit)
    return parts.chain.client(update, task, broadcast, parts.stream(task)), kept


def work_on(
    parts: Parts, task: Task, broadcast: Broadcast, memory: Memory, *, fit: Fit | None = None
) -> tuple[Update, Memory]:
    """The first half of :func:`answer_task`: the update before its chain, and what the client keeps.

    It does not depend on ``task.scale``, which may not be known yet when the work is done.

    Args:
        parts: what is fixed for the run.
        task: who does what.
        broadcast: what it starts from.
        memory: the client's own.
        fit: what the client's first training gives, where that has been done already.

    Raises:
        UpdateRefused: what it would keep is not finite.
        JobError: the algorithm gives no update and memory.
        Exception: whatever the client's code raises.
    """
    work = parts.work(task)
    if fit is not None:
        work = _Answered(**vars(work), answers=[fit])
    answer: Any = parts.algorithm.client(broadcast, _fixed(memory), work)
    pair = isinstance(answer, tuple) and len(answer) == 2
    if not (pair and isinstance(answer[0], Update) and isinstance(answer[1], Mapping)):
        given = ", ".join(type(one).__name__ for one in (answer if pair else (answer,)))
        raise JobError(
            f"client() of {type(parts.algorithm).__name__} gave {given}, not an update and a memory",
            remedy="end it with: return Update(vectors, work.weight, work.examples), {}",
        )
    update, kept = answer
    if not all(isinstance(vector, np.ndarray) for vector in update.vectors.values()):
        plain = {name: np.asarray(vector) for name, vector in update.vectors.items()}
        update = renewed(update, vectors=plain)
    settled = getattr(parts.algorithm, "settled", None)
    if settled is not None and (sent := parts.chain.bounded(update, broadcast)) is not update:
        kept = settled(kept, update, sent, work)
    kept = _fixed(kept)
    for name, value in kept.items():
        if not np.isfinite(value).all():
            raise UpdateRefused(f"the client's own {name!r} is not finite")
    metrics = _mergeable(update.metrics, work.data)
    return (update if metrics is update.metrics else renewed(update, metrics=metrics)), kept


def _fixed(memory: Memory) -> Memory:
    """As arrays that nobody can change: an aborted round, or a run resumed, goes on from the very same ones."""
    return {name: freeze(np.asarray(value).view()) for name, value in memory.items()}


def fold_task(
    parts: Parts,
    task: Task,
    broadcast: Broadcast,
    memory: Memory,
    fold: Takes,
    *,
    fit: Fit | None = None,
) -> Done:
    """Run ``task`` and fold its update; a failure is this client's outcome, never the round's end.

    Args:
        parts: what is fixed for the run.
        task: who does what.
        broadcast: what it starts from.
        memory: the client's own.
        fold: where its update goes.
        fit: what the client's first training gives, where that has been done already.
    """
    start = time.perf_counter()

    def ended(status: str, reason: str = "", examples: int = 0) -> Outcome:
        seconds = time.perf_counter() - start
        return Outcome(task.client, status, examples, reason, seconds)

    try:
        update, kept = answer_task(parts, task, broadcast, memory, fit=fit)
        parts.gate.check(update)
        fold.add(update, parts.chain.factor(task.scale))
    except UpdateRefused as error:
        return ended("refused", error.message), None
    except AtollError as error:
        return ended("failed", str(error)), None
    except Exception as error:
        return ended("failed", _where(error)), None
    return ended("contributed", examples=update.examples), kept or None


@dataclass(frozen=True, eq=False)
class _Answered(Work):
    """A client's work whose first training has been done already."""

    answers: list[Fit] = field(default_factory=list)

    def fit(self, parameters: Array, rule: LocalRule | None = None) -> Fit:
        return self.answers.pop() if self.answers else super().fit(parameters, rule)


def added_up(parts: Parts, folds: Sequence[Fold]) -> Aggregate:
    """What the folds of a round add up to, formed in the first of them.

    Raises:
        JobError: clients sent updates that do not add up. One of them could be refused, but which one would
            depend on who came first, and so on the executor.
    """
    total = folds[0] if folds else Fold()
    try:
        for fold in folds[1:]:
            total.merge(fold)
    except UpdateRefused as error:
        if not total.odd:
            raise
        raise _unlike(parts, total) from error
    if total.odd:
        raise _unlike(parts, total)
    return total.aggregate()


def _unlike(parts: Parts, total: Fold) -> JobError:
    name = type(parts.algorithm).__name__
    return JobError(
        f"client() of {name} sent updates of one round that do not add up: {total.odd}",
        remedy="let every client send vectors of the same names, shapes and dtypes, and metrics of the same "
        "kinds: zeros where it has nothing to say",
    )


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f" ({last.filename}:{last.lineno} in {last.name})" if last else ""
    return f"{type(error).__name__}: {error}{place}"


def evaluate_client(parts: Parts, parameters: Any, client: ClientId, memory: Memory) -> Metrics:
    """Metrics of the shared vector, with the client's personal part, on its held-out rows.

    Raises:
        ClientError: the trainer raised; names the client.
    """
    task = Task(client, 0)
    whole = parts.work(task).full(parameters, memory)
    trainer, held_out = parts.trainer, parts.held_out[client]
    try:
        if parts.figures is None:
            return _mergeable(trainer.evaluate(whole, held_out), held_out)
        if not isinstance(trainer, RowWise):
            raise ClientError(f"{type(trainer).__name__} gives no figures row by row", site=client)
        return parts.figures.of(trainer.per_row(whole, held_out))
    except AtollError:
        raise
    except Exception as error:
        raise ClientError(f"evaluation failed: {_where(error)}", site=client) from error


def evaluate_central(trainer: Trainer, parameters: Any, rows: Any) -> Metrics:
    """Metrics of a whole vector on the coordinator's test rows.

    Raises:
        ClientError: the trainer raised; says where.
    """
    try:
        return _mergeable(trainer.evaluate(parameters, rows), rows)
    except AtollError:
        raise
    except Exception as error:
        message = f"evaluation on the central test rows failed: {_where(error)}"
        raise ClientError(message, remedy="mend the model, or the rows given as central") from error


def _mergeable(found: Metrics, rows: Any) -> Metrics:
    """What a trainer found, with plain numbers as means over these rows, as those of a fit function are."""
    if all(hasattr(figure, "merge") for figure in found.values()):
        return found
    plain: dict[str, Any] = dict(found)
    return {
        name: figure if hasattr(figure, "merge") else Mean.of(float(figure), len(rows))
        for name, figure in plain.items()
    }
