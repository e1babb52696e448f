"""Malicious clients in front of the server's own gate.

An executor for rehearsals: every client answers on this machine, some answers are tampered with, and all
of them go the way that answers from the wire go, through the same checks into the same fold. So what it
finds refused is what a deployment refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atoll.core.contracts import Outcome, Task
from atoll.core.errors import AtollError, UpdateRefused, WireError
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory, Update
from atoll.runtime.client import Parts, answer_task
from atoll.runtime.serial import SerialExecutor
from atoll.runtime.threads import Threads
from atoll.server.rounds.answers import read_answer
from atoll.server.rounds.folding import TrainFold, pattern_of
from atoll.wire.frames import encode
from atoll.wire.messages import ResultBody, TaskBody, read_body
from atoll.wire.metrics import metrics_to_plain

__all__ = ["TamperedExecutor"]

_PLAN = {"sha256": "0" * 64, "size": 0}


class TamperedExecutor:
    """Runs tasks in this process and folds them as the server does.

    Args:
        parts: what is fixed for the run.
        tamper: from the honest update of a client to what it sends; None for one that stays silent. A
            client that is not in it is honest.
    """

    def __init__(
        self, parts: Parts, tamper: Mapping[ClientId, Callable[[Update], Update] | None]
    ) -> None:
        self._parts = parts
        self._tamper = tamper
        self._threads = Threads()
        self._evaluator = SerialExecutor(parts)

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """See :class:`~atoll.core.contracts.Executor`."""
        frames: dict[str, bytes] = {}
        pattern = pattern_of(self._parts, tasks[0], broadcasts[tasks[0].version])
        fold = TrainFold(self._parts, pattern, len(tasks), lambda task: memoryview(frames[task]))
        outcomes, changed = list[Outcome](), dict[ClientId, Memory]()
        with self._threads.one():
            for task in tasks:
                memory = memories.get(task.client, {})
                outcome, kept = self._one(task, broadcasts[task.version], memory, fold, frames)
                outcomes.append(outcome)
                if kept:
                    changed[task.client] = kept
        return fold.aggregate(), outcomes, changed

    def _one(
        self,
        task: Task,
        broadcast: Broadcast,
        memory: Memory,
        fold: TrainFold,
        frames: dict[str, bytes],
    ) -> tuple[Outcome, Memory | None]:
        tamper = self._tamper.get(task.client, _honest)
        if tamper is None:
            return Outcome(task.client, "dropped", reason="says nothing"), None
        try:
            update, kept = answer_task(self._parts, task, broadcast, memory)
        except AtollError as error:
            return Outcome(task.client, "failed", reason=str(error)), None
        sent, asked = tamper(update), _task_body(task)
        try:
            said = _said(asked.id, sent)
            # A number that is no JSON cannot even be written into a frame; what reads it refuses it too.
            body = read_body(ResultBody, said)
            frames[asked.id] = encode(said, sent.vectors)
            _, arrays = read_answer(frames[asked.id], asked.id, fold.expected)
            fold.take(asked, body, arrays)
        except (UpdateRefused, WireError) as error:
            return Outcome(task.client, "refused", reason=str(error)), None
        return Outcome(task.client, "contributed", sent.examples), kept

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        """See :class:`~atoll.core.contracts.Executor`."""
        return self._evaluator.evaluate(parameters, clients, memories)

    def close(self) -> None:
        """Nothing to release."""


def _honest(update: Update) -> Update:
    return update


def _task_body(task: Task) -> TaskBody:
    raw = {
        "id": f"{task.client}.{task.version}.{task.repeat}".replace("/", "_"),
        "run": "rehearsal",
        "kind": "train",
        "number": task.version,
        "client": task.client,
        "version": task.version,
        "scale": task.scale,
        "fraction": task.fraction,
        "repeat": task.repeat,
        "plan": _PLAN,
    }
    return read_body(TaskBody, raw)


def _said(task: str, update: Update) -> dict[str, Any]:
    return {
        "task": task,
        "status": "done",
        "examples": update.examples,
        "weight": update.weight,
        "metrics": metrics_to_plain(update.metrics),
    }
