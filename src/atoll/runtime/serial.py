"""The serial executor: one task after another, in order. It is the definition of correct (D7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from threadpoolctl import ThreadpoolController

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory
from atoll.runtime.client import Parts, evaluate_client, fold_task

__all__ = ["SerialExecutor"]


class SerialExecutor:
    """Runs every task in this process.

    Linear-algebra threads are held at one, so that sums inside a product are formed in the same
    order as in a worker process.

    Args:
        parts: what is fixed for the run.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._threads = ThreadpoolController()

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """See :class:`~atoll.core.contracts.Executor`."""
        fold = Fold(len(tasks))
        outcomes: list[Outcome] = []
        changed: dict[ClientId, Memory] = {}
        with self._threads.limit(limits=1):
            for task in tasks:
                memory = memories.get(task.client, {})
                outcome, kept = fold_task(self._parts, task, broadcasts[task.version], memory, fold)
                outcomes.append(outcome)
                if kept is not None:
                    changed[task.client] = kept
        return fold.aggregate(), outcomes, changed

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        """See :class:`~atoll.core.contracts.Executor`."""
        with self._threads.limit(limits=1):
            return {
                c: evaluate_client(self._parts, parameters.parameters, c, memories.get(c, {}))
                for c in clients
            }

    def close(self) -> None:
        """Nothing to release."""
