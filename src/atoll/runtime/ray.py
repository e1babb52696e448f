"""The Ray executor: tasks on the actors of a cluster, in the serial executor's bits.

The job's parts go into the object store once, each round's models once; a node fetches either once and its
actors map it. Actors add up their clients' updates themselves, their sums are merged in a tree
(:mod:`atoll.runtime.dealing`), and one sum reaches the driver. Merging is exact, so nothing of this can
be seen in the result, nor can an actor that was lost: all that its sum held is computed again elsewhere, and
a sum is only accepted together with the list of what it holds.

Ray sends Python objects between the machines of a cluster as pickles, which can run code: a cluster is
one trusted machine, and no boundary between institutions.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from threadpoolctl import threadpool_limits

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import AtollError, ClientError, JobError
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory
from atoll.data.population import rows_of
from atoll.runtime.client import Done, Parts, added_up, evaluate_client
from atoll.runtime.dealing import Dealing, Merge, Run, Step, Take
from atoll.runtime.groups import fold_group, groups
from atoll.runtime.packed import pack
from atoll.runtime.ray_cluster import connect, first_line, leave, library

__all__ = ["RayExecutor"]

_STRIKES = 3
"""So many workers may be lost over the same clients before they are blamed."""
_LOOK = 1.0
"""Seconds between looks at which nodes there are."""

Item = tuple[int, tuple[Task, ...], Mapping[ClientId, Memory]]
"""The number of a group, its tasks, and its clients' memories."""


@dataclass(frozen=True, eq=False)
class _Call:
    """What all steps of one call share: its number, how many updates may come, models by version."""

    number: int
    updates: int
    models: Mapping[int, Any]


@dataclass(frozen=True)
class _Start:
    worker: int


@dataclass(eq=False)
class _Member:
    handle: Any
    starting: Any
    node: str = ""
    busy: float = 0.0


class RayExecutor:
    """Runs tasks on actors of a Ray cluster, one per core (or share of a GPU) by default.

    Args:
        parts: what is fixed for the run.
        workers: number of actors in all; what the cluster cannot hold yet starts when nodes join. 0 means as
            many as fit, looked up anew for every round.
        address: of a running cluster, ``"auto"`` for the one on this machine; empty means RAY_ADDRESS
            or, without it, a cluster of its own on this machine, reachable from this machine only.
        gpus: GPUs of each actor; may be a fraction.
        patience: seconds to wait for a first worker.

    Raises:
        MissingExtra: Ray is not installed.
        JobError: the cluster cannot be reached, no actor can start, or ``parts`` cannot be sent.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        workers: int = 0,
        address: str = "",
        gpus: float = 0.0,
        patience: float = 60.0,
    ) -> None:
        self._parts, self._wanted, self._gpus, self._patience = parts, workers, gpus, patience
        self._ray = library()
        self._crew: dict[int, _Member] = {}
        self._hired = self._calls = 0
        self._looked = float("-inf")
        self._failures: list[str] = []
        self.timings: dict[str, float] = {}
        """Where the last call of :meth:`run` spent its time, see :mod:`atoll.runtime.profile`."""
        self._ours = connect(self._ray, address, workers)
        try:
            self._boxed = [self._put(parts)]
            self._muster()
            while not any(member.node for member in self._crew.values()):
                self._advance({m.starting: _Start(w) for w, m in self._crew.items()}, None)
        except ClientError as error:
            self.close()
            raise JobError(error.message, remedy=error.remedy) from error
        except BaseException:
            self.close()
            raise

    def _put(self, parts: Parts) -> Any:
        """The parts in the object store, rows as two blocks."""
        try:
            return self._ray.put(
                replace(parts, clients=pack(parts.clients), held_out=pack(parts.held_out))
            )
        except TypeError as error:  # what Ray makes of any failure to serialise
            reason = str(error).strip().splitlines()
            raise JobError(
                f"this job cannot be sent to Ray workers: {reason[0] if reason else error!r}",
                remedy="keep open files, locks and connections out of models, or run with "
                "executor = 'serial'",
            ) from error

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """See :class:`~atoll.core.contracts.Executor`."""
        began = time.perf_counter()
        models = {v: self._ray.put(broadcasts[v]) for v in sorted({t.version for t in tasks})}
        put = time.perf_counter() - began
        items: list[Item] = [
            (i, group, {t.client: memories[t.client] for t in group if t.client in memories})
            for i, group in enumerate(groups(self._parts, tasks))
        ]
        for member in self._crew.values():
            member.busy = 0.0
        round_ = _Round("tasks", items, Dealing(len(items), sums=True), self._call(tasks, models))
        self._drive(round_)
        done: dict[ClientId, Done] = {d[0].client: d for row in round_.found.values() for d in row}
        busy = {f"worker/{i}": m.busy for i, m in enumerate(self._crew.values())}
        self.timings = {"broadcast": put, **busy}
        return (
            added_up(self._parts, [round_.sum or Fold()]),
            [done[task.client][0] for task in tasks],
            {client: kept for client, (_, kept) in done.items() if kept is not None},
        )

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        """See :class:`~atoll.core.contracts.Executor`."""
        held_out = self._parts.held_out
        order = sorted(clients, key=lambda c: rows_of(held_out, c), reverse=True)
        items = [(i, c, memories.get(c, {})) for i, c in enumerate(order)]
        call = self._call((), {0: self._ray.put(parameters)})
        round_ = _Round("evaluate", items, Dealing(len(items), sums=False), call)
        self._drive(round_)
        found = {client: round_.found[i] for i, client, _ in items}
        for client in clients:  # every answer is in: the first error is the serial executor's
            if isinstance(found[client], AtollError):
                raise found[client]
        return {client: found[client] for client in clients}

    def _call(self, tasks: Sequence[Task], models: Mapping[int, Any]) -> _Call:
        self._calls += 1
        return _Call(self._calls, len(tasks), models)

    def _drive(self, round_: _Round) -> None:
        """Deal, and take note of what ends, until all is done."""
        self._failures = []
        self._muster()
        dealing, watched = round_.dealing, dict[Any, Step | _Start]()
        for worker, member in self._crew.items():
            if member.node:
                dealing.join(worker, member.node)
            else:
                watched[member.starting] = _Start(worker)
        while True:
            dealing.expected = len(self._crew)
            for step in list(dealing.steps()):
                watched[self._begin(round_, step)] = step
            if dealing.finished:
                return
            self._advance(watched, round_)

    def _begin(self, round_: _Round, step: Step) -> Any:
        handle = self._crew[step.worker].handle
        match step:
            case Run(items=items, fresh=fresh):
                chunk = [round_.items[i] for i in items]
                return getattr(handle, round_.verb).remote(round_.call, chunk, fresh)
            case Merge(source=source):
                return handle.absorb.remote([self._crew[source].handle.give.remote()])
            case Take():
                return handle.give.remote()

    def _advance(self, watched: dict[Any, Step | _Start], round_: _Round | None) -> None:
        """Wait until something that is watched has ended, and take note of it.

        Raises:
            ClientError: nobody is left to do the work, or the same clients cost several workers.
        """
        if not watched:
            raise self._stranded()
        idle = all(isinstance(step, _Start) for step in watched.values())
        ready, _ = self._ray.wait(
            list(watched), num_returns=1, timeout=self._patience if idle else None
        )
        if not ready:
            self._failures.append(f"none was given a place within {self._patience:g} s")
            raise self._stranded()
        step = watched.pop(ready[0])
        try:
            answer = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(step, _Start):
                raise ClientError(f"a Ray worker failed: {_last_line(error)}") from error
            self._failures.append(_last_line(error))  # another one would meet the same
            self._dismiss(step.worker)
        except self._ray.exceptions.RayError as error:
            self._failures.append(first_line(error))
            self._lost(step.worker, watched, round_)
        else:
            self._ended(step, answer, watched, round_)

    def _ended(
        self,
        step: Step | _Start,
        answer: Any,
        watched: dict[Any, Step | _Start],
        round_: _Round | None,
    ) -> None:
        if isinstance(step, _Start):
            self._crew[step.worker].node = answer
            if round_ is not None:
                round_.dealing.join(step.worker, answer)
        elif round_ is None:
            return
        elif isinstance(answer, AtollError) and isinstance(step, Merge):
            raise answer
        elif isinstance(step, Merge) and answer is None:
            self._lost(round_.dealing.refused(step.worker), watched, round_)
        elif not round_.fits(step, answer):
            self._failures.append("its sum does not hold what it should")
            self._lost(step.worker, watched, round_)
        else:
            self._crew[step.worker].busy += round_.keep(step, answer)
            round_.dealing.ended(step.worker)

    def _lost(self, worker: int, watched: dict[Any, Step | _Start], round_: _Round | None) -> None:
        """Give a worker up, deal again what it held, and start another in its place."""
        known = bool(self._crew[worker].node)
        self._dismiss(worker)
        if round_ is not None and known:
            hit = round_.dealing.lost(worker)
            blamed = [i for i in hit if round_.dealing.strikes[i] >= _STRIKES]
            if blamed:
                raise ClientError(
                    f"{_STRIKES} Ray workers were lost while they ran: "
                    f"{', '.join(_names(round_.items[i]) for i in blamed)}; {self._failures[-1]}",
                    remedy="if they were killed for memory, use fewer workers or larger nodes; "
                    "continue with --resume",
                )
        if len(self._failures) <= 2 * _STRIKES + len(self._crew):
            before = set(self._crew)
            self._looked = float("-inf")
            self._muster()
            watched |= {m.starting: _Start(w) for w, m in self._crew.items() if w not in before}

    def _stranded(self) -> ClientError:
        reasons = "; ".join(dict.fromkeys(self._failures[-3:])) or "none could be started"
        return ClientError(
            f"no Ray worker is left: {reasons}",
            remedy="see `ray status` for free nodes and their resources, and install the job's own "
            "packages on every node; continue with --resume",
        )

    def _muster(self) -> None:
        """Start workers where there is room for more; forget those whose nodes have gone."""
        if self._crew and time.monotonic() - self._looked < _LOOK:
            return
        nodes = {n["NodeID"]: n["Resources"] for n in self._ray.nodes() if n["Alive"]}
        for worker, member in list(self._crew.items()):
            if member.node and member.node not in nodes:
                self._dismiss(worker)
        for _ in range(self._missing(nodes)):
            self._hire()
        self._looked = time.monotonic()

    def _missing(self, nodes: Mapping[str, Mapping[str, float]]) -> int:
        if self._wanted:
            return self._wanted - len(self._crew)
        unknown = [member.starting for member in self._crew.values() if not member.node]
        # Ray counts a core as taken once its actor is placed, which may be before we hear that it has started.
        starting = (
            len(self._ray.wait(unknown, num_returns=len(unknown), timeout=0)[1]) if unknown else 0
        )
        room = self._room(self._ray.available_resources()) - starting
        most = sum(map(self._room, nodes.values())) - len(self._crew)
        return max(min(room, most), 0 if self._crew else 1)

    def _room(self, resources: Mapping[str, float]) -> int:
        """How many workers fit into ``resources``."""
        cores = resources.get("CPU", 0.0)
        return int(min(cores, resources.get("GPU", 0.0) / self._gpus) if self._gpus else cores)

    def _hire(self) -> None:
        actor = self._ray.remote(_Worker).options(
            num_cpus=1,
            num_gpus=self._gpus,
            max_restarts=0,  # a restarted actor has lost its sum: it is a new worker to us
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        handle = actor.remote()
        paths = [os.path.abspath(path) for path in sys.path]
        self._crew[self._hired] = _Member(handle, handle.start.remote(paths, self._boxed))
        self._hired += 1

    def _dismiss(self, worker: int) -> None:
        self._ray.kill(self._crew.pop(worker).handle, no_restart=True)

    def close(self) -> None:
        """End our actors, and Ray where it was started here; safe to call twice."""
        if self._ray.is_initialized():
            for worker in list(self._crew):
                self._dismiss(worker)
            if self._ours:
                leave(self._ray)
        self._crew, self._boxed, self._ours = {}, [], False


@dataclass(eq=False)
class _Round:
    """One call of ``run`` or ``evaluate`` under way."""

    verb: str
    items: Sequence[Any]
    dealing: Dealing
    call: _Call
    found: dict[int, Any] = field(default_factory=dict)
    """Answers by item; what is done again is answered again, in the same words."""
    sum: Fold | None = None

    def fits(self, step: Step, answer: Any) -> bool:
        """Whether a sum comes with the list of what it should hold."""
        held = self.dealing.held(step.worker)
        match step:
            case Merge(source=source):
                return bool(answer == held | self.dealing.held(source))
            case Take():
                return bool(answer[0] == held == set(range(len(self.items))))
        return True

    def keep(self, step: Step, answer: Any) -> float:
        """Keep what came; returns how long the worker was at work."""
        if isinstance(step, Take):
            self.sum = answer[1]
        elif isinstance(step, Run):
            self.found.update(zip(step.items, answer[0], strict=True))
            return float(answer[1])
        return 0.0


class _Worker:
    """What runs in an actor: one step at a time, in the order they were sent."""

    def start(self, paths: Sequence[str], boxed: Sequence[Any]) -> str:
        """Read the job; the id of the node we are on."""
        import ray

        sys.path += [path for path in paths if path not in sys.path]
        self._parts: Parts = ray.get(boxed[0])
        self._threads = threadpool_limits(1)  # after the parts: they bring libraries with them
        self._call = 0
        self._models: dict[int, Broadcast] = {}
        self._covers: set[int] = set()
        self._fold = Fold()
        return str(ray.get_runtime_context().get_node_id())

    def tasks(
        self, call: _Call, items: Sequence[Item], fresh: bool
    ) -> tuple[list[list[Done]], float]:
        """Run groups and add them to the sum."""
        began = time.perf_counter()
        if fresh:
            self._fold, self._covers = Fold(call.updates), set()
        done = list[list[Done]]()
        for number, group, memories in items:
            model = self._model(call, group[0].version)
            done.append(fold_group(self._parts, group, model, memories, self._fold))
            self._covers.add(number)
        return done, time.perf_counter() - began

    def evaluate(
        self, call: _Call, items: Sequence[tuple[int, ClientId, Memory]], fresh: bool
    ) -> tuple[list[Metrics | AtollError], float]:
        """Evaluate clients."""
        began = time.perf_counter()
        found = list[Metrics | AtollError]()
        for _, client, memory in items:
            parameters = self._model(call, 0).parameters
            try:
                found.append(evaluate_client(self._parts, parameters, client, memory))
            except AtollError as error:
                found.append(error)
        return found, time.perf_counter() - began

    def give(self) -> tuple[set[int], Fold]:
        """The sum and what it holds; both stay here as well."""
        for exact in self._fold.sums.values():
            _ = exact.bins  # brings it in canonical form: who gets it maps it and cannot write
        return self._covers, self._fold

    def absorb(self, given: Sequence[Any]) -> set[int] | AtollError | None:
        """Add another worker's sum; what ours holds now, or None when theirs cannot be had."""
        import ray

        try:
            covers, fold = ray.get(given[0])
        except ray.exceptions.RayError:
            return None
        try:
            self._fold.merge(fold)
        except AtollError as error:
            if not self._fold.odd:  # else it says so at the end, as in one process
                return error
        self._covers |= covers
        return self._covers

    def _model(self, call: _Call, version: int) -> Broadcast:
        import ray

        if call.number != self._call:
            self._call, self._models = call.number, {}
        if version not in self._models:
            self._models[version] = ray.get(call.models[version])
        return self._models[version]


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


def _names(item: Any) -> str:
    return item[1] if isinstance(item[1], str) else ", ".join(t.client for t in item[1])
